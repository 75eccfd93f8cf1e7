"""A model that records its training data."""

import keras
import numpy as np
import tensorflow as tf


class Recorder(keras.Model):
    """Records batches eagerly and learns nothing."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.built = True
        self.compile(run_eagerly=True)

    def train_step(self, data):
        self.seen.append(data.numpy())
        return {"loss": tf.reduce_mean(data)}

    def test_step(self, data):
        return {"loss": tf.reduce_mean(data)}


def recorded(train, epochs, **kwargs):
    """The examples that `fit` reads from a data set, in their order."""
    model = Recorder()
    model.fit(train, epochs=epochs, shuffle=False, verbose=0, **kwargs)
    return np.concatenate(model.seen)
