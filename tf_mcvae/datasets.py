"""Data: a name, an array, a file or a folder -> batches of images and a description of them.

This is the only module that compares a data set's name: everything behind it looks at `DataSpec`.
"""

import contextlib
import dataclasses
import difflib
import os
import pathlib
import socket
import threading
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_mcvae.random import as_seed, fold_in, split, uniform

# Splits, and draws that are the same in every run, hang on this and not on the user's seed.
_FIXED_SEED = 20210718
_SPLITS = ("train", "validation", "test")
_NPZ_KEYS = (("x", "", ""), _SPLITS, ("x_train", "x_validation", "x_test"))
_TEST_FRACTION = 0.1
_DIGITS_TEST = 297
_STREAM_BUFFER = 8192  # Streamed images that are shuffled together: 100 MB at 64x64x3.
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_CONNECT_SECONDS = 5.0

# The images of one split: an array [N, H, W, C] of bool, uint8 or float32, or a tf.data.Dataset of
# tensors [H, W, C] where they are too many to be held in memory.
Images = Any
Size = tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What a model needs to know of its data.

    Args:
        name: Name of the data set, the file or the folder; `"array"` for an array.
        image_shape: `(H, W, C)`.
        likelihood: The family that suits the pixels, `"bernoulli"` or `"gaussian"`.
        num_train: Number of training examples.
        num_validation: Number of validation examples.
        num_test: Number of test examples.
    """

    name: str
    image_shape: tuple[int, ...]
    likelihood: str
    num_train: int
    num_validation: int
    num_test: int

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return self.image_shape[-1]


class Data(NamedTuple):
    """`tf.data.Dataset`s of `float32` batches `[B, H, W, C]` in [0, 1], and their `DataSpec`."""

    train: Any
    validation: Any
    test: Any
    spec: DataSpec


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


def load(
    name_or_source: str | os.PathLike[str] | NDArray[Any] = "digits",
    *,
    batch_size: int = 32,
    validation_batch_size: int | None = None,
    binarize: str = "none",
    image_size: int | tuple[int, int] | None = None,
    validation_fraction: float = 0.1,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Data:
    """Loads images as batches with pixels in [0, 1], split in training, validation and test.

    `digits` (1,797 scans of 8x8) needs no download. `mnist`, `fashion_mnist`, `binarized_mnist`,
    `omniglot` (white strokes on black, 28x28), `cifar10` and `celeba` (64x64) come through TFDS,
    which downloads what is not there; `fashionmnist` and `cifar` work too. Your own data come from

    - an array `[N, H, W]` or `[N, H, W, C]`: `uint8`, `bool`, or floats in [0, 1];
    - a `.npy` file, or a `.npz` file with the keys `x`, or `train` and optionally `validation` and
      `test`, or `x_train` and optionally `x_validation` and `x_test`;
    - a folder of PNG, JPEG or BMP images, searched with its subfolders, or one that holds such
      folders `train/` and optionally `validation/` and `test/` (images beside these are not read).

    A source without a validation split gives `validation_fraction` of its training examples, never
    of the test split; one without a test split first gives a tenth. Which examples those are, and
    what is drawn once, never depends on `seed`, so that runs with different seeds compare.

    The n-th pass over `train` is a function of `seed`, n, and TensorFlow's global seed where one is
    set; a pass counts once its first batch is read. If there is more than one batch, a smaller last
    one is dropped in training, so that compiled steps see one shape.

    Args:
        name_or_source: A name, an array, or the path of a file or folder.
        batch_size: Examples in a training batch.
        validation_batch_size: Examples in a validation or test batch; `batch_size` by default.
        binarize: `"none"`: grey values. `"dynamic"`: x ~ Bernoulli(pixel), drawn anew at every read
            in training, and once for validation and test. `"static"`: drawn once everywhere.
        image_size: Side, or height and width, to which images are resized after a central crop to
            that aspect ratio. By default the size given above or that of the source.
        validation_fraction: Share of the training examples held out for validation, in (0, 1).
        data_dir: Folder of prepared TFDS data; by default TFDS_DATA_DIR or TFDS's own.
        seed: Seed of the order and of the dynamic draws.

    Returns:
        A `Data` tuple `(train, validation, test, spec)`; `len(train)` is its number of batches.

    Raises:
        TypeError: If the source or the seed has a type that is not understood.
        ValueError: If a name is unknown, a download fails, an argument is out of range, or the
            images are empty, too few to split, of different sizes, or no pixels.

    Example:
        >>> data = load("digits", batch_size=100, binarize="dynamic")
        >>> data.spec.image_shape, data.spec.likelihood, len(data.train)
        ((8, 8, 1), 'bernoulli', 13)
    """
    evaluation_size = batch_size if validation_batch_size is None else validation_batch_size
    _check_options(batch_size, evaluation_size, binarize, validation_fraction)
    size, key = _as_size(image_size), as_seed(seed)
    name, likelihood, found = _read(name_or_source, size, data_dir)
    splits = _complete(found, validation_fraction)
    shape = _common_shape(splits)
    likelihood = likelihood or ("bernoulli" if shape[-1] == 1 else "gaussian")
    spec = DataSpec(name, shape, likelihood, *(len(splits[part]) for part in _SPLITS))
    drawn_once = {"none": (), "dynamic": _SPLITS[1:], "static": _SPLITS}[binarize]
    splits |= {part: _draw_once(splits[part], 3 + _SPLITS.index(part)) for part in drawn_once}
    return Data(
        _training_batches(splits["train"], batch_size, binarize == "dynamic", key),
        _evaluation_batches(splits["validation"], evaluation_size),
        _evaluation_batches(splits["test"], evaluation_size),
        spec,
    )


def skip_epochs(dataset: Any, num_epochs: int) -> None:
    """Advances a training dataset as if it had been iterated over `num_epochs` times.

    What follows has the order and draws of an uninterrupted run, so that training can be resumed.

    Args:
        dataset: `train` of `load`, or a dataset made from it, not yet iterated over.
        num_epochs: Number of passes to skip.

    Raises:
        ValueError: If `num_epochs` is not an integer of at least 0.
    """
    if not _is_integer(num_epochs, minimum=0):
        raise ValueError(f"`num_epochs` must be an integer >= 0. Received: {num_epochs!r}")
    for _ in range(num_epochs):
        next(iter(dataset), None)


def _is_integer(value: Any, minimum: int = 1) -> bool:
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_integer and bool(value >= minimum)


def _check_options(batch: Any, evaluation_batch: Any, binarize: Any, fraction: Any) -> None:
    for label, value in (("batch_size", batch), ("validation_batch_size", evaluation_batch)):
        if not _is_integer(value):
            raise ValueError(f"`{label}` must be an integer >= 1. Received: {label}={value!r}")
    if binarize not in ("none", "dynamic", "static"):
        raise ValueError(
            f"`binarize` must be 'none', 'dynamic' or 'static'. Received: binarize={binarize!r}"
        )
    if not isinstance(fraction, float) or not 0.0 < fraction < 1.0:
        raise ValueError(
            "`validation_fraction` must be a float between 0 and 1. "
            f"Received: validation_fraction={fraction!r}"
        )


def _as_size(image_size: Any) -> Size:
    """Returns (height, width), or None for the source's own."""
    if image_size is None:
        return None
    size = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(size) != 2 or not all(map(_is_integer, size)):
        raise ValueError(
            "`image_size` must be an integer >= 1 or a pair (height, width) of them. "
            f"Received: image_size={image_size!r}"
        )
    return int(size[0]), int(size[1])


def _read(source: Any, size: Size, data_dir: Any) -> tuple[str, str | None, dict[str, Images]]:
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
        return path.stem, None, splits
    if isinstance(source, np.ndarray):
        return "array", None, _resized({"train": _as_pixels(source, "array")}, size)
    raise TypeError(
        "`name_or_source` must be a name, a path or a NumPy array. "
        f"Received: an object of type {type(source).__name__}"
    )


def _read_digits() -> dict[str, Images]:
    from sklearn.datasets import load_digits

    images = _as_pixels(load_digits().images / 16.0, "digits")
    return dict(zip(("train", "test"), _hold_out(images, _DIGITS_TEST, key=2), strict=True))


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
            pairs = zip(_SPLITS, keys, strict=True)
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
    parts = {part: folder / part for part in _SPLITS if (folder / part).is_dir()}
    parts = parts or {"train": folder}
    if "train" not in parts:
        raise ValueError(
            f"A folder that holds {'/ and '.join(parts)}/ must hold train/ too. "
            f"Received: {str(folder)!r}"
        )
    return {part: _read_images(path, size) for part, path in parts.items()}


def _read_images(folder: pathlib.Path, size: Size) -> NDArray[np.uint8]:
    """Returns the images below a folder in the order of their paths."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"No {', '.join(_IMAGE_SUFFIXES)} in folder. Received: {str(folder)!r}")
    images = [_decode(path, size) for path in files]
    channels = max(image.shape[-1] for image in images)
    shape = (*images[0].shape[:2], channels)
    for path, image in zip(files, images, strict=True):
        if image.shape[:2] != shape[:2]:
            raise ValueError(
                "Images must have one size; give `image_size` to resize them. Received: "
                f"{shape[:2]} in {str(files[0])!r} and {image.shape[:2]} in {str(path)!r}"
            )
    return np.stack([np.broadcast_to(image, shape) for image in images])


def _decode(path: pathlib.Path, size: Size) -> NDArray[np.uint8]:
    try:
        image = tf.io.decode_image(tf.io.read_file(str(path)), expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"This image cannot be decoded. Received: {str(path)!r}") from error
    return _resize(image[..., : 1 if image.shape[-1] < 3 else 3], size).numpy()  # No alpha channel.


def _read_tfds(entry: _Entry, size: Size, data_dir: Any) -> dict[str, Images]:
    import tensorflow_datasets as tfds

    # TFDS looks at the variable only when it is imported.
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")
    builder = tfds.builder(entry.tfds_name, data_dir=data_dir)
    if not builder.is_prepared():
        _download(builder, data_dir)
    config = tfds.ReadConfig(try_autocache=False, skip_prefetch=True)
    workers = tf.data.AUTOTUNE if entry.streamed else None  # They cost more than small images do.

    def read(part: str) -> Images:
        examples = builder.as_dataset(split=part, shuffle_files=False, read_config=config)
        images = examples.map(lambda x: _prepare(x["image"], entry, size), workers)
        return images if entry.streamed else _in_memory(images)

    return {part: read(part) for part in _SPLITS if entry.has_validation or part != "validation"}


def _prepare(image: tf.Tensor, entry: _Entry, size: Size) -> tf.Tensor:
    """Returns one image of TFDS as it is stored here, uint8 or bool."""
    if entry.invert:
        image = 255 - image[..., :1]
    if entry.binary:
        image = tf.cast(image, tf.bool)
    return _resize(image, size or entry.image_size)


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


def _hold_out(images: Images, count: int, key: int) -> tuple[Images, Images]:
    """Returns the images without `count` of them, and these, chosen once and for all."""
    draws = uniform([len(images)], fold_in(as_seed(_FIXED_SEED), key)).numpy()
    order = np.argsort(draws, kind="stable")
    return images[np.sort(order[count:])], images[np.sort(order[:count])]


def _complete(found: Mapping[str, Images], validation_fraction: float) -> dict[str, Images]:
    """Returns all three splits, those that are missing taken from training."""
    splits = dict(found)
    wanted = (("test", _TEST_FRACTION), ("validation", validation_fraction))
    for key, (part, fraction) in enumerate(wanted):
        if part not in splits:
            num = len(splits["train"])
            count = max(1, round(fraction * num))
            if count >= num:
                raise ValueError(
                    f"Too few examples to hold out {count} of them for {part}. Give more, or a "
                    f"{part} split of their own. Received: {num} examples"
                )
            splits["train"], splits[part] = _hold_out(splits["train"], count, key)
    return splits


def _common_shape(splits: Mapping[str, Images]) -> tuple[int, ...]:
    shapes = {part: tuple(_examples(images).element_spec.shape) for part, images in splits.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            "All splits must have images of one shape [H, W, C]; `image_size` makes height and "
            f"width equal. Received: {shapes}"
        )
    return shapes["train"]


def _examples(images: Images) -> Any:
    """Returns a tf.data.Dataset of the single images."""
    in_memory = isinstance(images, np.ndarray)
    return tf.data.Dataset.from_tensor_slices(images) if in_memory else images


def _in_memory(dataset: Any) -> NDArray[Any]:
    """Returns the elements of a dataset, stacked."""
    return dataset.batch(len(dataset)).get_single_element().numpy()


def _map_images(images: Images, function: Callable[[Any, Any], Any]) -> Images:
    """Applies `function(index, image)`; what is in memory stays there."""
    mapped = _examples(images).enumerate().map(function, num_parallel_calls=tf.data.AUTOTUNE)
    return _in_memory(mapped) if isinstance(images, np.ndarray) else mapped


def _resized(splits: Mapping[str, Images], size: Size) -> dict[str, Images]:
    if size is None:
        return dict(splits)
    return {
        part: _map_images(x, lambda _, image: _resize(image, size)) for part, x in splits.items()
    }


def _resize(image: tf.Tensor, size: Size) -> tf.Tensor:
    """Crops `[H, W, C]` centrally to the aspect ratio of `size` and resizes it to that.

    Shrinking averages areas, so that thin strokes stay; enlarging is bilinear.
    """
    height, width = image.shape[:2]
    if size is None or (height, width) == size:
        return image
    scale = min(height / size[0], width / size[1])
    rows, columns = max(1, round(scale * size[0])), max(1, round(scale * size[1]))
    image = tf.image.resize_with_crop_or_pad(image, rows, columns)
    method = "area" if scale > 1.0 else "bilinear"
    resized = tf.image.resize(tf.cast(image, tf.float32), size, method)
    if image.dtype == tf.uint8:
        return tf.cast(tf.round(resized), tf.uint8)
    return tf.clip_by_value(resized, 0.0, 1.0)  # An average may be off by a rounding error.


def _to_unit(images: tf.Tensor) -> tf.Tensor:
    """Returns bool, uint8 or float32 pixels as float32 in [0, 1]."""
    pixels = tf.cast(images, tf.float32)
    return pixels / 255.0 if images.dtype == tf.uint8 else pixels


def _binarize(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws Bernoulli(pixel) as bool; pixels 0 and 1 stay what they are."""
    return uniform(tf.shape(images), seed) < _to_unit(images)


def _draw_once(images: Images, key: int) -> Images:
    """Binarises each image with a seed of its own: whatever the batches, the draw is the same."""
    seed = fold_in(as_seed(_FIXED_SEED), key)
    return _map_images(images, lambda index, image: _binarize(image, fold_in(seed, index)))


def _evaluation_batches(images: Images, batch_size: int) -> Any:
    batches = _examples(images).batch(batch_size)
    return batches.map(_to_unit, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _training_batches(images: Images, batch_size: int, dynamic: bool, key: tf.Tensor) -> Any:
    num = len(images)
    order_seed, draw_seed = (int(seed[0]) for seed in split(key))
    buffer = num if isinstance(images, np.ndarray) else min(num, _STREAM_BUFFER)
    batches = _examples(images).shuffle(buffer, seed=order_seed, reshuffle_each_iteration=True)
    batches = batches.batch(batch_size, drop_remainder=num > batch_size)
    if dynamic:
        seeds = tf.data.Dataset.random(seed=draw_seed, rerandomize_each_iteration=True).batch(2)
        batches = tf.data.Dataset.zip(batches, seeds).map(
            lambda x, seed: _to_unit(_binarize(x, tf.cast(seed, tf.int32))),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    else:
        batches = batches.map(_to_unit, num_parallel_calls=tf.data.AUTOTUNE)
    # Keras's `fit` opens two iterators an epoch and reads one. Shuffling moves on when an iterator
    # is opened; behind `flat_map` that is when it is first read, which is once an epoch.
    on_demand = tf.data.Dataset.range(1).flat_map(lambda _: batches)
    counted = on_demand.apply(tf.data.experimental.assert_cardinality(len(batches)))
    return counted.prefetch(tf.data.AUTOTUNE)
