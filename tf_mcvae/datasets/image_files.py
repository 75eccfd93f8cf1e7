"""A folder of image files, of which only the names are held in memory."""

import array
import itertools
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tf_mcvae.datasets.streams import LOOKED_AT, Window, permuted

_BLOCK = 256  # Names in one string; a string of all names would be copied into every graph.


class Files:
    """Image files in a folder and its subfolders, in the order of their paths.

    Their names are concatenated, because Python strings would take several times as much memory.

    Args:
        folder: The folder; links to folders are not followed.
        suffixes: Endings of the files' names, in lower case.
    """

    def __init__(self, folder: str | os.PathLike[str], suffixes: Sequence[str]) -> None:
        base = os.path.join(os.fsencode(folder), b"")
        names = _names_below(base, b"", tuple(os.fsencode(suffix) for suffix in suffixes))
        blocks, ends = [], array.array("q", [0])
        while block := list(itertools.islice(names, _BLOCK)):
            blocks.append(b"".join(block))
            for name in block:
                ends.append(ends[-1] + len(name))
        self._base = tf.constant(base)
        self._blocks = tf.constant(blocks, tf.string)
        self._ends = tf.constant(np.frombuffer(ends, np.int64))

    def __len__(self) -> int:
        """Returns the number of files."""
        return int(self._ends.shape[0]) - 1

    def path(self, number: int | tf.Tensor) -> tf.Tensor:
        """Returns the path of a file."""
        block = number // _BLOCK
        before, start, end = tf.unstack(tf.gather(self._ends, [block * _BLOCK, number, number + 1]))
        name = tf.strings.substr(tf.gather(self._blocks, block), start - before, end - start)
        return self._base + name

    def items(self, window: Window, seed: tf.Tensor | None) -> tf.data.Dataset:
        """Returns a dataset of numbers and paths; a seed shuffles all of them."""

        def find(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            place = index if seed is None else permuted(index, seed, window.count)
            # The permutation stands for its inverse, which is as random and would need a search.
            number = place if window.is_all else window.place(window.first + place)
            return number, self.path(number)

        return tf.data.Dataset.range(window.count).map(find)

    def buffer_size(self) -> int:
        """Returns 1, as `items` shuffles all paths."""
        return 1

    def few(self) -> tf.data.Dataset:
        """Returns a dataset of numbers and paths, evenly spread over the folder."""
        numbers = np.unique(np.linspace(0, len(self) - 1, LOOKED_AT, dtype=np.int64))
        return tf.data.Dataset.from_tensor_slices(numbers).map(lambda n: (n, self.path(n)))

    def decode(self, item: tf.Tensor) -> tf.Tensor:
        """Reads and decodes a file."""
        return tf.io.decode_image(tf.io.read_file(item), expand_animations=False)

    def name(self, number: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
        """Returns the path."""
        return item


def _names_below(base: bytes, folder: bytes, suffixes: tuple[bytes, ...]) -> Iterator[bytes]:
    """Yields the paths of files relative to `base`, in the order of their parts."""
    with os.scandir(base + folder) as entries:
        # A zero byte, which no name contains and which sorts first, marks a folder.
        names = [
            entry.name + b"\0" if entry.is_dir(follow_symlinks=False) else entry.name
            for entry in entries
            if entry.name.lower().endswith(suffixes) or entry.is_dir(follow_symlinks=False)
        ]
    names.sort()
    for name in names:
        if name.endswith(b"\0"):
            yield from _names_below(base, folder + name[:-1] + b"/", suffixes)
        else:
            yield folder + name
