"""The check of a batch of examples, whether of an array or of a data set."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae.layers import supports
from tf_mcvae.layers.likelihoods import Likelihood
from tf_mcvae.models.batch import Array
from tf_mcvae.tracing import as_written

_FLOATS = "Examples must be floating-point numbers"


class InputCheck:
    """Checks the examples of one call, whatever they are read from.

    Args:
        likelihood: The likelihood, which has a support.
        event_shape: Shape of one example, or None before the model is built.
        warn_of_grey: Called for values between 0 and 1 under a likelihood of the values 0 and 1;
            None if nobody is to be warned.

    Attributes:
        event_shape: As given, or else that of the first examples that were checked.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        event_shape: tuple[int, ...] | None = None,
        warn_of_grey: Callable[[], None] | None = None,
    ) -> None:
        self.likelihood = likelihood
        self.event_shape = event_shape
        self.warn_of_grey = warn_of_grey if likelihood.is_binary else None

    def array(self, x: Any) -> Array:
        """Checks examples `[B, ...]`.

        Args:
            x: Array, eager tensor, data frame, PyTorch tensor, or anything else with a `shape` that
                NumPy converts.

        Returns:
            An array or tensor: `x` itself, or what was made of it; `float32` for integers.

        Raises:
            TypeError: If the examples are not numbers, or integers that the likelihood does not
                take.
            ValueError: If there are no examples, their shape is wrong, or a value is not finite or
                not in the likelihood's support.
        """
        x = dense(x)
        array = np.asarray(x)
        self._check_shape(tf.TensorShape(array.shape))
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            self._check_integers(array)
            x = array = array.astype(np.float32)
        if not np.all(np.isfinite(array)):
            count = int(np.sum(~np.isfinite(array)))
            raise ValueError(
                "Examples must be finite; remove or replace NaN and infinite values. "
                f"Received: {count} of {array.size} values are not finite"
            )
        self._check_support(array)
        if self.warn_of_grey is not None and np.any((array > 0) & (array < 1)):
            self.warn_of_grey()
        self.event_shape = tuple(array.shape[1:])
        return x

    def dataset(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Checks the specification of a data set of `x`, `(x, y)` or `(x, y, sample_weight)`.

        Values are checked when the returned data set is read: it raises
        `tf.errors.InvalidArgumentError` at the first batch with an impossible value, which
        `checks.plain_errors` turns into a `ValueError`. For the rest see `array`.
        """
        spec = keras.utils.unpack_x_y_sample_weight(dataset.element_spec)[0]
        if not isinstance(spec, tf.TensorSpec):
            raise TypeError(
                "A data set must give batches of x, (x, y) or (x, y, sample_weight), x being a "
                f"tensor. Received: elements {dataset.element_spec}"
            )
        self._check_shape(spec.shape)
        if dataset.cardinality() == 0:
            raise ValueError(
                "The data set must give at least one batch. Received: an empty data set"
            )
        if not spec.dtype.is_floating and spec.dtype != tf.bool:
            # Only values tell integers that the likelihood takes from unscaled pixels.
            for first in dataset.take(1):
                self.array(keras.utils.unpack_x_y_sample_weight(first)[0])
        event_shape = self.event_shape = self.event_shape or tuple(spec.shape[1:])
        is_tuple = isinstance(dataset.element_spec, tuple)

        def check_batch(*element: Any) -> Any:
            x = tf.ensure_shape(element[0], [None, *event_shape])
            x = x if x.dtype.is_floating else tf.cast(x, tf.float32)
            self._assert_support(x)
            return (x, *element[1:]) if is_tuple else x

        return dataset.map(as_written(check_batch))

    def tensor(self, x: tf.Tensor) -> tf.Tensor:
        """Returns a tensor of a graph, whose values cannot be checked, as floats.

        Raises:
            TypeError: If it does not hold numbers, or integers that may be unscaled pixels.
        """
        if x.dtype.is_floating:
            return x
        if x.dtype != tf.bool and not (x.dtype.is_integer and self.likelihood.takes_integers):
            raise TypeError(
                f"{_FLOATS}; within a graph their values cannot be checked: use `tf.cast(x, "
                "tf.float32)`, divided by 255 if these are 8-bit pixels. "
                f"Received: tensors of {x.dtype.name}"
            )
        return tf.cast(x, tf.float32)

    def _check_shape(self, shape: tf.TensorShape) -> None:
        """Raises unless `shape` is that of a batch of examples for the model."""
        if (shape.rank or 2) < 2 or (shape.rank and 0 in shape):
            raise ValueError(
                "Examples must have the shape [B, ...] with at least one example. "
                f"Received: shape {shape}"
            )
        if self.event_shape is None and not shape[1:].is_fully_defined():
            raise ValueError(
                "The model must know the shape of an example: call `model.build((None, ...))`, or "
                f"`tf.ensure_shape` in the data set. Received: batches of shape {shape}"
            )
        if self.event_shape is not None and not shape[1:].is_compatible_with(self.event_shape):
            expected = ", ".join(map(str, self.event_shape))
            raise ValueError(
                f"The model was built for examples of shape [B, {expected}]. Received: shape "
                f"{shape}"
            )

    def _check_integers(self, array: np.ndarray[Any, Any]) -> None:
        """Raises for an array that is not floating-point, unless its values are taken as floats."""
        kind = array.dtype.kind
        if kind == "b" or (kind in "iu" and self.likelihood.takes_integers):
            return
        is_zero_or_one = kind in "iu" and array.min() >= 0 and array.max() <= 1
        # A likelihood of values up to 1 has no other integers, which might have to be scaled.
        if is_zero_or_one and supports.is_in_unit_interval(self.likelihood.in_support):
            return
        values = f" with values from {array.min()} to {array.max()}" if kind in "iu" else ""
        raise TypeError(
            f"{_FLOATS}; {supports.mend_of_dtype(array)}. "
            f"Received: an array of {array.dtype}{values}"
        )

    def _check_support(self, array: np.ndarray[Any, Any]) -> None:
        with tf.init_scope():  # A concrete array can be checked while a graph is traced around it.
            if multiprocessing.parent_process() is None:
                self.likelihood.check_support(array)
                return
            # In a forked process TensorFlow has lost the threads that it gives large arrays to.
            size = max(1, 4096 // max(1, array[0].size))
            for first in range(0, len(array), size):
                piece = array[first : first + size]
                if not np.all(self.likelihood.in_support(piece.astype(np.float32))):
                    self.likelihood.check_support(piece)

    def _assert_support(self, x: tf.Tensor) -> None:
        """Adds an assertion that values are possible to the graph of a data set."""
        # XLA would drop the assertion in a training step.
        likelihood = self.likelihood
        possible = tf.reduce_all(tf.math.is_finite(x) & likelihood.in_support(x))
        values = tf.cast(x, tf.float32)
        low, high = tf.reduce_min(values), tf.reduce_max(values)
        message = [
            f"The {type(likelihood).__name__} likelihood needs {likelihood.support}. ",
            supports.mend_in_graph(likelihood.mends(), low, high),
            ", or choose another likelihood. Received: a batch with values from ",
            tf.strings.format("{} to {}", (low, high)),
        ]
        tf.debugging.Assert(possible, [tf.strings.join(message)])
        if self.warn_of_grey is not None:
            tf.cond(
                tf.reduce_any((x > 0) & (x < 1)),
                lambda: tf.numpy_function(self.warn_of_grey, [], []),
                tf.no_op,
            )


def dense(x: Any) -> Any:
    """Returns an array or tensor of anything with a `shape`."""
    name = type(x).__name__
    if isinstance(x, tf.RaggedTensor):
        raise TypeError(
            "Examples of unequal sizes have no common shape: pad them, `x.to_tensor()`. "
            f"Received: {name}"
        )
    if isinstance(x, tf.SparseTensor) or hasattr(x, "tocoo"):
        mend = "tf.sparse.to_dense(x)" if isinstance(x, tf.SparseTensor) else "x.toarray()"
        raise TypeError(f"Examples must be a dense array: give `{mend}`. Received: {name}")
    if np.ma.is_masked(x):
        raise ValueError(
            "Missing values must be filled, `x.filled(value)`, or their rows removed. "
            f"Received: {name} with {int(np.sum(x.mask))} masked values"
        )
    x = of_torch(x)
    if hasattr(x, "to_numpy"):  # pandas, polars.
        x = x.to_numpy()
    return x if tf.is_tensor(x) or isinstance(x, np.ndarray) else np.asarray(x)


def of_torch(x: Any) -> Any:
    """Returns an array of a PyTorch tensor, and anything else as it is."""
    return x.detach().cpu().numpy() if hasattr(x, "detach") else x
