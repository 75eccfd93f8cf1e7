"""Likelihoods of counts 0, 1, 2, ..., with the log of their mean as parameter."""

from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae.layers.likelihoods.base import Likelihood
from tf_mcvae.layers.likelihoods.dispersion import Dispersed, Learned
from tf_mcvae.precision import wide

tfd = tfp.distributions

# The largest log mean. Chains whose steps are too long go where `exp` overflows, and one such
# example would make the gradient of the whole batch NaN.
_LARGEST_LOG_MEAN = 20.0
_LARGE_LOG_MEAN = 9.0


class _Counts(Likelihood):
    """Base of likelihoods of counts."""

    support = "the integers 0, 1, 2, ..."

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        """Returns whether values are 0, 1, 2, ..."""
        return (x >= 0) & (x == tf.floor(x)) & tf.math.is_finite(x)


@keras.saving.register_keras_serializable("tf_mcvae")
class Poisson(_Counts):
    """Counts with variances equal to their means `exp(l)`, with `l` up to 20 as parameters.

    Args:
        name, trainable, dtype: As in `keras.layers.Layer`.

    Example:
        >>> Poisson().log_prob(tf.zeros([1, 2]), tf.constant([[0.0, 1.0]])).numpy()
        array([-2.], dtype=float32)
    """

    def elementwise(self, parameters: tf.Tensor) -> tfp.distributions.Distribution:
        """Returns `tfd.Poisson`."""
        return tfd.Poisson(log_rate=tf.minimum(parameters, _LARGEST_LOG_MEAN))

    def from_uniform(self, parameters: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """Inverts the distribution function, for large means by its expansion of Cornish-Fisher."""
        # TensorFlow's incomplete gamma function has errors of 0.001 at means of half a million.
        is_large = parameters > _LARGE_LOG_MEAN
        few = super().from_uniform(tf.minimum(parameters, _LARGE_LOG_MEAN), uniform)
        log_mean = tf.clip_by_value(parameters, _LARGE_LOG_MEAN, _LARGEST_LOG_MEAN)
        mean, z = tf.exp(tf.cast(log_mean, tf.float64)), tf.math.ndtri(tf.cast(uniform, tf.float64))
        scale = tf.sqrt(mean)
        many = mean + scale * z + (z**2 - 1.0) / 6.0 + (z - z**3) / (72.0 * scale)
        return tf.where(is_large, tf.cast(tf.round(many), few.dtype), few)


@keras.saving.register_keras_serializable("tf_mcvae")
class NegativeBinomial(_Counts, Dispersed):
    """Counts with mean `m = exp(l)` and variance `m + m^2 / r`, with `l` up to 20 as parameters.

    The larger `r`, the closer to `Poisson`.

    Args:
        inverse_dispersion: `r`, or its initial value if it is learned.
        learned: How `r` is trained, through its logarithm: `False`, it is not; `True`, one for all;
            `"per_feature"`, one for each index of the last axis; `"predicted"` by the decoder, for
            each element, after all `l` in the last axis.
        name, trainable, dtype: As in `keras.layers.Layer`.

    Raises:
        ValueError: If `inverse_dispersion` is not a positive finite number, or `learned` is
            unknown.

    Reference:
        Lopez et al., Deep Generative Modeling for Single-Cell Transcriptomics, Nature Methods 15
        (2018).
    """

    dispersion_name = "inverse_dispersion"

    def __init__(
        self,
        inverse_dispersion: float = 1.0,
        learned: Learned = False,
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(inverse_dispersion, learned, name=name, trainable=trainable, dtype=dtype)

    def elementwise(self, parameters: tf.Tensor) -> tfp.distributions.Distribution:
        """Returns `tfd.NegativeBinomial`."""
        log_mean, number = self.split(parameters)
        log_mean = tf.minimum(log_mean, _LARGEST_LOG_MEAN)
        return tfd.NegativeBinomial(number, logits=log_mean - tf.math.log(number))


@keras.saving.register_keras_serializable("tf_mcvae")
class ZeroInflated(_Counts):
    """Counts that are 0 with probability `p`, and otherwise follow another likelihood.

    The parameters are those of the other likelihood, then the logits of `p`, in the last axis.

    Args:
        counts: A likelihood of counts, such as `Poisson()`.
        name, trainable, dtype: As in `keras.layers.Layer`.

    Raises:
        TypeError: If `counts` is not a likelihood of integers.
    """

    def __init__(
        self,
        counts: Likelihood,
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        if not isinstance(counts, Likelihood) or not counts.takes_integers:
            raise TypeError(
                "`counts` must be a likelihood of counts, such as `Poisson()`. "
                f"Received: counts={counts!r}"
            )
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        self.counts = counts
        self.parameters_per_channel = counts.parameters_per_channel + 1
        self.built = counts.built

    def build(self, input_shape: Any) -> None:
        """Builds the other likelihood."""
        if not self.counts.built:
            num_features = self._channels(input_shape)
            self.counts.build((*input_shape[:-1], self.counts.num_parameters(num_features)))
        self.built = True

    def split(self, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the parameters of the other likelihood, and the logits of `p`."""
        num_features = self._channels(parameters.shape)
        return parameters[..., :-num_features], parameters[..., -num_features:]

    def elementwise(self, parameters: tf.Tensor) -> tfp.distributions.Distribution:
        """Returns a `tfd.Mixture` of zeros and counts."""
        inner, logits = self.split(parameters)
        which = tfd.Categorical(logits=tf.stack([logits, tf.zeros_like(logits)], axis=-1))
        zeros = tfd.Deterministic(tf.zeros_like(logits))
        return tfd.Mixture(which, [zeros, self.counts.elementwise(inner)])

    def elementwise_log_prob(self, parameters: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Returns the log of `p [x = 0] + (1 - p) f(x)`."""
        inner, logits = self.split(parameters)
        log_count = self.counts.elementwise_log_prob(inner, x)
        other = tf.math.log_sigmoid(-logits) + log_count
        # log (p + (1 - p) f) = log (1 - p) + log f + log (1 + exp(l) / f).
        return other + tf.where(x == 0, tf.nn.softplus(logits - log_count), tf.zeros_like(other))

    def from_uniform(self, parameters: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """Returns 0 where `u < p`, and otherwise a draw from `(u - p) / (1 - p)`."""
        inner, logits = self.split(parameters)
        share = tf.sigmoid(logits)
        # Away from 0 and 1, at which a draw may be infinite.
        rest = tf.clip_by_value((uniform - share) / tf.sigmoid(-logits), 1e-7, 1.0 - 1e-7)
        draws = self.counts.from_uniform(inner, rest)
        return tf.where(uniform < share, tf.zeros_like(draws), draws)

    def mean(self, parameters: tf.Tensor) -> tf.Tensor:
        """Returns `1 - p` times the mean of the other likelihood."""
        inner, logits = self.split(wide(parameters))
        return tf.sigmoid(-logits) * self.counts.mean(inner)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        counts = keras.saving.serialize_keras_object(self.counts)
        return {**super().get_config(), "counts": counts}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ZeroInflated":
        """Makes a layer from the constructor's arguments."""
        return cls(**{**config, "counts": keras.saving.deserialize_keras_object(config["counts"])})
