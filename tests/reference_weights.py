"""Finds the recorded files, and reads their networks' arrays with `integrations.reference`."""

from pathlib import Path

import numpy as np

from tf_mcvae.integrations.reference import network_weights

_ROOT = Path(__file__).resolve().parents[1]

# Recorded with the small dense networks. These files are part of the project.
DENSE_FIXTURES = sorted((_ROOT / "tests/fixtures").glob("*.npz"))

# Recorded with the convolutional networks. These files are too large for the project.
CONV_FIXTURES = sorted(
    path
    for folder in (_ROOT, _ROOT.parent)
    for path in (folder / "shared/reference/conv").glob("*.npz")
)


def group(arrays, name):
    """The arrays of a group ("param", "grad", ...) of a recorded file, by their names in it."""
    return {k.split("/", 1)[1]: v for k, v in arrays.items() if k.startswith(f"{name}/")}


def image_shape(arrays):
    return np.moveaxis(arrays["x"], 1, -1).shape[1:]


def reference_arrays(arrays, prefix, kind="param"):
    """The arrays of a network, weights or gradients, in the layout of its `weights`."""
    return network_weights(group(arrays, kind), prefix, image_shape(arrays))


def set_reference_weights(model, arrays, prefix):
    """Sets the weights of a built Encoder or Decoder to those of a fixture."""
    model.set_weights(reference_arrays(arrays, prefix))
