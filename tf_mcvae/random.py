"""Stateless random numbers that agree between eager, graph and XLA execution.

Every draw in the package comes from here. A *seed* is an `int32` tensor of shape `[2]`. With two
further forms what is drawn for a row of the batch does not depend on the rows beside it: `[B, 2]`
gives each row a seed of its own (a server that batches requests needs this); `[3]`, from `at_row`,
is a seed and the number of the first row (for data that is scored in chunks, at less cost).
"""

import math
from typing import Any

import numpy as np
import tensorflow as tf

# TensorFlow's own float draws differ inside and outside XLA, its integer draws do not: both
# distributions are therefore made from integers. Of each integer 23 bits are used, a float32's
# mantissa.
_UNIT = 2.0**-23

# Named in every call: what TensorFlow chooses by itself gives other numbers under XLA when a seed
# is negative, and is slow there.
_ALGORITHM = "philox"
_PHILOX = 1  # Its number, for the op that takes a counter.


def as_seed(seed: Any) -> tf.Tensor:
    """Returns `seed` (an int, a pair of ints or a seed tensor) as an `int32` seed tensor.

    Raises:
        TypeError: If `seed` is neither an integer nor integers of shape `[2]` or `[B, 2]`.
    """
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        # The two halves of a 64-bit integer, so that large and negative seeds are told apart.
        low, high = int(seed) & 0xFFFFFFFF, (int(seed) >> 32) & 0xFFFFFFFF
        return tf.constant(np.array([high, low], np.uint32).view(np.int32))
    if isinstance(seed, tf.Tensor):
        is_pair = seed.shape.rank in (1, 2) and seed.shape[-1] == 2
        if seed.dtype.is_integer and (is_pair or seed.shape == [3]):
            return tf.cast(seed, tf.int32)
    elif isinstance(seed, list | tuple | np.ndarray):
        array = np.asarray(seed)
        if array.dtype.kind in "iu" and array.ndim in (1, 2) and array.shape[-1] == 2:
            return tf.constant(array.astype(np.int64).astype(np.int32))
    raise TypeError(
        "`seed` must be an integer, or integers of shape [2] or [B, 2] (a seed for each row). "
        f"Received: seed={seed!r}"
    )


def at_row(seed: tf.Tensor, first_row: Any) -> tf.Tensor:
    """Returns the seed `[3]` for rows `first_row`, `first_row + 1`, ... of a larger batch.

    A batch that is drawn in parts then has the numbers of one that is drawn at once.
    """
    return tf.concat([seed, [tf.cast(first_row, tf.int32)]], axis=0)


def split(seed: tf.Tensor, num: int = 2) -> list[tf.Tensor]:
    """Returns `num` independent seeds of the same shape as `seed`."""

    def draw(seed: tf.Tensor) -> tf.Tensor:
        return tf.random.split(seed, num, alg=_ALGORITHM)

    if seed.shape == [3]:
        return [tf.concat([part, seed[2:]], axis=0) for part in tf.unstack(draw(seed[:2]))]
    if seed.shape.rank == 1:
        return tf.unstack(draw(seed))
    return tf.unstack(tf.map_fn(draw, seed), num, axis=1)


def fold_in(seed: tf.Tensor, data: Any) -> tf.Tensor:
    """Returns the seed that belongs to the integer `data` (a step, a replica) under `seed`."""

    def draw(seed: tf.Tensor) -> tf.Tensor:
        return tf.random.fold_in(seed, data, alg=_ALGORITHM)

    if seed.shape == [3]:
        return tf.concat([draw(seed[:2]), seed[2:]], axis=0)
    return draw(seed) if seed.shape.rank == 1 else tf.map_fn(draw, seed)


def _integers(shape: Any, seed: tf.Tensor) -> tf.Tensor:
    """Returns uniform `int32` draws of shape `shape`."""

    def draw(shape: Any, seed: tf.Tensor) -> tf.Tensor:
        return tf.random.stateless_uniform(
            shape, seed, minval=None, maxval=None, dtype=tf.int32, alg=_ALGORITHM
        )

    if seed.shape.rank == 1 and seed.shape != [3]:
        return draw(shape, seed)
    # The batch is axis 1 of [S, B, ...].
    row_shape = [shape[0], *shape[2:]]
    if seed.shape == [3]:
        return _integers_from_row(shape[1], row_shape, seed)
    return tf.einsum("bs...->sb...", tf.map_fn(lambda row: draw(row_shape, row), seed))


def _integers_from_row(num_rows: Any, row_shape: list[Any], seed: tf.Tensor) -> tf.Tensor:
    """Draws `[S, B, ...]`; the counter of the generator stands where the first row begins."""
    size = math.prod(row_shape)
    blocks = (size + 3) // 4  # A count of the generator's counter is four integers.
    start = tf.cast(seed[2], tf.uint64) * tf.cast(blocks, tf.uint64)
    integers = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[num_rows, 4 * blocks],
        key=tf.reshape(tf.bitcast(seed[:2], tf.uint64), [1]),
        counter=tf.stack([start, tf.zeros_like(start)]),
        alg=_PHILOX,
        dtype=tf.int32,
    )
    rows = tf.reshape(integers[:, :size], [num_rows, *row_shape])
    return tf.einsum("bs...->sb...", rows)


def _bits(shape: Any, seed: tf.Tensor) -> tf.Tensor:
    """Returns uniform integers in `[0, 2^23)` as `float32`."""
    integers = tf.bitcast(_integers(shape, seed), tf.uint32)
    return tf.cast(tf.bitwise.right_shift(integers, tf.constant(9, tf.uint32)), tf.float32)


def uniform(shape: Any, seed: tf.Tensor) -> tf.Tensor:
    """Draws from the uniform distribution on `[0, 1)`.

    Args:
        shape: The shape `[S, B, ...]`. With `[B, 2]` or `[3]` seeds, axis 1 is the batch.
        seed: Seed tensor `[2]`, `[B, 2]` or `[3]`.

    Returns:
        `float32` tensor of shape `shape`, equal in eager, graph and XLA execution.
    """
    return _bits(shape, seed) * _UNIT


def normal(shape: Any, seed: tf.Tensor) -> tf.Tensor:
    """Draws from the standard normal distribution, by inverting its distribution function.

    The largest value that can come out is 5.3, as 23 random bits stand behind each draw.

    Args:
        shape: The shape `[S, B, ...]`. With `[B, 2]` or `[3]` seeds, axis 1 is the batch.
        seed: Seed tensor `[2]`, `[B, 2]` or `[3]`.

    Returns:
        `float32` tensor of shape `shape`, equal to rounding in eager, graph and XLA execution.
    """
    centred = (_bits(shape, seed) + 0.5) * (2.0 * _UNIT) - 1.0
    return np.float32(np.sqrt(2.0)) * tf.math.erfinv(centred)


def shape_of(tensor: tf.Tensor) -> list[Any]:
    """Returns the sizes of the axes, as integers where they are known."""
    dynamic = tf.shape(tensor)
    return [dynamic[i] if size is None else size for i, size in enumerate(tensor.shape)]
