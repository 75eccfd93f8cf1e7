"""How many training steps are coming, by which `jit_compile="auto"` decides about XLA."""

import math
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf


def steps_at_end(arguments: Mapping[str, Any], steps_done: int) -> int | None:
    """Returns the number of steps that a model has made when a `fit` ends; None if unknown.

    An interrupted training that continues has the same number as an uninterrupted one, and so is
    compiled alike.

    Args:
        arguments: The arguments of `fit` by name.
        steps_done: The number of steps made before.
    """
    per_epoch = arguments.get("steps_per_epoch") or _num_batches(arguments)
    if per_epoch is None:
        return None
    epochs = arguments.get("epochs", 1) - arguments.get("initial_epoch", 0)
    return steps_done + max(0, epochs) * per_epoch


def _num_batches(arguments: Mapping[str, Any]) -> int | None:
    """Returns the number of training batches in an epoch; None if the data do not tell."""
    x = arguments["x"]
    if isinstance(x, tf.data.Dataset):
        count = int(x.cardinality())
        return count if count >= 0 else None  # Negative where it is unknown or infinite.
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches
    if not hasattr(x, "shape"):
        return None
    size = int(x.shape[0] * (1.0 - (arguments.get("validation_split") or 0.0)))
    return math.ceil(size / (arguments.get("batch_size") or 32))
