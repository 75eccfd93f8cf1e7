"""Stateless random numbers that agree between eager, graph and XLA execution.

Every draw in the package comes from here. A *seed* is an `int32` tensor of shape `[2]`, or a
`RowSeed`, with which a row's numbers do not depend on the rows next to it. `per_row` gives each row
a separate seed, which a server that batches requests needs; `at_row` numbers the rows of a batch
that is drawn in parts.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from tf_mcvae.row_seeds import ALGORITHM, NumberedRows, RowSeed, SeedPerRow, integers

__all__ = [
    "NumberedRows",
    "RowSeed",
    "Seed",
    "SeedLike",
    "SeedPerRow",
    "as_seed",
    "at_row",
    "fold_in",
    "normal",
    "per_row",
    "shape_of",
    "split",
    "uniform",
]

Seed: TypeAlias = tf.Tensor | RowSeed
SeedLike: TypeAlias = int | Sequence[int] | np.ndarray[Any, Any] | tf.Tensor | RowSeed

# TensorFlow's float draws differ under XLA, its integer draws do not. Both distributions are
# therefore made from 23 bits of an integer, the length of a float32's mantissa.
_UNIT = 2.0**-23


def as_seed(seed: SeedLike) -> Seed:
    """Returns `seed` (an integer, a pair of integers or a seed) as a seed.

    Raises:
        TypeError: If `seed` is none of these.
    """
    if isinstance(seed, RowSeed):
        return seed
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        # Both halves of a 64-bit integer, so that large and negative seeds differ from others.
        low, high = int(seed) & 0xFFFFFFFF, (int(seed) >> 32) & 0xFFFFFFFF
        return tf.constant(np.array([high, low], np.uint32).view(np.int32))
    if isinstance(seed, tf.Tensor):
        if seed.dtype.is_integer and seed.shape == [2]:
            return tf.cast(seed, tf.int32)
    elif isinstance(seed, list | tuple | np.ndarray):
        array = np.asarray(seed)
        if array.dtype.kind in "iu" and array.shape == (2,):
            return tf.constant(array.astype(np.int64).astype(np.int32))
    raise TypeError(
        "`seed` must be an integer, integers of shape [2], or (a seed for each row) "
        f"`tf_mcvae.random.per_row(seeds)` with seeds [B, 2]. Received: seed={seed!r}"
    )


def per_row(seeds: Sequence[Sequence[int]] | np.ndarray[Any, Any] | tf.Tensor) -> SeedPerRow:
    """Returns a seed with which each row of a batch draws from its own seed.

    Args:
        seeds: Integers `[B, 2]`.

    Raises:
        TypeError: If `seeds` are not integers of that shape.
    """
    tensor = tf.convert_to_tensor(seeds)
    if not tensor.dtype.is_integer or tensor.shape.rank != 2 or tensor.shape[1] != 2:
        raise TypeError(f"`seeds` must be integers of shape [B, 2]. Received: seeds={seeds!r}")
    return SeedPerRow(tf.cast(tensor, tf.int32))


def at_row(seed: tf.Tensor, first_row: int | tf.Tensor) -> NumberedRows:
    """Returns a seed for rows `first_row`, `first_row + 1`, ... of a larger batch.

    With it, a batch that is drawn in parts has the same numbers as one that is drawn at once.

    Args:
        seed: Plain seed, `[2]`.
        first_row: Number of the first row.
    """
    return NumberedRows(seed, tf.cast(first_row, tf.int32))


def split(seed: Seed, num: int = 2) -> list[Seed]:
    """Returns `num` independent seeds of the same kind as `seed`."""
    if isinstance(seed, RowSeed):
        return seed.split(num)
    return tf.unstack(tf.random.split(seed, num, alg=ALGORITHM))


def fold_in(seed: Seed, data: int | tf.Tensor) -> Seed:
    """Returns the seed that belongs to the integer `data` (a step, a replica) under `seed`.

    With a seed for each row, `data` may also be `[B]`.
    """
    if isinstance(seed, RowSeed):
        return seed.fold_in(data)
    return tf.random.fold_in(seed, data, alg=ALGORITHM)


def _bits(shape: Any, seed: Seed) -> tf.Tensor:
    """Returns uniform integers in `[0, 2^23)` plus one half, as `float32`."""
    draws = seed.integers(shape) if isinstance(seed, RowSeed) else integers(shape, seed)
    draws = tf.bitwise.right_shift(tf.bitcast(draws, tf.uint32), tf.constant(9, tf.uint32))
    return tf.cast(draws, tf.float32) + 0.5


def uniform(shape: Any, seed: Seed) -> tf.Tensor:
    """Draws from the uniform distribution on the open interval (0, 1).

    The draws are the odd multiples of 2^-24 below 1, so that neither a logarithm nor a comparison
    meets 0 or 1: an event of probability p never happens if p is at most 2^-24, and always if p is
    above 1 - 2^-24.

    Args:
        shape: The shape, `[S, B, ...]`. With a `RowSeed`, axis 1 is the batch.
        seed: A seed.

    Returns:
        `float32` tensor of shape `shape`, equal in eager, graph and XLA execution.
    """
    return _bits(shape, seed) * _UNIT


def normal(shape: Any, seed: Seed) -> tf.Tensor:
    """Draws from the standard normal distribution, by inverting its distribution function.

    The largest magnitude that can be drawn is 5.3, since each draw has 23 random bits.

    Args:
        shape: The shape, `[S, B, ...]`. With a `RowSeed`, axis 1 is the batch.
        seed: A seed.

    Returns:
        `float32` tensor of shape `shape`, equal to rounding in eager, graph and XLA execution.
    """
    centred = _bits(shape, seed) * (2.0 * _UNIT) - 1.0
    return np.float32(np.sqrt(2.0)) * tf.math.erfinv(centred)


def shape_of(tensor: tf.Tensor) -> list[int | tf.Tensor]:
    """Returns the sizes of the axes, as integers where they are known."""
    dynamic = tf.shape(tensor)
    return [dynamic[i] if size is None else size for i, size in enumerate(tensor.shape)]
