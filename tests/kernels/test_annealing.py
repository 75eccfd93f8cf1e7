"""Schedules against their formulas in float64; the path against closed forms and differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import LinearGaussian, learned_temperatures, sigmoid, sigmoidal_temperatures

import tf_mcvae
from tf_mcvae.kernels.path import AnnealedPath
from tf_mcvae.layers.schedules import (
    SCHEDULES,
    LearnedSchedule,
    LinearSchedule,
    SigmoidalSchedule,
    get_schedule,
    sigmoid_temperatures,
)

PPCA = LinearGaussian()
LOGITS = [0.5, -1.0, 2.0, 0.1]
K = len(LOGITS)


def built(schedule, num_transitions=K):
    schedule.build(num_transitions)
    if isinstance(schedule, LearnedSchedule):
        schedule.logits.assign(np.resize(LOGITS, num_transitions))
    return schedule


def gradient_of_weighted_sum(schedule, variable, weights):
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(schedule.inverse_temperatures() * weights)
    return tape.gradient(total, variable.value).numpy()


# Schedules.


@pytest.mark.parametrize("num_transitions", [1, 2, 50])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_climb_from_0_to_1(name, num_transitions):
    values = built(SCHEDULES[name](), num_transitions).inverse_temperatures().numpy()
    assert values.shape == (num_transitions + 2,)
    assert values.dtype == np.float32
    assert values[0] == 0
    assert values[-1] == 1
    assert np.all(np.diff(values) > 0)


@pytest.mark.parametrize("num_transitions", [1, 4, 9])
def test_linear(num_transitions):
    values = built(LinearSchedule(), num_transitions).inverse_temperatures()
    expected = np.arange(num_transitions + 2) / (num_transitions + 1)
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("log_steepness", [-10.0, -3.0, 0.0, 1.5, 3.0])
def test_sigmoidal(log_steepness):
    schedule = built(SigmoidalSchedule(log_steepness))
    expected = sigmoidal_temperatures(np.exp(log_steepness), K)
    np.testing.assert_allclose(schedule.inverse_temperatures(), expected, rtol=1e-5, atol=1e-7)
    step, weights = 1e-4, np.arange(K + 2) ** 2.0
    ends = [sigmoidal_temperatures(np.exp(log_steepness + s), K) @ weights for s in (-step, step)]
    actual = gradient_of_weighted_sum(schedule, schedule.log_steepness, weights)
    np.testing.assert_allclose(actual, np.diff(ends)[0] / (2 * step), rtol=1e-3, atol=1e-5)


def test_sigmoidal_of_no_steepness_is_linear():
    """However far down training drives the steepness."""
    flat = built(SigmoidalSchedule(-40.0)).inverse_temperatures()
    np.testing.assert_allclose(flat, built(LinearSchedule()).inverse_temperatures(), rtol=1e-6)


def test_learned():
    schedule = LearnedSchedule()
    schedule.build(3)
    np.testing.assert_allclose(schedule.inverse_temperatures(), [0, 0.125, 0.25, 0.5, 1])
    schedule = built(LearnedSchedule())
    expected = learned_temperatures(LOGITS)
    np.testing.assert_allclose(schedule.inverse_temperatures(), expected, rtol=1e-6)
    # d b_k / d u_j = b_k (1 - sigmoid(u_j)) for j >= k.
    weights = np.arange(K + 2) ** 2.0
    partial = np.cumsum((weights * expected)[1:-1]) * (1 - sigmoid(LOGITS))
    actual = gradient_of_weighted_sum(schedule, schedule.logits, weights)
    np.testing.assert_allclose(actual, partial, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "count"),
    [
        (LinearSchedule(), 0),
        (SigmoidalSchedule(), 1),
        (SigmoidalSchedule(learnable=False), 0),
        (LearnedSchedule(), 1),
    ],
)
def test_what_is_trained(schedule, count):
    assert len(built(schedule).trainable_variables) == count


@pytest.mark.parametrize(
    "schedule",
    [LinearSchedule(), SigmoidalSchedule(0.7, learnable=False, name="s"), LearnedSchedule()],
)
def test_round_trips(schedule, tmp_path):
    """Through the configuration, and with its weights through a saved model."""
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert type(copy) is type(schedule)
    assert copy.get_config() == schedule.get_config()

    model = PPCA.model(tf_mcvae.LMCVAE, num_transitions=K, schedule=schedule)
    for variable in schedule.variables:
        variable.assign(tf.ones(variable.shape) * 0.3)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").schedule
    assert len(loaded.trainable_variables) == len(schedule.trainable_variables)
    np.testing.assert_array_equal(loaded.inverse_temperatures(), schedule.inverse_temperatures())


@pytest.mark.parametrize("name", SCHEDULES)
def test_get_schedule(name):
    schedule = get_schedule(name)
    assert type(schedule) is SCHEDULES[name]
    assert get_schedule(schedule) is schedule


@pytest.mark.parametrize("identifier", ["cosine", None, 3, LinearSchedule])
def test_no_such_schedule(identifier):
    with pytest.raises(ValueError, match=r"all_learnable.*linear.*sigmoidal.*Received: schedule="):
        get_schedule(identifier)


@pytest.mark.parametrize("num_temperatures", [1, 2, 1000])
@pytest.mark.parametrize("steepness", [0.1, 4.0, 12.0])
def test_sigmoid_temperatures(num_temperatures, steepness):
    values = sigmoid_temperatures(num_temperatures, steepness)
    expected = sigmoidal_temperatures(steepness, num_temperatures - 1)
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-9)
    assert values.dtype == np.float32
    assert (values[0], values[-1]) == (0, 1)
    assert np.all(np.diff(values) > 0)


# The path.


def test_endpoints_against_closed_forms():
    x = PPCA.data(3)
    z = np.random.default_rng(2).normal(size=[4, 3, 2])
    model = PPCA.model(tf_mcvae.VAE)
    ends = model.path(tf.constant(x), model.posterior(x)).endpoints(tf.constant(z, tf.float32))
    np.testing.assert_allclose(ends.log_q, PPCA.log_posterior(x, z), rtol=1e-4)
    np.testing.assert_allclose(ends.log_p, PPCA.log_joint(x, z), rtol=1e-4)
    for b in (0.0, 0.3, 1.0):
        expected = (1 - b) * PPCA.log_posterior(x, z) + b * PPCA.log_joint(x, z)
        np.testing.assert_allclose(ends.log_prob(b), expected, rtol=1e-4)
        expected = PPCA.score(x, z, b)
        np.testing.assert_allclose(ends.score(b), expected, rtol=1e-3, atol=1e-4)


WEIGHT = tf.Variable(np.random.default_rng(5).normal(size=[3, 4]))
CURVED = AnnealedPath(
    lambda z: -tf.reduce_sum(tf.cosh(z), -1),
    lambda z: -tf.reduce_sum(tf.square(tf.tanh(z @ WEIGHT) - 0.2), -1),
)
STATE = np.random.default_rng(6).normal(size=[2, 5, 3])


def slope(function, step=1e-5):
    return (function(step) - function(-step)) / (2 * step)


def test_scores_against_differences():
    ends = CURVED.endpoints(tf.constant(STATE))
    np.testing.assert_allclose(ends.score_q, -np.sinh(STATE), rtol=1e-12)
    for axis, along in enumerate(np.eye(3)):
        expected = slope(lambda s, along=along: CURVED.target_log_prob_fn(STATE + s * along))
        np.testing.assert_allclose(ends.score_p[..., axis], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("compiled", [False, True])
def test_second_order_against_differences(compiled):
    """The gradient of the score, with respect to the network's weights and to the state."""
    direction = np.random.default_rng(7).normal(size=STATE.shape)

    def projected(state):
        ends = CURVED.endpoints(state)
        return tf.reduce_sum(direction * ends.score(0.4)) + tf.reduce_sum(ends.log_prob(0.4))

    @tf.function(jit_compile=compiled)
    def gradients(state):
        with tf.GradientTape() as tape:
            tape.watch(state)
            total = projected(state)
        return tape.gradient(total, [WEIGHT, state])

    def value(weight_step=0.0, state_step=0.0):
        original = WEIGHT.numpy()
        WEIGHT.assign(original + weight_step)
        total = projected(tf.constant(STATE + state_step)).numpy()
        WEIGHT.assign(original)
        return total

    by_weight, by_state = gradients(tf.constant(STATE))
    rng = np.random.default_rng(8)
    for _ in range(3):
        along = rng.normal(size=WEIGHT.shape)
        expected = slope(lambda s, along=along: value(weight_step=s * along))
        np.testing.assert_allclose(np.sum(by_weight * along), expected, rtol=1e-6)
        along = rng.normal(size=STATE.shape)
        expected = slope(lambda s, along=along: value(state_step=s * along))
        np.testing.assert_allclose(np.sum(by_state * along), expected, rtol=1e-6)


def test_a_plain_target_has_a_constant_base():
    target = CURVED.target_log_prob_fn
    path = AnnealedPath.from_target(target)
    ends = path.endpoints(tf.constant(STATE))
    np.testing.assert_array_equal(ends.log_q, np.zeros([2, 5]))
    np.testing.assert_array_equal(ends.score_q, np.zeros([2, 5, 3]))
    np.testing.assert_allclose(ends.log_prob(1.0), target(STATE), rtol=1e-12)
    np.testing.assert_allclose(ends.score(0.5), 0.5 * ends.score_p, rtol=1e-12)
    assert AnnealedPath.from_target(path) is path
