"""Training that diverges is stopped, with a warning that names the likely causes."""

import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae import distribute

# Reading the loss makes the host wait for the device, so it is not read at every step.
STEPS_BETWEEN_CHECKS = 100

# Data whose values are all smaller than this are not named as a cause.
_LARGE = 10.0

_LIBRARIES = ("tf_mcvae", "keras")


class StopOnDivergence(keras.callbacks.Callback):
    """Stops training whose weights are not finite, with one warning.

    It looks at the loss every `STEPS_BETWEEN_CHECKS` steps, and at loss, validation loss and
    weights after each epoch. Where a loss is not finite but the weights are, as where
    `skip_gradient_norm` skips updates, training continues after the warning. `fit` of the models
    adds this callback, unless it is given one, or a `TerminateOnNaN`.

    Args:
        model: The model; None for the one whose `fit` it is given to.
        x: The examples. If they are an array, the warning names their range, if it is large.
    """

    def __init__(self, model: keras.Model | None = None, x: Any = None) -> None:
        super().__init__()
        if model is not None:
            self.set_model(model)
        self._x = x
        self._num_steps, self._epoch, self._is_done = 0, 0, False

    def on_train_begin(self, logs: Any = None) -> None:
        """Begins anew."""
        self._num_steps, self._is_done = 0, False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Keeps the index of the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Looks at the mean loss of the epoch so far, if it is time."""
        # In `on_train_batch_end`, Keras would read all metrics at every step.
        self._num_steps += 1
        if self._num_steps % STEPS_BETWEEN_CHECKS == 0:
            self._look({"loss": self.model.mean_loss()})

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Looks at the losses and the weights."""
        names = [name for name in ("loss", "val_loss") if name in (logs or {})]
        self._look({name: float(logs[name]) for name in names}, has_finite_weights(self.model))

    def _look(self, losses: Mapping[str, float], weights_are_finite: bool | None = None) -> None:
        bad = {name: loss for name, loss in losses.items() if not math.isfinite(loss)}
        if self._is_done or (not bad and weights_are_finite is not False):
            return
        if weights_are_finite is None:
            weights_are_finite = has_finite_weights(self.model)
        self._is_done = True
        self.answer(self._epoch + 1, bad or losses, weights_are_finite)

    def answer(self, epoch: int, losses: Mapping[str, float], weights_are_finite: bool) -> None:
        """Warns, and stops training unless the weights are finite.

        Args:
            epoch: Number of the epoch, from 1.
            losses: The losses that are not finite; all of them if only weights are not.
            weights_are_finite: Whether all weights are finite.
        """
        if not weights_are_finite:
            self.model.stop_training = True
        names = " and ".join(losses) if weights_are_finite else "weights"
        end = "training continues, as the weights are" if weights_are_finite else "training stops"
        received = ", ".join(f"{name}={loss:g}" for name, loss in losses.items())
        _warn(
            self.model,
            f"Training diverges: {names} not finite in epoch {epoch}; {end}. Likely causes: "
            f"{'; '.join([*_range_of(self._x), *self.model.causes_of_divergence()])}. Scale the "
            "data, lower the rates and sizes, or bound the gradient by the optimizer's "
            f"`global_clipnorm` or `compile(skip_gradient_norm=...)`. Received: {received}",
        )


def has_finite_weights(model: keras.Model) -> bool:
    """Returns whether all weights of a model are finite."""
    floats = [w for w in model.weights if tf.as_dtype(w.dtype).is_floating]
    return all(bool(tf.reduce_all(tf.math.is_finite(w.value))) for w in floats)


def warn_of_loss(model: Any, results: Any, is_known: bool = False) -> bool:
    """Warns if the loss of an evaluation or a step is not finite.

    Args:
        model: A `TrainedModel`.
        results: A loss, metrics of which it is the first, or metrics by name.
        is_known: Whether the warning has been given.

    Returns:
        Whether it is not finite.
    """
    loss = results["loss"] if isinstance(results, dict) else np.ravel(results)[0]
    if math.isfinite(loss):
        return False
    if is_known:
        return True
    cause = (
        "some examples have no finite bound, as values or log variances are too large for its "
        "precision. Scale the data"
        if has_finite_weights(model)
        else "weights of the model are not finite, as after training that diverged. Train again "
        f"with lower rates: likely causes are {'; '.join(model.causes_of_divergence())}"
    )
    _warn(model, f"The loss is not finite: {cause}. Received: loss={loss:g}")
    return True


def _range_of(x: Any) -> list[str]:
    """Returns the data as a cause, unless they are known to be scaled."""
    if not hasattr(x, "shape"):
        return ["data that are not scaled"]
    low, high = np.min(x), np.max(x)
    is_large = max(abs(low), abs(high)) > _LARGE
    return [f"data that are not scaled (from {low:g} to {high:g})"] if is_large else []


def _warn(model: keras.Model, message: str) -> None:
    """Warns, on the chief, at the line outside this package and Keras that led here."""
    with distribute.scope_of(model):
        if distribute.worker_index() != 0:
            return
    level, frame = 1, inspect.currentframe()
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, RuntimeWarning, stacklevel=level)
