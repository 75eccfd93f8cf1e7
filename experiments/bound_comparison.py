"""Every bound of the library at equal cost, for one decoder.

A decoder is trained together with an encoder as an IWAE, and frozen. Each method then trains only
what its bound adds to that decoder: the encoder, from the trained one on, the annealing schedule,
step sizes, momentum and networks. All methods and budgets have the same number of training steps,
and start at the same step sizes, which are not tuned to the budget.

A budget is the number n of evaluations of the decoder and its gradient for an image:
`S (K L + 1)`, with S samples, K transitions and L = 1 leapfrog. An IWAE has S = n and no
transitions; its bound evaluates the decoder but not its gradient, so `seconds_per_image` is the
fairer measure of it. The A-MCVAE is trained with two chains, which its score-function term needs
for a baseline, and evaluated with one: its bound is a mean over chains, so their number does not
change it.

On fixed test images, `bound` is the mean of `--repeats` estimates, and `standard_error` comes from
the spread of the estimates: the images are the same for all. `gap` is the distance to `log p(x)`
of the same images by annealed importance sampling with many temperatures, itself a lower bound in
expectation; `gap_error` includes the error of both. `seconds_per_step` is the median time of a
training step, of one batch, and `seconds_per_image` that of an evaluation, divided by the images.
Times are comparable only if nothing else runs.

Writes `bound_comparison.csv` (one row per method, budget and seed), `bound_comparison.png`, and
`bound_comparison.npz` (settings, networks and truth), and prints a table of means over the seeds.
The rows are written one by one, and the same command continues after an interruption. Rows of
other settings are refused.
"""

import argparse
import functools
import gc
import json
import multiprocessing
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import toy

import tf_mcvae
from tf_mcvae import MomentumRefresh, StepSize, random
from tf_mcvae.files import replacing

BUDGETS = (2, 4, 8, 16, 32, 64, 128)


def langevin() -> dict[str, Any]:
    """Returns settings of the methods with Langevin transitions."""
    return {"schedule": "all_learnable", "step_size": StepSize(0.01, "learned", per_dimension=True)}


def hamiltonian() -> dict[str, Any]:
    """Returns settings of the methods with Hamiltonian transitions."""
    # The step sizes are of the transitions, the mass of the dimensions.
    momentum = MomentumRefresh(0.9, learn_persistence=True, learn_mass=True)
    step_size = StepSize(0.1, "learned")
    return {"schedule": "all_learnable", "step_size": step_size, "momentum": momentum}


class Method(NamedTuple):
    """A method of the comparison.

    Attributes:
        model_class: Class of the model.
        settings: Makes the constructor's arguments, with new layers at each call.
        color: Color of the line.
        num_samples: S; 0 spends the budget on samples, without transitions.
        training_samples: S in training; None for that of the evaluation.
    """

    model_class: Any
    settings: Callable[[], dict[str, Any]]
    color: str
    num_samples: int = 1
    training_samples: int | None = None

    def sizes(self, budget: int) -> dict[str, int]:
        """Returns S and K for a budget; a K of 0 stands for a budget that is too small."""
        if not self.num_samples:
            return {"num_samples": budget}
        num_transitions = budget // self.num_samples - 1
        return {"num_samples": self.num_samples, "num_transitions": num_transitions}


METHODS = {
    "IWAE": Method(tf_mcvae.IWAE, lambda: {"gradient": "dreg"}, "#000000", num_samples=0),
    "L-MCVAE": Method(tf_mcvae.LMCVAE, langevin, "#E69F00"),
    "A-MCVAE": Method(tf_mcvae.AMCVAE, langevin, "#D55E00", training_samples=2),
    "MCD": Method(tf_mcvae.MCDVAE, langevin, "#56B4E9"),
    "CMCD": Method(tf_mcvae.CMCDVAE, langevin, "#0072B2"),
    "HVAE": Method(tf_mcvae.HVAE, dict, "#999999"),
    "UHA": Method(tf_mcvae.UHAVAE, hamiltonian, "#009E73"),
    "UHA, S = 2": Method(tf_mcvae.UHAVAE, hamiltonian, "#7FBF3F", num_samples=2),
    "DAIS": Method(tf_mcvae.DAISVAE, hamiltonian, "#CC79A7"),
    "LDVI": Method(tf_mcvae.LDVIVAE, hamiltonian, "#6A3D9A"),
}
MARKERS = "osD^v<>Pd*"


class Problem(NamedTuple):
    """The trained networks, and images with their evidence under the decoder.

    Attributes:
        encoder: Weights of the encoder.
        decoder: Weights of the decoder.
        x: Test images, `[N, ...]`.
        log_evidence: `log p(x)` by annealed importance sampling, `[N]`, in nats.
        error: Standard error of its mean from the draws alone.
    """

    encoder: list[np.ndarray[Any, Any]]
    decoder: list[np.ndarray[Any, Any]]
    x: np.ndarray[Any, Any]
    log_evidence: np.ndarray[Any, Any]
    error: float


class BatchTimes(keras.callbacks.Callback):
    """Keeps the seconds of each training step."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def load_data(settings: dict[str, Any], seed: int) -> Any:
    """Loads the data set, binarised; training batches are drawn anew at every read."""
    sizes = {"batch_size": settings["batch_size"], "validation_batch_size": settings["images"]}
    return tf_mcvae.datasets.load(settings["dataset"], binarize="dynamic", seed=seed, **sizes)


def make_networks(settings: dict[str, Any], shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Makes a dense encoder and decoder."""
    options: dict[str, Any] = {"hidden_units": (settings["hidden_units"],)}
    latent_dim = settings["latent_dim"]
    return (
        tf_mcvae.Encoder(latent_dim, "dense", **options),
        tf_mcvae.Decoder(shape, "dense", **options),
    )


def train(
    model: Any, data: Any, steps: int, learning_rate: float, jit_compile: bool
) -> list[float]:
    """Trains a model with Adam, at a rate that falls to 0; returns the seconds of each step."""
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    # Chains of many transitions have rare gradients that are far larger than the others.
    optimizer = keras.optimizers.Adam(rate, global_clipnorm=100.0)
    model.compile(optimizer, jit_compile=jit_compile)
    times = BatchTimes()
    batches = data.train.repeat().take(steps)
    model.fit(batches, steps_per_epoch=steps, verbose=0, callbacks=[times])
    return times.seconds


def make_problem(settings: dict[str, Any]) -> Problem:
    """Trains the networks as an IWAE, and estimates the evidence of the test images."""
    keras.utils.set_random_seed(0)
    data = load_data(settings, seed=0)
    encoder, decoder = make_networks(settings, data.spec.image_shape)
    model = tf_mcvae.IWAE(encoder, decoder, num_samples=10, gradient="dreg")
    train(model, data, settings["decoder_steps"], 1e-3, jit_compile=True)
    x = next(iter(data.test))
    x = np.asarray(x[0] if isinstance(x, tuple) else x)
    sizes = {"num_chains": settings["chains"], "num_temperatures": settings["temperatures"]}
    truth = tf_mcvae.estimate_log_likelihood(model, x, seed=0, **sizes)
    print(f"{truth}, Monte Carlo error {truth.monte_carlo_error:.3f}", flush=True)
    weights = encoder.get_weights(), decoder.get_weights()
    return Problem(*weights, x, truth.per_example, truth.monte_carlo_error)


def save_problem(problem: Problem, settings: dict[str, Any], path: pathlib.Path) -> None:
    """Writes networks, images, evidence and settings to one file."""
    arrays: dict[str, Any] = {"settings": np.array(json.dumps(settings, sort_keys=True))}
    for name in ("encoder", "decoder"):
        arrays |= {f"{name}_{i}": value for i, value in enumerate(getattr(problem, name))}
    arrays |= {name: getattr(problem, name) for name in ("x", "log_evidence", "error")}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


@functools.cache
def load_problem(path: pathlib.Path) -> tuple[Problem, dict[str, Any]]:
    """Reads a problem and its settings."""
    with np.load(path) as file:
        networks = [
            [file[f"{name}_{i}"] for i in range(sum(key.startswith(f"{name}_") for key in file))]
            for name in ("encoder", "decoder")
        ]
        problem = Problem(*networks, file["x"], file["log_evidence"], float(file["error"]))
        return problem, json.loads(str(file["settings"]))


def prepare(settings: dict[str, Any], output: pathlib.Path) -> Problem:
    """Returns the problem, read from the output folder or made.

    Raises:
        ValueError: If the folder holds results of other settings, or rows without their problem.
    """
    path, table = output / "bound_comparison.npz", output / "bound_comparison.csv"
    advice = f"choose another `--output`, or delete {table.name} and {path.name}"
    if path.exists():
        problem, previous = load_problem(path)
        keys = sorted(settings.keys() | previous.keys())
        other = [key for key in keys if settings.get(key) != previous.get(key)]
        if other:
            text = ", ".join(f"{k}={settings.get(k)!r} (was {previous.get(k)!r})" for k in other)
            raise ValueError(
                f"{output} holds results of other settings, which cannot be compared: use the same "
                f"ones, {advice}. Received: {text}"
            )
        return problem
    if table.exists():
        raise ValueError(
            f"{output} has rows without {path.name}, the decoder that they were measured with: "
            f"put it there, {advice}. Received: output={str(output)!r}"
        )
    problem = make_problem(settings)
    save_problem(problem, settings, path)
    return problem


def make_model(method: Method, budget: int, seed: int, problem: Problem, settings: Any) -> Any:
    """Makes a method's model with the trained encoder and the frozen decoder."""
    keras.utils.set_random_seed(seed)
    shape = problem.x.shape[1:]
    encoder, decoder = make_networks(settings, shape)
    options = {**method.settings(), **method.sizes(budget)}
    if method.training_samples:
        options["num_samples"] = method.training_samples
    decoder.trainable = False
    model = method.model_class(encoder, decoder, seed=seed, **options)
    model.build((None, *shape))
    encoder.set_weights(problem.encoder)
    decoder.set_weights(problem.decoder)
    return model


def measure(
    model: Any, x: np.ndarray[Any, Any], repeats: int, seed: int, options: dict[str, Any]
) -> tuple[np.ndarray[Any, Any], float]:
    """Returns estimates of the mean bound, `[repeats]`, and the median seconds of one."""

    @tf.function(**options["compilation"])
    def mean_bound(x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(model.bound(x, seed, num_samples=options["num_samples"]))

    images, base_seed = tf.constant(x), random.as_seed(seed)
    bounds, seconds = [], []
    for number in range(repeats + 1):
        start = time.perf_counter()
        bounds.append(float(mean_bound(images, random.fold_in(base_seed, number))))
        seconds.append(time.perf_counter() - start)
    # The first call compiles; its estimate is that of a seed that the others do not have.
    return np.array(bounds[1:]), float(np.median(seconds[1:]))


def run_point(point: tuple[str, int, int], path: pathlib.Path) -> dict[str, Any]:
    """Trains and evaluates one method with one budget and seed, and returns the row."""
    toy.quiet()
    name, budget, seed = point
    start = time.perf_counter()
    problem, settings = load_problem(path)
    method = METHODS[name]
    sizes = method.sizes(budget)
    model = make_model(method, budget, seed, problem, settings)
    rate = settings["learning_rate"]
    data = load_data(settings, seed)
    steps = train(model, data, settings["steps"], rate, settings["jit_compile"])
    compilation = {"jit_compile": settings["jit_compile"], "autograph": False}
    options = {"compilation": compilation, "num_samples": sizes["num_samples"]}
    # Not the seeds of training, which are small numbers.
    bounds, seconds = measure(model, problem.x, settings["repeats"], 1000 + seed, options)
    del model
    keras.backend.clear_session()
    gc.collect()
    error = np.std(bounds, ddof=1) / np.sqrt(len(bounds))
    return {
        "method": name,
        "budget": budget,
        "seed": seed,
        "num_samples": sizes["num_samples"],
        "num_transitions": sizes.get("num_transitions", 0),
        "bound": float(np.mean(bounds)),
        "standard_error": float(error),
        "gap": float(np.mean(problem.log_evidence) - np.mean(bounds)),
        "gap_error": float(np.hypot(error, problem.error)),
        "seconds_per_step": float(np.median(steps[len(steps) // 10 + 1 :])),
        "seconds_per_image": seconds / len(problem.x),
        "seconds": time.perf_counter() - start,
    }


def rows_of(
    points: Sequence[tuple[str, int, int]], path: pathlib.Path, per_process: int
) -> Iterator[dict[str, Any]]:
    """Yields the row of each point, as soon as it is measured.

    Args:
        points: Method, budget and seed of each.
        path: The file of the problem.
        per_process: Points of a process, after which the next one starts. TensorFlow keeps the
            compiled code of deleted models, some 200 MB each. 0 runs all in this process.
    """
    run = functools.partial(run_point, path=path)
    if not per_process:
        yield from map(run, points)
        return
    # One process at a time, so that nothing else runs while it is timed.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=per_process) as pool:
        yield from pool.imap(run, points)


def list_points(options: argparse.Namespace) -> list[tuple[str, int, int]]:
    """Returns method, budget and seed of every row, the cheapest first."""
    return [
        (name, budget, seed)
        for budget in sorted(options.budgets)
        for seed in range(options.seeds)
        for name in options.methods
        if METHODS[name].sizes(budget).get("num_transitions", 1)
        and budget % max(METHODS[name].num_samples, 1) == 0
    ]


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures the points that have no row yet, and returns the rows of all that were asked for."""
    table = options.output / "bound_comparison.csv"
    rows: list[dict[str, Any]] = list(toy.read_rows(table))
    points = list_points(options)
    missing = [point for point in points if point not in {_point(row) for row in rows}]
    for row in rows_of(missing, options.output / "bound_comparison.npz", options.per_process):
        rows.append(row)
        toy.write_rows(table, rows)
        print(
            f"{row['method']}, n = {row['budget']}, seed {row['seed']}: gap {row['gap']:.3f} ± "
            f"{row['gap_error']:.3f} nats, {row['seconds']:.0f} s",
            flush=True,
        )
    return [row for row in rows if _point(row) in points]


def _point(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["method"], int(row["budget"]), int(row["seed"])


def columns(rows: Sequence[dict[str, Any]], name: str) -> dict[int, dict[str, np.ndarray]]:
    """Returns the numbers of a method, by budget: each `[seeds]`, by name of the column."""
    keys = ("gap", "gap_error", "seconds_per_step", "seconds_per_image")
    budgets = sorted({int(row["budget"]) for row in rows if row["method"] == name})
    found = {
        budget: [row for row in rows if _point(row)[:2] == (name, budget)] for budget in budgets
    }
    return {
        budget: {key: np.array([float(row[key]) for row in of_budget]) for key in keys}
        for budget, of_budget in found.items()
    }


def draw(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws the gap against evaluations and against seconds; bands are the range of the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for (name, method), marker in zip(METHODS.items(), MARKERS, strict=True):
        numbers = columns(rows, name)
        if not numbers:
            continue
        gaps = [values["gap"] for values in numbers.values()]
        low, mean, high = (np.array([f(gap) for gap in gaps]) for f in (np.min, np.mean, np.max))
        seconds = [np.median(values["seconds_per_image"]) for values in numbers.values()]
        style: dict[str, Any] = {"color": method.color, "marker": marker, "markersize": 4}
        for ax, horizontal in ((left, list(numbers)), (right, seconds)):
            # Along seconds, the order of the budgets may not be that of the times.
            ax.plot(horizontal, mean, label=name, linewidth=1.3, **style)
            ax.fill_between(horizontal, low, high, color=method.color, alpha=0.15, linewidth=0)
    budgets = sorted({int(row["budget"]) for row in rows})
    left.set(xscale="log", yscale="log", xlabel="evaluations of decoder and gradient per image")
    left.set_xticks(budgets, [str(budget) for budget in budgets])
    left.minorticks_off()
    left.set_ylabel(r"gap to $\log p(x)$, nats per image")
    right.set(xscale="log", xlabel="seconds of one evaluation per image")
    for ax in (left, right):
        ax.grid(alpha=0.3, which="both")
    right.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    toy.save_figure(figure, path)


def print_table(rows: Sequence[dict[str, Any]], problem: Problem) -> None:
    """Prints the mean gap of each method and budget, and its times at the largest, as Markdown."""
    budgets = sorted({int(row["budget"]) for row in rows})
    truth = np.mean(problem.log_evidence)
    print(f"\nlog p(x) = {truth:.3f} ± {problem.error:.3f}; gap in nats per image (its error)\n")
    times = f" ms per step, n = {budgets[-1]} | ms per image |"
    print("| n = |" + "".join(f" {budget} |" for budget in budgets) + times)
    print("|---|" + "---|" * (len(budgets) + 2))
    for name in METHODS:
        numbers = columns(rows, name)
        if not numbers:
            continue
        cells = []
        for budget in budgets:
            values = numbers.get(budget)
            cells.append(
                "" if values is None else f"{np.mean(values['gap']):.3f} ({_error(values):.3f})"
            )
        last = numbers.get(budgets[-1])
        for key in ("seconds_per_step", "seconds_per_image"):
            cells.append("" if last is None else f"{1000 * np.median(last[key]):.3g}")
        print(f"| {name} | " + " | ".join(cells) + " |")


def _error(values: dict[str, np.ndarray[Any, Any]]) -> float:
    """Returns the error of the mean gap: of seeds where there are several, or of the draws."""
    gaps = values["gap"]
    if len(gaps) == 1:
        return float(values["gap_error"][0])
    return float(np.std(gaps, ddof=1) / np.sqrt(len(gaps)))


# Flags that all rows of a folder must share, with their defaults.
SETTINGS = {
    "dataset": ("mnist", "name or path of the images, mnist or digits for example"),
    "images": (200, "test images"),
    "batch_size": (50, "images of a training step"),
    "hidden_units": (100, "width of the networks' hidden layer"),
    "latent_dim": (16, "D"),
    "decoder_steps": (20_000, "training steps of the decoder"),
    "chains": (16, "AIS chains of each image, for the truth"),
    "temperatures": (1000, "AIS inverse temperatures, for the truth"),
    "steps": (300, "training steps of each method"),
    "learning_rate": (0.003, "first learning rate of each method"),
    "repeats": (20, "estimates of the bound"),
}


def arguments() -> argparse.ArgumentParser:
    """Returns the parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    for name, (default, text) in SETTINGS.items():
        flag = f"--{name.replace('_', '-')}"
        add(flag, type=type(default), default=default, help=f"{text} (default: {default})")
    text = "whether XLA compiles the steps (default: it does)"
    add("--jit-compile", action=argparse.BooleanOptionalAction, default=True, help=text)
    text = f"budgets n (default: {' '.join(map(str, BUDGETS))})"
    add("--budgets", type=int, nargs="+", default=BUDGETS, metavar="N", help=text)
    text = "methods (default: all)"
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help=text)
    add("--seeds", type=int, default=3, help="number of seeds, from 0 on (default: 3)")
    text = "points of a child process; 0 runs all in this one (default: 20)"
    add("--per-process", type=int, default=20, help=text)
    add("--output", type=pathlib.Path, default=pathlib.Path("docs/studies"))
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the study."""
    options = arguments().parse_args(argv)
    if min(options.budgets) < 2:
        raise ValueError(
            "A budget is at least 2, one transition and the evaluation of its weight. "
            f"Received: budgets={options.budgets}"
        )
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(options, name) for name in (*SETTINGS, "jit_compile")}
    problem = prepare(settings, options.output)
    rows = run_all(options)
    draw(rows, options.output / "bound_comparison.png")
    print_table(rows, problem)


if __name__ == "__main__":
    toy.quiet()
    main()
