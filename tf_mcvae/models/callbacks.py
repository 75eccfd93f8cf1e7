"""The callbacks of `fit`: those that users give, and those that the models add."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tf_mcvae.models.divergence import StopOnDivergence

# Metrics that training maximises, which Keras does not know.
_MAXIMISED = ("bound", "val_bound")


@contextlib.contextmanager
def all_callbacks(given: Any, model: Any, x: Any) -> Iterator[Any]:
    """Adds the callbacks of a model to those of a user for the time of a call of `fit`.

    Args:
        given: A callback, a list of callbacks, a `CallbackList`, or None.
        model: A `TrainedModel`.
        x: The examples.
    """
    is_list = isinstance(given, keras.callbacks.CallbackList)
    own = given.callbacks if is_list else given
    own = [] if own is None else list(own) if isinstance(own, list | tuple) else [own]
    for callback in own:
        _maximise_bound(callback)
    ends = (StopOnDivergence, keras.callbacks.TerminateOnNaN)
    has_end = any(isinstance(callback, ends) for callback in own)
    merged = [*model.own_callbacks(), *own, *([] if has_end else [StopOnDivergence(model, x)])]
    if not is_list:
        yield merged
        return
    given.callbacks[:] = merged
    try:
        yield given
    finally:
        given.callbacks[:] = own


def _maximise_bound(callback: Any) -> None:
    """Lets a callback that monitors the bound, and was given no `mode`, take larger as better."""
    if getattr(callback, "monitor", None) not in _MAXIMISED:
        return
    if getattr(callback, "mode", None) == "auto":
        callback.mode = "max"
    # Before Keras 3.12, `ModelCheckpoint` keeps no `mode`, and takes smaller as better.
    elif not hasattr(callback, "mode") and getattr(callback, "monitor_op", None) is np.less:
        callback.monitor_op = np.greater
