"""Loading saved models."""

import os

import keras

from tf_mcvae.models.base import MonteCarloVAE


def load_model(path: str | os.PathLike[str]) -> MonteCarloVAE:
    """Loads a model that `model.save("x.keras")` wrote.

    `keras.models.load_model` reads the same files if this package is imported, but its errors for
    damaged files are hard to understand.

    Args:
        path: A `.keras` file.

    Returns:
        The model, compiled as it was, with its optimizer's state, counters and step sizes.

    Raises:
        ValueError: If there is no such file, it is damaged, or it does not hold a model of this
            package.
    """
    if not os.path.isfile(path):
        raise ValueError(f"There is no such file. Received: {os.fspath(path)!r}")
    try:
        model = keras.models.load_model(path)
    except Exception as error:  # Its type depends on where the file is damaged.
        raise ValueError(
            "The file is damaged, or was written by a later version of tf_mcvae or Keras than the "
            f"installed (Keras {keras.__version__}; {type(error).__name__}). Upgrade them, or save "
            f"the model again. Received: {os.fspath(path)!r}"
        ) from error
    if not isinstance(model, MonteCarloVAE):
        raise ValueError(
            "The file does not hold a tf_mcvae model; `keras.models.load_model` loads others. "
            f"Received: {type(model).__name__} in {os.fspath(path)!r}"
        )
    return model
