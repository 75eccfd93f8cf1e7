"""Batches divided among the cores of a CPU.

TensorFlow divides each operation among all cores, which then wait for each other after every one of
the thousands in a step. With `parallelize_over_batch()` each core takes a part of the batch through
the whole step instead. The results are the same except for rounding, since the noise of an example
depends only on its number in the batch.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tf_mcvae.checks import check_positive_integer

# Each part adds about a second of compile time.
_MOST_PARTS = 16

# State of the process, as TensorFlow's threads are: replicas trace their steps in other threads.
_num_parts = 1
_threads_before = (0, 0)


def parallelize_over_batch(num_cores: int | None = None) -> None:
    """Lets the cores of a CPU share batches, from now on and in the whole process.

    `fit`, `evaluate`, `predict` and the evaluations of this package then compute parts of a batch
    side by side, one on each core; each TensorFlow operation of the process, also those of other
    models, runs on one thread. On a machine with a GPU nothing changes. Never divided are steps
    that XLA compiles, eager steps, steps of dense networks with less than a million weights, and
    the training of networks with weights that are not trained (batch normalisation, dropout, frozen
    layers).

    Call it before TensorFlow computes anything, since TensorFlow then fixes its threads for the
    rest of the process.

    Args:
        num_cores: Number of cores. By default all that the process may use, at most 16. 1 undoes
            an earlier call: batches are no longer divided, and TensorFlow's thread settings are
            those of before, unless TensorFlow has computed in the meantime. A model keeps the steps
            that it has traced until it is compiled again.

    Raises:
        RuntimeError: If TensorFlow has begun to compute with other threads.
        ValueError: If `num_cores` is not a positive integer.
    """
    global _num_parts, _threads_before
    num_cores = min(_available(), _MOST_PARTS) if num_cores is None else num_cores
    check_positive_integer("num_cores", num_cores)
    if num_cores == _num_parts or tf.config.get_visible_devices("GPU"):
        return
    if num_cores == 1:
        with contextlib.suppress(RuntimeError):
            _set_threads(*_threads_before)
    else:
        before = _threads()
        try:
            _set_threads(1, num_cores)
        except RuntimeError as error:
            raise RuntimeError(
                "TensorFlow fixes its threads when it first computes: call "
                "`parallelize_over_batch()` right after the imports. "
                "Received: a TensorFlow that has computed"
            ) from error
        _threads_before = before if _num_parts == 1 else _threads_before
    _num_parts = num_cores


def _threads() -> tuple[int, int]:
    """Returns TensorFlow's numbers of threads within an operation, and for operations."""
    threading = tf.config.threading
    return (
        threading.get_intra_op_parallelism_threads(),
        threading.get_inter_op_parallelism_threads(),
    )


def _set_threads(within: int, between: int) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(within)
    tf.config.threading.set_inter_op_parallelism_threads(between)


def _available() -> int:
    """Returns the number of cores that the process may use."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS and Windows.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_parts() -> int:
    """Returns the number of parts into which batches are divided."""
    return _num_parts


@contextlib.contextmanager
def dividing(count: int) -> Iterator[None]:
    """Divides batches into `count` parts for a while, with TensorFlow's threads as they are."""
    global _num_parts
    before, _num_parts = _num_parts, count
    try:
        yield
    finally:
        _num_parts = before


def in_parts(function: Callable[[Any, tf.Tensor], Any], rows: Any, count: int) -> list[Any]:
    """Calls a function for each part of a batch, side by side; more than one need a graph.

    Args:
        function: Takes a part of `rows` and the number of its first row, and returns tensors.
        rows: A structure of tensors `[B, ...]` and None.
        count: Number of the parts.

    Returns:
        What the function returns for each part, in their order.
    """
    if count == 1:
        return [function(rows, tf.constant(0))]
    # Traced once. Not inlined, each call has a scheduler of its own, and the graph stays small.
    part_of = tf.function(function, autograph=False, experimental_attributes={"_noinline": True})
    size = tf.shape(next(row for row in tf.nest.flatten(rows) if row is not None))[0]
    return [part_of(part, first) for first, part in divided(rows, size, count)]


def divided(rows: Any, size: Any, count: int) -> list[tuple[Any, Any]]:
    """Divides rows as evenly as can be.

    Args:
        rows: A structure of tensors `[B, ...]` and None.
        size: B, an integer or a tensor.
        count: Number of the parts.

    Returns:
        The number of each part's first row, and the part.
    """

    def cut(first: Any, end: Any) -> Any:
        return tf.nest.map_structure(lambda t: None if t is None else t[first:end], rows)

    edges = [size * i // count for i in range(count + 1)]
    return [(first, cut(first, end)) for first, end in itertools.pairwise(edges)]
