"""Data: a name, an array, a file or a folder -> batches of images and a description of them.

`sources.py` reads a source. Models, training and evaluation depend on the `DataSpec` only.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_mcvae.checks import check_positive_integer
from tf_mcvae.datasets.arrays import Images
from tf_mcvae.datasets.sources import read_source
from tf_mcvae.datasets.split_names import SPLITS
from tf_mcvae.datasets.streams import FIXED_SEED, Size
from tf_mcvae.random import as_seed, fold_in, split, uniform

Binarize = Literal["none", "dynamic", "static"]

_TEST_FRACTION = 0.1
_NUM_AHEAD = 2  # Batches that are made before they are asked for.


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What a model needs to know about its data.

    Args:
        name: Name of the data set, the file or the folder; `"array"` for an array.
        image_shape: `(H, W, C)`.
        likelihood: The likelihood that suits the pixels, `"bernoulli"` or `"gaussian"`.
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
        """Number of channels `C`."""
        return self.image_shape[-1]


class Data(NamedTuple):
    """Datasets of `float32` batches `[B, H, W, C]` in [0, 1], and their `DataSpec`."""

    train: tf.data.Dataset
    validation: tf.data.Dataset
    test: tf.data.Dataset
    spec: DataSpec


def load(
    name_or_source: str | os.PathLike[str] | NDArray[Any] = "digits",
    *,
    batch_size: int = 32,
    validation_batch_size: int | None = None,
    binarize: Binarize = "none",
    image_size: int | tuple[int, int] | None = None,
    validation_fraction: float = 0.1,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Data:
    """Loads images as batches with pixels in [0, 1], split into training, validation and test.

    `digits` (1,797 scans of 8x8) comes with this package. `mnist`, `fashion_mnist`,
    `binarized_mnist`, `omniglot` (white strokes on black, 28x28), `cifar10` and `celeba` (64x64)
    are read by TFDS (`pip install 'tf_mcvae[tfds]'`), which downloads them where they are missing;
    `fashionmnist` and `cifar` are accepted too. Your own data are

    - an array `[N, H, W]` or `[N, H, W, C]`: `uint8`, `bool`, integers 0 and 1, or floats in
      [0, 1];
    - a `.npy` file, or a `.npz` file with the keys `x`, or `train` and optionally `validation` and
      `test`, or `x_train` and optionally `x_validation` and `x_test`;
    - a folder of PNG, JPEG or BMP images with 8 bits a channel, which is searched with its
      subfolders; or a folder with such folders `train/` and optionally `validation/` and `test/`,
      which alone are read then;
    - a folder of TFRecord files, written by `write_records` or with images under the feature
      `"image"`, whose split is in the names of the files or of their folders; or the folder of a
      TFDS data set (with `dataset_info.json`).

    Splits may have other usual names, in any case: `training`, `val`, `valid`, `dev`, `testing`,
    `train2017`, `train_images`. A name that leaves the split unclear is refused. Hidden files and
    folders are not read.

    In a folder, 16 images of each split are looked at first. If one of them is in colour, all
    images get three channels; otherwise they have one, and a colour image among the others is an
    error. Alpha channels are dropped. A split whose images take at most 256 MB, as `uint8` in their
    final size, is then read into memory. A larger one is streamed: files are read, and records
    shuffled in a buffer, as batches are made. An image that cannot be decoded, or has another size
    or colour, raises the same `ValueError` here or, if it is streamed, in `fit` and the evaluation.

    A source without a test split first gives a tenth of its training examples as one; without a
    validation split, it gives `validation_fraction` of the remaining ones. Which examples these
    are, and the values that are drawn once, do not depend on `seed`, so that runs with different
    seeds can be compared.

    The n-th pass over `train` is a function of `seed`, n, and TensorFlow's global seed if that is
    set; a pass counts once its first batch is read. If there are several training batches, a
    smaller last one is dropped, so that compiled steps see one shape.

    Args:
        name_or_source: A name, an array, or the path of a file or folder.
        batch_size: Number of examples in a training batch.
        validation_batch_size: Number of examples in a validation or test batch; `batch_size` by
            default.
        binarize: `"none"` keeps the pixels. `"dynamic"` draws x ~ Bernoulli(pixel) anew at every
            read in training, and once for validation and test. `"static"` draws each split once.
        image_size: Side, or height and width, to which images are resized after a central crop to
            that aspect ratio. By default the size given above, or that of the source.
        validation_fraction: Share of the training examples held out for validation, in (0, 1).
        data_dir: Folder of prepared TFDS data; by default the variable TFDS_DATA_DIR, or TFDS's
            own folder.
        seed: Seed of the order and of the dynamic draws.

    Returns:
        A `Data` tuple `(train, validation, test, spec)`; `len(train)` is its number of batches.

    Raises:
        TypeError: If the source or the seed has a type that is not supported.
        ValueError: If a name is unknown, a download fails, an argument is out of range, or the
            images are empty, too few to split, damaged, of different shapes, or not pixels.
        ImportError: If TFDS is needed and not installed.

    Example:
        >>> data = load("digits", batch_size=100, binarize="dynamic")
        >>> data.spec.image_shape, data.spec.likelihood, len(data.train)
        ((8, 8, 1), 'bernoulli', 13)
    """
    evaluation_size = batch_size if validation_batch_size is None else validation_batch_size
    _check_options(batch_size, evaluation_size, binarize, validation_fraction)
    size, key = _as_size(image_size), as_seed(seed)
    name, likelihood, found = read_source(name_or_source, size, data_dir)
    splits = _complete(found, validation_fraction)
    shape = _common_shape(splits)
    likelihood = likelihood or ("bernoulli" if shape[-1] == 1 else "gaussian")
    spec = DataSpec(name, shape, likelihood, *(len(splits[part]) for part in SPLITS))
    drawn_once = {"none": (), "dynamic": SPLITS[1:], "static": SPLITS}[binarize]
    splits |= {part: _draw_once(splits[part], 3 + SPLITS.index(part)) for part in drawn_once}
    return Data(
        _training_batches(splits["train"], batch_size, binarize == "dynamic", key),
        _evaluation_batches(splits["validation"], evaluation_size),
        _evaluation_batches(splits["test"], evaluation_size),
        spec,
    )


def skip_epochs(dataset: tf.data.Dataset, num_epochs: int) -> None:
    """Advances a training dataset as if it had been iterated over `num_epochs` times.

    The passes that follow have the order and draws of an uninterrupted run, to resume training.

    Args:
        dataset: `train` of `load`, or a dataset made from it, before its first pass.
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
        check_positive_integer(label, value)
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


def _complete(found: Mapping[str, Images], validation_fraction: float) -> dict[str, Images]:
    """Returns all three splits; missing ones are taken from the training split."""
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
            splits["train"], splits[part] = splits["train"].hold_out(count, key)
    return splits


def _common_shape(splits: Mapping[str, Images]) -> tuple[int, ...]:
    shapes = {part: images.shape for part, images in splits.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            "All splits must have images of one shape [H, W, C]: give `image_size` for equal H and "
            f"W; convert images to grey or colour for equal C. Received: {shapes}"
        )
    return shapes["train"]


def _to_unit(images: tf.Tensor) -> tf.Tensor:
    """Returns `bool`, `uint8` or `float32` pixels as `float32` in [0, 1]."""
    pixels = tf.cast(images, tf.float32)
    return pixels / 255.0 if images.dtype == tf.uint8 else pixels


def _binarize(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws x ~ Bernoulli(pixel) as `bool`; 0 and 1 stay as they are."""
    return uniform(tf.shape(images), seed) < _to_unit(images)


def _draw_once(images: Images, key: int) -> Images:
    """Binarises each image with its own seed, so that the draw does not depend on the batches."""
    seed = fold_in(as_seed(FIXED_SEED), key)
    return images.map(lambda number, image: _binarize(image, fold_in(seed, number)))


def _evaluation_batches(images: Images, batch_size: int) -> tf.data.Dataset:
    batches = images.images().batch(batch_size)
    return _made_ahead(batches.map(_to_unit, num_parallel_calls=tf.data.AUTOTUNE))


def _training_batches(
    images: Images, batch_size: int, dynamic: bool, key: tf.Tensor
) -> tf.data.Dataset:
    num = len(images)
    order_seed, draw_seed = (int(seed[0]) for seed in split(key))
    batches = images.shuffled(order_seed).batch(batch_size, drop_remainder=num > batch_size)
    if dynamic:
        seeds = tf.data.Dataset.random(seed=draw_seed, rerandomize_each_iteration=True).batch(2)
        batches = tf.data.Dataset.zip(batches, seeds).map(
            lambda x, seed: _to_unit(_binarize(x, tf.cast(seed, tf.int32))),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    else:
        batches = batches.map(_to_unit, num_parallel_calls=tf.data.AUTOTUNE)
    # Each iterator that is opened is a new pass. Keras' `fit` opens two an epoch and reads one;
    # `flat_map` opens those of `batches` only when the first batch is read.
    on_demand = tf.data.Dataset.range(1).flat_map(lambda _: batches)
    num_batches = max(1, num // batch_size)
    counted = on_demand.apply(tf.data.experimental.assert_cardinality(num_batches))
    return _made_ahead(counted)


def _made_ahead(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Makes the next batches during a training step, with as many threads as there are cores."""
    # Without TensorFlow's tuning of both: its thread sleeps for ever longer intervals, and the end
    # of an epoch waits for it, possibly for as long as the epoch took.
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(_NUM_AHEAD).with_options(options)
