"""Checks of what users hand over, at the public border."""

from typing import Any

import numpy as np
import tensorflow as tf

from tf_mcvae.likelihoods import Likelihood


def check_positive_integer(name: str, value: Any) -> None:
    """Raises unless `value` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")


def check_images(x: Any, likelihood: Likelihood, event_shape: tuple[int, ...] | None) -> None:
    """Raises unless `x` holds examples that the model can be given.

    Args:
        x: Array or eager tensor `[B, ...]`.
        likelihood: Says which values are possible.
        event_shape: Shape of one example, or None while the model has none.

    Raises:
        TypeError: If the values are not floating-point numbers.
        ValueError: If there are no examples, their shape is wrong, or a value is impossible.
    """
    array = np.asarray(x)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(
            "Examples must be floating-point numbers; scale integer pixels first, for instance "
            f"`x.astype('float32') / 255`. Received: an array of {array.dtype}"
        )
    if array.ndim < 2 or array.size == 0:
        raise ValueError(
            "Examples must have the shape [B, ...] with at least one example. "
            f"Received: shape {array.shape}"
        )
    if event_shape is not None and array.shape[1:] != event_shape:
        expected = ", ".join(map(str, event_shape))
        raise ValueError(
            f"The model was built for examples of shape [B, {expected}]. "
            f"Received: shape {array.shape}"
        )
    if not np.all(np.isfinite(array)):
        count = int(np.sum(~np.isfinite(array)))
        raise ValueError(
            "Examples must be finite; remove or replace NaN and infinite values. "
            f"Received: {count} of {array.size} values are not finite"
        )
    with tf.init_scope():  # A concrete array can be checked while a graph is traced around it.
        likelihood.check_support(array)
