"""A model that remembers what it is trained on."""

import keras
import numpy as np
import tensorflow as tf


class Recorder(keras.Model):
    """Learns nothing; takes batches eagerly."""

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
    """What `fit` takes of a data set, in its order."""
    model = Recorder()
    model.fit(train, epochs=epochs, shuffle=False, verbose=0, **kwargs)
    return np.concatenate(model.seen)
