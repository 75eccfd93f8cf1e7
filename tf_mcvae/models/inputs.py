"""Checks of the examples that users hand over."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae.layers.likelihoods import Likelihood

_FLOATS = (
    "Examples must be floating-point numbers; scale integer pixels first, for instance "
    "`x.astype('float32') / 255`."
)


def check_inputs(
    x: Any, likelihood: Likelihood, known: tuple[int, ...] | None
) -> tuple[Any, tuple[int, ...] | None]:
    """Checks examples as users hand them to Keras.

    Args:
        x: Array, `tf.data.Dataset`, `keras.utils.PyDataset`, or generator of batches.
        likelihood: The likelihood, which has a support.
        known: Shape of one example, or None before the model is built.

    Returns:
        The data to read instead of `x`, and the shape of one example; None for a generator, which
        cannot be read in advance.

    Raises:
        TypeError: If the examples are not floating-point numbers, or not in one of these forms.
        ValueError: If there are no examples, their shape is wrong, or a value is not finite or not
            in the likelihood's support.
    """
    if x is None or isinstance(x, list | tuple | dict):
        raise TypeError(
            "Examples must be an array, a `tf.data.Dataset` or a `keras.utils.PyDataset`. "
            f"Received: {type(x).__name__}"
        )
    if isinstance(x, tf.data.Dataset):
        return check_dataset(x, likelihood, known)
    if isinstance(x, keras.utils.PyDataset):
        first = keras.utils.unpack_x_y_sample_weight(x[0])[0]
        return x, check_inputs(first, likelihood, known)[1]
    if not hasattr(x, "shape"):
        return x, None
    check_images(x, likelihood, known)
    return x, tuple(x.shape[1:])


def check_floats(dtype: tf.DType) -> None:
    """Raises unless `dtype` is floating-point."""
    if not dtype.is_floating:
        raise TypeError(f"{_FLOATS} Received: tensors of {dtype.name}")


def check_images(x: Any, likelihood: Likelihood, event_shape: tuple[int, ...] | None) -> None:
    """Checks an array or eager tensor `[B, ...]`; see `check_inputs`."""
    array = np.asarray(x)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"{_FLOATS} Received: an array of {array.dtype}")
    _check_shape(tf.TensorShape(array.shape), event_shape)
    if not np.all(np.isfinite(array)):
        count = int(np.sum(~np.isfinite(array)))
        raise ValueError(
            "Examples must be finite; remove or replace NaN and infinite values. "
            f"Received: {count} of {array.size} values are not finite"
        )
    with tf.init_scope():  # A concrete array can be checked while a graph is traced around it.
        likelihood.check_support(array)


def check_dataset(
    dataset: tf.data.Dataset, likelihood: Likelihood, event_shape: tuple[int, ...] | None
) -> tuple[tf.data.Dataset, tuple[int, ...]]:
    """Checks the specification of a data set of `x`, `(x, y)` or `(x, y, sample_weight)`.

    Values are checked when the returned data set is read: it raises
    `tf.errors.InvalidArgumentError` at the first batch with an impossible value, which
    `checks.plain_errors` turns into a `ValueError`. For the rest see `check_inputs`.
    """
    spec = keras.utils.unpack_x_y_sample_weight(dataset.element_spec)[0]
    if not isinstance(spec, tf.TensorSpec):
        raise TypeError(
            "A data set must give batches of x, (x, y) or (x, y, sample_weight), x being a tensor. "
            f"Received: elements {dataset.element_spec}"
        )
    check_floats(spec.dtype)
    _check_shape(spec.shape, event_shape)
    if dataset.cardinality() == 0:
        raise ValueError("The data set must give at least one batch. Received: an empty data set")
    event_shape = event_shape or tuple(spec.shape[1:])
    is_tuple = isinstance(dataset.element_spec, tuple)

    def check_batch(*element: Any) -> Any:
        x = tf.ensure_shape(element[0], [None, *event_shape])
        _assert_support(x, likelihood)
        return (x, *element[1:]) if is_tuple else x

    return dataset.map(tf.autograph.experimental.do_not_convert(check_batch)), event_shape


def check_not_empty(results: Any) -> None:
    """Raises if Keras returned no metrics, as it does if the data have no batch."""
    if not results:
        raise ValueError(
            "The data must give at least one batch. Received: data without examples, or fewer than "
            "one batch"
        )


def _check_shape(shape: tf.TensorShape, event_shape: tuple[int, ...] | None) -> None:
    """Raises unless `shape` is that of a batch of examples for the model."""
    if (shape.rank or 2) < 2 or (shape.rank and 0 in shape):
        raise ValueError(
            "Examples must have the shape [B, ...] with at least one example. "
            f"Received: shape {shape}"
        )
    if event_shape is None and not shape[1:].is_fully_defined():
        raise ValueError(
            "The model must know the shape of an example: call `model.build((None, ...))`, or "
            f"`tf.ensure_shape` in the data set. Received: batches of shape {shape}"
        )
    if event_shape is not None and not shape[1:].is_compatible_with(event_shape):
        expected = ", ".join(map(str, event_shape))
        raise ValueError(
            f"The model was built for examples of shape [B, {expected}]. Received: shape {shape}"
        )


def _assert_support(x: tf.Tensor, likelihood: Likelihood) -> None:
    """Adds an assertion that values are possible to the graph of a data set."""
    # XLA would drop the assertion in a training step.
    possible = tf.reduce_all(tf.math.is_finite(x) & likelihood.in_support(x))
    values = tf.cast(x, tf.float32)
    message = tf.strings.format(
        f"The {type(likelihood).__name__} likelihood needs {likelihood.support}. Rescale or clean "
        "the data, or choose another likelihood. Received: a batch with values from {} to {}",
        (tf.reduce_min(values), tf.reduce_max(values)),
    )
    tf.debugging.Assert(possible, [message])
