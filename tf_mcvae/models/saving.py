"""Loading saved models, and the reasons why a file cannot be loaded."""

import json
import os
import re
import zipfile
from typing import Any

import h5py  # type: ignore[import-untyped]
import keras

from tf_mcvae.models.base import MonteCarloVAE

_UNKNOWN = re.compile(r"Could not (?:locate|deserialize) (class|function) '([^']+)'")


def load_model(
    path: str | os.PathLike[str],
    *,
    custom_objects: dict[str, Any] | None = None,
    safe_mode: bool = True,
) -> MonteCarloVAE:
    """Loads a model that `model.save("x.keras")` wrote.

    `keras.models.load_model` reads the same files if this package is imported, but its errors are
    hard to understand.

    Args:
        path: A `.keras` file.
        custom_objects: Classes and functions that are not registered with Keras, by name.
        safe_mode: Whether Python lambdas in the file are refused. They can run any code: give False
            only for files whose source you trust.

    Returns:
        The model, compiled as it was, with its optimizer's state, counters and step sizes.

    Raises:
        ValueError: If there is no such file, it is damaged, Keras cannot make the model of it, or
            it does not hold a model of this package.
    """
    received = f"Received: {os.fspath(path)!r}"
    if os.path.isdir(path):
        raise ValueError(
            "This is a folder, and a .keras file is needed; `tf.saved_model.load` loads exported "
            f"models. {received}"
        )
    if not os.path.isfile(path):
        raise ValueError(f"There is no such file. {received}")
    try:
        model = keras.models.load_model(path, custom_objects=custom_objects, safe_mode=safe_mode)
    except Exception as error:  # Its type depends on what is wrong with the file.
        raise ValueError(f"{_reason(path, error)} {received}") from error
    if not isinstance(model, MonteCarloVAE):
        raise ValueError(
            "The file does not hold a tf_mcvae model; `keras.models.load_model` loads others. "
            f"Received: {type(model).__name__} in {os.fspath(path)!r}"
        )
    return model


def _reason(path: str | os.PathLike[str], error: Exception) -> str:
    """Returns why a file was not loaded, and the mend."""
    if isinstance(error, MemoryError | PermissionError):
        return f"The file cannot be read ({error}): make it readable, or free memory."
    if h5py.is_hdf5(path):
        return (
            "The file is an HDF5 file, not a .keras file. If it holds weights, make the model, "
            "build it, and call `model.load_weights`."
        )
    try:
        versions = _check_file(path)
    except Exception as damage:  # Likewise.
        return f"The file is damaged ({type(damage).__name__}): copy or save it again."
    text = str(error)
    unknown = _UNKNOWN.search(text)
    if unknown is not None:
        kind, name = unknown.groups()
        return (
            f"The file holds a {kind} that is not known here, {name!r}: give it as "
            f"`custom_objects={{{name!r}: ...}}`, or register it with "
            "`keras.saving.register_keras_serializable` and import its module before loading."
            f"{versions}"
        )
    if "lambda" in text and "safe_mode" in text:
        return (
            "The file holds a Python lambda, which can run any code, so it was not loaded: if you "
            "trust the file's source, give `safe_mode=False`. A registered function instead of the "
            "lambda needs no permission."
        )
    # Keras puts the errors of nested objects one into the other, each with its configuration.
    cause = re.split(r"Exception encountered: |during deserialization: ", text)[-1].strip()
    return (
        f"The file is not damaged, but Keras cannot make the model of it: {type(error).__name__}: "
        f"{cause[:500].rstrip('.')}. A class of your own must take in `__init__`, or handle in "
        f"`from_config`, all that its `get_config` returns, and make the same weights.{versions}"
    )


def _check_file(path: str | os.PathLike[str]) -> str:
    """Reads the parts of a `.keras` file, and returns its version of Keras if it is another.

    Raises:
        Exception: Of some type, if the file is damaged.
    """
    with zipfile.ZipFile(path) as file:
        if file.testzip() is not None:
            raise zipfile.BadZipFile
        json.loads(file.read("config.json"))
        written_by = json.loads(file.read("metadata.json"))["keras_version"]
        with file.open("model.weights.h5") as weights, h5py.File(weights, "r"):
            pass
    if written_by == keras.__version__:
        return ""
    return (
        f" It was written by Keras {written_by}, and Keras {keras.__version__} is installed: "
        "versions may differ in what they read."
    )
