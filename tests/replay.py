"""Replays recorded random draws through the library, and builds the recorded models.

The library draws all random numbers with `tf_mcvae.random`. Replaying replaces its four functions.
A seed then holds the index of a recorded draw, which works in eager, graph and XLA execution.
"""

import ast

import numpy as np
import tensorflow as tf
from reference_weights import group

from tf_mcvae import random
from tf_mcvae.integrations.reference import from_state_dict

ROOT_SEED = tf.constant([0, 0])


class Fixture:
    """A recorded run: its settings, its arrays and their shapes."""

    def __init__(self, path):
        with np.load(path) as archive:
            self.arrays = {name: archive[name] for name in archive.files}
        config = ast.literal_eval(str(self.arrays["config"]))
        self.config = {
            name: ast.literal_eval(str(value)) if str(value).replace(".", "").isdigit() else value
            for name, value in config.items()
        }
        self.x = np.moveaxis(self.arrays["x"], 1, -1)
        self.batch_size = len(self.x)
        self.num_samples = len(self.arrays["draw/000/normal"]) // self.batch_size

    def __getitem__(self, name):
        return self.arrays[name]

    def unfold(self, name, lead=0):
        """The array with its folded axis s*B+b (after `lead` axes) unfolded to [S, B]."""
        array = self.arrays[name]
        shape = array.shape
        return array.reshape(*shape[:lead], self.num_samples, self.batch_size, *shape[lead + 1 :])

    def draws(self, kind):
        """All draws of a kind in their order, stacked: `[n, S, B, ...]`."""
        names = sorted(n for n in self.arrays if n.startswith("draw/") and n.endswith(kind))
        return np.stack([self.unfold(name) for name in names]) if names else np.zeros([1])

    def model(self):
        """A model of this library with the recorded settings and weights, built."""
        weights = {**group(self.arrays, "param"), **group(self.arrays, "before")}
        settings = {**self.config, "num_samples": self.num_samples}
        return from_state_dict(weights, settings, self.x.shape[1:])


def replay_draws(monkeypatch, fixture):
    """Makes `tf_mcvae.random` return the recorded draws. Start from `ROOT_SEED`."""
    normals, uniforms = fixture.draws("normal"), fixture.draws("uniform")

    def drawn(values, shape):
        tf.debugging.assert_equal(tf.shape(values), tf.convert_to_tensor(shape))
        return values

    monkeypatch.setattr(random, "split", lambda seed, num=2: [seed] * num)
    monkeypatch.setattr(random, "fold_in", lambda seed, data: tf.stack([data + 1, 0]))
    monkeypatch.setattr(
        random, "normal", lambda shape, seed: drawn(tf.gather(normals, seed[0]), shape)
    )
    monkeypatch.setattr(
        random, "uniform", lambda shape, seed: drawn(tf.gather(uniforms, seed[0] - 1), shape)
    )
