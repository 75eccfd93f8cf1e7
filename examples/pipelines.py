# %% [markdown]
# # Encode images inside a `tf.data` pipeline
#
#     python examples/pipelines.py
#
# The encoder runs as a step of a data set: in batches, on all cores, in parallel with other work.
# The example uses a SavedModel, which needs only TensorFlow, and then the Keras model.

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

# %% The seed of each image is made from its index: the draws do not depend on batches or workers.
images = data.test.unbatch().enumerate().batch(64)


def row_seeds(index):
    """Returns a seed for each row, `[B, 2]`; draws for other purposes change the second entry."""
    index = tf.cast(index, tf.int32)
    return tf.stack([index, tf.zeros_like(index)], axis=1)


def with_saved_model(index, x):
    code = served.signatures["encode"](x=x)
    draw = served.signatures["posterior_sample"](x=x, seed=row_seeds(index))
    return {"index": index, "loc": code["loc"], "z": draw["z"]}


def with_keras(index, x):
    loc, _ = model.encode(x)
    z = model.posterior_sample(x, seed=tf_mcvae.random.per_row(row_seeds(index)))[0]
    return {"index": index, "loc": loc, "z": z}


# %%
def run(function, workers):
    latents = images.map(function, num_parallel_calls=workers).prefetch(tf.data.AUTOTUNE)
    return np.concatenate([batch["z"] for batch in latents])


first, second = run(with_saved_model, 1), run(with_saved_model, 4)
keras_first = run(with_keras, tf.data.AUTOTUNE)
print(f"{len(first)} draws from the posterior of {first.shape[1]} latents")
print(f"one worker or four: the same numbers is {np.array_equal(first, second)}")
print(f"SavedModel or Keras: largest difference {np.max(np.abs(first - keras_first)):.0e}")
