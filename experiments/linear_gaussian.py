"""Bias and gradient spread of the annealed bounds, in a linear-Gaussian model.

    z ~ N(0, I_100),        x = W z + N(0, 0.1^2 I_784),        W_ij ~ N(0, 1/784),

whose evidence is known exactly. The encoder is the best Gaussian with independent coordinates: its
location is the posterior's mean, and its precision is the diagonal of the posterior's precision.
Only the posterior's correlation is left to the transitions. Each repeat makes one estimate of the
bound, the mean over a batch of images, and of its gradient with respect to one coordinate of W,
with new draws:

- `bias`, the estimate minus `log p(x)` of the same batch, per image, in nats;
- `gradient`, the coordinate of the gradient; its spread over the repeats is that of the estimator.

Learned reverse kernels are trained first, with everything else fixed. Writes `linear_gaussian.csv`
(one row per repeat) and `linear_gaussian.png` to the output folder, and prints a table.

Reference: Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
"""

import argparse
import csv
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae import AMCVAE, LMCVAE, VAE, Gaussian, random
from tf_mcvae.files import replacing
from tf_mcvae.models.annealed import AnnealedVAE
from tf_mcvae.models.batch import Batch

SIGMA, STEP_SIZE = 0.1, 0.003

# Name, model class and settings; the plain VAE shows the gain of the transitions.
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "VAE": (VAE, {}),
    "L K=5": (LMCVAE, {"num_transitions": 5}),
    "L K=10": (LMCVAE, {"num_transitions": 10}),
    "L reverse K=1": (LMCVAE, {"num_transitions": 1, "learned_reverse": True}),
    "L reverse K=2": (LMCVAE, {"num_transitions": 2, "learned_reverse": True}),
    "A K=5": (AMCVAE, {"num_transitions": 5, "num_samples": 1}),
    "A K=10": (AMCVAE, {"num_transitions": 10, "num_samples": 1}),
    "A K=5 S=10": (AMCVAE, {"num_transitions": 5, "num_samples": 10}),
}


class Problem(NamedTuple):
    """A linear-Gaussian model and data from it.

    Attributes:
        weights: W, `[N, D]`.
        x: Images, `[B, N]`.
        log_evidence: `log p(x)`, `[B]`, in nats.
        sigma: Standard deviation of the noise.
    """

    weights: np.ndarray
    x: np.ndarray
    log_evidence: np.ndarray
    sigma: float = SIGMA


def make_problem(
    num_pixels: int, latent_dim: int, batch_size: int, seed: int, sigma: float = SIGMA
) -> Problem:
    """Draws W and a batch of images, and computes their evidence in float64."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=[num_pixels, latent_dim]) / np.sqrt(num_pixels)
    noise = sigma * rng.normal(size=[batch_size, num_pixels])
    x = rng.normal(size=[batch_size, latent_dim]) @ weights.T + noise
    return Problem(weights, x, log_evidence(weights, x, sigma), sigma)


def log_evidence(weights: np.ndarray, x: np.ndarray, sigma: float) -> np.ndarray:
    """Returns `log N(x; 0, W W' + sigma^2 I)`, `[B]`, for images `[B, N]`."""
    covariance = weights @ weights.T + sigma**2 * np.eye(len(weights))
    _, log_det = np.linalg.slogdet(2.0 * np.pi * covariance)
    distance = np.sum(x * np.linalg.solve(covariance, x.T).T, axis=1)
    return -0.5 * (log_det + distance)


def make_model(problem: Problem, model_class: Any, settings: dict[str, Any], seed: int) -> Any:
    """Returns a model with the problem's decoder and the best encoder with independent latents."""
    num_pixels, latent_dim = problem.weights.shape
    encoder = keras.Sequential([keras.layers.Dense(2 * latent_dim)])
    decoder = keras.Sequential([keras.layers.Dense(num_pixels, use_bias=False)])
    if issubclass(model_class, AnnealedVAE):
        settings = {"step_size": STEP_SIZE, **settings}
    model = model_class(encoder, decoder, likelihood=Gaussian(problem.sigma), seed=seed, **settings)
    model.build((None, num_pixels))
    precision = np.eye(latent_dim) + problem.weights.T @ problem.weights / problem.sigma**2
    to_mean = np.linalg.solve(precision, problem.weights.T / problem.sigma**2).T
    log_variance = -np.log(np.diag(precision))
    encoder.set_weights(
        [
            np.concatenate([to_mean, np.zeros_like(to_mean)], axis=1),
            np.concatenate([np.zeros(latent_dim), log_variance]),
        ]
    )
    decoder.set_weights([problem.weights.T])
    return model


def train_reverse_kernel(model: Any, num_pixels: int, steps: int, seed: int) -> None:
    """Trains only the reverse kernel, on new images from the model at every step."""
    model.encoder.trainable = model.decoder.trainable = False
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    model.compile(keras.optimizers.Adam(rate))

    def images(number: tf.Tensor) -> tf.Tensor:
        latent_seed, noise_seed = random.split(random.fold_in(random.as_seed(seed), number))
        latents = random.normal([100, model.latent_dim], latent_seed)
        return model.decode(latents) + SIGMA * random.normal([100, num_pixels], noise_seed)

    model.fit(tf.data.Dataset.range(steps).map(images).prefetch(2), verbose=0)
    model.encoder.trainable = model.decoder.trainable = True


def repeat(model: Any, problem: Problem, num_repeats: int, seed: int) -> list[tuple[float, float]]:
    """Returns bias and gradient of each repeat."""
    x = tf.constant(problem.x, tf.float32)
    kernel = model.decoder.layers[0].kernel.value

    @tf.function
    def estimate(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            result = model.estimate(Batch(x), seed, training=True)
            loss = tf.reduce_mean(result.loss)
        return tf.reduce_mean(result.bound), -tape.gradient(loss, kernel)[0, 0]

    exact = np.mean(problem.log_evidence)
    seeds = [random.fold_in(random.as_seed(seed), number) for number in range(num_repeats)]
    results = [estimate(seed) for seed in seeds]
    return [(float(bound) - exact, float(gradient)) for bound, gradient in results]


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws box plots of bias and gradient."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["case"] for row in rows))
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    titles = {
        "bias": "estimate of the bound - log p(x), nats per image",
        "gradient": "gradient with respect to one coordinate of W",
    }
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        values = [[row[key] for row in rows if row["case"] == name] for name in names]
        ax.boxplot(values, tick_labels=names, widths=0.6, flierprops={"markersize": 2})
        ax.tick_params(axis="x", rotation=40)
        ax.set_title(title, fontsize=10)
        ax.grid(axis="y", alpha=0.3)
    axes[0].axhline(0.0, color="black", linewidth=0.8)
    axes[1].set_yscale("symlog", linthresh=3.0)  # Single chains without a baseline spread far.
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def write_rows(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Writes the rows as CSV."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints means, their standard errors, and spreads over the repeats."""
    print(f"{'':16}{'bias, nats':>20}{'gradient':>20}{'its spread':>12}")
    for name in dict.fromkeys(row["case"] for row in rows):
        columns = [np.array([row[key] for row in rows if row["case"] == name]) for key in KEYS]
        bias, gradient = columns
        errors = [np.std(column, ddof=1) / np.sqrt(len(column)) for column in columns]
        print(
            f"{name:16}{np.mean(bias):12.3f} ± {errors[0]:.3f}"
            f"{np.mean(gradient):12.3f} ± {errors[1]:.3f}{np.std(gradient, ddof=1):12.3f}"
        )


KEYS = ("bias", "gradient")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=200, help="estimates per model (default: 200)"
    )
    parser.add_argument("--batch-size", type=int, default=10, help="images (default: 10)")
    parser.add_argument("--num-pixels", type=int, default=784, help="N (default: 784)")
    parser.add_argument("--latent-dim", type=int, default=100, help="D (default: 100)")
    parser.add_argument(
        "--reverse-steps",
        type=int,
        default=10_000,
        help="training steps of a reverse kernel (default: 10000)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of all random numbers (default: 0)"
    )
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("docs/studies"))
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(options.seed)
    sizes = (options.num_pixels, options.latent_dim)
    problem = make_problem(*sizes, options.batch_size, options.seed)
    rows = []
    for name, (model_class, settings) in CASES.items():
        model = make_model(problem, model_class, settings, options.seed)
        if "learned_reverse" in settings:
            train_reverse_kernel(model, options.num_pixels, options.reverse_steps, options.seed)
        values = repeat(model, problem, options.repeats, options.seed)
        rows += [{"case": name, "bias": bias, "gradient": gradient} for bias, gradient in values]
        print(f"{name}: mean bias {np.mean([bias for bias, _ in values]):.3f} nats", flush=True)
    write_rows(rows, options.output / "linear_gaussian.csv")
    draw(rows, options.output / "linear_gaussian.png")
    print_table(rows)


if __name__ == "__main__":
    main()
