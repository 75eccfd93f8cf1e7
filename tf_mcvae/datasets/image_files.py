"""A folder of image files, of which only the names are held in memory."""

import array
import collections
import itertools
import os
import re
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tf_mcvae.datasets.split_names import is_only_split, splits_said
from tf_mcvae.datasets.streams import LOOKED_AT, Window, permuted

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_READ = tuple(map(os.fsencode, SUFFIXES))
_UNREAD = (
    b".gif",
    b".webp",
    b".tif",
    b".tiff",
    b".heic",
    b".avif",
    b".jp2",
    b".ppm",
    b".pgm",
)
_BLOCK = 256  # Names in one string; a string of all names would be copied into every graph.

# Folders that systems make for themselves: resource forks, thumbnails, deleted files.
_OF_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")

# A quick look at a name, since a folder may have millions.
_MAY_SAY_SPLIT = re.compile(rb"tr(ai)?n|val|dev|te?st|h(o|e)ld", re.IGNORECASE)

_PNG, _BITS_AT, _SIXTEEN = b"\x89PNG\r\n\x1a\n", 24, b"\x10"  # The place of the bit depth.


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder of this name is not the user's own data."""
    return name.startswith(".") or name in _OF_SYSTEMS


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a PNG, JPEG or BMP to `uint8`, `[H, W, C]`; fails for 16 bits a channel.

    TensorFlow would keep the upper 8 bits, which are zeros in many such images.
    """
    is_png = tf.strings.substr(encoded, 0, len(_PNG)) == _PNG
    has_16_bits = tf.strings.substr(encoded, _BITS_AT, 1) == _SIXTEEN
    has_8_bits = tf.debugging.Assert(~(is_png & has_16_bits), ["16 bits a channel"])
    with tf.control_dependencies([has_8_bits] if has_8_bits is not None else []):
        return tf.io.decode_image(encoded, expand_animations=False)


class Files:
    """Image files in a folder and its subfolders, in the order of their paths.

    Their names are concatenated, because Python strings would take several times as much memory.

    Args:
        folder: The folder; links to folders are not followed.

    Attributes:
        unread: Number of image files in other formats, by the ending of their names.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        base = os.path.join(os.fsencode(folder), b"")
        self.unread: collections.Counter[str] = collections.Counter()
        names = _names_below(base, b"", self.unread)
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
        return decode_image(tf.io.read_file(item))

    def name(self, number: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
        """Returns the path."""
        return item


def _names_below(base: bytes, folder: bytes, unread: collections.Counter[str]) -> Iterator[bytes]:
    """Yields the paths of files relative to `base`, in the order of their parts.

    Files in formats that are not read are counted.
    """
    with os.scandir(base + folder) as entries:
        # A zero byte, which no name contains and which sorts first, marks a folder.
        names = []
        for entry in entries:
            if is_hidden(os.fsdecode(entry.name)):
                continue
            ending = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir(follow_symlinks=False):
                names.append(entry.name + b"\0")
            elif ending in _READ:
                names.append(entry.name)
            elif ending in _UNREAD:
                unread[os.fsdecode(ending)] += 1
    _check_one_split(names, os.fsdecode(base + folder))
    names.sort()
    for name in names:
        if name.endswith(b"\0"):
            yield from _names_below(base, folder + name[:-1] + b"/", unread)
        else:
            yield folder + name


def _check_one_split(names: Sequence[bytes], folder: str) -> None:
    """Raises if the names in a folder that is read as one split are those of several splits."""
    found: dict[str, str] = {}
    for name in filter(_MAY_SAY_SPLIT.search, names):
        text = os.fsdecode(name.rstrip(b"\0"))
        stem = text if name.endswith(b"\0") else text.rpartition(".")[0]
        if is_only_split(stem):
            found.update(dict.fromkeys(splits_said(stem), text))
    if len(found) > 1:
        raise ValueError(
            "Images of several splits lie in one folder: load the folder that holds the splits, or "
            "put the images of each split into a folder train, validation or test of their own. "
            f"Received: {' and '.join(map(repr, sorted(set(found.values()))[:3]))} in {folder!r}"
        )
