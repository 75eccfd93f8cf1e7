# %% [markdown]
# # Encode images inside a `tf.data` pipeline
#
#     python examples/pipelines.py
#
# The encoder runs as a step of a data set: in batches, on all cores, while other work goes on. Here
# once from a SavedModel, which needs TensorFlow alone, and once from the Keras model.

# %%
import tempfile

import numpy as np
import tensorflow as tf

import tf_mcvae
from tf_mcvae import datasets

# %% A model, and its SavedModel.
data = datasets.load("digits", batch_size=50)
model = tf_mcvae.VAE(
    tf_mcvae.Encoder(8, architecture="dense"),
    tf_mcvae.Decoder((8, 8, 1), architecture="dense"),
)
model.compile("adam")
model.fit(data.train, epochs=3, verbose=0)
folder = tempfile.mkdtemp()
served = tf.saved_model.load(str(tf_mcvae.export_saved_model(model, folder)))

# %% Each image has its number, and from that a seed: the same draws however the work is divided.
images = data.test.unbatch().enumerate().batch(64)


def row_seeds(number):
    """A seed `[B, 2]` for each row; the second entry tells apart what is drawn for other ends."""
    number = tf.cast(number, tf.int32)
    return tf.stack([number, tf.zeros_like(number)], axis=1)


def with_saved_model(number, x):
    code = served.signatures["encode"](x=x)
    draw = served.signatures["posterior_sample"](x=x, seed=row_seeds(number))
    return {"number": number, "loc": code["loc"], "z": draw["z"]}


def with_keras(number, x):
    loc, _ = model.encode(x)
    z = model.posterior_sample(x, seed=row_seeds(number))[0]
    return {"number": number, "loc": loc, "z": z}


# %%
def run(function, workers):
    latents = images.map(function, num_parallel_calls=workers).prefetch(tf.data.AUTOTUNE)
    return np.concatenate([batch["z"] for batch in latents])


first, second = run(with_saved_model, 1), run(with_saved_model, 4)
keras_first = run(with_keras, tf.data.AUTOTUNE)
print(f"{len(first)} draws from the posterior of {first.shape[1]} latents")
print(f"one worker or four: the same numbers is {np.array_equal(first, second)}")
print(f"SavedModel or Keras: largest difference {np.max(np.abs(first - keras_first)):.0e}")
