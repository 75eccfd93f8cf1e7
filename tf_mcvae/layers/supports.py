"""How data are mended whose values a likelihood does not take, as sentences for errors.

Python and graphs use the same sentences: the conditions are written with operators alone, which
NumPy's scalars and tensors share.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

InSupport = Callable[[tf.Tensor], tf.Tensor]

# A condition on the smallest and the largest value, and the sentence if it holds.
Mend = tuple[Callable[[Any, Any], Any], str]

_ROUNDING = 1e-3

ANY: Mend = (lambda low, high: low <= high, "Rescale the data")
NOT_FINITE: Mend = (
    lambda low, high: (low != low) | (high - low == np.inf),  # NaN, infinite.
    "Remove or replace NaN and infinite values",
)
_COUNTS: Mend = (
    lambda low, high: low <= high,
    "Give the values as they were counted, neither scaled nor standardised",
)
_UNIT_INTERVAL: list[Mend] = [
    (
        lambda low, high: (low >= -_ROUNDING) & (high <= 1 + _ROUNDING),
        "The values leave the range by no more than rounding: clip them, for instance with "
        "`np.clip(x, 0, 1)`",
    ),
    (
        lambda low, high: (low >= -1 - _ROUNDING) & (high <= 1 + _ROUNDING),
        "Give `(x + 1) / 2` if these are pixels scaled to [-1, 1]",
    ),
    (
        lambda low, high: (low >= -_ROUNDING) & (high <= 255),
        "Divide by 255 if these are 8-bit pixels, otherwise by the largest possible value",
    ),
    (
        lambda low, high: low <= high,
        "Scale each column, for instance to `(x - x.min(0)) / (x.max(0) - x.min(0))`",
    ),
]


def takes(in_support: InSupport, *values: float) -> bool:
    """Returns whether all values are in a support."""
    with tf.init_scope():
        return all(np.all(in_support(tf.constant([value], tf.float32))) for value in values)


def is_on_integers(in_support: InSupport) -> bool:
    """Returns whether a support holds integers, and nothing between them."""
    if any(takes(in_support, value) for value in (-0.5, 0.25, 0.5, 1.5, 2.5)):
        return False
    return any(takes(in_support, value) for value in (0.0, 1.0, 2.0))


def is_in_unit_interval(in_support: InSupport) -> bool:
    """Returns whether a support is the numbers between 0 and 1."""
    return takes(in_support, 0.5) and not any(takes(in_support, value) for value in (-0.5, 2.0))


def mends(in_support: InSupport) -> list[Mend]:
    """Returns the sentences on data with values outside a support; the first that holds counts."""
    if is_in_unit_interval(in_support):
        return [NOT_FINITE, *_UNIT_INTERVAL]
    return [NOT_FINITE, _COUNTS if is_on_integers(in_support) else ANY]


def mend_of_values(mends: list[Mend], values: np.ndarray[Any, Any]) -> str:
    """Returns the sentence on data with these values."""
    low, high = np.float64(values.min()), np.float64(values.max())
    return next(text for holds, text in mends if holds(low, high))


def mend_in_graph(mends: list[Mend], low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Returns the sentence on data with values from `low` to `high`, as a tensor."""
    sentence = tf.constant(ANY[1])
    for holds, text in reversed(mends):
        sentence = tf.where(holds(low, high), tf.constant(text), sentence)
    return sentence


def mend_of_dtype(array: np.ndarray[Any, Any]) -> str:
    """Returns the sentence on an array whose dtype is not floating-point."""
    kind = array.dtype.kind
    if kind in "iu":
        return _mend_of_integers(array)
    if kind == "O" and any(isinstance(value, str | bytes) for value in array.flat):
        kind = "U"
    return {
        "S": "turn strings into numbers, for instance categories into one-hot columns",
        "U": "turn strings into numbers, for instance categories into one-hot columns",
        "M": "turn dates into numbers, for instance days since the first one",
        "m": "turn time spans into numbers, for instance `x / np.timedelta64(1, 's')`",
        "c": "give real and imaginary parts, or moduli, as separate columns",
    }.get(
        kind,
        "turn columns of mixed types, or rows of unequal lengths, into one array of numbers, for "
        "instance `np.asarray(x, 'float32')`",
    )


def _mend_of_integers(array: np.ndarray[Any, Any]) -> str:
    low, high = array.min(), array.max()
    if low >= 0 and high <= 1:
        return "convert the integers, `x.astype('float32')`"
    if low >= -1 and high <= 1:
        return "convert the integers, for values in [0, 1] `(x.astype('float32') + 1) / 2`"
    is_image = array.ndim > 2
    for most, dtype in ((255, np.uint8), (65535, np.uint16)):
        if low >= 0 and high <= most and (array.dtype == dtype or is_image or high == most):
            return f"scale integer pixels first, for instance `x.astype('float32') / {most}`"
    return (
        "convert the integers and bring each column to a common scale, for instance "
        "`(x - x.mean(0)) / x.std(0)`; counts may stay integers under a likelihood whose "
        "`in_support` holds for integers alone"
    )
