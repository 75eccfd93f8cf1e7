"""Activations, `gelu` with its first two derivatives in closed form, and their names."""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_mcvae.performance.fusion import fused_elementwise

_SQRT_HALF = math.sqrt(0.5)
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)


@tf.custom_gradient
def _gelu_slope(x: Any, cdf: Any) -> Any:
    """Returns `Φ(x) + x φ(x)`; its own derivative is `(2 - x²) φ(x)`."""
    square = x * x
    density = _INV_SQRT_2PI * tf.exp(-0.5 * square)

    def grad(upstream: Any) -> Any:
        # Where x² overflows the product would be infinity times zero.
        return upstream * tf.math.multiply_no_nan(2.0 - square, density), None

    return cdf + x * density, grad


@tf.custom_gradient
def _gelu(x: Any, cdf: Any, slope: Any) -> Any:
    # The gradient takes the slope that it is given, so that the slope is computed once for the
    # score and for its derivative; a graph that takes no gradient never computes it.
    return x * cdf, lambda upstream: (upstream * slope, None, None)


@fused_elementwise
def _exact_gelu(x: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(x, tf.float32) if x.dtype.size < 4 else x
    cdf = 0.5 + 0.5 * tf.math.erf(_SQRT_HALF * wide)
    return tf.cast(_gelu(wide, cdf, _gelu_slope(wide, cdf)), x.dtype)


def gelu(x: Any) -> Any:
    """Computes `x Φ(x)`, Φ the standard normal distribution function (not its tanh approximation).

    Scores are themselves differentiated when a bound is trained, so the first two derivatives are
    on the hot path and in closed form. Half precision is computed in `float32`.

    Args:
        x: Tensor of any shape and floating dtype.

    Returns:
        Tensor of the shape and dtype of `x`.

    Reference:
        Hendrycks and Gimpel, 2016, arXiv 1606.08415.
    """
    return _exact_gelu(tf.convert_to_tensor(x))


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": gelu,
    "leakyrelu": functools.partial(tf.nn.leaky_relu, alpha=0.01),
    "logsigmoid": lambda x: -tf.nn.softplus(-x),
    "logsoftmax": tf.nn.log_softmax,
    "relu": tf.nn.relu,
    "softplus": tf.nn.softplus,
    "tanh": tf.tanh,
}


def get_activation(identifier: str | dict[str, Any] | Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Looks an activation up.

    Args:
        identifier: One of `ACTIVATIONS` (`leakyrelu` has slope 0.01, `logsoftmax` runs over the
            last axis, `gelu` is exact), or what `keras.activations.get` takes: a Keras name, a
            callable (registered, so that it can be saved) or its configuration.

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
        # Keras takes None for the identity; here that is more likely a mistake.
        return keras.activations.get("" if identifier is None else identifier)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"There is no such activation. Choose one of {sorted(ACTIVATIONS)}, a Keras activation "
            f"or a registered function. Received: activation={identifier!r}"
        ) from error


def activation_config(function: Callable[[Any], Any]) -> Any:
    """Returns what `get_activation` makes `function` from."""
    names = [name for name, known in ACTIVATIONS.items() if known is function]
    return names[0] if names else keras.activations.serialize(function)
