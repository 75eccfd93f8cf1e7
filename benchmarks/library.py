"""The library's steps, as in `fit` and `evaluate`.

The modes are eager execution; a graph with TensorFlow's own threads; a graph whose batch the cores
share, as in `train_keras.py`; and compiled by XLA.
"""

import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

import tf_mcvae
from benchmarks.cases import Case

_MODES: dict[str, dict[str, Any]] = {
    "eager": {"run_eagerly": True, "jit_compile": False},
    "graph": {"jit_compile": False},
    "cores": {"jit_compile": False},
    "xla": {"jit_compile": True},
}

_ANNEALED = {"L-MCVAE": tf_mcvae.LMCVAE, "A-MCVAE": tf_mcvae.AMCVAE, "UHA": tf_mcvae.UHAVAE}


def make_model(case: Case) -> tf_mcvae.MonteCarloVAE:
    """Returns the model of a case, built but not compiled."""
    keras.utils.set_random_seed(0)
    encoder = tf_mcvae.Encoder(case.latent_dim, dtype=case.policy)
    decoder = tf_mcvae.Decoder(case.image_shape, dtype=case.policy)
    if case.model in ("VAE", "IWAE"):
        cls = getattr(tf_mcvae, case.model)
        model = cls(encoder, decoder, num_samples=case.num_samples)
    else:
        model = _ANNEALED[case.model](
            encoder,
            decoder,
            num_transitions=case.num_transitions,
            num_samples=case.num_samples,
            step_size=tf_mcvae.StepSize(0.01, rule="published_acceptance"),
        )
    model.build((None, *case.image_shape))
    return model


class Trainer:
    """Training and evaluation steps.

    Args:
        case: The model and its sizes.
        images: `[B, H, W, 1]`, a NumPy array.
        device: `"cpu"` or `"gpu"`.
        mode: `"eager"`, `"graph"`, `"cores"` or `"xla"`.
    """

    def __init__(self, case: Case, images: Any, device: str, mode: str) -> None:
        if device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        if mode == "cores":
            tf_mcvae.parallelize_over_batch()
        self.x = tf.constant(images)
        self.model = make_model(case)
        self.model.compile(keras.optimizers.Adam(1e-3), **_MODES[mode])

    def train(self) -> float:
        """Takes one training step and returns the loss."""
        return float(self.model.train_on_batch(self.x, return_dict=True)["loss"])

    def evaluate(self) -> float:
        """Returns the loss in evaluation."""
        return float(self.model.test_on_batch(self.x, return_dict=True)["loss"])
