"""Sources of images: a name, an array, a file or a folder -> the splits that it has.

This is the only module that compares a data set's name.
"""

import contextlib
import difflib
import os
import pathlib
import socket
import threading
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_mcvae.datasets.image_files import Files
from tf_mcvae.datasets.records import SPLITS, TFDS_INFO, read_records, tfds_shards
from tf_mcvae.datasets.streams import FIXED_SEED, Size, Stream, resize, without_alpha
from tf_mcvae.random import as_seed, fold_in, uniform

_NPZ_KEYS = (("x", "", ""), SPLITS, ("x_train", "x_validation", "x_test"))
_DIGITS_TEST = 297
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
# Images of a folder that take more, as `uint8` in their final size, are read when they are needed.
_MOST_HELD_BYTES = 2**28
_CONNECT_SECONDS = 5.0

# The images of one split: an array [N, H, W, C] of bool, uint8 or float32, or a `Stream` where they
# are too many to be held in memory.
Images = Any


class _Entry(NamedTuple):
    """One data set of TFDS."""

    tfds_name: str
    likelihood: str
    image_size: Size = None
    has_validation: bool = False
    invert: bool = False  # Black ink on white paper, stored in colour.
    binary: bool = False  # Stored as 0 and 1.
    streamed: bool = False  # Too large to be held in memory.


_TFDS = {
    "mnist": _Entry("mnist", "bernoulli"),
    "fashion_mnist": _Entry("fashion_mnist", "bernoulli"),
    "binarized_mnist": _Entry("binarized_mnist", "bernoulli", has_validation=True, binary=True),
    "omniglot": _Entry("omniglot", "gaussian", image_size=(28, 28), invert=True),
    "cifar10": _Entry("cifar10", "gaussian"),
    "celeba": _Entry("celeb_a", "gaussian", (64, 64), has_validation=True, streamed=True),
}
_ALIASES = {"fashionmnist": "fashion_mnist", "cifar": "cifar10"}

NAMES = ("digits", *_TFDS)


def read_source(
    source: Any, size: Size, data_dir: Any
) -> tuple[str, str | None, dict[str, Images]]:
    """Returns a name, a likelihood (None: by the channels) and the splits that the source has."""
    if isinstance(source, str):
        name = source.lower().replace("-", "_")
        name = _ALIASES.get(name, name)
        if name == "digits":
            return name, "bernoulli", _resized(_read_digits(), size)
        if name in _TFDS:
            return name, _TFDS[name].likelihood, _read_tfds(_TFDS[name], size, data_dir)
    if isinstance(source, str | os.PathLike):
        path = pathlib.Path(source)
        splits = _read_folder(path, size) if path.is_dir() else _read_file(path, size)
        # TFDS calls the folder by the version, and the one around it by the name.
        named = path.resolve().parent if (path / TFDS_INFO).exists() else path
        return named.stem, None, splits
    if isinstance(source, np.ndarray):
        return "array", None, _resized({"train": _as_pixels(source, "array")}, size)
    raise TypeError(
        "`name_or_source` must be a name, a path or a NumPy array. "
        f"Received: an object of type {type(source).__name__}"
    )


def _read_digits() -> dict[str, Images]:
    from sklearn.datasets import load_digits

    images = _as_pixels(load_digits().images / 16.0, "digits")
    return dict(zip(("train", "test"), hold_out(images, _DIGITS_TEST, key=2), strict=True))


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
    for keys in _NPZ_KEYS:
        if keys[0] in arrays:
            pairs = zip(SPLITS, keys, strict=True)
            found = {part: _as_pixels(arrays[k], k) for part, k in pairs if k in arrays}
            return _resized(found, size)
    raise ValueError(
        "A .npz file needs the key 'x', or 'train' (and 'validation', 'test'), or 'x_train' (and "
        f"'x_validation', 'x_test'). Received: {str(path)!r} with keys {sorted(arrays)}"
    )


def _as_pixels(array: NDArray[Any], label: str) -> NDArray[Any]:
    """Returns images `[N, H, W, C]` of uint8, bool or float32, after checking that they are."""
    received = f"Received: {label} with shape={array.shape}, dtype={array.dtype}"
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim != 4 or array.size == 0:
        raise ValueError(f"Images need a shape [N, H, W] or [N, H, W, C], not empty. {received}")
    if array.dtype == np.uint8 and array.max() == 1:
        raise ValueError(f"Convert uint8 pixels of 0 and 1 by `astype(bool)`. {received}")
    if array.dtype in (np.uint8, np.bool_):
        return array
    if array.dtype.kind != "f":
        raise ValueError(f"Convert pixels to uint8 in 0..255 or floats in [0, 1]. {received}")
    low, high = array.min(), array.max()
    if np.isnan(low):
        raise ValueError(f"Some pixels are NaN; repair or remove these images. {received}")
    if low < 0.0 or high > 1.0:
        raise ValueError(
            "Floating point pixels must be in [0, 1]; divide grey values in 0..255 by 255. "
            f"{received}, minimum={low}, maximum={high}"
        )
    return array.astype(np.float32)


def _read_folder(folder: pathlib.Path, size: Size) -> dict[str, Images]:
    streams = read_records(folder, size)
    if streams:
        _check_parts(streams, folder)
        return {part: _held_if_small(stream) for part, stream in streams.items()}
    parts = {part: folder / part for part in SPLITS if (folder / part).is_dir()}
    parts = parts or {"train": folder}
    _check_parts(parts, folder)
    return {part: _read_images(path, size) for part, path in parts.items()}


def _check_parts(parts: Mapping[str, Any], folder: pathlib.Path) -> None:
    if "train" not in parts:
        raise ValueError(
            f"A folder that holds {'/ and '.join(parts)}/ must hold train/ too. "
            f"Received: {str(folder)!r}"
        )


def _held_if_small(stream: Stream) -> Images:
    return stream if stream.num_bytes > _MOST_HELD_BYTES else _in_memory(stream.images())


def _read_images(folder: pathlib.Path, size: Size) -> Images:
    """Returns the images below a folder in the order of their paths."""
    files = Files(folder, _IMAGE_SUFFIXES)
    if not len(files):
        raise ValueError(
            f"No {', '.join(_IMAGE_SUFFIXES)} or .tfrecord in folder. Received: {str(folder)!r}"
        )
    stream = Stream.open(files, size)
    if stream.num_bytes > _MOST_HELD_BYTES:
        return stream
    paths = [os.fsdecode(files.path(number).numpy()) for number in range(len(files))]
    return _read_all(paths, size)


def _read_all(paths: Sequence[str], size: Size) -> NDArray[np.uint8]:
    """Returns images that are few enough to be held; one in colour makes all of them so."""
    images = [_decode(path, size) for path in paths]
    channels = max(image.shape[-1] for image in images)
    shape = (*images[0].shape[:2], channels)
    for path, image in zip(paths, images, strict=True):
        if image.shape[:2] != shape[:2]:
            raise ValueError(
                "Images must have one size; give `image_size` to resize them. Received: "
                f"{shape[:2]} in {paths[0]!r} and {image.shape[:2]} in {path!r}"
            )
    return np.stack([np.broadcast_to(image, shape) for image in images])


def _decode(path: str, size: Size) -> NDArray[np.uint8]:
    try:
        image = tf.io.decode_image(tf.io.read_file(path), expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"This image cannot be decoded. Received: {path!r}") from error
    return resize(without_alpha(image), size).numpy()


def _read_tfds(entry: _Entry, size: Size, data_dir: Any) -> dict[str, Images]:
    import tensorflow_datasets as tfds

    # TFDS looks at the variable only when it is imported.
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")
    builder = tfds.builder(entry.tfds_name, data_dir=data_dir)
    if not builder.is_prepared():
        _download(builder, data_dir)
    if entry.streamed:
        size = size or entry.image_size
        return {part: Stream.open(found, size) for part, found in tfds_shards(builder).items()}
    config = tfds.ReadConfig(try_autocache=False, skip_prefetch=True)

    def read(part: str) -> Images:
        stored = builder.as_dataset(split=part, shuffle_files=False, read_config=config)
        return _in_memory(stored.map(lambda x: _prepare(x["image"], entry, size)))

    return {part: read(part) for part in SPLITS if entry.has_validation or part != "validation"}


def _prepare(image: tf.Tensor, entry: _Entry, size: Size) -> tf.Tensor:
    """Returns one image of TFDS as it is stored here, uint8 or bool."""
    if entry.invert:
        image = 255 - image[..., :1]
    if entry.binary:
        image = tf.cast(image, tf.bool)
    return resize(image, size or entry.image_size)


def _download(builder: Any, data_dir: Any) -> None:
    """Has TFDS download and prepare a data set, and says what to do where that fails."""
    try:
        _check_hosts(builder.url_infos)
        builder.download_and_prepare()
    except Exception as error:  # Network, quota, checksum, disk: the way out is the same.
        raise ValueError(
            f"The data set {builder.name!r} is not in {str(builder.data_path)!r}, and downloading "
            f"it failed ({type(error).__name__}: {error}). Where there is a network, prepare it by "
            f"`tensorflow_datasets.load({builder.name!r})`; then name the folder that holds "
            f"'{builder.name}/{builder.version}' by `data_dir` or the variable TFDS_DATA_DIR. "
            f"The data set 'digits' needs no network. Received: data_dir={data_dir!r}"
        ) from error


def _check_hosts(urls: Mapping[str, Any]) -> None:
    """Raises ConnectionError if a host does not answer: TFDS would go on trying for minutes."""
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

    # In a thread, as looking up the host's address has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(2 * _CONNECT_SECONDS)
    return answered.is_set()


def hold_out(images: Images, count: int, key: int) -> tuple[Images, Images]:
    """Returns the images without `count` of them, and these, chosen once and for all."""
    if isinstance(images, Stream):
        return images.hold_out(count)
    draws = uniform([len(images)], fold_in(as_seed(FIXED_SEED), key)).numpy()
    order = np.argsort(draws, kind="stable")
    return images[np.sort(order[count:])], images[np.sort(order[:count])]


def examples(images: Images) -> Any:
    """Returns a tf.data.Dataset of the single images."""
    if isinstance(images, Stream):
        return images.images()
    return tf.data.Dataset.from_tensor_slices(images)


def _in_memory(dataset: Any) -> NDArray[Any]:
    """Returns the elements of a dataset, stacked."""
    return dataset.batch(len(dataset)).get_single_element().numpy()


def map_images(images: Images, function: Callable[[Any, Any], Any]) -> Images:
    """Applies `function(index, image)`; what is in memory stays there."""
    if isinstance(images, Stream):
        return images.map(function)
    mapped = examples(images).enumerate().map(function, num_parallel_calls=tf.data.AUTOTUNE)
    return _in_memory(mapped)


def _resized(splits: Mapping[str, Images], size: Size) -> dict[str, Images]:
    if size is None:
        return dict(splits)
    return {part: map_images(x, lambda _, image: resize(image, size)) for part, x in splits.items()}
