# %% [markdown]
# # Train a classifier on few labels, with the features of a model that was trained without labels
#
#     pip install scikit-learn   # for the digits' labels
#     python examples/transfer_learning.py

# %%
import tempfile

import keras
import numpy as np
from sklearn.datasets import load_digits

import tf_mcvae

keras.utils.set_random_seed(0)
digits = load_digits()
images, labels = digits.images[..., np.newaxis].astype("float32") / 16, digits.target
few, test = slice(0, 100), slice(1000, None)

# %% A VAE learns from the images alone.
model = tf_mcvae.VAE(
    tf_mcvae.Encoder(16, architecture="dense"),
    tf_mcvae.Decoder((8, 8, 1), architecture="dense"),
)
model.compile(keras.optimizers.Adam(3e-3))
model.fit(images[:1000], batch_size=50, epochs=20, verbose=0)
folder = tempfile.mkdtemp()
model.save(f"{folder}/digits.keras")

# %% The encoder becomes a frozen layer of a classifier, which is trained on 100 labels.
features = tf_mcvae.EncoderFeatures(f"{folder}/digits.keras")
classifier = keras.Sequential([keras.Input((8, 8, 1)), features, keras.layers.Dense(10, "softmax")])


def train(classifier, learning_rate, epochs):
    optimizer = keras.optimizers.Adam(learning_rate)
    classifier.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    classifier.fit(images[few], labels[few], batch_size=25, epochs=epochs, verbose=0)
    return classifier.evaluate(images[test], labels[test], verbose=0)[1]


print(f"frozen features: {train(classifier, 3e-2, 40):.0%} of the other digits right")

# %% Then all weights are fine-tuned.
features.trainable = True
print(f"fine-tuned:      {train(classifier, 1e-3, 20):.0%}")

# %% Digits as small as these do not need the features: the pixels work as well.
keras.utils.set_random_seed(0)
layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
print(f"pixels alone:    {train(keras.Sequential(layers), 3e-2, 40):.0%}")

# %% The classifier is an ordinary Keras model. (Import `tf_mcvae` before you load it.)
classifier.save(f"{folder}/classifier.keras")
loaded = keras.models.load_model(f"{folder}/classifier.keras")
same = np.array_equal(loaded.predict(images, verbose=0), classifier.predict(images, verbose=0))
print(f"saved and loaded, it answers the same: {same}")
