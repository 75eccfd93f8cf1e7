"""Resizes, and convolutions after them, against NumPy and each other."""

import numpy as np
import pytest
import tensorflow as tf
from modes import each_mode
from reference import numpy_conv, numpy_resize

from tf_mcvae.performance.upsampling import nearest_resize, pointwise_conv, upsampled_conv

each_size = pytest.mark.parametrize(
    ("before", "after"),
    [
        ((3, 3), (6, 6)),
        ((12, 12), (28, 28)),
        ((13, 3), (13, 7)),
        ((4, 4), (15, 9)),
        ((5, 6), (3, 4)),
    ],
    ids=str,
)


def rng():
    return np.random.default_rng(0)


@each_size
@each_mode
def test_nearest_resize_and_its_derivatives(before, after, mode):
    """Resizing is linear, and the gradient of `|resize(x)|²/2` is linear in x."""
    x = tf.constant(rng().normal(size=(2, *before, 3)))
    direction = tf.constant(rng().normal(size=(2, *before, 3)))

    def run(x, direction):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = nearest_resize(x, *after)
                energy = 0.5 * tf.reduce_sum(y**2)
            first = inner.gradient(energy, x)
        return y, first, outer.gradient(first, x, output_gradients=direction)

    y, first, second = mode(run)(x, direction)
    np.testing.assert_array_equal(y, numpy_resize(x.numpy(), *after))
    # How often each pixel is copied, from a resize of the pixels' numbers.
    numbers = np.arange(np.prod(before)).reshape(1, *before, 1)
    copies = np.bincount(numpy_resize(numbers, *after).ravel(), minlength=numbers.size)
    copies = copies.reshape(numbers.shape)
    np.testing.assert_allclose(first, copies * x.numpy(), rtol=1e-12)
    np.testing.assert_allclose(second, copies * direction.numpy(), rtol=1e-12)


@pytest.mark.parametrize("size", [(6, 6), (7, 7)])
def test_xla_differentiates_loops_over_resizes_of_unknown_batches(size):
    """XLA refuses a gradient that takes sizes from the graph."""

    @tf.function(input_signature=[tf.TensorSpec([None, 3, 3, 1])], jit_compile=True)
    def gradient(x):
        def body(i, x):
            return i + 1, nearest_resize(x, *size)[:, :3, :3] ** 2

        y = tf.while_loop(lambda i, _: i < 2, body, (0, x), maximum_iterations=2)[1]
        return tf.gradients(y, x)

    # An image with the value c everywhere becomes c^4 in nine pixels.
    x = np.full([2, 3, 3, 1], 2.0, np.float32)
    assert np.sum(gradient(x)[0][0]) == pytest.approx(9 * 4 * 2.0**3)


def small_conv(before):
    """Images `[2, H, W, 3]`, a kernel to 4 channels, a bias, all in float64."""
    shapes = [2, *before, 3], [3, 3, 3, 4], [4]
    generator = rng()
    return [tf.constant(generator.normal(size=shape)) for shape in shapes]


@each_size
@each_mode
def test_upsampled_conv_is_a_convolution_of_the_resized_image(before, after, mode):
    images, kernel, bias = small_conv(before)
    outputs = mode(lambda *args: upsampled_conv(*args, *after))(images, kernel, bias)
    expected = numpy_conv(numpy_resize(images.numpy(), *after), kernel.numpy(), bias.numpy())
    np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-12)


@each_size
@each_mode
def test_derivatives_of_upsampled_conv(before, after, mode):
    """First derivatives, and those of their squared norm, equal those of TensorFlow's operation."""

    def plain(images, kernel, bias, height, width):
        return tf.nn.conv2d(nearest_resize(images, height, width), kernel, 1, "SAME") + bias

    def gradients(function, *args):
        with tf.GradientTape() as outer:
            outer.watch(args)
            with tf.GradientTape() as inner:
                inner.watch(args)
                energy = tf.reduce_sum(tf.sin(function(*args, *after)))
            first = inner.gradient(energy, args)
            norm = tf.add_n([tf.reduce_sum(gradient**2) for gradient in first])
        return first, outer.gradient(norm, args)

    args = small_conv(before)
    actual = mode(lambda *args: gradients(upsampled_conv, *args))(*args)
    for ours, theirs in zip(actual, gradients(plain, *args), strict=True):
        for gradient, expected in zip(ours, theirs, strict=True):
            scale = np.max(np.abs(expected))
            np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-12 * scale)


@each_mode
def test_zeros_around_an_image_hide_what_is_not_finite(mode):
    """An infinite pixel affects its neighbours, and nothing else."""
    images, kernel, bias = small_conv((3, 3))
    images = tf.tensor_scatter_nd_update(images, [[0, 0, 0, 0]], [np.inf])
    outputs = mode(lambda *args: upsampled_conv(*args, 6, 6))(images, kernel, bias)
    is_finite = np.isfinite(outputs).all(-1)
    assert not is_finite[0, :3, :3].any()
    assert is_finite.sum() == is_finite.size - 9


@each_mode
def test_pointwise_conv(mode):
    images, kernel, bias = small_conv((4, 5))
    kernel = kernel[:1, :1]
    outputs = mode(pointwise_conv)(images, kernel, bias)
    expected = numpy_conv(images.numpy(), kernel.numpy(), bias.numpy())
    np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-12)
    without = mode(pointwise_conv)(images, kernel)
    np.testing.assert_allclose(without, expected - bias.numpy(), rtol=1e-12, atol=1e-12)
