"""The examples of one step."""

from typing import Any, NamedTuple, Self, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae.models.weights import vector_of_weights

Array: TypeAlias = np.ndarray[Any, Any] | tf.Tensor


class Batch(NamedTuple):
    """The examples of one step.

    Attributes:
        x: `[B, ...]`.
        weight: Weights of the examples in the loss, `[B]`; None for equal ones.
    """

    x: tf.Tensor
    weight: tf.Tensor | None = None

    @classmethod
    def of(cls, data: Any) -> Self:
        """Returns the batch of `x`, `(x, y)` or `(x, y, sample_weight)`; `y` is ignored."""
        x, _, weight = keras.utils.unpack_x_y_sample_weight(data)
        return cls(x, None if weight is None else vector_of_weights(weight, x))
