"""Images that are held in memory."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_mcvae.checks import plain_errors
from tf_mcvae.datasets.streams import FIXED_SEED, Size, Stream, resize
from tf_mcvae.random import as_seed, fold_in, uniform


class Held:
    """Images in memory, with the methods of a `Stream`.

    Args:
        array: Images `[N, H, W, C]` of `bool`, `uint8` or `float32`.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    @classmethod
    def read(cls, dataset: tf.data.Dataset) -> Self:
        """Returns the elements of a dataset of images.

        Raises:
            ValueError: If an image of a `Stream` cannot be decoded or has the wrong shape.
        """
        with plain_errors():
            return cls(dataset.batch(len(dataset)).get_single_element().numpy())

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._array)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `(H, W, C)` of an image."""
        return self._array.shape[1:]

    def hold_out(self, count: int, key: int) -> tuple[Self, Self]:
        """Returns the images without `count` of them, and these: the same ones for equal `key`s."""
        draws = uniform([len(self)], fold_in(as_seed(FIXED_SEED), key)).numpy()
        order = np.argsort(draws, kind="stable")
        held_out, rest = np.sort(order[:count]), np.sort(order[count:])
        return type(self)(self._array[rest]), type(self)(self._array[held_out])

    def map(self, function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Self:
        """Applies `function(number, image)` to all images, now."""
        numbered = self.images().enumerate()
        return self.read(numbered.map(function, num_parallel_calls=tf.data.AUTOTUNE))

    def resized(self, size: Size) -> Self:
        """Returns the images in another size, or these where `size` is None."""
        return self if size is None else self.map(lambda _, image: resize(image, size))

    def images(self) -> tf.data.Dataset:
        """Returns a dataset of the images, in an order that never changes."""
        return tf.data.Dataset.from_tensor_slices(self._array)

    def shuffled(self, seed: int) -> tf.data.Dataset:
        """Returns a dataset of the images, in a new order at every pass."""
        return self.images().shuffle(len(self), seed=seed, reshuffle_each_iteration=True)


Images = Held | Stream


def as_pixels(array: NDArray[Any], label: str) -> NDArray[Any]:
    """Returns images `[N, H, W, C]` of `uint8`, `bool` or `float32`; `label` is for errors.

    Raises:
        ValueError: If the array does not hold images.
    """
    received = f"Received: {label} with shape={array.shape}, dtype={array.dtype}"
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim != 4 or array.size == 0:
        raise ValueError(f"Images need a shape [N, H, W] or [N, H, W, C], not empty. {received}")
    if _is_channels_first(array.shape):
        raise ValueError(
            "Images need their channels last, [N, H, W, C]: convert them by "
            f"`np.moveaxis(x, 1, -1)`. {received}"
        )
    if array.dtype.kind in "iu" and array.min() >= 0 and array.max() == 1:
        array = array.astype(bool)  # As `uint8` they would be two nearly equal shades of black.
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


def _is_channels_first(shape: tuple[int, ...]) -> bool:
    """Returns whether a shape can only be `[N, C, H, W]`: few rows, and many channels."""
    return shape[1] <= 4 < shape[3] and shape[1] < shape[2]
