"""A folder of TFRecord files: a TFDS data set, or files with images under a fixed key."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_mcvae.checks import check_positive_integer, require
from tf_mcvae.datasets.image_files import decode_image, is_hidden
from tf_mcvae.datasets.split_names import SPLITS, find_splits, split_of_file
from tf_mcvae.datasets.streams import LOOKED_AT, Size, Stream, Window, permuted

Image: TypeAlias = NDArray[np.uint8] | tf.Tensor

_MARK = ".tfrecord"
TFDS_INFO = "dataset_info.json"
_KEY = "image"

_BUFFER_RECORDS = 8192  # Most records that are shuffled together, and most bytes they take.
_BUFFER_BYTES = 2**26
_FILES_READ_AT_ONCE = 16


def read_records(folder: pathlib.Path, size: Size) -> dict[str, Stream]:
    """Returns the splits of a folder of TFRecord files; none if it holds no such files."""
    if (folder / TFDS_INFO).exists():
        tfds = require("tensorflow_datasets", "tfds")
        shards = tfds_shards(tfds.builder_from_directory(folder))
    else:
        shards = {part: _plain_shards(paths) for part, paths in _split_files(folder).items()}
    return {part: Stream.open(source, size) for part, source in shards.items()}


def tfds_shards(builder: Any) -> dict[str, "Shards"]:
    """Returns the splits of a prepared TFDS data set."""
    features, splits, stored = builder.info.features, builder.info.splits, builder.info.file_format
    image = dict(features.items()).get(_KEY)
    is_image = image is not None and image.np_dtype == np.uint8 and len(image.shape) == 3
    if not is_image or stored.value != "tfrecord":
        raise ValueError(
            f"The data set must be stored as TFRecords and have a feature {_KEY!r} of `uint8` "
            f"pixels [H, W, C]. Received: {stored} of {features} in {str(builder.data_path)!r}"
        )
    return {
        part: Shards(
            [os.fspath(path) for path in splits[name].filepaths],
            splits[name].shard_lengths,
            lambda record: features.deserialize_example(record)[_KEY],
        )
        for part, name in find_splits(splits, "split", str(builder.data_path)).items()
    }


def write_records(
    images: Iterable[Image],
    folder: str | os.PathLike[str],
    split: Literal["train", "validation", "test"] = "train",
    num_files: int = 16,
) -> int:
    """Writes images as TFRecord files that `load` streams, without holding them in memory.

    The files are named `<split>-00000-of-00016.tfrecord` and so on, and appear when all are
    complete. Image i is in file `i % num_files`, without loss: each record is a `tf.train.Example`
    whose feature `"image"` holds the bytes of a PNG (`load` reads JPEG and BMP too).

    Args:
        images: Arrays or tensors `[H, W, C]` of `uint8`, where C is 1 or 3, from a generator, a
            `tf.data.Dataset` or another iterable.
        folder: Folder of the files; it is made where it does not exist.
        split: `"train"`, `"validation"` or `"test"`.
        num_files: Number of files. At least 16 files of some 100 MB each shuffle well.

    Returns:
        The number of images.

    Raises:
        ValueError: If an image or an argument is not as described, or the folder already has files
            of this split.

    Example:
        >>> import tempfile, numpy as np
        >>> from tf_mcvae import datasets
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     images = (np.full([8, 8, 1], i, np.uint8) for i in range(100))
        ...     number = datasets.write_records(images, folder, num_files=2)
        ...     data = datasets.load(folder)
        >>> number, data.spec.num_train
        (100, 81)
    """
    path = pathlib.Path(folder)
    check_positive_integer("num_files", num_files)
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}. Received: split={split!r}")
    path.mkdir(parents=True, exist_ok=True)
    if _split_files(path).get(split):
        raise ValueError(
            f"The folder already has {split} files; write to another folder, or remove them. "
            f"Received: {str(path)!r}"
        )
    names = [f"{split}-{i:05}-of-{num_files:05}{_MARK}" for i in range(num_files)]
    with tempfile.TemporaryDirectory(prefix=".", dir=path) as unfinished:
        count = _write_round_robin(images, [os.path.join(unfinished, name) for name in names])
        for name in names:
            os.replace(os.path.join(unfinished, name), path / name)
    return count


def _write_round_robin(images: Iterable[Image], paths: Sequence[str]) -> int:
    count = 0
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(tf.io.TFRecordWriter(path)) for path in paths]
        for image in images:
            if not hasattr(image, "dtype") or image.dtype != np.uint8 or len(image.shape) != 3:
                raise ValueError(
                    "Images must be arrays [H, W, C] of `uint8`. Received: "
                    f"{getattr(image, 'dtype', type(image).__name__)} of shape "
                    f"{getattr(image, 'shape', None)} as number {count}"
                )
            png = tf.train.BytesList(value=[tf.io.encode_png(image).numpy()])
            features = tf.train.Features(feature={_KEY: tf.train.Feature(bytes_list=png)})
            record = tf.train.Example(features=features).SerializeToString()
            writers[count % len(paths)].write(record)
            count += 1
    return count


def _split_files(folder: pathlib.Path) -> dict[str, list[str]]:
    """Returns the TFRecord files of each split, by their folder or otherwise their name."""
    here = _record_files(folder)
    folders = {part: _record_files(path) for part, path in split_folders(folder).items()}
    if any(folders.values()):
        if here:
            raise ValueError(
                "TFRecord files must all be in folders of splits, or none of them. Received: "
                f"{here[0]!r} beside {', '.join(folders)}"
            )
        return {part: paths for part, paths in folders.items() if paths}
    parts: dict[str | None, list[str]] = {}
    for path in here:
        parts.setdefault(split_of_file(os.path.basename(path), os.fspath(folder)), []).append(path)
    unnamed = parts.pop(None, [])
    if unnamed and parts:
        raise ValueError(
            "The names of all TFRecord files must say their split, such as train-000.tfrecord, or "
            f"none of them. Received: {unnamed[0]!r} beside files of {', '.join(map(str, parts))}"
        )
    return {SPLITS[0]: unnamed} if unnamed else {str(part): parts[part] for part in parts}


def split_folders(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the folders in a folder that are named as splits, by split."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.is_dir() and not is_hidden(e.name)]
    found = find_splits(names, "folder", os.fspath(folder))
    return {part: folder / name for part, name in found.items()}


def _record_files(folder: pathlib.Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            os.fspath(entry.path)
            for entry in entries
            if _MARK in entry.name and not is_hidden(entry.name)
        )


def _plain_shards(paths: Sequence[str]) -> "Shards":
    return Shards(paths, [_count_records(path) for path in paths], _decode_example)


def _decode_example(record: tf.Tensor) -> tf.Tensor:
    """Returns the image in a `tf.train.Example`."""
    feature = {_KEY: tf.io.FixedLenFeature([], tf.string)}
    return decode_image(tf.io.parse_single_example(record, feature)[_KEY])


def _count_records(path: str) -> int:
    """Returns the number of records in a TFRecord file, reading only the lengths of the records."""
    size, position, count = os.path.getsize(path), 0, 0
    with open(path, "rb", buffering=0) as file:
        while position < size:
            length = int.from_bytes(os.pread(file.fileno(), 8, position), "little")
            position += length + 16  # The length, its checksum, the record, its checksum.
            count += 1
    if position != size:
        raise ValueError(
            "This is not a whole, uncompressed TFRecord file; write it again, or remove it. "
            f"Received: {path!r}"
        )
    return count


class Shards:
    """Records in TFRecord files.

    Args:
        paths: Paths of the files.
        counts: Number of records in each file.
        decode: Returns the image `[H, W, C]` of `uint8` in a record.
    """

    def __init__(
        self,
        paths: Sequence[str],
        counts: Sequence[int],
        decode: Callable[[tf.Tensor], tf.Tensor],
    ) -> None:
        firsts = np.cumsum([0, *counts])
        self._paths, self._firsts = tf.constant(list(paths)), tf.constant(firsts, tf.int64)
        self._num_files, self._count = len(paths), int(firsts[-1])
        self._bytes = sum(os.path.getsize(path) for path in paths)
        self.decode = decode

    def __len__(self) -> int:
        """Returns the number of records."""
        return self._count

    def items(self, window: Window, seed: tf.Tensor | None) -> tf.data.Dataset:
        """Returns a dataset of numbers and records, from 16 files at a time.

        A seed shuffles the files, not the records in them.
        """

        def read(index: tf.Tensor) -> tf.data.Dataset:
            file = index if seed is None else permuted(index, seed, self._num_files)
            return tf.data.TFRecordDataset(self._paths[file]).enumerate(self._firsts[file])

        records = tf.data.Dataset.range(self._num_files).interleave(
            read, cycle_length=min(_FILES_READ_AT_ONCE, self._num_files), block_length=16
        )
        if window.is_all:
            return records
        return records.filter(lambda number, _: window.holds(number))

    def few(self) -> tf.data.Dataset:
        """Returns a dataset of the numbers and records at the beginning of some files."""
        return self.items(Window(0, len(self), len(self)), None).take(LOOKED_AT)

    def buffer_size(self) -> int:
        """Returns the number of records to shuffle together."""
        return max(1, min(_BUFFER_RECORDS, _BUFFER_BYTES * self._count // max(1, self._bytes)))

    def name(self, number: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
        """Returns the file and the record's number in it."""
        file = tf.searchsorted(self._firsts, [number], side="right")[0] - 1
        record = tf.strings.as_string(number - self._firsts[file])
        return tf.strings.join([self._paths[file], ", record ", record])
