"""Seeds with which a row's random numbers do not depend on the rows next to it.

`random.at_row` and `random.per_row` make them; all functions of `random` take them in place of a
plain seed `[2]`.
"""

import math
from typing import Any

import numpy as np
import tensorflow as tf

# Named in every call: with TensorFlow's default, negative seeds give different numbers under XLA,
# and drawing there is slow.
ALGORITHM = "philox"
_PHILOX = 1  # The algorithm's number, for the op that takes a counter.

# Philox' multipliers, the increments of its key in each round, and the key with which TensorFlow
# makes keys and counters from seeds. Each is [2, 1, 1], to broadcast against [2, B, blocks].
_MULTIPLIERS, _GROWTH, _SEED_KEY = (
    np.array(pair, np.uint64).reshape(2, 1, 1)
    for pair in ((0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), (0x3EC8F720, 0x02461E29))
)

# With more integers per row than this, mapping TensorFlow's operation over the rows is faster.
_LONG_ROW = 512


def integers(shape: Any, seed: tf.Tensor) -> tf.Tensor:
    """Returns uniform `int32` draws of shape `shape` from a plain seed `[2]`."""
    return tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=tf.int32, alg=ALGORITHM
    )


class RowSeed(tf.experimental.ExtensionType):
    """Base of the seeds whose draws `[S, B, ...]` belong to rows, axis 1."""

    def split(self, num: int) -> list["RowSeed"]:
        """Returns `num` independent seeds of the same kind."""
        raise NotImplementedError

    def fold_in(self, data: int | tf.Tensor) -> "RowSeed":
        """Returns the seed that belongs to the integer `data` under this one."""
        raise NotImplementedError

    def of_rows(self, size: int | tf.Tensor, num_rows: int | tf.Tensor | None) -> tf.Tensor:
        """Draws `size` integers for each row, `[B, size]`."""
        raise NotImplementedError

    def integers(self, shape: Any) -> tf.Tensor:
        """Returns uniform `int32` draws of shape `[S, B, ...]`."""
        row_shape = [shape[0], *shape[2:]]
        rows = self.of_rows(math.prod(row_shape), shape[1])
        return tf.einsum("bs...->sb...", tf.reshape(rows, [shape[1], *row_shape]))


class NumberedRows(RowSeed):
    """A seed for rows `first_row`, `first_row + 1`, ... of a larger batch; see `random.at_row`.

    Attributes:
        seed: Plain seed, `[2]`.
        first_row: Number of the first row, a scalar.
    """

    seed: tf.Tensor
    first_row: tf.Tensor

    def split(self, num: int) -> list[RowSeed]:
        """Returns `num` independent seeds for the same rows."""
        parts = tf.unstack(tf.random.split(self.seed, num, alg=ALGORITHM))
        return [NumberedRows(part, self.first_row) for part in parts]

    def fold_in(self, data: int | tf.Tensor) -> RowSeed:
        """Returns the seed that belongs to the integer `data`, for the same rows."""
        folded = tf.random.fold_in(self.seed, data, alg=ALGORITHM)
        return NumberedRows(folded, self.first_row)

    def of_rows(self, size: int | tf.Tensor, num_rows: int | tf.Tensor | None) -> tf.Tensor:
        """Draws `[B, size]`; the generator's counter starts where the first row begins."""
        blocks = (size + 3) // 4  # One count of the generator gives four integers.
        start = tf.cast(self.first_row, tf.uint64) * tf.cast(blocks, tf.uint64)
        draws = tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=[num_rows, 4 * blocks],
            key=tf.reshape(tf.bitcast(self.seed, tf.uint64), [1]),
            counter=tf.stack([start, tf.zeros_like(start)]),
            alg=_PHILOX,
            dtype=tf.int32,
        )
        return draws[:, :size]

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> tf.Tensor:
        """Returns a plain seed `[2]` for TensorFlow's random functions.

        Each part of a batch has a different one.
        """
        seed = tf.random.fold_in(self.seed, self.first_row, alg=ALGORITHM)
        return tf.convert_to_tensor(seed, dtype, name=name)


class SeedPerRow(RowSeed):
    """A separate seed for each row; see `random.per_row`.

    Attributes:
        seeds: `[B, 2]`.
    """

    seeds: tf.Tensor

    def split(self, num: int) -> list[RowSeed]:
        """Returns `num` independent seeds for each row."""
        parts = tf.reshape(self.of_rows(2 * num, None), [-1, num, 2])
        return [SeedPerRow(part) for part in tf.unstack(parts, axis=1)]

    def fold_in(self, data: int | tf.Tensor) -> RowSeed:
        """Returns each row's seed that belongs to `data`, a scalar or one integer per row."""
        first = self.of_rows(1, None)[:, 0]
        data = tf.broadcast_to(tf.cast(data, tf.int32), tf.shape(first))
        return SeedPerRow(tf.stack([first, data], axis=1))

    def of_rows(self, size: int | tf.Tensor, num_rows: int | tf.Tensor | None) -> tf.Tensor:
        """Draws `[B, size]`, the numbers that TensorFlow's operation returns for each seed.

        The operation takes one seed. It is called once per row if there is a single row or the rows
        are long. Several short rows are computed together, as the calls would dominate.
        """
        seeds = self.seeds
        if seeds.shape[0] == 1:
            return integers([size], seeds[0])[tf.newaxis]
        # XLA does not map over no rows.
        if isinstance(size, int) and size > _LONG_ROW and seeds.shape[0] != 0:
            return tf.map_fn(lambda seed: integers([size], seed), seeds)
        if seeds.shape[0] is not None:
            return _integers_at_once(seeds, size)

        def alone() -> tf.Tensor:
            # XLA needs the same shape from both branches, whatever the number of rows.
            draws = integers([size], tf.reduce_sum(seeds, axis=0))
            return tf.broadcast_to(draws, [tf.shape(seeds)[0], size])

        return tf.cond(tf.shape(seeds)[0] == 1, alone, lambda: _integers_at_once(seeds, size))

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> tf.Tensor:
        """Raises an error, as no plain seed could stand for several."""
        raise TypeError(
            "Each row has a seed of its own here, which TensorFlow's random functions cannot take: "
            "draw by `tf_mcvae.random.normal` and `uniform`, and derive seeds by its `split` and "
            f"`fold_in`. Received: {self!r}"
        )


def _integers_at_once(seeds: tf.Tensor, size: int | tf.Tensor) -> tf.Tensor:
    """Draws `[B, size]` from seeds `[B, 2]`, by the algorithm of TensorFlow's operation."""
    # As TensorFlow does, a first run of Philox turns the seed into the key and half of the counter.
    low, high = _halves(tf.bitcast(tf.cast(tf.transpose(seeds), tf.int64), tf.uint64))
    even, odd = _philox(tf.constant(_SEED_KEY), low[..., tf.newaxis], high[..., tf.newaxis])
    key = tf.stack([even[0], odd[0]])
    blocks = tf.cast(tf.range((size + 3) // 4), tf.uint64)  # Numbers of the blocks of 4 integers.
    first = tf.stack([tf.zeros_like(even[1]) + blocks, even[1] + tf.zeros_like(blocks)])
    second = tf.stack([tf.zeros_like(odd[1]), odd[1]])
    words = tf.cast(tf.stack(_philox(key, first, second), axis=1), tf.uint32)  # [2, 2, B, blocks]
    words = tf.bitcast(tf.transpose(words, [2, 3, 0, 1]), tf.int32)
    return tf.reshape(words, [tf.shape(seeds)[0], 4 * ((size + 3) // 4)])[:, :size]


def _philox(key: tf.Tensor, even: tf.Tensor, odd: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes Philox 4x32-10: four words of 32 bits from a key of two and a counter of four.

    Args:
        key: Its words, `[2, B, 1]`, in `uint64`, which holds products of two words.
        even: Words 0 and 2 of the counter, `[2, B, blocks]`, `uint64`.
        odd: Words 1 and 3.

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
