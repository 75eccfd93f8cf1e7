"""Pictures of images, reconstructions and samples."""

import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from tf_mcvae.models import MonteCarloVAE

_COLUMNS = 12


def tile_images(images: Any, columns: int = 8) -> np.ndarray[Any, Any]:
    """Returns images as the cells of one picture, row by row.

    Args:
        images: `[N, H, W, C]`, clipped to [0, 1].
        columns: Number of images in a row.

    Returns:
        `uint8 [rows H, columns W, C]`; unused cells are black.

    Example:
        >>> tile_images(np.ones([10, 5, 6, 1])).shape
        (10, 48, 1)
    """
    pixels = np.round(255.0 * np.clip(np.nan_to_num(images), 0.0, 1.0)).astype(np.uint8)
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    cells = np.zeros([rows * columns, height, width, channels], np.uint8)
    cells[:count] = pixels
    grid = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def draw_images(model: MonteCarloVAE, x: Any, path: pathlib.Path, seed: int = 0) -> None:
    """Draws data, reconstructions and samples of a model in three rows.

    Args:
        model: A trained model of images.
        x: Images `[B, H, W, C]` with one or three channels; the first 12 are shown.
        path: The PNG file to write.
        seed: Seed of the samples.
    """
    # Without pyplot there is neither a window nor global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x = tf.convert_to_tensor(x)[:_COLUMNS]
    rows = {
        "data": x,
        "reconstructions": model.reconstruct(x),
        "samples": model.sample(len(x), seed=seed),
    }
    figure = Figure(figsize=(0.75 * len(x) + 1.5, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(x), squeeze=False)
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
        for cell, image in zip(line, np.clip(images, 0.0, 1.0), strict=True):
            cell.imshow(image, cmap="gray", vmin=0.0, vmax=1.0)
            cell.set_xticks([])
            cell.set_yticks([])
    figure.savefig(path, dpi=120, format="png")
