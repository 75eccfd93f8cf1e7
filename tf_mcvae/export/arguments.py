"""Argument checks and an error message that all exports share."""

import os
import pathlib

from tf_mcvae.models import MonteCarloVAE


def check_model(model: object) -> None:
    """Raises unless `model` is a built tf_mcvae model."""
    if not isinstance(model, MonteCarloVAE):
        raise TypeError(f"`model` must be a tf_mcvae model. Received: {type(model).__name__}")
    model.require_built()


def check_path(path: object, kind: str) -> None:
    """Raises unless `path` is a string or a path object."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`path` must be the path of a {kind}. Received: path={path!r}")


def cannot_be_written(path: pathlib.Path, error: Exception) -> str:
    """Returns the message of an error that occurred while writing to `path`."""
    return f"The model could not be written here: {error}. Received: {str(path)!r}"
