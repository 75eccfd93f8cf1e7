"""Activations by name, and `gelu` with its first two derivatives in closed form."""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_mcvae.performance.fusion import fused_elementwise

Activation = Callable[[tf.Tensor], tf.Tensor]

_SQRT_HALF = math.sqrt(0.5)
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)


@tf.custom_gradient
def _gelu_slope(x: tf.Tensor, cdf: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
    """Returns `Φ(x) + x φ(x)`, whose derivative is `(2 - x²) φ(x)`."""
    square = x * x
    density = _INV_SQRT_2PI * tf.exp(-0.5 * square)

    def grad(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        # Where x² overflows, the product would be infinity times zero.
        return upstream * tf.math.multiply_no_nan(2.0 - square, density), None

    return cdf + x * density, grad


@tf.custom_gradient
def _gelu(x: tf.Tensor, cdf: tf.Tensor, slope: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
    # The slope is an argument so that it is computed once, for the score and for the score's
    # derivative. A graph without gradients prunes it.
    return x * cdf, lambda upstream: (upstream * slope, None, None)


@fused_elementwise
def _exact_gelu(x: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(x, tf.float32) if x.dtype.size < 4 else x
    cdf = 0.5 + 0.5 * tf.math.erf(_SQRT_HALF * wide)
    return tf.cast(_gelu(wide, cdf, _gelu_slope(wide, cdf)), x.dtype)


def gelu(x: tf.Tensor) -> tf.Tensor:
    """Computes `x Φ(x)`, where Φ is the standard normal distribution function.

    This is the exact GELU, not its tanh approximation. Training a bound differentiates scores, so
    the first two derivatives are implemented in closed form. Half-precision inputs are computed in
    `float32`.

    Args:
        x: Tensor of any shape and floating dtype.

    Returns:
        Tensor of the shape and dtype of `x`.

    Reference:
        Hendrycks and Gimpel, 2016, arXiv 1606.08415.
    """
    return _exact_gelu(tf.convert_to_tensor(x))


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "leakyrelu": functools.partial(tf.nn.leaky_relu, alpha=0.01),
    "logsigmoid": lambda x: -tf.nn.softplus(-x),
    "logsoftmax": tf.nn.log_softmax,
    "relu": tf.nn.relu,
    "softplus": tf.nn.softplus,
    "tanh": tf.tanh,
}


def get_activation(identifier: str | dict[str, Any] | Activation) -> Activation:
    """Returns the activation of a name, a configuration or a function.

    Args:
        identifier: One of `ACTIVATIONS` (`leakyrelu` has slope 0.01, `logsoftmax` normalises over
            the last axis, `gelu` is exact), or any identifier that `keras.activations.get` accepts:
            a Keras name, a callable (register it with Keras to save a model that uses it) or its
            configuration.

    Returns:
        The function, from a tensor to one of the same shape.

    Raises:
        ValueError: If there is no such activation.

    Example:
        >>> float(get_activation("leakyrelu")(-100.0))
        -1.0
    """
    if isinstance(identifier, str) and identifier in ACTIVATIONS:
        return ACTIVATIONS[identifier]
    try:
        # Keras reads None as the identity. Here None is more likely a mistake.
        return keras.activations.get("" if identifier is None else identifier)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"There is no such activation. Choose one of {sorted(ACTIVATIONS)}, a Keras activation "
            f"or a registered function. Received: activation={identifier!r}"
        ) from error


def activation_config(function: Activation) -> str | dict[str, Any]:
    """Returns the identifier from which `get_activation` returns `function`."""
    names = [name for name, known in ACTIVATIONS.items() if known is function]
    return names[0] if names else keras.activations.serialize(function)
