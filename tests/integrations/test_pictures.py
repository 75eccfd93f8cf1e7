import numpy as np
import pytest
import tensorflow as tf

import tf_mcvae
from tf_mcvae.integrations.pictures import draw_images


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_picture_shows_the_data_and_what_the_model_makes(tmp_path, channels):
    shape = (8, 8, channels)
    model = tf_mcvae.VAE(
        tf_mcvae.Encoder(2, architecture="dense"),
        tf_mcvae.Decoder(shape, architecture="dense"),
    )
    x = np.random.default_rng(0).random((20, *shape), np.float32)
    model.build((None, *shape))
    path = tmp_path / "images.png"
    draw_images(model, x, path)
    picture = tf.io.decode_png(path.read_bytes(), channels=3).numpy()
    assert picture.shape[1] > 3 * picture.shape[0]
    # An untrained decoder's means are grey, the noise above them is not.
    assert len(np.unique(picture[: len(picture) // 3])) > 100
    draw_images(model, 1 - x, tmp_path / "other.png")
    other = tf.io.decode_png((tmp_path / "other.png").read_bytes(), channels=3).numpy()
    assert not np.array_equal(picture, other)
