"""Nearest-neighbour resizes of images, and convolutions of resized images at the old size's cost.

Both are linear maps that copy and add pixels along one axis after the other. An array of indices
says which old pixel each new one copies; -1 stands for the zeros around an image. Gradients of any
order are the map and its transpose: TensorFlow's own would be a scatter, which is slow.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_mcvae.performance.fusion import fused, is_fusing


def nearest_resize(images: Any, height: int, width: int) -> Any:
    """Resizes images by nearest neighbours; the gradients are cheap to any order.

    Args:
        images: `[N, H, W, C]`, `H` and `W` known.
        height: Height of the output.
        width: Width of the output.

    Returns:
        `[N, height, width, C]`: pixel `(i, j)` is input `(floor(i H/height), floor(j W/width))`.
    """
    return _resize(*images.shape[1:3], height, width)(images)


def upsampled_conv(images: Any, kernel: Any, bias: Any, height: int, width: int) -> Any:
    """Convolves resized images by a 3x3 kernel, with zeros around them.

    A copied pixel times a weight is a copy of the product. So fused graphs multiply by the nine
    weights before the resize and only add after it: for an image of four times the pixels that is a
    quarter of the arithmetic. In half precision, where a core multiplies far faster than it adds,
    the resized image is convolved.

    Args:
        images: `[N, H, W, C]`, `H` and `W` known.
        kernel: `[3, 3, C, F]`.
        bias: `[F]`.
        height: Height of the resized images.
        width: Their width.

    Returns:
        `[N, height, width, F]`.
    """
    if not is_fusing() or images.dtype.size < 4:
        resized = nearest_resize(images, height, width)
        return tf.nn.bias_add(tf.nn.conv2d(resized, kernel, 1, "SAME"), bias)
    rows, columns, channels = images.shape[1:]
    filters = kernel.shape[-1]
    weights = tf.reshape(tf.transpose(kernel, [2, 0, 1, 3]), [1, 1, channels, 9 * filters])
    # The middle one of nine, which is within the image for every pixel, takes the bias along.
    biases = tf.pad(bias, [[4 * filters, 4 * filters]])
    products = pointwise_conv(images, weights, biases)
    products = tf.reshape(products, [-1, rows, columns, 3, 3, filters])
    return _add_neighbours(rows, columns, height, width)(products)


def pointwise_conv(images: Any, kernel: Any, bias: Any = None) -> Any:
    """Convolves images by a 1x1 kernel.

    With few channels this product of matrices is faster than TensorFlow's convolution, and its
    gradient three times as fast.

    Args:
        images: `[N, H, W, C]`, `H` and `W` known.
        kernel: `[1, 1, C, F]`.
        bias: `[F]`, or None for zeros.

    Returns:
        `[N, H, W, F]`.
    """
    *size, channels = images.shape[1:]
    weights = tf.reshape(kernel, [channels, -1])
    pixels = tf.matmul(tf.reshape(images, [-1, channels]), weights)
    pixels = pixels if bias is None else tf.nn.bias_add(pixels, bias)
    return tf.reshape(pixels, [-1, *size, weights.shape[1]])


@functools.cache
def _resize(rows: int, columns: int, height: int, width: int) -> Callable[[Any], Any]:
    """Returns the resize of `[N, rows, columns, C]` to `[N, height, width, C]`."""
    seen_rows, seen_columns = _seen(rows, height), _seen(columns, width)
    return _linear_map(
        lambda x: _spread(_spread(x, seen_rows, 1), seen_columns, 2),
        lambda x: _collect(_collect(x, seen_columns, columns, 2), seen_rows, rows, 1),
    )


@functools.cache
def _add_neighbours(rows: int, columns: int, height: int, width: int) -> Callable[[Any], Any]:
    """Returns the map from products `[N, rows, columns, 3, 3, F]` to `[N, height, width, F]`."""
    seen_rows, seen_columns = _seen_by_neighbours(rows, height), _seen_by_neighbours(columns, width)

    def spread(x: Any, seen: list[np.ndarray], axis: int) -> Any:
        terms = zip(tf.unstack(x, axis=axis + 1), seen, strict=True)
        return functools.reduce(tf.add, [_spread(term, pixels, axis) for term, pixels in terms])

    def collect(x: Any, seen: list[np.ndarray], num: int, axis: int) -> Any:
        return tf.stack([_collect(x, pixels, num, axis) for pixels in seen], axis=axis + 1)

    # In this order each axis is followed by its neighbours: [N, rows, 3, columns, 3, F].
    order = [0, 1, 3, 2, 4, 5]
    return _linear_map(
        lambda x: spread(spread(tf.transpose(x, order), seen_rows, 1), seen_columns, 2),
        lambda x: tf.transpose(
            collect(collect(x, seen_rows, rows, 1), seen_columns, columns, 3), order
        ),
    )


def _linear_map(
    forward: Callable[[Any], Any], transpose: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """Returns a linear map whose gradient is its transpose; both are loops in fused graphs."""
    fused_forward, fused_transpose = fused(forward), fused(transpose)

    @tf.custom_gradient
    def there(x: Any) -> Any:
        return fused_forward(x), back

    @tf.custom_gradient
    def back(x: Any) -> Any:
        return fused_transpose(x), there

    return there


def _seen(num: int, size: int) -> np.ndarray:
    """Returns which of `num` pixels each of `size` new ones copies."""
    return np.arange(size) * num // size


def _seen_by_neighbours(num: int, size: int) -> list[np.ndarray]:
    """Returns which of `num` pixels the previous, the same and the next new pixel copy."""
    seen = np.pad(_seen(num, size), 1, constant_values=-1)
    return [seen[shift : shift + size] for shift in range(3)]


def _spread(x: Any, seen: np.ndarray, axis: int) -> Any:
    """Copies pixels along an axis: `out[i] = x[seen[i]]`, 0 where that is -1."""
    copies = tf.gather(x, np.maximum(seen, 0), axis=axis)
    is_inside = np.expand_dims(seen >= 0, [i for i in range(copies.shape.rank) if i != axis])
    return copies if is_inside.all() else tf.where(is_inside, copies, tf.zeros([], copies.dtype))


def _collect(x: Any, seen: np.ndarray, num: int, axis: int) -> Any:
    """Adds the copies of each of `num` pixels: the transpose of `_spread`."""
    copies = [np.flatnonzero(seen == pixel) for pixel in range(num)]
    terms = []
    for k in range(max(map(len, copies))):
        numbers = [of_pixel[k] if k < len(of_pixel) else -1 for of_pixel in copies]
        terms.append(_spread(x, np.array(numbers), axis))
    return functools.reduce(tf.add, terms)
