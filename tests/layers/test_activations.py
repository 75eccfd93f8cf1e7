"""Activations and their first two derivatives against closed forms."""

import keras
import numpy as np
import pytest
import reference
import scipy.stats
import tensorflow as tf
from modes import each_mode

from tf_mcvae.layers.activations import gelu, get_activation


def bump(x):
    return reference.sigmoid(x) * reference.sigmoid(-x)


# Each activation with its first two derivatives.
CLOSED_FORMS = {
    "relu": (lambda x: np.maximum(x, 0), lambda x: 1.0 * (x > 0), np.zeros_like),
    "leakyrelu": (
        lambda x: np.where(x > 0, x, 0.01 * x),
        lambda x: np.where(x > 0, 1.0, 0.01),
        np.zeros_like,
    ),
    "tanh": (
        np.tanh,
        lambda x: 1 - np.tanh(x) ** 2,
        lambda x: -2 * np.tanh(x) * (1 - np.tanh(x) ** 2),
    ),
    "logsigmoid": (
        lambda x: -np.logaddexp(0, -x),
        lambda x: reference.sigmoid(-x),
        lambda x: -bump(x),
    ),
    "softplus": (lambda x: np.logaddexp(0, x), reference.sigmoid, bump),
    "gelu": (
        reference.gelu,
        lambda x: scipy.stats.norm.cdf(x) + x * scipy.stats.norm.pdf(x),
        lambda x: (2 - x**2) * scipy.stats.norm.pdf(x),
    ),
}


def derivatives(function):
    def run(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = function(x)
            first = inner.gradient(y, x)
        return y, first, outer.gradient(first, x, unconnected_gradients="zero")

    return run


@each_mode
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", sorted(CLOSED_FORMS))
def test_activation_and_two_derivatives(name, dtype, mode):
    x = tf.cast(np.linspace(-9.75, 9.75, 40).reshape(2, 4, 5), dtype)  # Images are fused.
    results = mode(derivatives(get_activation(name)))(x)
    tolerance = {"float64": 5e-8, "float32": 2e-6, "bfloat16": 4e-2, "float16": 5e-3}[dtype]
    for result, closed_form in zip(results, CLOSED_FORMS[name], strict=True):
        assert result.dtype == dtype
        expected = closed_form(tf.cast(x, tf.float64).numpy())
        np.testing.assert_allclose(tf.cast(result, tf.float64), expected, tolerance, tolerance)


@each_mode
def test_log_softmax_runs_over_the_last_axis(mode):
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 5))

    def run(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = get_activation("logsoftmax")(x)
                y0 = y[..., 0]
            first = inner.gradient(y0, x)
            first0 = first[..., 0]
        return y, first, outer.gradient(first0, x)

    y, first, second = mode(run)(tf.constant(x))
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    onehot = np.eye(5)[0]
    np.testing.assert_allclose(y, np.log(p), rtol=1e-10)
    np.testing.assert_allclose(first, onehot - p, rtol=1e-10)
    np.testing.assert_allclose(second, -p[..., :1] * (onehot - p), rtol=1e-10)


@each_mode
def test_gelu_derivatives_are_finite_differences_to_the_third(mode):
    x, step = tf.constant(np.linspace(-4.0, 4.0, 33).reshape(1, 3, 11)), 1e-5

    def all_three(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, first, second = derivatives(gelu)(x)
        return y, first, second, tape.gradient(second, x)

    above, here, below = (mode(all_three)(x + t) for t in (step, 0.0, -step))
    for order in range(3):
        difference = (above[order] - below[order]) / (2 * step)
        np.testing.assert_allclose(here[order + 1], difference, atol=1e-8)


@each_mode
def test_gelu_is_finite_for_large_numbers(mode):
    for dtype, largest in (("float32", 3e38), ("float64", 1e150), ("float16", 65504.0)):
        x = tf.constant([[[-largest, -300.0], [300.0, largest]]], dtype)
        for result in mode(derivatives(gelu))(x):
            assert np.all(np.isfinite(result))


def test_activations_are_looked_up():
    assert get_activation("gelu") is gelu
    assert get_activation(gelu) is gelu
    assert get_activation("silu") is keras.activations.silu
    config = keras.activations.serialize(keras.activations.elu)
    assert get_activation(config) is keras.activations.elu
    for wrong in ("swoosh", 3, None):
        with pytest.raises(ValueError, match=r"'leakyrelu', 'logsigmoid'.*Received: activation="):
            get_activation(wrong)
