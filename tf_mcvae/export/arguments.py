"""Checks of arguments, and an error, that all exports share."""

import os
import pathlib
from typing import Any

from tf_mcvae.models import MonteCarloVAE


def check_model(model: Any) -> None:
    """Raises unless `model` is one of this package, and built."""
    if not isinstance(model, MonteCarloVAE):
        raise TypeError(f"`model` must be a tf_mcvae model. Received: {type(model).__name__}")
    model.require_built()


def check_path(path: Any, kind: str) -> None:
    """Raises unless `path` is a path."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`path` must be the path of a {kind}. Received: path={path!r}")


def cannot_be_written(path: pathlib.Path, error: Exception) -> str:
    """Returns the message for what went wrong with a file."""
    return f"The model could not be written here: {error}. Received: {str(path)!r}"
