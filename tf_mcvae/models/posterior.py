"""The encoder's approximate posterior `q(z|x) = N(loc(x), diag(scale(x)^2))`."""

import math

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae.precision import wide

tfd = tfp.distributions


def latent_dim_of(encoder: keras.Layer, input_shape: tuple[int | None, ...]) -> int:
    """Builds an encoder for inputs `[B, ...]`, and returns D of its output `[B, 2 D]`."""
    code = encoder(keras.KerasTensor(input_shape, dtype="float32"))
    shape = tuple(getattr(code, "shape", ()))
    if len(shape) != 2 or shape[-1] is None or shape[-1] % 2:
        raise ValueError(
            "The encoder must return a tensor [B, 2 * latent_dim], location and log variance. "
            f"Received: encoder output {code}"
        )
    return int(shape[-1]) // 2


def loc_and_scale(code: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns location and scale of `q(z|x)`, `[B, D]`, from an encoder's output `[B, 2 D]`."""
    loc, log_variance = tf.split(wide(code), 2, axis=-1)
    return loc, tf.exp(0.5 * log_variance)


class _Normal(tfp.distributions.Normal):
    """A normal distribution whose gradients are finite down to a log variance of -87."""

    def _log_prob(self, x: tf.Tensor) -> tf.Tensor:
        # `x / scale - loc / scale` has derivatives of scale^-3, which overflow at half of that.
        normalised = (x - self.loc) * tf.math.reciprocal(self.scale)
        return -0.5 * tf.square(normalised) - tf.math.log(self.scale) - 0.5 * math.log(math.tau)


def diagonal_normal(loc: tf.Tensor, scale: tf.Tensor) -> tfp.distributions.Distribution:
    """Returns `N(loc, diag(scale^2))` over the last axis, a `tfd.Distribution`."""
    return tfd.Independent(_Normal(loc, scale), 1)


def encoder_features(posterior: tfp.distributions.Distribution) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what networks of the transitions know of the examples: location and log scale."""
    normal = posterior.distribution
    return normal.loc, tf.math.log(normal.scale)
