"""Likelihoods of values in [0, 1], with logits as parameters."""

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae.layers.likelihoods.base import Likelihood
from tf_mcvae.precision import wide

tfd = tfp.distributions


@keras.saving.register_keras_serializable("tf_mcvae")
class Bernoulli(Likelihood):
    """Bernoulli pixels with logits l as parameters: `log p(x|z) = Σ x l - log(1 + exp(l))`.

    Values of `x` between 0 and 1 are allowed and use the same formula, which is then not a
    normalised density.

    Example:
        >>> Bernoulli().log_prob(tf.zeros([1, 2]), tf.constant([[0.0, 1.0]])).numpy().round(4)
        array([-1.3863], dtype=float32)
    """

    support = "values in [0, 1]"
    is_binary = True
    suits_xla = True

    def elementwise(self, parameters: tf.Tensor) -> tfp.distributions.Distribution:
        """Returns `tfd.Bernoulli`."""
        return tfd.Bernoulli(logits=parameters, dtype=parameters.dtype)

    def elementwise_log_prob(self, parameters: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Returns `x l - softplus(l)`: one softplus, where TFP's cross entropy branches."""
        return x * parameters - tf.nn.softplus(parameters)

    def from_uniform(self, parameters: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """Returns 1 where the uniform number is below the probability, and 0 otherwise."""
        return tf.cast(uniform < tf.sigmoid(parameters), parameters.dtype)

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        """Returns whether `0 <= x <= 1`."""
        return (x >= 0.0) & (x <= 1.0)


@keras.saving.register_keras_serializable("tf_mcvae")
class ContinuousBernoulli(Likelihood):
    """Grey values in [0, 1]: the Bernoulli formula with the constant that normalises it.

        log p(x|z) = sum x l - log(1 + exp(l)) + log C(l),    C(l) = l / tanh(l / 2) at l != 0,

    with logits l as parameters, and `C(0) = 2`.

    Args:
        name, trainable, dtype: As in `keras.layers.Layer`.

    Reference:
        Loaiza-Ganem and Cunningham, The Continuous Bernoulli, arXiv 1907.06845.
    """

    support = "values in [0, 1]"

    def elementwise(self, parameters: tf.Tensor) -> tfp.distributions.Distribution:
        """Returns `tfd.ContinuousBernoulli`."""
        return tfd.ContinuousBernoulli(logits=parameters)

    def elementwise_log_prob(self, parameters: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Returns the log density, in the form that has derivatives everywhere."""
        return x * parameters - _log_integral(parameters)

    def from_uniform(self, parameters: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """Returns the quantile `log(1 + u (exp(l) - 1)) / l`."""
        size = tf.abs(parameters)
        is_small = size < 1e-6  # Uniform.
        size = tf.where(is_small, tf.ones_like(size), size)
        # Of -|l|, whose exponential is at most 1; the density of -l is the mirror image of that.
        is_mirrored = parameters > 0.0
        uniform = tf.where(is_mirrored, 1.0 - uniform, uniform)
        quantile = -tf.math.log1p(uniform * tf.math.expm1(-size)) / size
        quantile = tf.where(is_small, uniform, quantile)
        return tf.where(is_mirrored, 1.0 - quantile, quantile)

    def mean(self, parameters: tf.Tensor) -> tf.Tensor:
        """Returns the mean, the derivative of the log normalising integral."""
        parameters = wide(parameters)
        is_small = tf.abs(parameters) < _SMALL
        logits = tf.where(is_small, tf.ones_like(parameters), parameters)
        mean = -1.0 / tf.math.expm1(-logits) - 1.0 / logits
        return tf.where(is_small, 0.5 + _odd_series(parameters, _MEAN), mean)

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        """Returns whether `0 <= x <= 1`."""
        return (x >= 0.0) & (x <= 1.0)


_SMALL = 0.5  # Below it, functions of logits are computed by series, the largest power first.
_INTEGRAL = (-1 / 9_676_800, 1 / 181_440, -1 / 2880, 1 / 24)
_MEAN = (-1 / 1_209_600, 1 / 30_240, -1 / 720, 1 / 12)


def _log_integral(logits: tf.Tensor) -> tf.Tensor:
    """Returns `log ((exp(l) - 1) / l)`, the log of the integral of `exp(x l)` over [0, 1]."""
    is_small = tf.abs(logits) < _SMALL
    size = tf.where(is_small, tf.ones_like(logits), tf.abs(logits))
    # (exp(l) - 1) / l = exp(max(l, 0)) (1 - exp(-|l|)) / |l|.
    exact = tf.nn.relu(logits) + tf.math.log(-tf.math.expm1(-size) / size)
    return tf.where(is_small, 0.5 * logits + logits * _odd_series(logits, _INTEGRAL), exact)


def _odd_series(logits: tf.Tensor, coefficients: tuple[float, ...]) -> tf.Tensor:
    """Returns `c_1 l + c_2 l^3 + ...`, where `|l|` is small."""
    small = tf.clip_by_value(logits, -_SMALL, _SMALL)
    square = tf.square(small)
    return small * tf.math.polyval([tf.constant(c, logits.dtype) for c in coefficients], square)
