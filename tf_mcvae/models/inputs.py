"""Checks of the examples that users hand over, whatever they are read from."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae import distribute
from tf_mcvae.models.input_check import InputCheck, of_torch
from tf_mcvae.models.weights import weighted_data


def check_inputs(x: Any, check: InputCheck) -> Any:
    """Checks examples as users hand them to Keras.

    Args:
        x: Array, `tf.data.Dataset`, `keras.utils.PyDataset`, generator, or another iterable of
            batches, such as a `torch.utils.data.DataLoader`.
        check: The check. It has the shape of an example afterwards, unless `x` is distributed over
            replicas.

    Returns:
        The data to read instead of `x`.

    Raises:
        TypeError: If `x` has none of these forms, or see `InputCheck.array`.
        ValueError: See `InputCheck.array`.
    """
    if isinstance(x, tf.data.Dataset):
        return check.dataset(x)
    if distribute.is_distributed_data(x):
        return x
    if isinstance(x, keras.utils.PyDataset):
        return CheckedPyDataset(x, check)
    if hasattr(x, "shape"):
        return check.array(x)
    if isinstance(x, Iterator):
        return _checked_iterator(x, check)
    if not hasattr(x, "__iter__") or isinstance(x, list | tuple | dict | str | bytes | set):
        raise TypeError(
            "Examples must be an array, a `tf.data.Dataset`, a `keras.utils.PyDataset`, a "
            "generator, or another iterable of batches, such as a DataLoader. "
            f"Received: {type(x).__name__}"
        )
    # Without a length, it may be of one pass, of which no batch may be lost.
    if not hasattr(x, "__len__") and iter(x) is (only := iter(x)):
        return _checked_iterator(only, check)
    return _checked_iterable(x, check)


def check_not_empty(results: Any) -> None:
    """Raises if Keras returned no metrics, as it does if the data have no batch."""
    if not results:
        raise ValueError(
            "The data must give at least one batch. Received: data without examples, or fewer than "
            "one batch"
        )


class CheckedPyDataset(keras.utils.PyDataset):
    """A `PyDataset` whose batches are checked where they are made: in its workers, if it has some.

    Args:
        data: The batches.
        check: The check.
    """

    def __init__(self, data: keras.utils.PyDataset, check: InputCheck) -> None:
        super().__init__(
            workers=data.workers,
            use_multiprocessing=data.use_multiprocessing,
            max_queue_size=data.max_queue_size,
        )
        self.data, self.check = data, check
        if self.num_batches == 0:
            raise ValueError("The data must give at least one batch. Received: an empty PyDataset")
        self[0]  # Gives the shape of an example.

    def __len__(self) -> int:
        return len(self.data)

    @property
    def num_batches(self) -> int | None:
        """As that of the data."""
        return self.data.num_batches

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return _checked_batch(self.data[index], index, self.check)

    def on_epoch_begin(self) -> None:
        """Tells the data."""
        self.data.on_epoch_begin()

    def on_epoch_end(self) -> None:
        """Tells the data."""
        self.data.on_epoch_end()


def _checked_iterator(batches: Iterator[Any], check: InputCheck) -> tf.data.Dataset:
    """Returns a data set of checked batches, of one pass. The first is read at once."""
    checked = (_checked_batch(batch, index, check) for index, batch in enumerate(batches))
    first = _first(checked, batches)
    rest = itertools.chain([first], checked)
    return _dataset(lambda: rest, first)


def _checked_iterable(batches: Iterable[Any], check: InputCheck) -> tf.data.Dataset:
    """Returns a data set of checked batches, which reads the iterable anew in every pass."""

    def read() -> Iterator[tuple[Any, ...]]:
        for index, batch in enumerate(batches):
            yield _checked_batch(batch, index, check)

    dataset = _dataset(read, _first(read(), batches))
    try:
        return dataset.apply(tf.data.experimental.assert_cardinality(len(batches)))  # type: ignore[arg-type]
    except TypeError:  # It has no length.
        return dataset


def _dataset(read: Callable[[], Iterator[Any]], first: tuple[Any, ...]) -> tf.data.Dataset:
    """Returns the data set of an iterator's batches, which are like the first."""

    def spec(values: Any) -> tf.TensorSpec:
        array = np.asarray(values)
        return tf.TensorSpec([None, *array.shape[1:]], array.dtype)

    signature = tf.nest.map_structure(spec, first)
    dataset = tf.data.Dataset.from_generator(read, output_signature=signature)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _first(checked: Iterator[tuple[Any, ...]], batches: Any) -> tuple[Any, ...]:
    """Returns the first batch."""
    for batch in checked:
        return batch
    raise ValueError(
        f"The data must give at least one batch. Received: {type(batches).__name__} without batches"
    )


def _checked_batch(batch: Any, index: int, check: InputCheck) -> tuple[Any, ...]:
    """Checks a batch of x, (x, y) or (x, y, sample_weight), and returns it as a tuple.

    An error begins with the number of the batch; `checks.plain_errors` finds it in TensorFlow's.
    """
    x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
    try:
        if not hasattr(x, "shape"):
            raise TypeError(
                "A batch must be x, (x, y) or (x, y, sample_weight), x being an array. "
                f"Received: x of type {type(x).__name__}"
            )
        x, y, weight = weighted_data(check.array(x), of_torch(y), of_torch(weight))
    except (TypeError, ValueError) as error:
        raise type(error)(f"Batch {index + 1} (index {index}): {error}") from error
    if weight is not None:
        return x, y, weight
    return (x,) if y is None else (x, y)
