"""Loading saved models, with the true reason where that fails."""

import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from tf_mcvae.models.base import MonteCarloVAE

_UNKNOWN = re.compile(r"Could not locate (class|function) '([^']+)'")
_ENTRIES = {"config.json", "metadata.json", "model.weights.h5"}


def load_model(
    path: str | os.PathLike[str],
    *,
    custom_objects: Mapping[str, Any] | None = None,
    safe_mode: bool = True,
) -> MonteCarloVAE:
    """Loads a model that `model.save("x.keras")` wrote.

    `keras.models.load_model` reads the same files if this package is imported, but its errors are
    hard to understand.

    Args:
        path: A `.keras` file.
        custom_objects: Classes and functions of yours in the model, by name, that are not
            registered with Keras.
        safe_mode: Whether Python code in the file, as of a `Lambda` layer, is refused. Load files
            that you do not trust only so.

    Returns:
        The model, compiled as it was, with its optimizer's state, counters and step sizes.

    Raises:
        ValueError: If there is no such file, it is damaged or not a `.keras` file, it needs a class
            or function that is not known or code that is refused, it was written by other versions,
            or it does not hold a model of this package.
    """
    name = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(_no_file(name))
    if not os.access(path, os.R_OK):
        raise ValueError(f"The file may not be read: change its permissions. Received: {name!r}")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            "The file is damaged, or was not written by `model.save` with a name that ends in "
            f".keras; weights alone are loaded by `model.load_weights`. Received: {name!r}"
        )
    try:
        model = keras.models.load_model(path, custom_objects=custom_objects, safe_mode=safe_mode)
    except Exception as error:  # Its type depends on the reason.
        raise ValueError(f"{_reason(name, error)} Received: {name!r}") from error
    if not isinstance(model, MonteCarloVAE):
        raise ValueError(
            "The file does not hold a tf_mcvae model; `keras.models.load_model` loads others. "
            f"Received: {type(model).__name__} in {name!r}"
        )
    return model


def _no_file(name: str) -> str:
    if os.path.isdir(name):
        return (
            "This is a folder, and a .keras file is needed; `tf.saved_model.load` loads exported "
            f"models. Received: {name!r}"
        )
    return f"There is no such file. Received: {name!r}"


def _reason(name: str, error: BaseException) -> str:
    """Returns in sentences why a zip file could not be loaded, and how to mend it."""
    if _is_damaged(name):
        return "The file is damaged: copy it again from its source, or save the model again."
    messages = [str(cause) for cause in _causes(error)]
    for kind, what in (found for text in messages for found in _UNKNOWN.findall(text)):
        return (
            f"The model needs the {kind} {what!r}, which Keras does not know: import the module "
            "that registers it by `keras.saving.register_keras_serializable`, or pass "
            f"`custom_objects={{{what!r}: {what}}}`."
        )
    if any("safe_mode" in text or "unsafe_deserialization" in text for text in messages):
        return (
            "The file holds Python code, as of a `Lambda` layer, which is refused: if you trust "
            "the file, pass `safe_mode=False`; or use a layer of your own, registered with Keras."
        )
    first_line = messages[-1].strip().split("\n", maxsplit=1)[0]
    return (
        f"The file is intact, but cannot be loaded ({first_line.rstrip('.')}). It was written with "
        f"Keras {_writer(name)}, and Keras {keras.__version__} is installed: install the versions "
        "that the model was saved with."
    )


def _is_damaged(name: str) -> bool:
    try:
        with zipfile.ZipFile(name) as file:
            return file.testzip() is not None or not set(file.namelist()) >= _ENTRIES
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return True


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and those that led to it, the first of all last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _writer(name: str) -> str:
    """Returns the version of Keras that wrote a file."""
    with zipfile.ZipFile(name) as file:
        metadata = json.loads(file.read("metadata.json"))
    return str(metadata.get("keras_version", "of an unknown version"))
