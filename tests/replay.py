"""Replays recorded random draws through the library, and builds the recorded models.

The library draws everything through `tf_mcvae.random`. Replaying swaps its four functions: a seed
then holds the number of the recorded draw, which works in eager, graph and XLA execution alike.
"""

import ast

import numpy as np
import tensorflow as tf
from reference_weights import set_reference_weights

import tf_mcvae
from tf_mcvae import random

ROOT_SEED = tf.constant([0, 0])
ACTIVATIONS = {
    "ReLU": "relu",
    "LeakyReLU": "leakyrelu",
    "Tanh": "tanh",
    "LogSigmoid": "logsigmoid",
    "LogSoftmax": "logsoftmax",
    "Softplus": "softplus",
    "GELU": "gelu",
}


class Fixture:
    """One recorded run: its settings, arrays, and the shapes to unfold them with."""

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
        config = self.config
        event_shape = self.x.shape[1:]
        architecture = {"fc": "dense", "conv": "conv"}[config["net_type"]]
        activation = ACTIVATIONS[config["act_func"].split(".")[-1].rstrip("'>")]
        hidden = [
            len(self.arrays[n]) for n in ("param/encoder_net.net.1.weight",) if n in self.arrays
        ]
        encoder = tf_mcvae.Encoder(
            config["hidden_dim"],
            architecture=architecture,
            activation=activation,
            **({"hidden_units": hidden} if hidden else {}),
        )
        decoder = tf_mcvae.Decoder(
            event_shape,
            architecture=architecture,
            activation=activation,
            **({"hidden_units": hidden} if hidden else {}),
        )
        likelihood = "bernoulli"
        if config.get("specific_likelihood") == "gaussian":
            likelihood = tf_mcvae.Gaussian(scale=config["sigma"])
        model = self._wrap(encoder, decoder, likelihood)
        model.build((None, *event_shape))
        set_reference_weights(encoder, self.arrays, "encoder_net")
        set_reference_weights(decoder, self.arrays, "decoder_net")
        if config.get("use_cloned_decoder"):
            set_reference_weights(model.transition_decoder, self.arrays, "cloned_decoder")
        self._set_schedule(model)
        return model

    def _wrap(self, encoder, decoder, likelihood):
        config, samples = self.config, self.num_samples
        if config["cls"] == "VAE":
            return tf_mcvae.VAE(encoder, decoder, likelihood, samples)
        if config["cls"] == "IWAE":
            return tf_mcvae.IWAE(encoder, decoder, likelihood, samples)
        before = [
            np.exp(self.arrays[f"before/transitions.{k}.log_stepsize"]) for k in range(config["K"])
        ]
        rule = "acceptance"
        if config["learnable_transitions"]:
            rule = "learned"
        elif config["variance_sensitive_step"]:
            rule = "variance"
        settings = {
            "num_transitions": config["K"],
            "num_samples": samples,
            "schedule": config["annealing_scheme"],
            "step_size": tf_mcvae.StepSize(before, rule, config["acceptance_rate_target"]),
            "cloned_decoder": config["use_cloned_decoder"],
        }
        if config["cls"] == "LMCVAE":
            return tf_mcvae.LMCVAE(encoder, decoder, likelihood, **settings)
        acceptance = "barker" if config["use_barker"] else "metropolis"
        return tf_mcvae.AMCVAE(encoder, decoder, likelihood, acceptance=acceptance, **settings)

    def _set_schedule(self, model):
        if "param/tempering_logalpha" in self.arrays:
            model.schedule.log_steepness.assign(self["param/tempering_logalpha"])
        if "param/tempering_beta_logits" in self.arrays:
            model.schedule.logits.assign(self["param/tempering_beta_logits"])


def replay_draws(monkeypatch, fixture):
    """Makes `tf_mcvae.random` hand out the recorded draws; begin with `ROOT_SEED`."""
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
