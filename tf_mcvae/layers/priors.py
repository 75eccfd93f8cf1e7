"""Priors `p(z)` of the latents."""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_mcvae import random

_LOG_2PI = math.log(2.0 * math.pi)


class Prior(keras.layers.Layer):
    """Base of the priors `p(z)`.

    A subclass defines `log_prob`, `sample` and `kl_divergence`. If part of the density does not
    depend on z, it also defines `bind`, so that this part is computed once a step and not at every
    transition.
    """

    def log_prob(self, z: tf.Tensor) -> tf.Tensor:
        """Returns `log p(z)` in nats, `[...]`, for latents `[..., D]`."""
        raise NotImplementedError

    def sample(self, shape: Any, seed: random.Seed) -> tf.Tensor:
        """Draws latents of shape `[S, B, D]`."""
        raise NotImplementedError

    def kl_divergence(self, loc: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """Returns `KL(N(loc, scale^2) || p)` of each dimension in nats, `[B, D]`."""
        raise NotImplementedError

    def bind(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns `log_prob` for one step; parts that do not depend on z are computed here."""
        return self.log_prob


@keras.saving.register_keras_serializable("tf_mcvae")
class StandardNormal(Prior):
    """The standard normal distribution, `p(z) = N(0, I)`."""

    def log_prob(self, z: tf.Tensor) -> tf.Tensor:
        """Returns `log N(z; 0, I)` with its constant, `[...]`, for `z [..., D]`."""
        return -0.5 * tf.reduce_sum(tf.square(z) + _LOG_2PI, axis=-1)

    def sample(self, shape: Any, seed: random.Seed) -> tf.Tensor:
        """Draws latents of shape `[S, B, D]`."""
        return random.normal(shape, seed)

    def kl_divergence(self, loc: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """Returns `KL(N(loc, scale^2) || N(0, 1))` of each dimension in nats, `[B, D]`."""
        return 0.5 * (tf.square(loc) + tf.square(scale) - 1.0 - 2.0 * tf.math.log(scale))
