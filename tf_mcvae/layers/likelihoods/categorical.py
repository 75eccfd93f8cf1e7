"""Likelihoods of categories and of levels, whose distributions have a table or a mixture."""

import math
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae.checks import check_positive_integer
from tf_mcvae.layers import supports
from tf_mcvae.layers.likelihoods.base import Likelihood
from tf_mcvae.precision import wide

tfd = tfp.distributions


@keras.saving.register_keras_serializable("tf_mcvae")
class Categorical(Likelihood):
    """Categories, one-hot or numbered from 0, with their logits as parameters.

    Args:
        num_categories: None if the last axis of `x` is a one-hot vector; the parameters have the
            shape of `x`. Otherwise each element of `x` is one of 0, ..., N - 1, and has N
            parameters, side by side in the last axis.
        name, trainable, dtype: As in `keras.layers.Layer`.

    `mean` returns the probabilities of one-hot vectors, and the most probable of numbered
    categories, which have no mean.

    Example:
        >>> Categorical(3).log_prob(tf.zeros([1, 6]), tf.constant([[0, 2]])).numpy().round(4)
        array([-2.1972], dtype=float32)
    """

    def __init__(
        self,
        num_categories: int | None = None,
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        if num_categories is not None:
            check_positive_integer("num_categories", num_categories)
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        self.num_categories = num_categories
        self.parameters_per_channel = num_categories or 1

    @property
    def support(self) -> str:  # type: ignore[override]
        """The allowed values of `x`, in words."""
        if self.num_categories is None:
            return "one-hot vectors in the last axis"
        return f"the integers 0 to {self.num_categories - 1}"

    def log_probs(self, parameters: tf.Tensor) -> tf.Tensor:
        """Returns the log probabilities of the categories, which are the last axis."""
        if self.num_categories is not None:
            parameters = _of_channels(parameters, self.num_categories)
        # Without softmax, which supports at most 5 axes on a CPU.
        return parameters - tf.reduce_logsumexp(parameters, axis=-1, keepdims=True)

    def distribution(
        self, parameters: tf.Tensor, event_ndims: int = 3
    ) -> tfp.distributions.Distribution:
        """Returns `p(x|z)` as a `tfd.Independent`, of one-hot vectors or of numbers."""
        if self.num_categories is not None:
            return super().distribution(parameters, event_ndims)
        vectors = tfd.OneHotCategorical(logits=wide(parameters), dtype=wide(parameters).dtype)
        return tfd.Independent(vectors, event_ndims - 1)

    def elementwise(self, parameters: tf.Tensor) -> tfp.distributions.Distribution:
        """Returns `tfd.Categorical` of numbered categories."""
        return tfd.Categorical(logits=self.log_probs(parameters), dtype=parameters.dtype)

    def elementwise_log_prob(self, parameters: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Returns the log probability of each number, or the terms of each one-hot vector."""
        log_probs = self.log_probs(parameters)
        if self.num_categories is None:
            return x * log_probs
        chosen = tf.one_hot(tf.cast(x, tf.int32), self.num_categories, dtype=log_probs.dtype)
        return tf.reduce_sum(chosen * log_probs, axis=-1)

    def from_uniform(self, parameters: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """Returns the category in whose part of the unit interval a number is."""
        log_probs = self.log_probs(parameters)
        uniform = uniform[..., :1] if self.num_categories is None else uniform[..., tf.newaxis]
        below = tf.cumsum(tf.exp(log_probs), axis=-1)[..., :-1]
        number = tf.reduce_sum(tf.cast(uniform > below, tf.int32), axis=-1)
        if self.num_categories is None:
            return tf.one_hot(number, parameters.shape[-1], dtype=parameters.dtype)
        return tf.cast(number, parameters.dtype)

    def mean(self, parameters: tf.Tensor) -> tf.Tensor:
        """Returns probabilities, or the most probable category."""
        log_probs = self.log_probs(wide(parameters))
        if self.num_categories is None:
            return tf.exp(log_probs)
        return tf.cast(tf.argmax(log_probs, axis=-1), log_probs.dtype)

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        """Returns whether values are categories; of one-hot vectors, the same in all elements."""
        if self.num_categories is not None:
            return (x >= 0) & (x < self.num_categories) & (x == tf.floor(x))
        is_vector = tf.reduce_sum(x, axis=-1, keepdims=True) == 1
        return ((x == 0) | (x == 1)) & is_vector

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "num_categories": self.num_categories}


@keras.saving.register_keras_serializable("tf_mcvae")
class DiscretizedLogisticMixture(Likelihood):
    """Levels `0, 1/(L-1), ..., 1`, such as 8-bit pixels divided by 255: mixtures of logistics.

    A level has the probability of its bin, between the middles to its neighbours; the outer bins
    reach to infinity. In units in which the levels go from -1 to 1, each of M components has a
    location and a scale. The parameters of a channel are M logits of the weights, M locations and M
    log scales, side by side in the last axis. Channels are independent given z.

    Args:
        num_components: M.
        num_levels: L.
        name, trainable, dtype: As in `keras.layers.Layer`.

    Reference:
        Salimans et al., PixelCNN++, arXiv 1701.05517.
    """

    is_in_bits = True

    def __init__(
        self,
        num_components: int = 5,
        num_levels: int = 256,
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        check_positive_integer("num_components", num_components)
        if not isinstance(num_levels, int) or num_levels < 2:
            raise ValueError(
                f"`num_levels` must be an integer from 2. Received: num_levels={num_levels!r}"
            )
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        self.num_components, self.num_levels = num_components, num_levels
        self.parameters_per_channel = 3 * num_components

    @property
    def support(self) -> str:  # type: ignore[override]
        """The allowed values of `x`, in words."""
        return f"multiples of 1/{self.num_levels - 1} in [0, 1]"

    @property
    def takes_integers(self) -> bool:
        """Levels are fractions: integers are pixels that are not scaled."""
        return False

    def mends(self) -> list[supports.Mend]:
        """Returns what is to be said of other values."""
        text = f"Divide the levels by {self.num_levels - 1}, and neither resize nor scale them"
        return [supports.NOT_FINITE, (lambda low, high: low <= high, text)]

    def components(self, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns log weights, locations and scales, `[..., C, M]`."""
        each = _of_channels(parameters, self.parameters_per_channel)
        logits, loc, log_scale = tf.split(each, 3, axis=-1)
        log_weights = logits - tf.reduce_logsumexp(logits, axis=-1, keepdims=True)
        return log_weights, loc, tf.exp(tf.maximum(log_scale, _SMALLEST_LOG_SCALE))

    def elementwise(self, parameters: tf.Tensor) -> tfp.distributions.Distribution:
        """Returns `tfd.FiniteDiscrete`, a table of all levels: L times the memory of `x`."""
        levels = tf.cast(tf.linspace(0.0, 1.0, self.num_levels), parameters.dtype)
        like = tf.zeros_like(self.components(parameters)[1][..., 0])
        log_probs = [self.elementwise_log_prob(parameters, like + x) for x in tf.unstack(levels)]
        return tfd.FiniteDiscrete(levels, logits=tf.stack(log_probs, axis=-1), atol=1e-4)

    def elementwise_log_prob(self, parameters: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Returns the log probability of each level."""
        log_weights, loc, scale = self.components(parameters)
        half = 1.0 / (self.num_levels - 1)
        level = (2.0 * x - 1.0)[..., tf.newaxis]
        above, below = (level + half - loc) / scale, (level - half - loc) / scale
        log_above, log_below = tf.math.log_sigmoid(above), tf.math.log_sigmoid(-below)
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)).
        inner = log_above + log_below + tf.math.log(-tf.math.expm1(-2.0 * half / scale))
        log_bin = tf.where(level < half - 1.0, log_above, inner)
        log_bin = tf.where(level > 1.0 - half, log_below, log_bin)
        return tf.reduce_logsumexp(log_weights + log_bin, axis=-1)

    def from_uniform(self, parameters: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """Chooses a component by a number u, and a level by the rest of u."""
        log_weights, loc, scale = self.components(parameters)
        weights = tf.exp(log_weights)
        ends = tf.cumsum(weights, axis=-1)
        uniform = uniform[..., tf.newaxis]
        number = tf.reduce_sum(tf.cast(uniform > ends[..., :-1], tf.int32), axis=-1)
        chosen = tf.one_hot(number, self.num_components, dtype=loc.dtype)

        def of_chosen(values: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(chosen * values, axis=-1)

        rest = of_chosen((uniform - (ends - weights)) / weights)
        rest = tf.clip_by_value(rest, 1e-7, 1.0 - 1e-7)
        level = of_chosen(loc) + of_chosen(scale) * (tf.math.log(rest) - tf.math.log1p(-rest))
        most = self.num_levels - 1.0
        return tf.clip_by_value(tf.round(0.5 * (level + 1.0) * most), 0.0, most) / most

    def mean(self, parameters: tf.Tensor) -> tf.Tensor:
        """Returns the mean, a sum over the levels: `(L-1) E[x] = sum_k P((L-1) x > k)`."""
        log_weights, loc, scale = self.components(wide(parameters))
        weights, most = tf.exp(log_weights), self.num_levels - 1

        def add(index: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            edge = (2.0 * tf.cast(index, loc.dtype) + 1.0) / most - 1.0
            exceeds = tf.reduce_sum(weights * tf.sigmoid((loc - edge) / scale), axis=-1)
            return index + 1, total + exceeds

        start = (tf.constant(0), tf.zeros_like(loc[..., 0]))
        _, total = tf.while_loop(lambda k, _: k < most, add, start, maximum_iterations=most)
        return total / most

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        """Returns whether values are levels, up to rounding."""
        numbers = x * (self.num_levels - 1)
        return (x >= 0.0) & (x <= 1.0) & (tf.abs(numbers - tf.round(numbers)) < 1e-3)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        own = {"num_components": self.num_components, "num_levels": self.num_levels}
        return {**super().get_config(), **own}


# Sharper components could not be told from a single level.
_SMALLEST_LOG_SCALE = math.log(1e-3)


def _of_channels(parameters: tf.Tensor, width: int) -> tf.Tensor:
    """Splits the last axis `[..., C width]` into `[..., C, width]`."""
    shape = tf.shape(parameters)
    split = tf.reshape(parameters, tf.concat([shape[:-1], [shape[-1] // width, width]], axis=0))
    last = parameters.shape[-1]
    split.set_shape([*parameters.shape[:-1], None if last is None else last // width, width])
    return split
