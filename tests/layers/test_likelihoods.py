"""Likelihoods against NumPy float64 and TFP, their gradients, draws, and saving."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from modes import graph, xla

from tf_mcvae import random
from tf_mcvae.layers import likelihoods
from tf_mcvae.layers.likelihoods import Bernoulli, Gaussian, Likelihood

tfd = tfp.distributions
RNG = np.random.default_rng(0)
S, B, EVENT = 3, 5, (4, 6, 2)


@keras.saving.register_keras_serializable("tf_mcvae_tests")
class Laplace(Likelihood):
    """The smallest definition of a new likelihood."""

    def elementwise(self, parameters):
        return tfd.Laplace(parameters, 1.0)


@keras.saving.register_keras_serializable("tf_mcvae_tests")
class FourLevels(Likelihood):
    """Pixels 0, 1, 2, 3, with four logits a channel."""

    parameters_per_channel = 4
    support = "the integers 0 to 3"

    def elementwise(self, parameters):
        shape = tf.shape(parameters)
        logits = tf.reshape(parameters, tf.concat([shape[:-1], [shape[-1] // 4, 4]], 0))
        return tfd.Categorical(logits=logits, dtype=parameters.dtype)

    def from_uniform(self, parameters, uniform):
        # Without softmax, which supports at most 5 axes on a CPU.
        log_probs = self.elementwise(parameters).logits_parameter()
        log_probs -= tf.reduce_logsumexp(log_probs, axis=-1, keepdims=True)
        below = tf.cumsum(tf.exp(log_probs), axis=-1)
        return tf.reduce_sum(tf.cast(uniform[..., None] > below[..., :-1], parameters.dtype), -1)

    def in_support(self, x):
        return (x >= 0) & (x <= 3) & (x == tf.floor(x))


def numpy_bernoulli(parameters, x):
    return x * parameters - np.logaddexp(0.0, parameters)


def numpy_gaussian(parameters, x, scale=0.7):
    return -0.5 * ((x - parameters) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def numpy_laplace(parameters, x):
    return -abs(x - parameters) - math.log(2.0)


def numpy_four_levels(parameters, x):
    logits = parameters.reshape((*parameters.shape[:-1], -1, 4))
    logits = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(logits, np.broadcast_to(x, logits.shape[:-1])[..., None], -1)[..., 0]


BINARY = RNG.integers(0, 2, (B, *EVENT))
REAL = RNG.normal(size=(B, *EVENT))
LEVELS = RNG.integers(0, 4, (B, *EVENT))

# To test a new likelihood, add a line: how to create it, its float64 twin, data.
TABLE = {
    "bernoulli": (Bernoulli, numpy_bernoulli, BINARY),
    "gaussian": (lambda: Gaussian(0.7), numpy_gaussian, REAL),
    "learned gaussian": (lambda: Gaussian(0.7, learned=True), numpy_gaussian, REAL),
    "laplace": (Laplace, numpy_laplace, REAL),
    "four levels": (FourLevels, numpy_four_levels, LEVELS),
}
each = pytest.mark.parametrize(("make", "twin", "x"), TABLE.values(), ids=TABLE)


def parameters_for(likelihood, *leading):
    event = (*EVENT[:-1], EVENT[-1] * likelihood.parameters_per_channel)
    return RNG.normal(size=(*leading, *event)).astype(np.float32)


def modes():
    """Eager, graph and XLA execution."""
    return [lambda f: f, graph, xla]


@each
def test_log_prob_is_the_formula_summed_over_the_event(make, twin, x):
    likelihood = make()
    for leading in ((B,), (S, B)):
        parameters = parameters_for(likelihood, *leading)
        log_prob = likelihood.log_prob(parameters, tf.cast(x, tf.float32))
        expected = twin(parameters.astype(np.float64), x).sum((-3, -2, -1))
        assert log_prob.shape == leading
        np.testing.assert_allclose(log_prob, expected, rtol=1e-5)


@each
def test_log_prob_agrees_with_the_distribution(make, twin, x):
    likelihood = make()
    parameters = parameters_for(likelihood, S, B)
    distribution = likelihood.distribution(parameters)
    assert distribution.event_shape == EVENT
    assert distribution.batch_shape == (S, B)
    x = tf.cast(x, tf.float32)
    np.testing.assert_allclose(
        likelihood.log_prob(parameters, x), distribution.log_prob(x), rtol=1e-5
    )


@pytest.mark.parametrize("event", [(), (36,), (6, 6)])
def test_events_of_any_rank(event):
    x, logits = RNG.integers(0, 2, (B, *event)), RNG.normal(size=(S, B, *event))
    log_prob = Bernoulli().log_prob(tf.constant(logits), x)
    expected = numpy_bernoulli(logits, x).reshape((S, B, -1)).sum(-1)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-12)  # float64 stays float64


@each
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_parameters_are_computed_in_float32(make, twin, x, dtype):
    likelihood = make()
    half = tf.cast(parameters_for(likelihood, S, B), dtype)
    x = tf.cast(x, tf.float32)
    log_prob = likelihood.log_prob(half, x)
    assert log_prob.dtype == tf.float32
    np.testing.assert_array_equal(log_prob, likelihood.log_prob(tf.cast(half, tf.float32), x))
    assert likelihood.sample(half, 0).dtype == tf.float32


@each
def test_gradient_and_second_derivative_are_finite_differences(make, twin, x):
    likelihood, x = make(), tf.constant(x, tf.float64)
    if isinstance(likelihood, Laplace):
        pytest.skip("not differentiable where x equals the location")
    parameters = parameters_for(likelihood, B).astype(np.float64)
    direction = RNG.normal(size=parameters.shape)

    def slope(t):
        t = tf.constant(t, tf.float64)
        with tf.GradientTape() as outer:
            outer.watch(t)
            with tf.GradientTape() as inner:
                inner.watch(t)
                total = tf.reduce_sum(likelihood.log_prob(parameters + t * direction, x))
            first = inner.gradient(total, t)
        return total, first, outer.gradient(first, t)

    step = 1e-5
    (below, slope_below, _), (above, slope_above, _) = slope(-step), slope(step)
    _, first, second = slope(0.0)
    np.testing.assert_allclose(first, (above - below) / (2 * step), rtol=1e-6)
    np.testing.assert_allclose(second, (slope_above - slope_below) / (2 * step), rtol=1e-6)


def test_bernoulli_is_finite_at_extreme_logits():
    logits = np.array([-1e4, -100.0, -30.0, -1.0, 0.0, 1.0, 30.0, 100.0, 1e4], np.float32)
    probability = 1.0 / (1.0 + np.exp(-np.clip(logits.astype(np.float64), -700, 700)))

    def derivatives(logits, x):
        with tf.GradientTape() as outer:
            outer.watch(logits)
            with tf.GradientTape() as inner:
                inner.watch(logits)
                value = Bernoulli().log_prob(logits[:, None], x[:, None])
            first = inner.gradient(value, logits)
        return value, first, outer.gradient(first, logits)

    for x in (0.0, 1.0):
        data = np.full_like(logits, x)
        for mode in modes():
            value, first, second = mode(derivatives)(tf.constant(logits), tf.constant(data))
            np.testing.assert_allclose(value, numpy_bernoulli(logits, data), rtol=1e-6, atol=1e-5)
            np.testing.assert_allclose(first, x - probability, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(second, -probability * (1 - probability), atol=1e-7)


@each
def test_mean_is_that_of_the_distribution(make, twin, x):
    likelihood = make()
    if isinstance(likelihood, FourLevels):
        pytest.skip("a categorical distribution has no mean")
    parameters = parameters_for(likelihood, S, B)
    mean = likelihood.mean(parameters)
    expected = 1 / (1 + np.exp(-parameters)) if isinstance(likelihood, Bernoulli) else parameters
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    np.testing.assert_array_equal(likelihood(parameters), mean)


@each
def test_draws_follow_the_distribution(make, twin, x):
    """Mean and variance of 40,000 draws within 5 standard errors.

    Ten such statistics in all: a false alarm in 1 of 170,000 seeds.
    """
    likelihood = make()
    parameters = RNG.normal(size=(1, 1, 1, likelihood.parameters_per_channel)).astype(np.float32)
    draws = likelihood.sample(np.broadcast_to(parameters, (40_000, *parameters.shape[1:])), 1)
    draws = np.asarray(draws, np.float64).ravel()
    values = {Bernoulli: np.arange(2), FourLevels: np.arange(4)}
    grid = values.get(type(likelihood), np.linspace(-40.0, 40.0, 40_001))
    repeated = np.broadcast_to(parameters.astype(np.float64), (grid.size, *parameters.shape[1:]))
    density = np.exp(twin(repeated, grid.reshape(-1, 1, 1, 1))).ravel()
    density /= density.sum()
    mean = (density * grid).sum()
    moments = [(density * (grid - mean) ** power).sum() for power in (2, 4)]
    error = math.sqrt(moments[0] / draws.size)
    assert abs(draws.mean() - mean) < 5 * error
    error = math.sqrt((moments[1] - moments[0] ** 2) / draws.size)
    assert abs(((draws - mean) ** 2).mean() - moments[0]) < 5 * error + 1e-12


@each
def test_draws_are_equal_in_eager_graph_and_xla(make, twin, x):
    likelihood = make()
    parameters = tf.constant(parameters_for(likelihood, S, B))
    draws = [
        mode(lambda p, s: likelihood.sample(p, s))(parameters, tf.constant([1, 2]))
        for mode in modes()
    ]
    assert draws[0].shape == (S, B, *EVENT)
    np.testing.assert_allclose(draws[1], draws[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(draws[2], draws[0], rtol=1e-4, atol=1e-5)
    other = likelihood.sample(parameters, tf.constant([1, 3]))
    assert np.any(np.asarray(other) != np.asarray(draws[0]))


@pytest.mark.parametrize("leading", [(B,), (S, B)])
def test_a_seed_for_each_row_makes_rows_independent_of_each_other(leading):
    likelihood = Gaussian(0.7)
    parameters, seeds = parameters_for(likelihood, *leading), np.arange(2 * B).reshape(B, 2)
    together = likelihood.sample(parameters, random.per_row(seeds))
    row = [slice(None)] * (len(leading) - 1) + [slice(2, 3)]
    alone = likelihood.sample(parameters[tuple(row)], random.per_row(seeds[2:3]))
    np.testing.assert_allclose(together[tuple(row)], alone, rtol=1e-6)
    # No two rows are equal.
    noise = np.moveaxis(together - parameters, len(leading) - 1, 0)
    assert abs(noise[0] - noise[1]).min() > 0


ROWS = random.per_row(np.zeros((B, 2), np.int32))


def test_a_seed_for_each_row_needs_to_know_the_rows():
    with pytest.raises(ValueError, match=r"\[B, \*event\].*Received: parameters of shape"):
        Bernoulli().sample(tf.zeros([2, S, B, *EVENT]), ROWS)
    draws = Bernoulli().sample(tf.zeros([B, 36]), ROWS, event_ndims=1)
    assert draws.shape == (B, 36)
    np.testing.assert_array_equal(draws[0], draws[1])  # equal seeds, equal rows


@each
def test_shapes_that_would_broadcast_silently_are_refused(make, twin, x):
    likelihood, x = make(), tf.cast(x, tf.float32)
    parameters = parameters_for(likelihood, S, B)
    for wrong in (parameters[..., :1], parameters[..., :1, :, :], parameters[..., None]):
        with pytest.raises(ValueError, match=r"last axes are.*Received: parameters of shape"):
            likelihood.log_prob(wrong, x)


def test_support():
    Bernoulli().check_support(np.array([0.0, 0.5, 1.0]))
    Gaussian().check_support(np.array([-3.0, 3.0]))
    FourLevels().check_support(LEVELS)
    for likelihood, bad in (
        (Bernoulli(), np.array([0, 255], np.uint8)),
        (Bernoulli(), np.array([0.0, np.nan])),
        (Gaussian(), np.array([0.0, np.inf])),
        (FourLevels(), np.array([0.5])),
    ):
        name = type(likelihood).__name__
        with pytest.raises(ValueError, match=f"The {name} likelihood needs .*Received: x"):
            likelihood.check_support(bad)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, "wide", None])
def test_gaussian_refuses_scales_that_are_none(scale):
    with pytest.raises(ValueError, match=r"`scale` must be a positive number\. Received: scale="):
        Gaussian(scale)


def test_learned_scale_has_the_gradient_of_the_density():
    likelihood = Gaussian(0.7, learned=True)
    loc = parameters_for(likelihood, B)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(likelihood.log_prob(loc, tf.cast(REAL, tf.float32)))
    (gradient,) = tape.gradient(total, [v.value for v in likelihood.trainable_variables])
    np.testing.assert_allclose(gradient, (((REAL - loc) / 0.7) ** 2 - 1).sum(), rtol=1e-5)
    assert Gaussian(0.7).trainable_variables == []


def test_learned_scale_goes_to_the_root_mean_square_error():
    likelihood, x = Gaussian(2.0, learned=True), tf.constant(REAL, tf.float32)
    optimizer = keras.optimizers.Adam(0.05)
    for _ in range(200):
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(likelihood.log_prob(tf.zeros_like(x), x))
        variables = likelihood.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
    np.testing.assert_allclose(likelihood.scale, math.sqrt((REAL**2).mean()), rtol=1e-3)


def test_learned_scale_is_not_rounded_within_a_mixed_precision_model():
    class Scale(keras.layers.Layer):
        def __init__(self):
            super().__init__(dtype="mixed_bfloat16")
            self.likelihood = Gaussian(0.7, learned=True)

        def call(self, inputs):
            return inputs, self.likelihood.scale

    _, scale = Scale()(tf.zeros([1]))
    assert scale.dtype == tf.float32
    np.testing.assert_allclose(scale, 0.7, rtol=1e-6)


@each
def test_config_round_trip(make, twin, x):
    likelihood = make()
    for copy in (
        likelihoods.get(keras.saving.serialize_keras_object(likelihood)),
        likelihoods.get({"class_name": keras.saving.get_registered_name(type(likelihood))})
        if likelihood.get_config().get("scale") is None
        else type(likelihood).from_config(likelihood.get_config()),
    ):
        assert type(copy) is type(likelihood)
        parameters, data = parameters_for(likelihood, B), tf.cast(x, tf.float32)
        np.testing.assert_array_equal(
            copy.log_prob(parameters, data), likelihood.log_prob(parameters, data)
        )
    assert likelihoods.get(likelihood) is likelihood


@each
def test_saved_and_loaded_within_a_model(make, twin, x, tmp_path):
    likelihood = make()
    if isinstance(likelihood, FourLevels):
        pytest.skip("a categorical distribution has no mean")
    model = keras.Sequential([keras.Input(EVENT), likelihood])
    for variable in likelihood.trainable_variables:
        variable.assign(variable + 0.25)  # as if trained
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").layers[-1]
    parameters, data = parameters_for(likelihood, B), tf.cast(x, tf.float32)
    np.testing.assert_array_equal(
        loaded.log_prob(parameters, data), likelihood.log_prob(parameters, data)
    )


def test_get_by_name():
    assert type(likelihoods.get("bernoulli")) is Bernoulli
    assert type(likelihoods.get("Gaussian")) is Gaussian
    assert type(likelihoods.get("tf_mcvae_tests>Laplace")) is Laplace
    short = likelihoods.get({"class_name": "gaussian", "config": {"scale": 0.6}})
    assert short.initial_scale == 0.6


def test_get_says_what_it_takes():
    with pytest.raises(ValueError, match=r"\['bernoulli', 'gaussian'\].*Received.*'binomial'"):
        likelihoods.get("binomial")
    for wrong in (3, None, {"name": "bernoulli"}, keras.layers.ReLU()):
        with pytest.raises(TypeError, match="must be a name, a configuration or a `Likelihood`"):
            likelihoods.get(wrong)
