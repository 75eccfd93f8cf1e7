"""Likelihoods of real numbers."""

from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae.layers.likelihoods.base import Likelihood
from tf_mcvae.layers.likelihoods.dispersion import Dispersed, Learned, check_positive
from tf_mcvae.precision import wide

tfd = tfp.distributions


class _Scaled(Dispersed):
    """Base of likelihoods with a location and a scale, and no other argument."""

    def __init__(
        self,
        scale: float = 1.0,
        learned: Learned = False,
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(scale, learned, name=name, trainable=trainable, dtype=dtype)


@keras.saving.register_keras_serializable("tf_mcvae")
class Gaussian(_Scaled):
    """Gaussian values: the decoder's output is their location.

    Args:
        scale: Standard deviation, or its initial value if it is learned.
        learned: How the scale is trained with the networks, through its logarithm: `False`, it is
            not; `True`, one for all; `"per_feature"`, one for each index of the last axis;
            `"predicted"` by the decoder, for each element, after all locations in the last axis.
        name, trainable, dtype: As in `keras.layers.Layer`.

    Raises:
        ValueError: If `scale` is not a positive finite number, or `learned` is unknown.

    Example:
        >>> float(Gaussian(scale=0.5, learned=True).scale)
        0.5

    Reference:
        Learned scale: Rybkin et al., 2021, arXiv 2006.13202.
    """

    suits_xla = True

    @property
    def scale(self) -> tf.Tensor:
        """The standard deviation where it is not predicted, a scalar or `[F]`."""
        return self.dispersion()

    def elementwise(self, parameters: tf.Tensor) -> tfp.distributions.Distribution:
        """Returns `tfd.Normal`."""
        return tfd.Normal(*self.split(parameters))


@keras.saving.register_keras_serializable("tf_mcvae")
class LogNormal(_Scaled):
    """Positive values whose logarithm is Gaussian: the decoder's output is its location.

    Args:
        scale: Standard deviation of `log x`, or its initial value if it is learned.
        learned: As in `Gaussian`.
        name, trainable, dtype: As in `keras.layers.Layer`.

    Raises:
        ValueError: If `scale` is not a positive finite number, or `learned` is unknown.
    """

    support = "positive values"

    def elementwise(self, parameters: tf.Tensor) -> tfp.distributions.Distribution:
        """Returns `tfd.LogNormal`."""
        return tfd.LogNormal(*self.split(parameters))

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        """Returns whether `0 < x < inf`."""
        return (x > 0.0) & tf.math.is_finite(x)


@keras.saving.register_keras_serializable("tf_mcvae")
class StudentT(Dispersed):
    """Values with outliers: Student's distribution, with the decoder's output as location.

    Args:
        scale: Scale, or its initial value if it is learned.
        learned: As in `Gaussian`.
        degrees_of_freedom: The number nu; the tails decay as `|x|^-(nu + 1)`. There is no variance
            up to 2, and no mean up to 1, where `mean` returns the location.
        name, trainable, dtype: As in `keras.layers.Layer`.

    Raises:
        ValueError: If `scale` or `degrees_of_freedom` is not a positive finite number, or `learned`
            is unknown.
    """

    def __init__(
        self,
        scale: float = 1.0,
        learned: Learned = False,
        *,
        degrees_of_freedom: float = 4.0,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        check_positive("degrees_of_freedom", degrees_of_freedom)
        super().__init__(scale, learned, name=name, trainable=trainable, dtype=dtype)
        self.degrees_of_freedom = float(degrees_of_freedom)

    def elementwise(self, parameters: tf.Tensor) -> tfp.distributions.Distribution:
        """Returns `tfd.StudentT`."""
        location, scale = self.split(parameters)
        return tfd.StudentT(tf.cast(self.degrees_of_freedom, scale.dtype), location, scale)

    def from_uniform(self, parameters: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """Returns the quantile, whose series are summed in float64."""
        return _wide_quantile(self, parameters, uniform)

    def mean(self, parameters: tf.Tensor) -> tf.Tensor:
        """Returns the location."""
        return self.elementwise(wide(parameters)).loc

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "degrees_of_freedom": self.degrees_of_freedom}


@keras.saving.register_keras_serializable("tf_mcvae")
class Beta(Likelihood):
    """Shares between 0 and 1, both excluded, with Beta distributions.

    The parameters are the logit of the mean `m` and the log of the concentration `c`, all of the
    former, then all of the latter in the last axis: `x ~ Beta(m c, (1 - m) c)`.

    Args:
        name, trainable, dtype: As in `keras.layers.Layer`.

    Reference:
        Ferrari and Cribari-Neto, Beta Regression for Modelling Rates and Proportions, Journal of
        Applied Statistics 31 (2004).
    """

    parameters_per_channel = 2
    support = "values between 0 and 1, both excluded"

    def elementwise(self, parameters: tf.Tensor) -> tfp.distributions.Distribution:
        """Returns `tfd.Beta`."""
        logits, log_concentration = tf.split(parameters, 2, axis=-1)
        # Sums of logarithms: a share that rounds to 0 must not make a concentration of 0.
        return tfd.Beta(
            tf.exp(tf.math.log_sigmoid(logits) + log_concentration),
            tf.exp(tf.math.log_sigmoid(-logits) + log_concentration),
        )

    def from_uniform(self, parameters: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """Returns the quantile, whose series are summed in float64."""
        return _wide_quantile(self, parameters, uniform)

    def mean(self, parameters: tf.Tensor) -> tf.Tensor:
        """Returns `m`."""
        return tf.sigmoid(tf.split(wide(parameters), 2, axis=-1)[0])

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        """Returns whether `0 < x < 1`."""
        return (x > 0.0) & (x < 1.0)


def _wide_quantile(likelihood: Likelihood, parameters: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    distribution = likelihood.elementwise(tf.cast(parameters, tf.float64))
    return tf.cast(distribution.quantile(tf.cast(uniform, tf.float64)), parameters.dtype)
