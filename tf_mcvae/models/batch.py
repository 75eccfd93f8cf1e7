"""The examples of one step."""

from typing import Any, NamedTuple, Self, TypeAlias

import keras
import numpy as np
import tensorflow as tf

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


def vector_of_weights(weight: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Returns weights `[B]` or `[B, 1]` of the examples `x [B, ...]` as `[B]`.

    Raises:
        ValueError: If they are not numbers, or have another shape as far as a graph knows it.
    """
    weight = tf.convert_to_tensor(weight)
    size = x.shape[0]
    is_vector = weight.shape.is_compatible_with([size])
    is_column = weight.shape.is_compatible_with([size, 1])
    if not (is_vector or is_column) or not (weight.dtype.is_floating or weight.dtype.is_integer):
        raise ValueError(
            "Weights must be one number for each example, [B] or [B, 1]. "
            f"Received: weights of shape {weight.shape} and {weight.dtype.name} for examples of "
            f"shape {x.shape}"
        )
    return tf.reshape(weight, tf.shape(x)[:1])
