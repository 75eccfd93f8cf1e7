"""Step sizes: the rules reach their targets, and write nothing that is not finite."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import tf_mcvae
from tf_mcvae import StepSize
from tf_mcvae.models.statistics import TransitionStatistics, pool_statistics

ADAPTED = ["acceptance", "published_acceptance", "variance"]


def layer(rule, initial, *args, num_transitions=2, latent_dim=3, **kwargs):
    step_size = StepSize(initial, rule, *args, **kwargs)
    step_size.build(num_transitions, latent_dim)
    return step_size


def acceptance_of(step_size):
    """Acceptance of Langevin transitions as their dimension grows; 0.9 at a step size of 0.25."""
    return 2.0 * scipy.stats.norm.sf(np.sqrt(step_size / 0.25) * 0.1257)


@pytest.mark.parametrize("num_states", [1, 50])
@pytest.mark.parametrize("target", [0.65, 0.9])
@pytest.mark.parametrize("per_dimension", [False, True])
def test_acceptance_reaches_its_target_from_a_start_30_times_off(target, num_states, per_dimension):
    """In the mean of 100 transitions; with one state, an update's acceptance is 0 or 1."""
    right = 0.25 * (scipy.stats.norm.isf(target / 2) / 0.1257) ** 2
    rng = np.random.default_rng(0)
    starts = right * np.repeat([1 / 30, 30.0], 100)
    shape = [0.5, 2.0] if per_dimension else [1.0]
    initial = starts[:, np.newaxis] * shape if per_dimension else starts
    limits = (1e-6, 1e6)
    steps = layer("acceptance", initial, target, limits=limits, num_transitions=200, latent_dim=2)
    update = tf.function(lambda a: steps.update(a, tf.ones([200, 2])), autograph=False)
    for _ in range(200):
        scale = np.reshape(steps.values().numpy(), [200, -1])[:, 0] / shape[0]
        accepted = rng.binomial(num_states, acceptance_of(scale)) / num_states
        update(tf.constant(accepted, tf.float32))
    scale = np.reshape(steps.values().numpy(), [200, -1]) / shape
    np.testing.assert_allclose(scale[:, 0], scale[:, -1], rtol=1e-4)
    means = np.mean(acceptance_of(scale[:, 0]).reshape(2, 100), axis=1)
    np.testing.assert_allclose(means, target, atol=0.03)
    assert list(steps.num_updates.numpy()) == [200] * 200


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [tf_mcvae.LMCVAE, tf_mcvae.AMCVAE])
@pytest.mark.parametrize("start", [0.42 / 30, 0.42 * 30])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_models_reach_their_target(model_class, start, batch_size):
    """The acceptance of 0.9 belongs to a step size of 0.42 here."""
    keras.utils.set_random_seed(0)
    x = (np.random.default_rng(0).random([512, 16]) < np.linspace(0.1, 0.9, 16)).astype("float32")
    options = {"architecture": "dense", "hidden_units": (16,)}
    networks = tf_mcvae.Encoder(2, **options), tf_mcvae.Decoder((16,), **options)
    steps = StepSize(start, "acceptance", 0.9)
    model = model_class(*networks, num_transitions=3, num_samples=1, step_size=steps)
    model.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices(x).repeat().batch(batch_size)
    model.fit(data, steps_per_epoch=200, verbose=0)
    acceptance = model.evaluate(x, batch_size=512, verbose=0, return_dict=True)["acceptance"]
    assert acceptance == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("rule", ADAPTED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_only_finite_numbers_are_written(rule, bad):
    """The first transition's statistics are not finite; the second's change its step size."""
    good, ones = np.ones([2], "float32"), np.ones([2, 3], "float32")
    spoiled = [(np.array([bad, 1.0], "float32"), ones)]
    if rule == "variance":
        spoiled.append((good, np.array([[1.0, bad, 1.0], [1.0, 1.0, 1.0]], "float32")))
    for acceptance, score_std in spoiled:
        steps = layer(rule, 0.1)
        before = [weight.numpy() for weight in steps.weights]
        steps.update(tf.constant(acceptance), tf.constant(score_std))
        for weight, old in zip(steps.weights, before, strict=True):
            assert np.all(weight.numpy()[0] == old[0])
            assert np.all(weight.numpy()[1] != old[1])


def test_a_factor_that_overflows_is_not_written():
    steps = layer("variance", 0.1)
    steps.variance_scale.assign([3.4e38, 3.4e38])
    steps.update(tf.ones([2]), tf.ones([2, 3]))
    assert all(np.all(np.isfinite(weight.numpy())) for weight in steps.weights)


def statistics(scores):
    """Statistics of scores `[K, S, B, D]`."""
    zeros = np.zeros(scores.shape[:3], "float32")
    flat = scores.reshape(len(scores), -1, scores.shape[-1])
    size = flat.shape[1]
    mean = flat.mean(1) if size else np.full([len(scores), 3], np.nan, "float32")
    std = flat.std(1, ddof=1) if size > 1 else 0.0 * mean
    arrays = [zeros.astype(bool), zeros, mean, std, zeros]
    return TransitionStatistics(*map(tf.constant, arrays))


@pytest.mark.parametrize("sizes", [(1,), (1, 0), (0, 1), (1, 1), (3, 1, 0)])
def test_pooled_spread_of_few_states(sizes):
    scores = np.random.default_rng(0).normal(size=[2, 1, sum(sizes), 3]).astype("float32")
    parts = np.split(scores, np.cumsum(sizes)[:-1], axis=2)
    _, spread = pool_statistics([statistics(part) for part in parts])
    expected = scores[:, 0].std(1, ddof=1) if sum(sizes) > 1 else np.zeros([2, 3])
    np.testing.assert_allclose(spread, expected, rtol=1e-5)


def test_an_acceptance_rule_without_limits_is_that_of_the_first_release():
    config = StepSize(0.1, "acceptance", 0.8).get_config()
    assert StepSize.from_config(config).get_config() == config
    del config["limits"]
    old = StepSize.from_config({**config, "initial": [0.0, 0.3]})
    assert (old.rule, old.limits, old.target_acceptance) == (
        "published_acceptance",
        (1e-3, 0.5),
        0.8,
    )
    np.testing.assert_allclose(old.initial, [1e-3, 0.3])


def test_limits_hold():
    steps = layer("acceptance", [0.1, 0.7], limits=(0.1, 0.7))
    steps.update(tf.constant([0.0, 1.0]), tf.ones([2, 3]))
    np.testing.assert_allclose(steps.values(), [0.1, 0.7])
    assert StepSize.from_config(steps.get_config()).limits == (0.1, 0.7)


SHAPES = {
    "own": ({"initial": [0.1, 0.2]}, [2]),
    "own per dimension": ({"initial": [0.1, 0.2], "per_dimension": True}, [2, 3]),
    "own, of two axes": ({"initial": [[0.1, 0.2, 0.3]]}, [2, 3]),
    "shared": ({"per_transition": False}, [1]),
    "shared per dimension": ({"per_transition": False, "per_dimension": True}, [1, 3]),
    "shared, of two axes": ({"initial": [[0.1, 0.2, 0.3]], "per_transition": False}, [1, 3]),
}


@pytest.mark.parametrize("rule", ["fixed", "learned"])
@pytest.mark.parametrize("case", SHAPES)
def test_what_transitions_and_dimensions_share(case, rule):
    arguments, shape = SHAPES[case]
    initial = np.asarray(arguments.get("initial", 0.1))
    column = initial[:, np.newaxis] if initial.ndim == 1 and len(shape) == 2 else initial
    config = StepSize(**{"initial": 0.1, **arguments}, rule=rule).get_config()
    steps = StepSize.from_config(config)
    assert steps.get_config() == config
    steps.build(2, 3)
    assert [list(weight.shape) for weight in steps.weights] == [shape]
    expected = np.broadcast_to(column, [2, *shape[1:]])
    np.testing.assert_allclose(steps.values(), expected, rtol=1e-6)


def test_a_configuration_without_the_keys_means_what_it_meant():
    for initial, shape in (([0.1, 0.2], [2]), ([[0.1, 0.2, 0.3]], [2, 3])):
        config = StepSize(initial, "learned").get_config()
        del config["per_transition"], config["per_dimension"]
        steps = StepSize.from_config(config)
        steps.build(2, 3)
        assert list(steps.log_step_size.shape) == shape


@pytest.mark.parametrize("limits", [(0.0, 0.5), (0.01, 0.2)])
def test_learned_step_sizes_stay_within_limits(limits):
    """With `e = low + (high - low) sigmoid(w)`, `de/dw = (e - low) (high - e) / (high - low)`."""
    config = StepSize([0.02, 0.15], "learned", limits=limits).get_config()
    steps = StepSize.from_config(config)
    assert steps.get_config() == config
    steps.build(2, 3)
    with tf.GradientTape() as tape:
        values = steps.values()
    gradient = tape.gradient(values, steps.trainable_variables[0])
    start, (low, high) = np.array([0.02, 0.15]), limits
    np.testing.assert_allclose(values, start, rtol=1e-6)
    np.testing.assert_allclose(gradient, (start - low) * (high - start) / (high - low), rtol=1e-5)
    steps.logit_step_size.assign([-40.0, 40.0])
    np.testing.assert_allclose(steps.values(), limits, atol=1e-7)


def test_a_shared_step_size_is_trained_and_serves_other_numbers_of_transitions():
    """A gradient with respect to it is the sum of those with respect to separate ones."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).random([8, 16]).astype("float32")
    options = {"architecture": "dense", "hidden_units": (16,)}
    networks = tf_mcvae.Encoder(2, **options), tf_mcvae.Decoder((16,), **options)
    gradients = []
    for per_transition in (False, True):
        steps = StepSize(0.1, "learned", per_transition=per_transition, limits=(0.0, 0.5))
        model = tf_mcvae.LMCVAE(*networks, num_transitions=3, num_samples=1, step_size=steps)
        with tf.GradientTape() as tape:
            log_weights = model.log_weights(x, seed=1, num_samples=2)
        gradients.append(tape.gradient(log_weights, steps.trainable_variables[0]).numpy())
        assert model.log_weights(x, seed=1, num_samples=2, num_transitions=5).shape == (2, 8)
    np.testing.assert_allclose(gradients[0], [gradients[1].sum()], rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial": 0.0, "rule": "acceptance"}, "within its limits, 1e-08 and 100.*Received: 0.0"),
        ({"initial": [0.1, 0.6], "rule": "published_acceptance"}, "0.001 and 0.5.*Received: .*0.6"),
        ({"rule": "variance", "limits": (0.1, 1.0)}, "for the rules 'learned'.*rule='variance'"),
        ({"rule": "acceptance", "limits": (1.0, 0.1)}, "increasing.*Received: limits=.1.0, 0.1"),
        ({"rule": "acceptance", "limits": (0.0, 1.0)}, "above 0.*Received: limits="),
        ({"rule": "learned", "limits": (-0.1, 1.0)}, "not negative.*Received: limits="),
        (
            {"initial": 0.5, "rule": "learned", "limits": (0.0, 0.5)},
            "above 0 and below 0.5.*Received: 0.5",
        ),
        ({"rule": "acceptance", "per_transition": False}, "'fixed' or 'learned'.*Received: per_tr"),
        ({"initial": [0.1, 0.2], "per_transition": False}, "a scalar.*Received: .*shape .2,"),
        ({"rule": "acceptance", "limits": (0.1, np.inf)}, "finite.*Received: limits="),
        ({"rule": "acceptance", "target_acceptance": np.nan}, "between 0 and 1.*Received"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        StepSize(**arguments)
