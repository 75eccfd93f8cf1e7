"""How near the pilot run of annealed importance sampling brings the acceptance to its target.

    z ~ N(0, I_D),        x = diag(w) z + N(0, I_D),

whose posterior has the scales `s_d = (1 + w_d^2)^(-1/2)`. Chains start from the prior, which is
much wider than the posterior, or from an encoder with the posterior's location and twice its
scales. The pilot run has 10 images and 16 chains of each; then other images and many chains measure
the acceptance of each transition. Prints the share of the transitions that accept within 0.15 of
the target as a table, and writes `pilot_acceptance.json` to the output folder.
"""

import argparse
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae import VAE, Gaussian, random
from tf_mcvae.evaluation import AISSettings, annealed

TOLERANCE = 0.15
SCALES: dict[str, np.ndarray] = {
    "D = 3 stiff": np.array([0.01, 0.1, 0.99]),
    "D = 30": np.geomspace(0.1, 0.99, 30),
}
NUM_TEMPERATURES = (20, 50, 100, 300, 1000)
NUM_SEEDS = {20: 8}  # Otherwise 1. The share of few transitions varies with the seed.
STARTS = ("prior", "encoder")


def make_model(scales: np.ndarray) -> VAE:
    """Returns the model whose posterior has these scales, `[D]`."""
    size = len(scales)
    weights = np.sqrt(scales**-2.0 - 1.0)
    encoder = keras.Sequential([keras.Input((size,)), keras.layers.Dense(2 * size)])
    decoder = keras.Sequential([keras.Input((size,)), keras.layers.Dense(size, use_bias=False)])
    gain = np.diag(weights * scales**2)
    log_variance = 2.0 * np.log(2.0 * scales)
    encoder.set_weights([np.hstack([gain, 0 * gain]), np.concatenate([0 * scales, log_variance])])
    decoder.set_weights([np.diag(weights)])
    model = VAE(encoder, decoder, likelihood=Gaussian(scale=1.0))
    model.build((None, size))
    return model


def acceptance(model: VAE, settings: AISSettings, seed: int, num_chains: int = 200) -> np.ndarray:
    """Tunes step sizes, and returns the acceptance of each transition with them, `[T - 1]`."""
    data_seed, pilot_seed, score_seed = random.split(random.as_seed(seed), 3)
    images, _ = annealed.simulate(model, 20, random.at_row(data_seed, 0))
    spec = tf.TensorSpec([None, *model.event_shape])
    step_sizes = annealed._Annealing(model, spec, settings).step_sizes(images[:10], pilot_seed)
    scoring = annealed._Annealing(model, spec, settings.updated(num_chains=num_chains))
    return scoring.forward(images[10:], step_sizes, random.at_row(score_seed, 0))[1].numpy()


def acceptance_of_seeds(model: VAE, settings: AISSettings, seed: int) -> np.ndarray:
    """Returns the acceptance of the transitions of `NUM_SEEDS` pilot runs, one after the other."""
    count = NUM_SEEDS.get(settings.num_temperatures, 1)
    return np.concatenate([acceptance(model, settings, seed + i) for i in range(count)])


def rows(
    num_temperatures: Sequence[int] = NUM_TEMPERATURES,
    num_leapfrog_steps: Sequence[int] = (3, 10),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Returns the results of each model, start, number of leapfrog steps and of temperatures."""
    models = {name: make_model(scales) for name, scales in SCALES.items()}
    results = []
    cases = itertools.product(models, STARTS, num_leapfrog_steps, num_temperatures)
    for name, start, leapfrogs, number in cases:
        settings = AISSettings(16, number, leapfrogs, start=start)
        rates = acceptance_of_seeds(models[name], settings, seed)
        errors = np.abs(rates - settings.target_acceptance)
        results.append(
            {
                "model": name,
                "start": start,
                "num_leapfrog_steps": leapfrogs,
                "num_temperatures": number,
                "within": float(np.mean(errors < TOLERANCE)),
                "lowest": float(np.min(rates)),
                "highest": float(np.max(rates)),
            }
        )
    return results


def table(results: Sequence[dict[str, Any]]) -> str:
    """Returns the share of the transitions near the target, by number of temperatures."""
    lines = ["| pilot run of AIS | transitions near the target, least | mean |", "|---|---|---|"]
    for number in sorted({row["num_temperatures"] for row in results}):
        shares = [row["within"] for row in results if row["num_temperatures"] == number]
        lines.append(
            f"| T = {number} | {100 * min(shares):.0f} % | {100 * np.mean(shares):.0f} % |"
        )
    return "\n".join(lines)


def measure(output: pathlib.Path, *cases: Sequence[int]) -> str:
    """Measures, writes the results to a folder, and returns their table; see `rows`."""
    results = rows(*cases)
    output.mkdir(parents=True, exist_ok=True)
    path = output / "pilot_acceptance.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    return table(results)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the row, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("pilot_acceptance"))
    parser.add_argument("--temperatures", type=int, nargs="+", default=NUM_TEMPERATURES)
    parser.add_argument("--leapfrogs", type=int, nargs="+", default=(3, 10))
    options = parser.parse_args(argv)
    print(measure(options.output, options.temperatures, options.leapfrogs))


if __name__ == "__main__":
    main()
