"""Batches divided among the cores of a CPU.

TensorFlow divides each operation among all cores, which then wait for each other after every one of
the thousands in a step. With `parallelize_over_batch()` each core takes a part of the batch through
the whole step instead. The numbers are the same but for rounding, as the noise of an example hangs
on its number in the batch.
"""

import itertools
import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_mcvae.checks import check_positive_integer

# Each part costs about a second of compile time.
_MOST_PARTS = 16

_num_parts = 1


def parallelize_over_batch(num_cores: int | None = None) -> None:
    """Lets the cores of a CPU share batches, for the rest of the process.

    Call it before TensorFlow computes anything. Then `fit`, `evaluate`, `predict` and the
    evaluations of this package compute parts of a batch side by side, one on each core; every
    TensorFlow operation of the process, also of other models, runs on one thread. On a machine with
    a GPU it does nothing. Not divided are steps that XLA compiles, eager ones, those of small dense
    networks (below a million weights), and the training of networks with weights that are not
    trained (batch normalisation, dropout, frozen layers).

    Args:
        num_cores: How many; by default those that the process may use, 16 at most. 1 changes
            nothing.

    Raises:
        RuntimeError: If TensorFlow has begun to compute.
        ValueError: If `num_cores` is not a positive integer.
    """
    global _num_parts
    num_cores = min(_available(), _MOST_PARTS) if num_cores is None else num_cores
    check_positive_integer("num_cores", num_cores)
    if num_cores in (1, _num_parts) or tf.config.get_visible_devices("GPU"):
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(num_cores)
    except RuntimeError as error:
        raise RuntimeError(
            "TensorFlow sets up its threads when it first computes: call "
            "`parallelize_over_batch()` right after the imports. "
            "Received: a TensorFlow that has computed"
        ) from error
    _num_parts = num_cores


def _available() -> int:
    """Returns the number of cores that the process may use."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS and Windows.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_parts() -> int:
    """Returns the number of parts in which a batch is computed."""
    return _num_parts


def in_parts(function: Callable[[Any, tf.Tensor], Any], rows: Any) -> list[Any]:
    """Calls a function for each part of a batch, side by side within a graph.

    Args:
        function: Takes a part of `rows` and the number of its first row; tensors come out of it.
        rows: A structure of tensors `[B, ...]` and None.

    Returns:
        What the function returns for each part, in their order; outside a graph the batch is one.
    """
    count = num_parts()
    if count == 1 or not tf.inside_function():
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
