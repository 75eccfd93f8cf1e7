"""Weights of examples: checked before Keras reads them, and used also without labels."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae.tracing import as_written

_MEANING = "Weights must be one number for each example, [N] or [N, 1], finite and not negative."


def weighted_arguments(
    method: Callable[..., Any], x: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the arguments of a method of Keras by name, with weights as Keras uses them.

    Args:
        method: `fit`, `evaluate`, `train_on_batch` or `test_on_batch` of `keras.Model`.
        x: Checked examples, its first argument.
        args: Its other arguments by position.
        kwargs: Its other arguments by name.

    Raises:
        ValueError: If weights are not one finite number, at least 0, for each example, or if
            weights of classes are given without labels.
    """
    arguments = dict(inspect.signature(method).bind(x, *args, **kwargs).arguments)
    arguments.update(arguments.pop("kwargs", {}))
    class_weight, weight = arguments.get("class_weight"), arguments.get("sample_weight")
    x, y, weight = weighted_data(x, arguments.get("y"), weight)
    if class_weight is not None:
        _check_class_weight(class_weight, x, y, weight)
    given = {"x": x, "y": y, "sample_weight": weight}
    return {**arguments, **{name: value for name, value in given.items() if value is not None}}


def weighted_data(x: Any, y: Any = None, weight: Any = None) -> tuple[Any, Any, Any]:
    """Returns `x`, `y` and weights that Keras uses, after checking the weights.

    Keras ignores the weights of examples that have no `y`: they get a `y` of zeros, which the
    models ignore.
    """
    if isinstance(x, tf.data.Dataset):
        x = _checked_dataset(x)
    if weight is None:
        return x, y, None
    if not hasattr(x, "shape"):
        raise ValueError(
            "The weights of a data set or a generator are the third part of its batches, "
            "(x, y, sample_weight) or (x, None, sample_weight). "
            f"Received: a sample_weight for x of {type(x).__name__}"
        )
    weight = check_weights(weight, x.shape[0])
    return x, y if hasattr(y, "shape") else np.zeros(x.shape[0], "float32"), weight


def check_weights(weight: Any, size: int) -> np.ndarray[Any, Any]:
    """Returns the weights of `size` examples as an array `[size]`.

    Raises:
        ValueError: If they are not `[size]` or `[size, 1]`, not numbers, not finite, or negative.
    """
    try:
        array = np.asarray(weight)
    except ValueError:  # Rows of different lengths.
        array = np.asarray(None)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(f"{_MEANING} Received: {weight!r}")
    array = array if array.dtype.kind == "f" else array.astype("float32")
    if array.shape not in ((size,), (size, 1)):
        raise ValueError(f"{_MEANING} Received: weights of shape {array.shape} for {size} examples")
    if not np.all(np.isfinite(array) & (array >= 0)):
        raise ValueError(f"{_MEANING} Received: weights from {np.min(array)} to {np.max(array)}")
    return array.reshape(size)


def _checked_dataset(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Checks the weights of a data set of `(x, y, sample_weight)` when it is read."""
    if keras.utils.unpack_x_y_sample_weight(dataset.element_spec)[2] is None:
        return dataset

    def check_batch(x: tf.Tensor, y: Any, weight: tf.Tensor) -> tuple[tf.Tensor, Any, tf.Tensor]:
        values = tf.cast(weight, tf.float32)
        message = tf.strings.format(
            f"{_MEANING} Received: a batch of {{}} examples with {{}} weights from {{}} to {{}}",
            (tf.shape(x)[0], tf.size(values), tf.reduce_min(values), tf.reduce_max(values)),
        )
        is_valid = tf.reduce_all(tf.math.is_finite(values) & (values >= 0.0))
        is_valid &= tf.size(values) == tf.shape(x)[0]
        with tf.control_dependencies([tf.debugging.Assert(is_valid, [message])]):
            return x, y, vector_of_weights(weight, x)

    return dataset.map(as_written(check_batch))


def vector_of_weights(weight: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Returns the weights `[B]` or `[B, 1]` of examples `x [B, ...]` as `[B]`.

    Raises:
        ValueError: If they are not numbers, or have another shape as far as a graph knows it.
    """
    weight = tf.convert_to_tensor(weight)
    size = x.shape[0]
    is_vector = weight.shape.is_compatible_with([size])
    is_column = weight.shape.is_compatible_with([size, 1])
    is_number = weight.dtype.is_floating or weight.dtype.is_integer or weight.dtype.is_bool
    if not is_number or not (is_vector or is_column):
        raise ValueError(
            f"{_MEANING} Received: weights of shape {weight.shape} and {weight.dtype.name} for "
            f"examples of shape {x.shape}"
        )
    return tf.reshape(weight, tf.shape(x)[:1])


def _check_class_weight(class_weight: Any, x: Any, y: Any, weight: Any) -> None:
    """Raises unless classes have valid weights, and examples have labels but no weights."""
    if isinstance(x, tf.data.Dataset):
        _, y, weight = keras.utils.unpack_x_y_sample_weight(x.element_spec)
    elif isinstance(x, keras.utils.PyDataset):
        _, y, weight = keras.utils.unpack_x_y_sample_weight(x[0])
    if weight is not None:
        raise ValueError(
            "Give weights of examples or of classes, not both. Received: sample_weight and "
            f"class_weight={class_weight!r}"
        )
    shape = getattr(y, "shape", None)
    if shape is None or len(shape) > 2:
        raise ValueError(
            "`class_weight` weights examples by their class: give the class of each as `y`, "
            "integers [N] or one-hot [N, C], or weights as `sample_weight`. "
            f"Received: class_weight={class_weight!r} and "
            f"{'no y' if shape is None else f'y of shape {tuple(shape)}'}"
        )
    check_weights(list(class_weight.values()), len(class_weight))
