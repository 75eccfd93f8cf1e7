"""Maps arrays of the reference fixtures to the order and layout of this library's networks.

The reference is channel-first with kernels [out, in, kh, kw] and [out, in]; this library is
channel-last with kernels [kh, kw, in, out] and [in, out]. Both list a kernel, then its bias,
from the input to the output.
"""

import math
from pathlib import Path

import numpy as np

_ROOT = Path(__file__).resolve().parents[1]

# Recorded on the small dense networks; part of the project.
DENSE_FIXTURES = sorted((_ROOT / "tests/fixtures").glob("*.npz"))

# Recorded on the convolutional networks; too large for the project, read where they are to be had.
CONV_FIXTURES = sorted(
    path
    for folder in (_ROOT, _ROOT.parent)
    for path in (folder / "shared/reference/conv").glob("*.npz")
)


def _channels(arrays, prefix):
    """Channels beside the flatten (encoder) or reshape (decoder) of a convolutional network."""
    kernels = [v for k, v in arrays.items() if k.startswith(f"param/{prefix}.") and v.ndim == 4]
    if not kernels:
        return None
    return kernels[-1].shape[0] if "encoder" in prefix else kernels[0].shape[1]


def _flat_to_channel_last(array, axis, channels):
    """Reorders one axis from a flattened [C, H, W] to a flattened [H, W, C] (square images)."""
    side = math.isqrt(array.shape[axis] // channels)
    split = np.moveaxis(array, axis, -1).reshape((-1, channels, side, side))
    flat = split.transpose(0, 2, 3, 1).reshape(np.moveaxis(array, axis, -1).shape)
    return np.moveaxis(flat, -1, axis)


def _convert(array, channels, prefix):
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if "encoder" in prefix:
        if channels is not None and array.ndim == 2:
            array = _flat_to_channel_last(array, 1, channels)
    elif channels is not None and array.shape[0] % channels == 0 and array.shape[0] > channels:
        # Only the first layer's rows: a decoder's biases elsewhere are at most `channels` long.
        array = _flat_to_channel_last(array, 0, channels)
    return array.T


def reference_arrays(arrays, prefix, group="param"):
    """Returns the fixture's arrays of one network as `model.trainable_variables` are laid out.

    Args:
        arrays: The fixture, a mapping from keys to arrays (`dict(np.load(...))`).
        prefix: "encoder_net", "decoder_net" or "cloned_decoder".
        group: "param" for weights, "grad" for gradients.

    Returns:
        A list of arrays; None in the place of a gradient that the fixture does not have.
    """
    channels = _channels(arrays, prefix)
    names = [key.split("/", 1)[1] for key in arrays if key.startswith(f"param/{prefix}.")]
    if not names:
        raise KeyError(f"no param/{prefix}.* among {list(arrays)}")
    found = [arrays.get(f"{group}/{name}") for name in names]
    return [None if array is None else _convert(array, channels, prefix) for array in found]


def set_reference_weights(model, arrays, prefix):
    """Sets the weights of a built Encoder or Decoder to those of a fixture."""
    model.set_weights(reference_arrays(arrays, prefix))
