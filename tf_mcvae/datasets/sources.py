"""Sources of images: a name, an array, a file or a folder -> the splits that it has.

Only this module compares the names of data sets.
"""

import contextlib
import difflib
import os
import pathlib
import socket
import threading
import urllib.parse
import urllib.request
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_mcvae.checks import require
from tf_mcvae.datasets.arrays import Held, Images, as_pixels
from tf_mcvae.datasets.image_files import SUFFIXES, Files, is_hidden
from tf_mcvae.datasets.records import TFDS_INFO, read_records, split_folders, tfds_shards
from tf_mcvae.datasets.split_names import SPLITS, find_splits, is_only_data, is_only_split
from tf_mcvae.datasets.streams import Size, Stream, resize

DataDir = str | os.PathLike[str] | None

_DIGITS_TEST = 297
_MOST_HELD_BYTES = 2**28  # Splits of a folder that take more, as `uint8`, are streamed.
_CONNECT_SECONDS = 5.0


class _Entry(NamedTuple):
    """One data set of TFDS."""

    tfds_name: str
    likelihood: str
    image_size: Size = None
    invert: bool = False  # Black ink on white paper, stored in colour.
    binary: bool = False  # Stored as 0 and 1.
    streamed: bool = False  # Too large to be held in memory.


_TFDS = {
    "mnist": _Entry("mnist", "bernoulli"),
    "fashion_mnist": _Entry("fashion_mnist", "bernoulli"),
    "binarized_mnist": _Entry("binarized_mnist", "bernoulli", binary=True),
    "omniglot": _Entry("omniglot", "gaussian", image_size=(28, 28), invert=True),
    "cifar10": _Entry("cifar10", "gaussian"),
    "celeba": _Entry("celeb_a", "gaussian", image_size=(64, 64), streamed=True),
}
_ALIASES = {"fashionmnist": "fashion_mnist", "cifar": "cifar10"}

NAMES = ("digits", *_TFDS)


def read_source(
    source: Any, size: Size, data_dir: DataDir
) -> tuple[str, str | None, dict[str, Images]]:
    """Returns a name, a likelihood (None: by the channels) and the splits that the source has."""
    if isinstance(source, str):
        name = source.lower().replace("-", "_")
        name = _ALIASES.get(name, name)
        if name == "digits":
            return name, "bernoulli", _read_digits(size)
        if name in _TFDS:
            return name, _TFDS[name].likelihood, _read_tfds(_TFDS[name], size, data_dir)
    if isinstance(source, str | os.PathLike):
        path = pathlib.Path(source)
        splits = _read_folder(path, size) if path.is_dir() else _read_file(path, size)
        # TFDS names this folder after the version, and its parent after the data set.
        named = path.resolve().parent if (path / TFDS_INFO).exists() else path
        return named.stem, None, splits
    if isinstance(source, np.ndarray):
        return "array", None, {"train": Held(as_pixels(source, "array")).resized(size)}
    raise TypeError(
        "`name_or_source` must be a name, a path or a NumPy array. "
        f"Received: an object of type {type(source).__name__}"
    )


def _read_digits(size: Size) -> dict[str, Images]:
    """Reads scikit-learn's copy of the test set of UCI's handwritten digits.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, 1998, doi:10.24432/C50P49, under CC BY 4.0. Pixels are `uint8` in 0..16.
    """
    with np.load(pathlib.Path(__file__).with_name("digits.npz")) as stored:
        images = Held(as_pixels(stored["images"] / 16.0, "digits")).resized(size)
    train, test = images.hold_out(_DIGITS_TEST, key=2)
    return {"train": train, "test": test}


def _read_file(path: pathlib.Path, size: Size) -> dict[str, Images]:
    if path.suffix not in (".npy", ".npz") or not path.exists():
        close = difflib.get_close_matches(str(path).lower(), [*NAMES, *_ALIASES], n=1)
        raise ValueError(
            "There is no data set of this name, and no such folder, .npy or .npz file"
            f"{f' (did you mean {close[0]!r}?)' if close else ''}. Names are {', '.join(NAMES)}. "
            f"Received: {str(path)!r}"
        )
    try:
        with path.open("rb") as file:
            stored = np.load(file)
            arrays = {"x": stored} if isinstance(stored, np.ndarray) else dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"NumPy cannot read this file: {error}. Received: {str(path)!r}"
        ) from error
    keys = _split_keys(arrays, path)
    found = {part: as_pixels(arrays[key], key) for part, key in keys.items()}
    return {part: Held(array).resized(size) for part, array in found.items()}


def _split_keys(arrays: Mapping[str, NDArray[Any]], path: pathlib.Path) -> dict[str, str]:
    """Returns the keys of a .npz file's images, by split; labels and the like have fewer axes."""
    images = [key for key, array in arrays.items() if is_only_split(key) or array.ndim > 2]
    keys = find_splits(images, "key", str(path))
    unnamed = [key for key in arrays if is_only_data(key)]
    if len(unnamed) == 1 and SPLITS[0] not in keys:
        return {SPLITS[0]: unnamed[0], **keys}
    if unnamed or SPLITS[0] not in keys:
        raise ValueError(
            "A .npz file needs the key 'x', or 'train' (and 'validation', 'test'), or 'x_train' "
            "(and 'x_validation', 'x_test'), and no other images. "
            f"Received: {str(path)!r} with keys {sorted(arrays)}"
        )
    return keys


def _read_folder(folder: pathlib.Path, size: Size) -> dict[str, Images]:
    """Returns the splits of a folder of records or images, those that are small in memory."""
    streams = read_records(folder, size) or _read_images(folder, size)
    if "train" not in streams:
        raise ValueError(
            f"A folder that holds {'/ and '.join(streams)}/ must hold train/ too. "
            f"Received: {str(folder)!r}"
        )
    return {
        part: stream if stream.num_bytes > _MOST_HELD_BYTES else Held.read(stream.images())
        for part, stream in streams.items()
    }


def _read_images(folder: pathlib.Path, size: Size) -> dict[str, Stream]:
    """Returns the splits of a folder of image files."""
    parts = split_folders(folder)
    files = {part: Files(path) for part, path in (parts or {"train": folder}).items()}
    for part, found in files.items():
        if not len(found):
            raise ValueError(
                f"No {', '.join(SUFFIXES)} or .tfrecord in folder. "
                f"Received: {str(parts.get(part, folder))!r}"
            )
    if parts:
        _check_others(folder, list(parts.values()))
    unread = sum((found.unread for found in files.values()), Counter())
    if unread:
        warnings.warn(
            f"{unread.total()} images are left out, since only {', '.join(SUFFIXES)} are read: "
            f"convert them. Received: {', '.join(sorted(unread))} in {str(folder)!r}",
            stacklevel=2,
        )
    return {part: Stream.open(found, size) for part, found in files.items()}


def _check_others(folder: pathlib.Path, splits: list[pathlib.Path]) -> None:
    """Warns of images beside the folders of splits; raises where a class may look like a split."""
    others = [
        path
        for path in sorted(folder.iterdir())
        if path not in splits and not is_hidden(path.name) and _holds_images(path)
    ]
    folders = [path for path in others if path.is_dir()]
    if len(splits) == 1 and folders:
        other, split = folders[0], splits[0]
        raise ValueError(
            f"It is unclear whether {split.name!r} is a split or a class of images. Load "
            f"{str(split)!r} for its images alone; or rename it, or put all classes into a "
            f"folder train. Received: {other.name!r} beside {split.name!r} in {str(folder)!r}"
        )
    if others:
        warnings.warn(
            "Images beside the folders of the splits are left out: move them into one of these. "
            f"Received: {', '.join(repr(path.name) for path in others[:3])} in {str(folder)!r}",
            stacklevel=2,
        )


def _holds_images(path: pathlib.Path) -> bool:
    """Returns whether a path is that of an image, or of a folder with images."""
    return len(Files(path)) > 0 if path.is_dir() else path.suffix.lower() in SUFFIXES


def _read_tfds(entry: _Entry, size: Size, data_dir: DataDir) -> dict[str, Images]:
    tfds = require("tensorflow_datasets", "tfds")
    # TFDS reads this variable only when it is imported.
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")
    builder = tfds.builder(entry.tfds_name, data_dir=data_dir)
    if not builder.is_prepared():
        _download(builder, data_dir)
    if entry.streamed:
        size = size or entry.image_size
        return {part: Stream.open(found, size) for part, found in tfds_shards(builder).items()}
    config = tfds.ReadConfig(try_autocache=False, skip_prefetch=True)

    def read(part: str) -> Held:
        stored = builder.as_dataset(split=part, shuffle_files=False, read_config=config)
        return Held.read(stored.map(lambda x: _prepare(x["image"], entry, size)))

    return {part: read(part) for part in SPLITS if part in builder.info.splits}


def _prepare(image: tf.Tensor, entry: _Entry, size: Size) -> tf.Tensor:
    """Returns one image of TFDS, `uint8` or `bool`, with light strokes and in its final size."""
    if entry.invert:
        image = 255 - image[..., :1]
    if entry.binary:
        image = tf.cast(image, tf.bool)
    return resize(image, size or entry.image_size)


def _download(builder: Any, data_dir: DataDir) -> None:
    """Makes TFDS download and prepare a data set; where that fails, the error says what to do."""
    try:
        _check_hosts(builder.url_infos)
        builder.download_and_prepare()
    except Exception as error:  # Network, quota, checksum, disk: the advice is the same.
        raise ValueError(
            f"The data set {builder.name!r} is not in {str(builder.data_path)!r}, and downloading "
            f"it failed ({type(error).__name__}: {error}). Where there is a network, prepare it by "
            f"`tensorflow_datasets.load({builder.name!r})`; then name the folder that holds "
            f"'{builder.name}/{builder.version}' by `data_dir` or the variable TFDS_DATA_DIR. "
            f"The data set 'digits' needs no network. Received: data_dir={data_dir!r}"
        ) from error


def _check_hosts(urls: Iterable[str]) -> None:
    """Raises ConnectionError if a host does not answer, which TFDS would try for minutes."""
    if urllib.request.getproxies():
        return
    parts = [urllib.parse.urlsplit(url) for url in urls]
    for host, scheme in sorted({(part.hostname or "", part.scheme) for part in parts}):
        if not _answers(host, 80 if scheme == "http" else 443):
            raise ConnectionError(f"{host} cannot be reached")


def _answers(host: str, port: int) -> bool:
    answered = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), _CONNECT_SECONDS).close()
            answered.set()

    # In a thread, because looking up the host's address has no time limit.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(2 * _CONNECT_SECONDS)
    return answered.is_set()
