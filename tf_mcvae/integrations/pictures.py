"""Pictures of data, reconstructions and samples."""

import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from tf_mcvae.models import MonteCarloVAE

_COLUMNS = 12
_HEIGHT = 64  # Least height in pixels of an image.


def tile_images(images: Any, columns: int = 8) -> np.ndarray[Any, Any]:
    """Returns images as the cells of one picture, row by row.

    Args:
        images: `[N, H, W, C]`, clipped to [0, 1].
        columns: Number of images in a row.

    Returns:
        `uint8 [rows H, columns W, 1 or 3]`; unused cells are black. Two channels are shown as red
        and green, and of more than three the first three.

    Example:
        >>> tile_images(np.ones([10, 5, 6, 1])).shape
        (10, 48, 1)
    """
    shown = _grey_or_colour(np.asarray(images))
    pixels = np.round(255.0 * np.clip(np.nan_to_num(shown), 0.0, 1.0)).astype(np.uint8)
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    cells = np.zeros([rows * columns, height, width, channels], np.uint8)
    cells[:count] = pixels
    grid = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def draw_images(model: MonteCarloVAE, x: Any, path: pathlib.Path, seed: int = 0) -> None:
    """Draws data, their reconstructions and samples of a model: three rows of a PNG.

    Args:
        model: A trained model of images.
        x: Images `[B, H, W, C]`, of which the first 12 are shown; channels as in `tile_images`.
        path: The PNG file to write.
        seed: Seed of the samples.
    """
    x = tf.convert_to_tensor(x)[:_COLUMNS]
    images = np.concatenate([x, model.reconstruct(x), model.sample(len(x), seed=seed)])
    scale = -(-_HEIGHT // images.shape[1])
    enlarged = images.repeat(scale, axis=1).repeat(scale, axis=2)
    framed = np.pad(enlarged, [(0, 0), (2, 2), (2, 2), (0, 0)], constant_values=1.0)
    path.write_bytes(tf.io.encode_png(tile_images(framed, columns=len(x))).numpy())


def _grey_or_colour(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Returns images `[N, H, W, C]` with one or three channels."""
    channels = images.shape[-1]
    if channels in (1, 3):
        return images
    return np.pad(images[..., :3], [(0, 0), (0, 0), (0, 0), (0, max(0, 3 - channels))])
