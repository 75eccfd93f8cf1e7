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

# The generator's multipliers, by how much its key grows in a round, and the key with which
# TensorFlow makes keys and counters of seeds; [2, 1, 1], for [2, B, blocks].
_MULTIPLIERS, _GROWTH, _SEED_KEY = (
    np.array(pair, np.uint64).reshape(2, 1, 1)
    for pair in ((0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), (0x3EC8F720, 0x02461E29))
)

# Integers of a row beyond which the operation's speed outweighs what calling it costs.
_LONG_ROW = 512


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
    if seed.shape.rank == 2:
        return tf.unstack(tf.reshape(_integers_of_rows(seed, 2 * num), [-1, num, 2]), axis=1)
    parts = tf.unstack(tf.random.split(seed[:2], num, alg=_ALGORITHM))
    return [tf.concat([part, seed[2:]], axis=0) for part in parts] if seed.shape == [3] else parts


def fold_in(seed: tf.Tensor, data: Any) -> tf.Tensor:
    """Returns the seed that belongs to the integer `data` (a step, a replica) under `seed`.

    With a seed for each row `data` may be `[B]`, an integer for each.
    """
    if seed.shape.rank == 2:
        first = _integers_of_rows(seed, 1)[:, 0]
        return tf.stack([first, tf.broadcast_to(tf.cast(data, tf.int32), tf.shape(first))], axis=1)
    folded = tf.random.fold_in(seed[:2], data, alg=_ALGORITHM)
    return tf.concat([folded, seed[2:]], axis=0) if seed.shape == [3] else folded


def _integers(shape: Any, seed: tf.Tensor) -> tf.Tensor:
    """Returns uniform `int32` draws of shape `shape`."""
    if seed.shape.rank == 1 and seed.shape != [3]:
        return tf.random.stateless_uniform(
            shape, seed, minval=None, maxval=None, dtype=tf.int32, alg=_ALGORITHM
        )
    # The batch is axis 1 of [S, B, ...].
    row_shape = [shape[0], *shape[2:]]
    size = math.prod(row_shape)
    if seed.shape == [3]:
        rows = _integers_from_row(seed, size, shape[1])
    else:
        rows = _integers_of_rows(seed, size)
    return tf.einsum("bs...->sb...", tf.reshape(rows, [shape[1], *row_shape]))


def _integers_from_row(seed: tf.Tensor, size: Any, num_rows: Any) -> tf.Tensor:
    """Draws `[B, size]`; the counter of the generator stands where the first row begins."""
    blocks = (size + 3) // 4  # A count of the generator's counter is four integers.
    start = tf.cast(seed[2], tf.uint64) * tf.cast(blocks, tf.uint64)
    integers = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[num_rows, 4 * blocks],
        key=tf.reshape(tf.bitcast(seed[:2], tf.uint64), [1]),
        counter=tf.stack([start, tf.zeros_like(start)]),
        alg=_PHILOX,
        dtype=tf.int32,
    )
    return integers[:, :size]


def _integers_of_rows(seed: tf.Tensor, size: Any) -> tf.Tensor:
    """Draws `[B, size]`, each row by its own seed: the numbers of TensorFlow's operation.

    That takes one seed. It is called for a single row, and for each of long rows; for others the
    calls would cost more than the numbers, which are then computed for all rows at once.
    """
    if seed.shape[0] == 1:
        return _integers([size], seed[0])[tf.newaxis]
    if isinstance(size, int) and size > _LONG_ROW and seed.shape[0] != 0:  # XLA maps no rows.
        return tf.map_fn(lambda row: _integers([size], row), seed)
    if seed.shape[0] is not None:
        return _integers_at_once(seed, size)

    def alone() -> tf.Tensor:
        # Of a shape that holds for any number of rows, as XLA wants it of both branches.
        integers = _integers([size], tf.reduce_sum(seed, axis=0))
        return tf.broadcast_to(integers, [tf.shape(seed)[0], size])

    return tf.cond(tf.shape(seed)[0] == 1, alone, lambda: _integers_at_once(seed, size))


def _integers_at_once(seed: tf.Tensor, size: Any) -> tf.Tensor:
    """Draws `[B, size]`, each row by its own seed, by the operation's algorithm."""
    # TensorFlow makes its key and half of its counter of a seed by the generator itself.
    low, high = _halves(tf.bitcast(tf.cast(tf.transpose(seed), tf.int64), tf.uint64))
    even, odd = _philox(tf.constant(_SEED_KEY), low[..., tf.newaxis], high[..., tf.newaxis])
    key = tf.stack([even[0], odd[0]])
    blocks = tf.cast(tf.range((size + 3) // 4), tf.uint64)  # Of four integers, counted.
    first = tf.stack([tf.zeros_like(even[1]) + blocks, even[1] + tf.zeros_like(blocks)])
    second = tf.stack([tf.zeros_like(odd[1]), odd[1]])
    words = tf.cast(tf.stack(_philox(key, first, second), axis=1), tf.uint32)  # [2, 2, B, blocks]
    words = tf.bitcast(tf.transpose(words, [2, 3, 0, 1]), tf.int32)
    return tf.reshape(words, [tf.shape(seed)[0], 4 * ((size + 3) // 4)])[:, :size]


def _philox(key: tf.Tensor, even: tf.Tensor, odd: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes Philox 4x32-10: four words of 32 bits from a key of two and a counter of four.

    Args:
        key: Its words, `[2, B, 1]`; like all in `uint64`, which holds products of two.
        even: The counter's words 0 and 2, `[2, B, blocks]`.
        odd: Its words 1 and 3.

    Returns:
        The even and the odd words.

    Reference:
        Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
    """
    for step in range(10):
        low, high = _halves(tf.reverse(even * _MULTIPLIERS, [0]))
        round_key, _ = _halves(key + _GROWTH * step)
        even, odd = high ^ odd ^ round_key, low
    return even, odd


def _halves(words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the low and the high 32 bits."""
    low = tf.bitwise.bitwise_and(words, tf.constant(0xFFFFFFFF, tf.uint64))
    return low, tf.bitwise.right_shift(words, tf.constant(32, tf.uint64))


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
