"""Recovery of a decoder's two parameters, in up to 300 dimensions.

    x = alpha (|z| + beta) + N(0, 1),     z ~ N(0, I_d),     alpha = 2 pi,  beta = 2.

Each model learns alpha and beta, from log alpha = log beta = 2, together with an encoder of one
hidden layer, on 10,000 observations; `error` is `(alpha - 2 pi)^2 + (beta - 2)^2`.

The mean of x determines `alpha (E|z| + beta)` within an epoch. The remaining directions form a
ridge along which only the spread of x distinguishes alpha from beta. There a looser bound finds too
small an alpha, because a longer shell does not need a narrower posterior.

Writes `parameter_recovery.csv` (one row per model, dimension and seed; `bound`, in nats, is the
mean over the last epoch, and `seconds` the time of training) and `parameter_recovery.png`, and
prints the mean errors. Rows of the same settings that are already in the CSV are not computed
again, so the same command continues after an interruption.

Differences from the settings of the paper's study, each of which was necessary:

- Adam has a learning rate of 0.01 and clips the gradient's norm to 10. Without clipping, its memory
  of the first gradients leaves alpha and beta at the point where they meet the ridge, the same for
  every model (alpha = beta = 4.8 in 50 dimensions), and the models cannot be compared.
- The encoder sees x scaled to mean 0 and variance 1, as in `posterior_ring.py`.

Reference: Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import toy

DIMENSIONS = (2, 5, 10, 20, 50, 100, 150, 200, 300)


def run_model(inputs: dict[str, Any]) -> dict[str, float]:
    """Trains one model, and returns the recovered parameters, their error, bound and seconds."""
    latent_dim, seed = inputs["latent_dim"], inputs["seed"]
    x = toy.observations(inputs["observations"], latent_dim, seed)
    decoder = toy.ShellDecoder(math.exp(2.0), math.exp(2.0), learned=True)
    settings = toy.Settings(inputs["hidden_units"], num_samples=5, num_transitions=10, num_flows=2)
    model = toy.make_model(inputs["model"], x, decoder, latent_dim, seed, settings)
    training = toy.train(model, x, inputs["epochs"], inputs["learning_rate"])
    alpha, beta = decoder.values()
    error = (alpha - toy.ALPHA) ** 2 + (beta - toy.BETA) ** 2
    return {"alpha": alpha, "beta": beta, "error": error, **training}


def list_inputs(options: Any) -> list[dict[str, Any]]:
    """Returns the settings of every run."""
    return [
        {
            "model": name,
            "latent_dim": latent_dim,
            "seed": seed,
            "epochs": options.epochs + (options.flow_epochs if name == "RealNVP" else 0),
            "learning_rate": options.learning_rate,
            "hidden_units": options.hidden_units,
            "observations": options.observations,
        }
        for seed in range(options.seeds)
        for latent_dim in options.dimensions
        for name in options.models
    ]


def run_all(runs: Sequence[dict[str, Any]], path: pathlib.Path) -> list[dict[str, Any]]:
    """Makes the runs that are not in the CSV yet, and returns the rows of all runs.

    The CSV keeps its rows of other settings.
    """
    rows: list[dict[str, Any]] = list(toy.read_rows(path))
    chosen = []
    for inputs in runs:
        row = next((row for row in rows if toy.matches(row, inputs)), None)
        if row is None:
            row = {**inputs, **run_model(inputs)}
            rows.append(row)
            toy.write_rows(path, rows)
            print(
                f"{row['model']}, d = {row['latent_dim']}, seed {row['seed']}: "
                f"error {row['error']:.3f}, {row['seconds']:.0f} s",
                flush=True,
            )
        chosen.append(row)
    return chosen


def errors(rows: Sequence[dict[str, Any]], model: str, latent_dim: int) -> np.ndarray[Any, Any]:
    """Returns the errors of a model in one dimension, one for each seed."""
    keys = (model, str(latent_dim))
    chosen = [row for row in rows if (row["model"], str(row["latent_dim"])) == keys]
    return np.array([row["error"] for row in chosen], float)


def draw(rows: Sequence[dict[str, Any]], options: Any, path: pathlib.Path) -> None:
    """Draws the mean error against the dimension, and its range over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    ax = figure.subplots()
    for name, marker in zip(toy.MODELS, "osD^v", strict=True):
        if name not in options.models:
            continue
        values = [errors(rows, name, latent_dim) for latent_dim in options.dimensions]
        color = toy.COLORS[name]
        low, mean, high = (np.array([f(v) for v in values]) for f in (np.min, np.mean, np.max))
        ax.plot(options.dimensions, mean, marker=marker, markersize=4, color=color, label=name)
        ax.fill_between(options.dimensions, low, high, color=color, alpha=0.2, linewidth=0)
    ax.set(xscale="log", yscale="log", xlabel="latent dimension $d$")
    ax.set_ylabel(r"$(\alpha - 2\pi)^2 + (\beta - 2)^2$")
    ax.set_xticks(options.dimensions, [str(d) for d in options.dimensions])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=9)
    toy.save_figure(figure, path)


def print_table(rows: Sequence[dict[str, Any]], options: Any) -> None:
    """Prints the mean error of each model in each dimension."""
    print("\nmean error" + "".join(f"{f'd = {d}':>10}" for d in options.dimensions))
    for name in options.models:
        means = [np.mean(errors(rows, name, latent_dim)) for latent_dim in options.dimensions]
        print(f"{name:10}" + "".join(f"{mean:10.3f}" for mean in means))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the study."""
    parser = toy.arguments(__doc__, epochs=21, learning_rate=0.01, seeds=3)
    add = parser.add_argument
    text = "dimensions of z (default " + " ".join(map(str, DIMENSIONS)) + ")"
    add("--dimensions", type=int, nargs="+", default=DIMENSIONS, metavar="D", help=text)
    add("--flow-epochs", type=int, default=10, help="additional epochs of the RealNVP (default 10)")
    add("--observations", type=int, default=10_000, help="training observations (default 10000)")
    options = parser.parse_args(argv)
    if options.quick:
        options.epochs, options.flow_epochs, options.observations = 1, 0, 500
        options.dimensions, options.seeds = options.dimensions[:2], 1
    rows = run_all(list_inputs(options), toy.output_path(options, "parameter_recovery.csv"))
    draw(rows, options, toy.output_path(options, "parameter_recovery.png"))
    print_table(rows, options)


if __name__ == "__main__":
    toy.quiet()
    main()
