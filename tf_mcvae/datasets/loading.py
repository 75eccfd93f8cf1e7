"""Data: a name, an array, a file or a folder -> batches of images and a description of them.

Whatever the source (`sources.py`), all that stands behind looks at the `DataSpec` only.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_mcvae.datasets.records import SPLITS, write_records
from tf_mcvae.datasets.sources import (
    NAMES,
    Images,
    examples,
    hold_out,
    map_images,
    read_source,
)
from tf_mcvae.datasets.streams import FIXED_SEED, Size, Stream
from tf_mcvae.random import as_seed, fold_in, split, uniform

__all__ = ["NAMES", "Data", "DataSpec", "load", "skip_epochs", "write_records"]

_TEST_FRACTION = 0.1
_NUM_AHEAD = 2  # Batches that are ready before they are asked for.


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
      folders `train/` and optionally `validation/` and `test/` (images beside these are not read);
    - a folder of TFRecord files, from `write_records` or others with a feature `"image"`, whose
      split is in their names or that of their folder; or a TFDS data set's (with
      `dataset_info.json`).

    Folders of which the images would take more than 256 MB are not held in memory: files are read,
    and records shuffled in a buffer, as batches are made. All of a folder's images must then have
    the number of channels that the first ones have. `docs/data.md` says more, and measures it.

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
            splits["train"], splits[part] = hold_out(splits["train"], count, key)
    return splits


def _image_shape(images: Images) -> tuple[int, ...]:
    return tuple(images.element_spec.shape if isinstance(images, Stream) else images.shape[1:])


def _common_shape(splits: Mapping[str, Images]) -> tuple[int, ...]:
    shapes = {part: _image_shape(images) for part, images in splits.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            "All splits must have images of one shape [H, W, C]; `image_size` makes height and "
            f"width equal. Received: {shapes}"
        )
    return shapes["train"]


def _to_unit(images: tf.Tensor) -> tf.Tensor:
    """Returns bool, uint8 or float32 pixels as float32 in [0, 1]."""
    pixels = tf.cast(images, tf.float32)
    return pixels / 255.0 if images.dtype == tf.uint8 else pixels


def _binarize(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws Bernoulli(pixel) as bool; pixels 0 and 1 stay what they are."""
    return uniform(tf.shape(images), seed) < _to_unit(images)


def _draw_once(images: Images, key: int) -> Images:
    """Binarises each image with a seed of its own: whatever the batches, the draw is the same."""
    seed = fold_in(as_seed(FIXED_SEED), key)
    return map_images(images, lambda index, image: _binarize(image, fold_in(seed, index)))


def _evaluation_batches(images: Images, batch_size: int) -> Any:
    batches = examples(images).batch(batch_size)
    return _made_ahead(batches.map(_to_unit, num_parallel_calls=tf.data.AUTOTUNE))


def _shuffled(images: Images, seed: int) -> Any:
    """Returns a tf.data.Dataset of the single images, in a new order at every pass."""
    if isinstance(images, Stream):
        return images.shuffled(seed)
    return examples(images).shuffle(len(images), seed=seed, reshuffle_each_iteration=True)


def _training_batches(images: Images, batch_size: int, dynamic: bool, key: tf.Tensor) -> Any:
    num = len(images)
    order_seed, draw_seed = (int(seed[0]) for seed in split(key))
    batches = _shuffled(images, order_seed).batch(batch_size, drop_remainder=num > batch_size)
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
    num_batches = max(1, num // batch_size)
    counted = on_demand.apply(tf.data.experimental.assert_cardinality(num_batches))
    return _made_ahead(counted)


def _made_ahead(batches: Any) -> Any:
    """Makes the next batches beside the step, with as many threads as there are cores."""
    # Not with TensorFlow's tuning of both: its thread looks at longer and longer intervals, and at
    # the end of an epoch may have to be waited for until it looks again, for as long as the epoch.
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(_NUM_AHEAD).with_options(options)
