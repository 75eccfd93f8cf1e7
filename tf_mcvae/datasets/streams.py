"""Images that are read when they are needed, split and shuffled without a list of them."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, Self

import numpy as np
import tensorflow as tf

from tf_mcvae.random import as_seed
from tf_mcvae.tracing import as_written

# Seed of splits and of draws that are the same in every run, whatever the user's seed.
FIXED_SEED = 20210718

Size = tuple[int, int] | None

_NUMBER, _ITEM = tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.string)
_UNREADABLE = "This image cannot be decoded as a PNG, JPEG or BMP of 8 bits a channel; convert it."
LOOKED_AT = 16  # Images that are read on loading, to learn their shape.
_ROUNDS = 24  # With TensorFlow's four, neighbours stay side by side in a large permutation.


def permuted(index: tf.Tensor, seed: tf.Tensor, count: int) -> tf.Tensor:
    """Returns values of a random permutation of `0, ..., count - 1`, which is not stored.

    Args:
        index: Integers in `[0, count)`, of rank 0 or 1.
        seed: Seed tensor `[2]` of the permutation.
        count: Length of the permutation.
    """
    return tf.raw_ops.RandomIndexShuffle(
        index=tf.cast(index, tf.int64),
        seed=tf.pad(seed, [[1, 0]]),
        max_index=tf.constant(count - 1, tf.int64),
        rounds=_ROUNDS,
    )


@dataclasses.dataclass(frozen=True)
class Window:
    """A split: places `first, ..., first + count - 1` of a random order that never changes.

    The images of the source are numbered `0, ..., total - 1`.
    """

    first: int
    count: int
    total: int

    @property
    def is_all(self) -> bool:
        """Whether the split holds all images of the source."""
        return self.count == self.total

    def place(self, number: tf.Tensor) -> tf.Tensor:
        """Returns the place of an image in that order."""
        return permuted(number, as_seed(FIXED_SEED), self.total)

    def holds(self, number: tf.Tensor) -> tf.Tensor:
        """Returns whether an image is in this split."""
        place = self.place(number)
        return (place >= self.first) & (place < self.first + self.count)


class Source(Protocol):
    """Images that are numbered from 0 and read from items: paths of files, or records."""

    def __len__(self) -> int:
        """Returns the number of images."""

    def items(self, window: Window, seed: tf.Tensor | None) -> tf.data.Dataset:
        """Returns a dataset of the numbers and items of a split.

        A seed `[2]` makes their order random; with None it never changes.
        """

    def buffer_size(self) -> int:
        """Returns the size of the buffer in which `items` must still be shuffled."""

    def few(self) -> tf.data.Dataset:
        """Returns a dataset of the numbers and items of `LOOKED_AT` images, or of all if fewer."""

    def decode(self, item: tf.Tensor) -> tf.Tensor:
        """Returns the image `[H, W, C]` of `uint8`."""

    def name(self, number: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
        """Returns the name of the image in errors."""


@dataclasses.dataclass(frozen=True)
class Stream:
    """Images of one shape, none of which stays in memory.

    Args:
        source: Where they are read from.
        window: The split.
        read: Returns an image, given its number and its item; a `tf.function`, to trace it once.
        spec: Shape `[H, W, C]` and dtype of an image.
    """

    source: Source
    window: Window
    read: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    spec: tf.TensorSpec

    @classmethod
    def open(cls, source: Source, size: Size) -> Self:
        """Returns all images of a source as `uint8`.

        A few are looked at now. If one of these is in colour, all images get three channels;
        otherwise they have one, and reading a colour image fails. Alpha channels are dropped.

        Args:
            source: Where they are read from: at least one image.
            size: Size that they are resized to; by default that of the first, which all must have.

        Raises:
            ValueError: If the images looked at cannot be decoded or have different sizes. When
                others are read, this is `tf.errors.InvalidArgumentError`.
        """
        window = Window(0, len(source), len(source))
        names, shapes = zip(*_look_at_some(source), strict=True)
        shape = (*(size or shapes[0][:2]), max(shape[-1] for shape in shapes))
        for name, other in zip(names, shapes, strict=True):
            if size is None and other[:2] != shape[:2]:
                raise ValueError(
                    "Images must have one size; give `image_size` to resize them. Received: "
                    f"{shape[:2]} in {names[0]!r} and {other[:2]} in {name!r}"
                )

        decode = tf.function(source.decode, [_ITEM], autograph=False)

        @tf.function(input_signature=[_NUMBER, _ITEM], autograph=False)
        def read(number: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
            name = source.name(number, item)
            image = _decoded_or_error(decode, item, name)
            return _with_shape(without_alpha(image), shape, size, name)

        return cls(source, window, read, tf.TensorSpec(shape, tf.uint8))

    def __len__(self) -> int:
        """Returns the number of images."""
        return self.window.count

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `(H, W, C)` of an image."""
        return tuple(self.spec.shape)

    @property
    def num_bytes(self) -> int:
        """Number of bytes that the images would take in memory."""
        return len(self) * int(np.prod(self.shape)) * self.spec.dtype.size

    def hold_out(self, count: int, key: int) -> tuple[Self, Self]:
        """Returns the images without the next `count` of an order that never changes, and these."""
        first, total = self.window.first, self.window.total
        rest = Window(first + count, len(self) - count, total)
        held_out = Window(first, count, total)
        return dataclasses.replace(self, window=rest), dataclasses.replace(self, window=held_out)

    def map(self, function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Self:
        """Applies `function(number, image)` to images as they are read.

        The number of an image does not depend on the order in which they are read.
        """

        @tf.function(input_signature=[_NUMBER, _ITEM], autograph=False)
        def read(number: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
            return function(number, self.read(number, item))

        outputs = read.get_concrete_function()
        spec = tf.TensorSpec(outputs.output_shapes, outputs.output_dtypes)
        return dataclasses.replace(self, read=read, spec=spec)

    def images(self) -> tf.data.Dataset:
        """Returns a dataset of the images, in an order that never changes."""
        return self._images(self.source.items(self.window, None))

    def shuffled(self, seed: int) -> tf.data.Dataset:
        """Returns a dataset of the images, in a new order at every pass."""

        @as_written
        def one_pass(pass_seed: tf.Tensor) -> tf.data.Dataset:
            return self.source.items(self.window, tf.cast(pass_seed, tf.int32))

        seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
        items = seeds.batch(2, drop_remainder=True).take(1).flat_map(one_pass)
        buffer = min(len(self), self.source.buffer_size())
        if buffer > 1:
            items = items.shuffle(buffer, seed=seed ^ 1, reshuffle_each_iteration=True)
        return self._images(items)

    def _images(self, items: tf.data.Dataset) -> tf.data.Dataset:
        images = items.map(self.read, num_parallel_calls=tf.data.AUTOTUNE)
        return images.apply(tf.data.experimental.assert_cardinality(len(self)))


def _look_at_some(source: Source) -> list[tuple[str, tuple[int, int, int]]]:
    """Returns the names of a few images of a source, and their shapes without alpha channels."""
    found = []
    for number, item in source.few():
        name = source.name(number, item).numpy().decode(errors="replace")
        try:
            image = without_alpha(source.decode(item))
        except tf.errors.OpError as error:
            raise ValueError(f"{_UNREADABLE} Received: {name!r}") from error
        found.append((name, tuple(image.shape)))
    return found


def _checked(
    image: tf.Tensor, condition: tf.Tensor, message: str, *received: tf.Tensor | str
) -> tf.Tensor:
    """Returns the image; reading it fails with that message if the condition does not hold."""
    text = tf.strings.join([f"{message} Received: '", *received])
    with tf.control_dependencies([tf.debugging.Assert(condition, [text])]):
        return tf.identity(image)


def _decoded_or_error(
    decode: Callable[[tf.Tensor], tf.Tensor], item: tf.Tensor, name: tf.Tensor
) -> tf.Tensor:
    """Decodes an image; if that fails, the error names it.

    A graph cannot catch an exception. But a dataset can drop the element that fails, so that the
    first element of another dataset, which raises the error, takes its place.
    """

    def fail(_: tf.Tensor) -> tf.Tensor:
        nothing = tf.zeros([1, 1, 1], tf.uint8)
        return _checked(nothing, tf.constant(False), _UNREADABLE, name, "'")

    one = tf.data.Dataset.from_tensors(item)
    decoded = one.map(decode).ignore_errors()
    return decoded.concatenate(one.map(fail)).take(1).get_single_element()


def without_alpha(image: tf.Tensor) -> tf.Tensor:
    """Returns an image `[H, W, C]` in grey or colour, `[H, W, 1]` or `[H, W, 3]`."""
    return image[..., : tf.where(tf.shape(image)[-1] < 3, 1, 3)]


def _with_shape(
    image: tf.Tensor, shape: tuple[int, int, int], size: Size, name: tf.Tensor
) -> tf.Tensor:
    """Returns an image with `shape`; reading it fails if it has another size or is in colour."""
    found = tf.shape(image)
    if size is None:
        text = "Images must have one size; give `image_size` to resize them. "
        text += f"Most have {shape[:2]}."
        own = tf.strings.format("' of ({}, {})", (found[0], found[1]))
        image = _checked(image, tf.reduce_all(found[:2] == shape[:2]), text, name, own)
    if shape[-1] == 1:
        text = "Other images are grey, and this one is in colour; convert it, or all others."
        image = _checked(image, found[-1] == 1, text, name, "'")
    return tf.ensure_shape(tf.broadcast_to(resize(image, size), shape), shape)


def resize(image: tf.Tensor, size: Size) -> tf.Tensor:
    """Crops `[H, W, C]` centrally to the aspect ratio of `size`, and resizes it to `size`.

    Shrinking averages areas, which keeps thin strokes; enlarging is bilinear. `uint8` stays so;
    `bool` and `float32` in [0, 1] become `float32`.
    """
    if size is None or tuple(image.shape[:2]) == size:
        return image
    extent = tf.cast(tf.shape(image)[:2], tf.float64)
    scale = tf.reduce_min(extent / size)
    rows, columns = tf.unstack(tf.maximum(tf.cast(tf.round(scale * size), tf.int32), 1))
    cropped = tf.cast(tf.image.resize_with_crop_or_pad(image, rows, columns), tf.float32)
    resized = tf.cond(
        scale > 1.0,
        lambda: tf.image.resize(cropped, size, "area"),
        lambda: tf.image.resize(cropped, size, "bilinear"),
    )
    if image.dtype == tf.uint8:
        return tf.cast(tf.round(resized), tf.uint8)
    return tf.clip_by_value(resized, 0.0, 1.0)  # Rounding can take an average out of [0, 1].
