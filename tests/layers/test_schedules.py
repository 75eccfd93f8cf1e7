"""Schedules against their formulas in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import LinearGaussian, learned_temperatures, sigmoid, sigmoidal_temperatures

import tf_mcvae
from tf_mcvae.layers.schedules import (
    SCHEDULES,
    LearnedSchedule,
    LinearSchedule,
    Schedule,
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


def test_learned_may_start_linear():
    for num_transitions in (0, 1, 40):
        schedule = LearnedSchedule("linear")
        schedule.build(num_transitions)
        expected = np.linspace(0.0, 1.0, num_transitions + 2)
        np.testing.assert_allclose(schedule.inverse_temperatures(), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"'halving' or 'linear'.*Received: start='geometric'"):
        LearnedSchedule("geometric")


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
    [
        LinearSchedule(),
        SigmoidalSchedule(0.7, learnable=False, name="s"),
        LearnedSchedule("linear"),
    ],
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


@pytest.mark.parametrize("value", [-1e38, -100.0, 39.0, 100.0, 1e38])
@pytest.mark.parametrize("num_transitions", [3, 4])
@pytest.mark.parametrize("name", ["sigmoidal", "all_learnable"])
def test_extreme_weights_give_the_limits(name, num_transitions, value):
    """Values and gradients: a straight line or a step, and the first or the last ratio."""
    schedule = SCHEDULES[name]()
    schedule.build(num_transitions)
    (variable,) = schedule.trainable_variables
    variable.assign(tf.fill(variable.shape, value))
    grid = np.linspace(0.0, 1.0, num_transitions + 2)
    ends = 1.0 * (grid == 1.0) if value < 0 else 1.0 * (grid > 0.0)
    steep = grid if value < 0 else np.heaviside(grid - 0.5, 0.5)
    expected = steep if name == "sigmoidal" else ends
    np.testing.assert_allclose(schedule.inverse_temperatures(), expected, atol=1e-6)
    weights = np.arange(num_transitions + 2) ** 2.0
    assert np.all(np.abs(gradient_of_weighted_sum(schedule, variable, weights)) < 1e-6)


class Given(Schedule):
    """A user's schedule, whose method takes no number of transitions."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def inverse_temperatures(self):
        return tf.constant(self.values)


@pytest.mark.parametrize(
    "values",
    [
        [0.1, 0.3, 0.6, 1.0],
        [0.0, 0.3, 0.6, 0.9],
        [0.0, 0.6, 0.3, 1.0],
        [0.0, 0.5, 1.0],
        [0.0, np.nan, 0.6, 1.0],
        [[0.0, 0.3, 0.6, 1.0]],
    ],
)
def test_schedules_that_do_not_go_from_0_to_1(values):
    with pytest.raises(ValueError, match=r"Given must be 4 finite.*begin with 0.*Received: \["):
        PPCA.model(tf_mcvae.LMCVAE, num_transitions=2, schedule=Given(values))


def test_learned_values_are_checked_when_the_model_is_built():
    schedule = LearnedSchedule()
    schedule.build(2)
    schedule.logits.assign([0.0, np.nan])
    with pytest.raises(ValueError, match=r"LearnedSchedule must be 4 finite.*Received: \["):
        PPCA.model(tf_mcvae.AMCVAE, num_transitions=2, schedule=schedule)


def test_a_schedule_for_its_own_number_of_transitions_only():
    model = PPCA.model(tf_mcvae.LMCVAE, num_transitions=2, schedule=Given([0.0, 0.3, 0.6, 1.0]))
    x = PPCA.data(2)
    assert model.bound(x, seed=1, num_transitions=2).shape == (2,)
    with pytest.raises(ValueError, match=r"Given has .* 2 transitions only.*Received: .*=3"):
        model.bound(x, seed=1, num_transitions=3)
