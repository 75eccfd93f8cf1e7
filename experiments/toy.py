"""Shared parts of the toy studies: the generator, the networks, the models and their training.

The generator turns a latent vector into one number, its length with noise,

    z ~ N(0, I_d),        x = alpha (|z| + beta) + N(0, 1),        alpha = 2 pi,  beta = 2,

so the posterior of z is a shell: x does not determine the direction, and no Gaussian fits it.

Reference:
    Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
"""

import argparse
import csv
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import tf_mcvae
from tf_mcvae import random
from tf_mcvae.files import replacing

ALPHA, BETA = 2.0 * math.pi, 2.0
BATCH_SIZE = 100
MODELS = ("VAE", "IWAE", "RealNVP", "A-MCVAE", "L-MCVAE")
COLORS = dict(zip(MODELS, ("#0072B2", "#56B4E9", "#009E73", "#D55E00", "#E69F00"), strict=True))


@keras.saving.register_keras_serializable("tf_mcvae_experiments")
class ShellDecoder(keras.layers.Layer):
    """Computes the mean of x, `alpha (|z| + beta)`, `[B, 1]` for latents `[B, d]`.

    Args:
        alpha: Positive factor; its initial value if it is learned.
        beta: Positive length that is added; its initial value if it is learned.
        learned: Whether the logarithms of alpha and beta are trained.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(
        self, alpha: float = ALPHA, beta: float = BETA, learned: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.initial, self.learned = {"alpha": alpha, "beta": beta}, learned
        self.log_alpha, self.log_beta = (
            self.add_weight(
                initializer=keras.initializers.Constant(math.log(value)),
                trainable=learned,
                name=f"log_{name}",
            )
            for name, value in self.initial.items()
        )

    def values(self) -> tuple[float, float]:
        """Returns alpha and beta."""
        return math.exp(float(self.log_alpha)), math.exp(float(self.log_beta))

    def call(self, z: Any) -> Any:
        """Returns the mean of x."""
        # |z| is differentiated twice, and neither derivative exists at 0. The small constant makes
        # both finite, and changes lengths that occur by less than float32 resolves.
        length = tf.sqrt(tf.reduce_sum(tf.square(z), axis=-1, keepdims=True) + 1e-6)
        alpha, beta = (tf.exp(tf.convert_to_tensor(w)) for w in (self.log_alpha, self.log_beta))
        return alpha * (length + beta)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Returns the shape of x."""
        return (*input_shape[:-1], 1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), **self.initial, "learned": self.learned}


def observations(num: int, latent_dim: int, seed: int) -> np.ndarray[Any, Any]:
    """Draws `num` observations of the generator in `latent_dim` dimensions, `[num, 1]`."""
    latent_seed, noise_seed = random.split(random.as_seed(seed))
    mean = ShellDecoder()(random.normal([num, latent_dim], latent_seed))
    return (mean + random.normal([num, 1], noise_seed)).numpy()


class Settings(NamedTuple):
    """Settings that the models of a study share.

    Attributes:
        hidden_units: Width of the encoder's hidden layer.
        num_samples: S of the IWAE; the A-MCVAE has 5, and the others 1.
        num_transitions: K of the two Monte Carlo models.
        num_flows: Layers of the RealNVP.
    """

    hidden_units: int
    num_samples: int
    num_transitions: int
    num_flows: int


def make_model(
    name: str,
    x: np.ndarray[Any, Any],
    decoder: ShellDecoder,
    latent_dim: int,
    seed: int,
    s: Settings,
) -> Any:
    """Makes one of `MODELS`; networks and draws depend only on the seed.

    The two Monte Carlo models learn their annealing schedule and adapt step sizes by the variance
    rule. Acceptance targets, S and the warm-up of the score-function term are those published for
    images.

    Args:
        name: One of `MODELS`.
        x: Observations; the encoder scales its input by their mean and variance.
        decoder: The decoder.
        latent_dim: d.
        seed: Integer.
        s: Settings.
    """
    keras.utils.set_random_seed(seed)
    scaling = keras.layers.Normalization(axis=None, mean=float(x.mean()), variance=float(x.var()))
    network = tf_mcvae.Encoder(latent_dim, "dense", "relu", hidden_units=(s.hidden_units,))
    common = {"likelihood": "gaussian", "seed": seed}
    networks = (keras.Sequential([scaling, network]), decoder)
    if name == "VAE":
        return tf_mcvae.VAE(*networks, **common)
    if name == "IWAE":
        return tf_mcvae.IWAE(*networks, num_samples=s.num_samples, **common)
    if name == "RealNVP":
        return tf_mcvae.FlowVAE(*networks, flow="realnvp", num_flows=s.num_flows, **common)
    common |= {"num_transitions": s.num_transitions, "schedule": "all_learnable"}
    target = 0.8 if name == "A-MCVAE" else 0.9
    common["step_size"] = tf_mcvae.StepSize(0.01, rule="variance", target_acceptance=target)
    if name == "A-MCVAE":
        return tf_mcvae.AMCVAE(*networks, num_samples=5, alpha_annealing=True, **common)
    return tf_mcvae.LMCVAE(*networks, num_samples=1, **common)


def train(
    model: Any,
    x: np.ndarray[Any, Any],
    epochs: int,
    learning_rate: float,
    decay_epochs: Sequence[int] = (),
) -> dict[str, float]:
    """Trains a model with Adam.

    Args:
        model: The model.
        x: Observations.
        epochs: Passes over them.
        learning_rate: The first learning rate.
        decay_epochs: Epochs after which it is multiplied by 0.25.

    Returns:
        The bound in nats, averaged over the last epoch, and the seconds, including compilation.
    """
    steps = -(-len(x) // BATCH_SIZE)
    rate: Any = learning_rate
    if decay_epochs:
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            [steps * epoch for epoch in decay_epochs],
            [learning_rate * 0.25**i for i in range(len(decay_epochs) + 1)],
        )
    # The first gradients are a thousand times the later ones. Without clipping, Adam's mean square
    # would remember them during all of a short training, and stop alpha and beta half-way.
    optimizer = keras.optimizers.Adam(rate, global_clipnorm=10.0)
    # Overhead dominates the steps of networks this small. Compiling with XLA takes seconds.
    jit_compile = epochs * steps >= 500
    model.compile(optimizer, steps_per_execution=min(20, steps), jit_compile=jit_compile)
    start = time.perf_counter()
    history = model.fit(x, batch_size=BATCH_SIZE, epochs=epochs, verbose=0).history
    return {"bound": history["bound"][-1], "seconds": time.perf_counter() - start}


def quiet() -> None:
    """Silences TensorFlow's warning that each new model is a new function."""
    tf.get_logger().setLevel("ERROR")


def arguments(
    description: str | None, epochs: int, learning_rate: float, seeds: int
) -> argparse.ArgumentParser:
    """Returns a parser with the flags of both studies."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seeds", type=int, default=seeds, help=f"number of seeds, from 0 on (default {seeds})")
    folder = pathlib.Path("docs/studies")
    add(
        "--output",
        type=pathlib.Path,
        default=folder,
        help=f"folder of CSV and PNG (default {folder})",
    )
    add("--models", nargs="+", choices=MODELS, default=MODELS, help="models to train (default all)")
    add("--epochs", type=int, default=epochs, help=f"epochs (default {epochs})")
    text = f"Adam's first learning rate (default {learning_rate})"
    add("--learning-rate", type=float, default=learning_rate, help=text)
    add("--hidden-units", type=int, default=4, help="width of the encoder's layer (default 4)")
    add("--quick", action="store_true", help="a test run of seconds instead of minutes")
    return parser


def output_path(options: argparse.Namespace, name: str) -> pathlib.Path:
    """Returns the path of an output file; a quick run has other names than a full one."""
    return options.output / (f"quick-{name}" if options.quick else name)


def read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV file, or an empty list if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def matches(row: dict[str, Any], inputs: dict[str, Any]) -> bool:
    """Returns whether a row, new or read from a file, has these settings."""
    return all(str(row.get(key)) == _text(value) for key, value in inputs.items())


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def write_rows(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a CSV file in one step, with six digits per number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _text(value) for key, value in row.items()})


def save_figure(figure: Any, path: pathlib.Path) -> None:
    """Writes a figure as PNG, in one step."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=200, format="png")
