"""Callbacks of a training run: a line an epoch, the history as CSV, and checkpoints."""

import csv
import math
import pathlib
import time
from typing import Any

import keras

from tf_mcvae.files import replacing


class EpochLine(keras.callbacks.Callback):
    """Prints one readable line for each epoch.

    Epoch, the bound in training and on validation data in nats, what a Monte Carlo model adds
    (mean acceptance and step size), and the time taken and left.
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
        times = self._times[1:]  # The first epoch compiles, and tells nothing of the others.
        if times and epoch + 1 < epochs:
            left = (epochs - epoch - 1) * sum(times) / len(times)
            text += f", {format_seconds(left)} left"
        print(text, flush=True)


def epoch_text(epoch: int, epochs: int, logs: dict[str, float]) -> str:
    """Returns an epoch's number and metrics as text of constant width."""
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
    """Returns a length of time in the units that suit it: `48 s`, `3 min 20 s`, `2 h 5 min`."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"


class StopOnNonFinite(keras.callbacks.Callback):
    """Ends training with an error when the loss is no longer a finite number.

    It goes before `Checkpoint`, so that the last finite weights stay.

    Raises:
        ValueError: At the end of such an epoch.
    """

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Looks at the loss."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss is not finite in epoch {epoch + 1}. A lower --learning-rate or "
                f"--step-size may help, or --gradient-clip. Received: loss={loss}"
            )


class HistoryWriter(keras.callbacks.Callback):
    """Writes the metrics of every epoch to a CSV file, after each epoch.

    Numbers are written with all digits, and no times are: the same run gives the same bytes.

    Args:
        path: The file. The rows that it holds already stay, up to `initial_epoch`.
        initial_epoch: Number of epochs that are done.
    """

    def __init__(self, path: pathlib.Path, initial_epoch: int = 0) -> None:
        super().__init__()
        self.path = path
        self.rows = read_history(path)[:initial_epoch]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds a row."""
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        self.rows.append({"epoch": epoch + 1, **metrics})
        with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def read_history(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows that a `HistoryWriter` wrote; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            {name: int(text) if name == "epoch" else float(text) for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


class Checkpoint(keras.callbacks.Callback):
    """Saves the whole model after each epoch.

    Optimizer state, counters and step sizes are in it, so that training can go on from there to
    exactly the weights of an uninterrupted run.

    Args:
        path: A `.keras` file, replaced in one step.
    """

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Saves the model."""
        save_model(self.model, self.path)


def save_model(model: keras.Model, path: pathlib.Path) -> None:
    """Saves a model to a `.keras` file, in one step."""
    with replacing(path) as temporary:
        model.save(temporary)
