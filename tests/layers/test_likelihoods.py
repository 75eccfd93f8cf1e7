"""Likelihoods against NumPy float64 and TFP, their gradients, draws, and saving."""

import math

import keras
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp
from modes import graph, xla

import tf_mcvae
from tf_mcvae import random
from tf_mcvae.layers import likelihoods
from tf_mcvae.layers.likelihoods import (
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogisticMixture,
    Gaussian,
    Likelihood,
    LogNormal,
    NegativeBinomial,
    Poisson,
    StudentT,
    ZeroInflated,
    named,
)

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


def numpy_continuous_bernoulli(parameters, x):
    # log (exp(l) - 1) / l, of either sign.
    size = np.maximum(abs(parameters), 1e-9)
    integral = np.maximum(parameters, 0.0) + np.log(-np.expm1(-size) / size)
    return x * parameters - integral


def numpy_predicted_gaussian(parameters, x):
    loc, log_ratio = np.split(parameters, 2, -1)
    return scipy.stats.norm.logpdf(x, loc, 0.7 * np.exp(log_ratio))


def numpy_beta(parameters, x):
    logits, log_concentration = np.split(parameters, 2, -1)
    mean, concentration = scipy.special.expit(logits), np.exp(log_concentration)
    return scipy.stats.beta.logpdf(x, mean * concentration, (1 - mean) * concentration)


def numpy_negative_binomial(parameters, x, number=3.0):
    return scipy.stats.nbinom.logpmf(x, number, number / (number + np.exp(parameters)))


def numpy_predicted_negative_binomial(parameters, x):
    log_mean, log_ratio = np.split(parameters, 2, -1)
    return numpy_negative_binomial(log_mean, x, 3.0 * np.exp(log_ratio))


def numpy_zero_inflated(counts):
    def twin(parameters, x):
        num_features = x.shape[-1]
        share = scipy.special.expit(parameters[..., -num_features:])
        other = np.exp(counts(parameters[..., :-num_features], x))
        with np.errstate(divide="ignore"):
            return np.log(share * (x == 0) + (1 - share) * other)

    return twin


def numpy_one_hot(parameters, x):
    return x * scipy.special.log_softmax(parameters, axis=-1)


def numpy_levels(parameters, x, num_components=2, num_levels=5):
    """With bins of float64, whose differences need no care at moderate parameters."""
    each = parameters.reshape((*parameters.shape[:-1], -1, 3 * num_components))
    logits, loc, log_scale = np.split(each, 3, -1)
    half, level = 1 / (num_levels - 1), 2 * x[..., None] - 1
    scale = np.exp(log_scale)
    above = np.where(level > 1 - half, 1.0, scipy.special.expit((level + half - loc) / scale))
    below = np.where(level < half - 1, 0.0, scipy.special.expit((level - half - loc) / scale))
    return np.log(np.sum(scipy.special.softmax(logits, -1) * (above - below), axis=-1))


def numpy_poisson(parameters, x):
    return scipy.stats.poisson.logpmf(x, np.exp(parameters))


def binomial():
    return NegativeBinomial(3.0)


BINARY = RNG.integers(0, 2, (B, *EVENT))
REAL = RNG.normal(size=(B, *EVENT))
LEVELS = RNG.integers(0, 4, (B, *EVENT))
SHARES = RNG.uniform(0.01, 0.99, size=(B, *EVENT))
POSITIVE = np.exp(REAL)
GREYS = RNG.integers(0, 5, (B, *EVENT)) / 4
COUNTS = RNG.poisson(2.0, size=(B, *EVENT))

# To test a new likelihood, add a line: how to create it, its float64 twin, data.
TABLE = {
    "bernoulli": (Bernoulli, numpy_bernoulli, BINARY),
    "gaussian": (lambda: Gaussian(0.7), numpy_gaussian, REAL),
    "learned gaussian": (lambda: Gaussian(0.7, learned=True), numpy_gaussian, REAL),
    "predicted gaussian": (
        lambda: Gaussian(0.7, "predicted"),
        numpy_predicted_gaussian,
        REAL,
    ),
    "continuous bernoulli": (ContinuousBernoulli, numpy_continuous_bernoulli, SHARES),
    "lognormal": (
        lambda: LogNormal(0.7),
        lambda p, x: scipy.stats.lognorm.logpdf(x, 0.7, scale=np.exp(p)),
        POSITIVE,
    ),
    "student t": (
        lambda: StudentT(0.7, degrees_of_freedom=9.0),
        lambda p, x: scipy.stats.t.logpdf(x, 9.0, p, 0.7),
        REAL,
    ),
    "beta": (Beta, numpy_beta, SHARES),
    "poisson": (Poisson, numpy_poisson, COUNTS),
    "negative binomial": (binomial, numpy_negative_binomial, COUNTS),
    "predicted negative binomial": (
        lambda: NegativeBinomial(3.0, "predicted"),
        numpy_predicted_negative_binomial,
        COUNTS,
    ),
    "zero-inflated poisson": (
        lambda: ZeroInflated(Poisson()),
        numpy_zero_inflated(numpy_poisson),
        COUNTS,
    ),
    "zero-inflated negative binomial": (
        lambda: ZeroInflated(binomial()),
        numpy_zero_inflated(numpy_negative_binomial),
        COUNTS,
    ),
    "categorical": (lambda: Categorical(4), numpy_four_levels, LEVELS),
    "one-hot": (Categorical, numpy_one_hot, np.eye(2)[BINARY[..., 0]]),
    "logistic mixture": (
        lambda: DiscretizedLogisticMixture(2, 5),
        numpy_levels,
        GREYS,
    ),
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


def grid_of(likelihood):
    """Values that cover the support, equally spaced."""
    levels = {Bernoulli: 2, FourLevels: 4, Categorical: 4}
    if type(likelihood) in levels:
        return np.arange(levels[type(likelihood)])
    if isinstance(likelihood, DiscretizedLogisticMixture):
        return np.linspace(0.0, 1.0, likelihood.num_levels)
    if likelihood.takes_integers:
        return np.arange(3000.0)
    takes = [bool(likelihood.in_support(tf.constant(value))) for value in (-1.0, 2.0)]
    low, high = {(True, True): (-60, 60), (False, True): (0, 400), (False, False): (0, 1)}[*takes]
    middles = (np.arange(400_000) + 0.5) / 400_000
    return low + (high - low) * middles


def moments_of(likelihood, twin, parameters):
    """Mean, variance and fourth central moment of one element, by sums over a grid."""
    grid = grid_of(likelihood)
    repeated = np.broadcast_to(parameters.astype(np.float64), (grid.size, *parameters.shape[1:]))
    density = np.exp(twin(repeated, grid.reshape(-1, 1, 1, 1))).ravel()
    density /= density.sum()
    mean = (density * grid).sum()
    return mean, *((density * (grid - mean) ** power).sum() for power in (2, 4))


def one_element(likelihood):
    rng = np.random.default_rng(3)
    shape = (1, 1, 1, likelihood.parameters_per_channel)
    parameters = 0.7 * rng.normal(size=shape)
    if isinstance(likelihood, Beta):
        parameters[..., 1] += 4.0  # Without poles, which the sums of `moments_of` would miss.
    return parameters.astype(np.float32)


@each
def test_mean_is_that_of_the_distribution(make, twin, x):
    likelihood = make()
    if isinstance(likelihood, FourLevels | Categorical):
        pytest.skip("categories have no mean")
    parameters = one_element(likelihood)
    mean, *_ = moments_of(likelihood, twin, parameters)
    np.testing.assert_allclose(likelihood.mean(parameters).numpy().ravel(), [mean], rtol=2e-5)
    assert likelihood.mean(parameters_for(likelihood, S, B)).shape == (S, B, *EVENT)
    np.testing.assert_array_equal(likelihood(parameters), likelihood.mean(parameters))


@each
def test_draws_follow_the_distribution(make, twin, x):
    """Mean and variance of 40,000 draws within 5 standard errors.

    Two such statistics of each likelihood: for 20 likelihoods, a false alarm in 1 of 40,000 seeds.
    """
    likelihood = make()
    if likelihood.support.startswith("one-hot"):
        pytest.skip("no distribution of single elements: see the next test")
    parameters = one_element(likelihood)
    draws = likelihood.sample(np.broadcast_to(parameters, (40_000, *parameters.shape[1:])), 1)
    draws = np.asarray(draws, np.float64).ravel()
    assert np.all(likelihood.in_support(tf.constant(draws, tf.float32)))
    mean, variance, fourth = moments_of(likelihood, twin, parameters)
    assert abs(draws.mean() - mean) < 5 * math.sqrt(variance / draws.size)
    error = math.sqrt((fourth - variance**2) / draws.size)
    assert abs(((draws - mean) ** 2).mean() - variance) < 5 * error + 1e-12


def test_one_hot_vectors():
    """Frequencies of 40,000 draws within 5 standard errors: a false alarm in 600,000 seeds."""
    likelihood, logits = Categorical(), np.array([0.5, -1.0, 1.5], np.float32)
    probs = scipy.special.softmax(logits)
    draws = likelihood.sample(np.broadcast_to(logits, (40_000, 3)), 1, event_ndims=1).numpy()
    assert set(np.unique(draws)) == {0.0, 1.0}
    assert np.all(draws.sum(1) == 1.0)
    errors = np.sqrt(probs * (1 - probs) / len(draws))
    assert np.all(abs(draws.mean(0) - probs) < 5 * errors)
    np.testing.assert_allclose(likelihood.mean(logits[None])[0], probs, rtol=1e-6)
    with pytest.raises(ValueError, match="one-hot vectors in the last axis"):
        likelihood.check_support(np.array([[1.0, 1.0, 0.0]]))


def test_the_mean_of_numbered_categories_is_the_most_probable():
    parameters = np.array([[0.0, 2.0, 1.0, 3.0, 2.0, 1.0]], np.float32)
    np.testing.assert_array_equal(Categorical(3).mean(parameters), [[1.0, 0.0]])


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
        type(likelihood).from_config(likelihood.get_config()),
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
    assert short.initial == 0.6


def test_get_says_what_it_takes():
    with pytest.raises(
        ValueError, match=r"\['bernoulli', .*'gaussian', .*\].*Received.*'binomial'"
    ):
        likelihoods.get("binomial")
    for wrong in (3, None, {"name": "bernoulli"}, keras.layers.ReLU()):
        with pytest.raises(TypeError, match="must be a name, a configuration or a `Likelihood`"):
            likelihoods.get(wrong)


def model_with(likelihood):
    networks = tf_mcvae.Encoder(2, "dense"), tf_mcvae.Decoder((3,), "dense")
    return tf_mcvae.VAE(*networks, likelihood=likelihood)


class WithoutQuantile(Likelihood):
    def elementwise(self, parameters):
        return tfd.VonMises(parameters, 1.0)


class WithoutMean(Likelihood):
    def elementwise(self, parameters):
        return tfd.Cauchy(parameters, 1.0)

    def mean(self, parameters):
        raise NotImplementedError("a Cauchy distribution has no mean")


class OutsideItself(Likelihood):
    def elementwise(self, parameters):
        return tfd.Normal(parameters, 1.0)

    def in_support(self, x):
        return x > 100.0


class OfOneElement(Likelihood):
    def elementwise(self, parameters):
        return tfd.Normal(parameters[..., :1], 1.0)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Likelihood, r"`sample` of the Likelihood .*define `from_uniform`.*NotImplementedError"),
        (WithoutQuantile, r"`sample` of the WithoutQuantile .*define `from_uniform`"),
        (WithoutMean, r"`mean` of the WithoutMean .*Received: .*Cauchy"),
        (OutsideItself, r"draws values that its `in_support` refuses.*Received: a draw from"),
        (OfOneElement, r"`mean` of the OfOneElement .*shape \(1, 1\), not \(1, 3\)"),
    ],
)
def test_what_a_likelihood_lacks_is_said_when_a_model_is_built(cls, message):
    with pytest.raises(ValueError, match=message):
        model_with(cls()).build((None, 3))


def exact_negative_binomial(log_mean, number, x):
    """Without the products of probabilities near 0 and 1 that SciPy's parameters would need."""
    ratio = np.exp(log_mean) / number
    choose = -np.log(x + number) - scipy.special.betaln(x + 1.0, number)
    return choose - number * np.log1p(ratio) + x * (np.log(ratio) - np.log1p(ratio))


EXTREME_COUNTS = np.array([0.0, 1.0, 5.0, 100.0, 1e4, 1e6])
EXTREME_MEANS = np.float32(np.linspace(-15.0, 12.0, 28)).astype(np.float64)[:, None]
EXTREME_LOGITS = np.float32([-1e3, -30.0, -5.0, -0.5, -1e-3, 1e-3, 0.4, 5.0, 1e3])[:, None]
UNIT = np.float32(np.linspace(0.01, 0.99, 9)).astype(np.float64)


@pytest.mark.parametrize(
    ("likelihood", "parameters", "x", "expected"),
    [
        pytest.param(
            NegativeBinomial(number),
            EXTREME_MEANS,
            EXTREME_COUNTS,
            exact_negative_binomial(EXTREME_MEANS, number, EXTREME_COUNTS),
            id=f"negative binomial {number:g}",
        )
        for number in (1e-3, 0.1, 1.0, 30.0, 1e4)
    ]
    + [
        pytest.param(
            Poisson(),
            EXTREME_MEANS,
            EXTREME_COUNTS,
            EXTREME_COUNTS * EXTREME_MEANS
            - np.exp(EXTREME_MEANS)
            - scipy.special.gammaln(EXTREME_COUNTS + 1.0),
            id="poisson",
        ),
        pytest.param(
            ContinuousBernoulli(),
            EXTREME_LOGITS,
            UNIT,
            numpy_continuous_bernoulli(EXTREME_LOGITS.astype(np.float64), UNIT),
            id="continuous bernoulli",
        ),
        pytest.param(
            StudentT(0.1, degrees_of_freedom=3.0),
            np.zeros([1, 1]),
            np.array([0.0, 1e-3, 1.0, 1e4, 1e8]),
            scipy.stats.t.logpdf([[0.0, 1e-3, 1.0, 1e4, 1e8]], 3.0, 0.0, np.float32(0.1)),
            id="student t",
        ),
    ],
)
def test_log_densities_at_extreme_parameters(likelihood, parameters, x, expected):
    """In float32, whose rounding of sums of large terms the tolerance covers."""
    parameters, x = (np.broadcast_to(v, expected.shape).astype(np.float32) for v in (parameters, x))
    actual = likelihood.elementwise_log_prob(tf.constant(parameters), tf.constant(x))
    np.testing.assert_allclose(actual, expected, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("log_mean", [-8.0, 0.0, 5.0, 13.0, 25.0])
def test_draws_of_rare_and_of_many_counts(log_mean):
    """Means of 1000 draws within 5 standard errors: a false alarm in 300,000 seeds in all."""
    draws = Poisson().sample(tf.fill([1000, 1], log_mean), 3, event_ndims=1).numpy()
    mean = np.exp(min(log_mean, 20.0))
    assert np.all(draws == np.floor(draws))
    assert abs(draws.astype(np.float64).mean() - mean) < 5 * np.sqrt(mean / 1000) + 1e-7 * mean


@pytest.mark.parametrize("learned", [True, "per_feature", "predicted"])
def test_learned_dispersions(learned):
    likelihood = NegativeBinomial(2.0, learned)
    width = likelihood.parameters_per_channel
    model_with(likelihood) if width == 2 else model_with(likelihood).build((None, 3))
    shapes = [tuple(variable.shape) for variable in likelihood.trainable_variables]
    assert shapes == {True: [()], "per_feature": [(3,)], "predicted": []}[learned]
    if learned == "predicted":
        with pytest.raises(ValueError, match="part of the likelihood's parameters"):
            likelihood.dispersion()
    else:
        np.testing.assert_allclose(likelihood.dispersion(), np.full(shapes[0], 2.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Gaussian(1.0, "per_pixel"), ValueError, r"`learned` must .*'per_pixel'"),
        (lambda: NegativeBinomial(0.0), ValueError, r"`inverse_dispersion` .*Received: .*0\.0"),
        (lambda: StudentT(degrees_of_freedom=-1), ValueError, r"`degrees_of_freedom` must"),
        (lambda: ZeroInflated(Gaussian()), TypeError, r"`counts` must be a likelihood of counts"),
        (lambda: Categorical(0), ValueError, r"`num_categories` must"),
        (lambda: DiscretizedLogisticMixture(2, 1), ValueError, r"`num_levels` must"),
    ],
)
def test_arguments_that_likelihoods_refuse(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("name", sorted(named._NAMES))
def test_every_name_makes_a_likelihood(name):
    likelihood = likelihoods.get(name)
    likelihood.check_methods([3 * likelihood.parameters_per_channel])


def test_levels_are_told_how_to_be_scaled():
    with pytest.raises(ValueError, match=r"multiples of 1/255.*Divide the levels by 255.*Received"):
        DiscretizedLogisticMixture().check_support(np.array([[0.0, 0.25, 1.0]]))
    assert not DiscretizedLogisticMixture().takes_integers
