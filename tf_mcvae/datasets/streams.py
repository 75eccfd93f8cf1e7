"""Images that are read when they are needed, split and shuffled without a list of them."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, Self

import numpy as np
import tensorflow as tf

from tf_mcvae.random import as_seed

# Splits, and draws that are the same in every run, hang on this and not on the user's seed.
FIXED_SEED = 20210718

Size = tuple[int, int] | None

_NUMBER, _ITEM = tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.string)
LOOKED_AT = 16  # Images that are read to learn their shape.

# With TensorFlow's own four rounds, neighbours of a large permutation still lie side by side.
_ROUNDS = 24


def permuted(index: tf.Tensor, seed: tf.Tensor, count: int) -> tf.Tensor:
    """Returns where a random permutation of `count` numbers, that is nowhere stored, takes `index`.

    Args:
        index: Integers in `[0, count)`, any shape of rank 0 or 1.
        seed: Seed tensor `[2]`, which says which permutation.
        count: How many numbers there are.

    Returns:
        `int64` integers in `[0, count)`, different ones for different indices.
    """
    return tf.raw_ops.RandomIndexShuffle(
        index=tf.cast(index, tf.int64),
        seed=tf.pad(seed, [[1, 0]]),
        max_index=tf.constant(count - 1, tf.int64),
        rounds=_ROUNDS,
    )


@dataclasses.dataclass(frozen=True)
class Window:
    """A split: places `first`, ..., `first + count - 1` of a random order that never changes.

    The numbers of all images are `0, ..., total - 1`.
    """

    first: int
    count: int
    total: int

    @property
    def is_all(self) -> bool:
        """Whether no image is left out."""
        return self.count == self.total

    def place(self, number: tf.Tensor) -> tf.Tensor:
        """Returns the place of an image in that order."""
        return permuted(number, as_seed(FIXED_SEED), self.total)

    def holds(self, number: tf.Tensor) -> tf.Tensor:
        """Returns whether an image is of this split."""
        place = self.place(number)
        return (place >= self.first) & (place < self.first + self.count)


class Source(Protocol):
    """Where images are: numbered from 0, and none of them read yet."""

    def __len__(self) -> int:
        """Returns how many there are."""

    def items(self, window: Window, seed: tf.Tensor | None) -> Any:
        """Returns a dataset of numbers and what stands for the images of a split.

        Args:
            window: The split.
            seed: Seed tensor `[2]` of their order; None for the order that never changes.
        """

    def buffer_size(self) -> int:
        """Returns how many of the items are still to be shuffled together."""

    def few(self) -> Any:
        """Returns the first of a dataset of all of them, or some from all over it."""

    def decode(self, item: tf.Tensor) -> tf.Tensor:
        """Returns the image `[H, W, C]`, `uint8`, of what stands for it."""

    def name(self, number: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
        """Returns what to call the image in an error."""


class Stream:
    """Images of one shape, of which none stays in memory.

    Args:
        source: Where they are.
        window: Which of them are meant.
        read: Makes an image of its number and what stands for it.
        spec: Shape `[H, W, C]` and dtype of an image.
    """

    def __init__(
        self,
        source: Source,
        window: Window,
        read: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        spec: tf.TensorSpec,
    ) -> None:
        self._source, self._window = source, window
        self._read = tf.function(read, [_NUMBER, _ITEM], autograph=False)  # Traced once only.
        self.element_spec = spec

    @classmethod
    def open(cls, source: Source, size: Size) -> Self:
        """Returns all images of a source, after looking at a few of them.

        Args:
            source: Where they are; it has at least one.
            size: The size that they are given; by default that of the first.

        Raises:
            ValueError: If these cannot be decoded, or have different sizes.
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

        def read(number: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
            name = source.name(number, item)
            image = _decoded_or_error(decode, item, name)
            return _with_shape(without_alpha(image), shape, size, name)

        return cls(source, window, read, tf.TensorSpec(shape, tf.uint8))

    def __len__(self) -> int:
        """Returns how many images there are."""
        return self._window.count

    @property
    def num_bytes(self) -> int:
        """What they would take in memory."""
        return len(self) * int(np.prod(self.element_spec.shape)) * self.element_spec.dtype.size

    def hold_out(self, count: int) -> tuple[Self, Self]:
        """Returns the images without `count` of them, and these, chosen once and for all."""
        first, total = self._window.first, self._window.total
        rest = Window(first + count, len(self) - count, total)
        return self._replaced(rest), self._replaced(Window(first, count, total))

    def _replaced(self, window: Window) -> Self:
        return type(self)(self._source, window, self._read, self.element_spec)

    def map(self, function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Self:
        """Applies `function(number, image)` to images as they are read.

        The number of an image is the same in whatever order they are read.
        """

        def read(number: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
            return function(number, self._read(number, item))

        traced = tf.function(function, autograph=False)
        outputs = traced.get_concrete_function(_NUMBER, self.element_spec)
        spec = tf.TensorSpec(outputs.output_shapes, outputs.output_dtypes)
        return type(self)(self._source, self._window, read, spec)

    def images(self) -> Any:
        """Returns a `tf.data.Dataset` of the images, in an order that never changes."""
        return self._images(self._source.items(self._window, None))

    def shuffled(self, seed: int) -> Any:
        """Returns a `tf.data.Dataset` of the images, in a new order at every pass."""

        @tf.autograph.experimental.do_not_convert
        def one_pass(pass_seed: tf.Tensor) -> Any:
            return self._source.items(self._window, tf.cast(pass_seed, tf.int32))

        seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
        items = seeds.batch(2, drop_remainder=True).take(1).flat_map(one_pass)
        buffer = min(len(self), self._source.buffer_size())
        if buffer > 1:
            items = items.shuffle(buffer, seed=seed ^ 1, reshuffle_each_iteration=True)
        return self._images(items)

    def _images(self, items: Any) -> Any:
        images = items.map(self._read, num_parallel_calls=tf.data.AUTOTUNE)
        return images.apply(tf.data.experimental.assert_cardinality(len(self)))


def _look_at_some(source: Source) -> list[tuple[str, tuple[int, int, int]]]:
    """Returns names and shapes, without alpha channels, of a few images of a source."""
    found = []
    for number, item in source.few():
        name = source.name(number, item).numpy().decode(errors="replace")
        try:
            image = without_alpha(source.decode(item))
        except tf.errors.OpError as error:
            raise ValueError(f"This image cannot be decoded. Received: {name!r}") from error
        found.append((name, tuple(image.shape)))
    return found


def _require(image: tf.Tensor, condition: tf.Tensor, message: str, *received: Any) -> tf.Tensor:
    """Returns the image; an error with that message, if the condition does not hold."""
    text = tf.strings.join([f"{message} Received: '", *received])
    with tf.control_dependencies([tf.debugging.Assert(condition, [text])]):
        return tf.identity(image)


def _decoded_or_error(
    decode: Callable[[tf.Tensor], tf.Tensor], item: tf.Tensor, name: tf.Tensor
) -> tf.Tensor:
    """Decodes an image; the error, if it cannot be, says which it is.

    A graph knows no exceptions, but a dataset can leave out what fails, and another follow it.
    """

    def fail(_: tf.Tensor) -> tf.Tensor:
        nothing = tf.zeros([1, 1, 1], tf.uint8)
        return _require(nothing, tf.constant(False), "This image cannot be decoded.", name, "'")

    one = tf.data.Dataset.from_tensors(item)
    decoded = one.map(decode).ignore_errors()
    return decoded.concatenate(one.map(fail)).take(1).get_single_element()


def without_alpha(image: tf.Tensor) -> tf.Tensor:
    """Returns an image `[H, W, C]` in grey or colour, `[H, W, 1]` or `[H, W, 3]`."""
    return image[..., : tf.where(tf.shape(image)[-1] < 3, 1, 3)]


def _with_shape(
    image: tf.Tensor, shape: tuple[int, int, int], size: Size, name: tf.Tensor
) -> tf.Tensor:
    """Returns an image of `shape`, or an error that says which has another."""
    found = tf.shape(image)
    if size is None:
        text = "Images must have one size; give `image_size` to resize them. "
        text += f"Most have {shape[:2]}."
        own = tf.strings.format("' of ({}, {})", (found[0], found[1]))
        image = _require(image, tf.reduce_all(found[:2] == shape[:2]), text, name, own)
    if shape[-1] == 1:
        text = "Other images here are grey, and this one is in colour; convert it."
        image = _require(image, found[-1] == 1, text, name, "'")
    return tf.ensure_shape(tf.broadcast_to(resize(image, size), shape), shape)


def resize(image: tf.Tensor, size: Size) -> tf.Tensor:
    """Crops `[H, W, C]` centrally to the aspect ratio of `size` and resizes it to that.

    Shrinking averages areas, so that thin strokes stay; enlarging is bilinear.
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
    return tf.clip_by_value(resized, 0.0, 1.0)  # An average may be off by a rounding error.
