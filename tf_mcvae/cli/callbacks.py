"""Callbacks of a training run: a line for each epoch, the history as CSV, and checkpoints."""

import csv
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import keras

from tf_mcvae.files import replacing
from tf_mcvae.models.divergence import StopOnDivergence


class EpochLine(keras.callbacks.Callback):
    """Prints one readable line for each epoch.

    It shows the bound in nats on training and validation data, mean acceptance and step size where
    a model has them, and the time taken and left.
    """

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()
        self._times: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts the epoch's clock."""
        self._epoch_start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Prints the line."""
        self._times.append(time.perf_counter() - self._epoch_start)
        epochs = self.params["epochs"]
        text = f"{epoch_text(epoch + 1, epochs, logs or {})}  {self._times[-1]:.1f} s"
        times = self._times[1:]  # The first epoch includes compilation.
        if times and epoch + 1 < epochs:
            left = (epochs - epoch - 1) * sum(times) / len(times)
            text += f", {format_seconds(left)} left"
        print(text, flush=True)


def epoch_text(epoch: int, epochs: int, logs: dict[str, float]) -> str:
    """Returns the number and the metrics of an epoch as text of constant width."""
    parts = [f"epoch {epoch:{len(str(epochs))}d}/{epochs}"]
    shown = (
        ("bound", "bound", "9.2f"),
        ("val_bound", "validation", "9.2f"),
        ("acceptance", "acceptance", "5.3f"),
        ("step_size", "step size", "7.5f"),
        ("skipped", "skipped", ".0f"),
    )
    parts += [f"{label} {logs[key]:{form}}" for key, label, form in shown if key in logs]
    return "  ".join(parts)


def format_seconds(seconds: float) -> str:
    """Returns a duration as text: `48 s`, `3 min 20 s`, `2 h 5 min`."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"


class StopOnNonFinite(StopOnDivergence):
    """Ends training with an error when the loss or the weights are not finite.

    It must come before `Checkpoint`, so that the checkpoint keeps the last finite weights.

    Raises:
        ValueError: If training diverges.
    """

    def answer(self, epoch: int, losses: Mapping[str, float], weights_are_finite: bool) -> None:
        """Raises, unless only the validation data have a loss that is not finite."""
        loss = losses.get("loss")
        if loss is None and weights_are_finite:
            super().answer(epoch, losses, weights_are_finite)
            return
        what = "loss is" if weights_are_finite or not math.isfinite(loss or 0.0) else "weights are"
        raise ValueError(
            f"The {what} not finite in epoch {epoch}. A lower --learning-rate or "
            f"--step-size may help, or --gradient-clip. Received: loss={loss}"
        )


class HistoryWriter(keras.callbacks.Callback):
    """Writes the metrics of all epochs to a CSV file after each epoch.

    Numbers are written with all digits, and no times are written, so that equal runs give equal
    files.

    Args:
        path: The file. Its rows up to `initial_epoch` are kept.
        initial_epoch: Number of epochs that are done.
    """

    def __init__(self, path: pathlib.Path, initial_epoch: int = 0) -> None:
        super().__init__()
        self.path = path
        self.rows = [row for row in read_history(path) if row["epoch"] <= initial_epoch]
        last = self.rows[-1]["epoch"] if self.rows else 0
        if path.exists() and last < initial_epoch:
            raise _damaged(path, f"it ends with epoch {last} instead of {initial_epoch}")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds a row."""
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        self.rows.append({"epoch": epoch + 1, **metrics})
        with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
            names = dict.fromkeys(name for row in self.rows for name in row)
            writer = csv.DictWriter(file, fieldnames=names, restval="nan", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def read_history(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows that a `HistoryWriter` wrote, or an empty list if there is no file.

    Raises:
        ValueError: If the file is damaged.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                {"epoch": int(row.pop("epoch")), **{k: float(text) for k, text in row.items()}}
                for row in csv.DictReader(file, strict=True)
            ]
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: pathlib.Path, reason: str) -> ValueError:
    return ValueError(
        f"The history of the run is damaged ({reason}): restore the file, or remove it to continue "
        f"without its rows; training itself does not need it. Received: {str(path)!r}"
    )


class Checkpoint(keras.callbacks.Callback):
    """Saves the whole model after each epoch.

    The file includes optimizer state, counters and step sizes, so that training continues from it
    to exactly the weights of an uninterrupted run.

    Args:
        path: A `.keras` file, replaced atomically.
    """

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Saves the model."""
        save_model(self.model, self.path)


def save_model(model: keras.Model, path: pathlib.Path) -> None:
    """Saves a model to a `.keras` file, which is replaced atomically."""
    with replacing(path) as temporary:
        model.save(temporary)
