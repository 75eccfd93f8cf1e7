"""The folder of a training run."""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Self

from tf_mcvae_commands.training_settings import RunConfig


class RunFolder:
    """The folder of a run, `saved_models/<name>/`, which has all files that the run writes.

    A folder with `config.json` is a run; if it also has `metrics.json`, the run is finished.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.json"
        self.history = self.path / "history.csv"
        self.checkpoint = self.path / "checkpoint.keras"
        self.model = self.path / "model.keras"
        self.images = self.path / "images.png"
        self.serving = self.path / "serving"
        self.onnx = self.path / "onnx"
        self.tflite = self.path / "model.tflite"

    @classmethod
    def find(cls, name: str, output_dir: str) -> Self:
        """Returns an interrupted run by its name or path, or for `""` the latest one.

        Raises:
            ValueError: If there is no such run, or it is finished.
        """
        runs = sorted(pathlib.Path(output_dir).glob("*/config.json"), key=os.path.getmtime)
        open_runs = [run.parent for run in runs if not cls(run.parent).metrics.exists()]
        candidates = (
            [pathlib.Path(output_dir) / name, pathlib.Path(name)] if name else open_runs[-1:]
        )
        for folder in map(cls, candidates):
            if folder.metrics.exists():
                raise ValueError(f"This run is finished. Received: --resume {str(folder.path)!r}")
            if folder.config.exists():
                return folder
        known = ", ".join(path.name for path in open_runs) or "none"
        raise ValueError(
            f"There is no such run to resume. Interrupted runs in {output_dir!r}: {known}. "
            f"Received: --resume {name!r}"
        )

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Makes the folder, and removes it again if the block leaves it empty.

        Raises:
            ValueError: If it is not empty, or cannot be made or written to.
        """
        self._make()
        if any(self.path.iterdir()):
            way = "choose another --name, or remove that folder"
            if self.config.exists() and not self.metrics.exists():
                way = f"continue it by `--resume {self.path.name}`, {way}"
            raise ValueError(f"There is a run of this name: {way}. Received: {str(self.path)!r}")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self.path.rmdir()  # This fails unless the folder is empty.

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise ValueError(
                f"The output folder cannot be made or written to ({error.strerror}): choose "
                f"another --output-dir. Received: {str(self.path)!r}"
            ) from error

    def load_config(self) -> RunConfig:
        """Returns the settings of the run."""
        try:
            values = json.loads(self.config.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(
                f"The settings of the run cannot be read ({error}). Received: {str(self.config)!r}"
            ) from error
        return RunConfig.from_saved(values, self.config)

    def written(self) -> list[str]:
        """Returns the names of the files and folders in it."""
        return sorted(
            f"{path.name}/" if path.is_dir() else path.name for path in self.path.iterdir()
        )
