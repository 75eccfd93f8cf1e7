"""Every bound of the library at equal cost, for one decoder.

A decoder is trained together with an encoder as an IWAE, and frozen. Each method then trains only
what its bound adds to that decoder: the encoder, from the trained one on, the annealing schedule,
step sizes, momentum and networks. All methods and budgets have the same number of training steps,
and start at the same step sizes, which are not tuned to the budget, and at linear schedules.

A budget is the number n of evaluations of the decoder and its gradient for an image:
`S (K L + 1)`, with S samples, K transitions and L = 1 leapfrog. An IWAE has S = n and no
transitions; its bound evaluates the decoder but not its gradient, so `seconds_per_image` is the
fairer measure of it. The A-MCVAE is trained with two chains, which its score-function term needs
for a baseline, or with one and coupled chains, and evaluated with one: its bound is a mean over
chains, so their number does not change it.

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
import itertools
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
from bound_methods import METHODS, Method
from bound_report import draw, point_of, print_table

import tf_mcvae
from tf_mcvae import random
from tf_mcvae.files import replacing

BUDGETS = (2, 4, 8, 16, 32, 64, 128)


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


def compile_model(model: Any, steps: int, learning_rate: float, jit_compile: bool) -> None:
    """Compiles a model with Adam, at a rate that falls to 0."""
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    # Chains that leave the stable step sizes have gradients of any size. They are rare.
    optimizer = keras.optimizers.Adam(rate, global_clipnorm=100.0)
    model.compile(optimizer, skip_gradient_norm=1e6, jit_compile=jit_compile)


def train(model: Any, data: Any, steps: int) -> list[float]:
    """Trains a compiled model; returns the seconds of each step."""
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
    compile_model(model, settings["decoder_steps"], 1e-3, jit_compile=True)
    train(model, data, settings["decoder_steps"])
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


def restart(model: Any, like: Any, count: int) -> None:
    """Gives a compiled model the weights of another one, a new optimizer, and its own draws."""
    model.set_weights(like.get_weights())
    for variable in model.optimizer.variables:
        variable.assign(keras.ops.zeros_like(variable))
    model.step.assign(count)  # The random numbers of training are a function of this count.


def measure(
    mean_bound: Callable[..., tf.Tensor], x: np.ndarray[Any, Any], repeats: int, seed: int
) -> tuple[np.ndarray[Any, Any], float]:
    """Returns estimates of the mean bound, `[repeats]`, and the median seconds of one."""
    images, base_seed = tf.constant(x), random.as_seed(seed)
    mean_bound(images, base_seed)  # Compiles.
    bounds, seconds = [], []
    for number in range(repeats):
        draw_seed = random.fold_in(base_seed, number)
        start = time.perf_counter()
        bounds.append(float(mean_bound(images, draw_seed)))
        seconds.append(time.perf_counter() - start)
    return np.array(bounds), float(np.median(seconds))


class Group(NamedTuple):
    """The seeds of one method and budget, which share a model that is compiled once."""

    method: str
    budget: int
    seeds: tuple[int, ...]


def run_group(group: Group, path: pathlib.Path) -> list[dict[str, Any]]:
    """Trains and evaluates a method with a budget and each of the seeds; returns their rows."""
    toy.quiet()
    keras.backend.clear_session()
    gc.collect()  # The model of the group before.
    problem, settings = load_problem(path)
    method, repeats = METHODS[group.method], settings["repeats"]
    sizes = method.sizes(group.budget)
    model = make_model(method, group.budget, 0, problem, settings)
    jit_compile, num_samples = settings["jit_compile"], sizes["num_samples"]
    compile_model(model, settings["steps"], settings["learning_rate"], jit_compile)
    model.optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def mean_bound(x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(model.bound(x, seed, num_samples=num_samples))

    rows = []
    for seed in group.seeds:
        start = time.perf_counter()
        like = make_model(method, group.budget, seed, problem, settings)
        restart(model, like, seed * settings["steps"])
        steps = train(model, load_data(settings, seed), settings["steps"])
        # Not the seeds of training, which are small numbers.
        bounds, seconds = measure(mean_bound, problem.x, repeats, 1000 + seed)
        error = float(np.std(bounds, ddof=1) / np.sqrt(repeats))
        row = {
            "method": group.method,
            "budget": group.budget,
            "seed": seed,
            "num_samples": num_samples,
            "num_transitions": sizes.get("num_transitions", 0),
            "bound": float(np.mean(bounds)),
            "standard_error": error,
            "gap": float(np.mean(problem.log_evidence) - np.mean(bounds)),
            "gap_error": float(np.hypot(error, problem.error)),
            "seconds_per_step": float(np.median(steps[len(steps) // 10 + 1 :])),
            "seconds_per_image": seconds / len(problem.x),
            "seconds": time.perf_counter() - start,  # The first includes compilation.
        }
        rows.append(row)
    return rows


def rows_of(
    groups: Sequence[Group], path: pathlib.Path, per_process: int
) -> Iterator[dict[str, Any]]:
    """Yields the rows of each group, as soon as it is measured.

    Args:
        groups: What to measure.
        path: The file of the problem.
        per_process: Groups of a process, after which the next one starts. TensorFlow keeps the
            compiled code of deleted models, some 200 MB each. 0 runs all in this process.
    """
    run = functools.partial(run_group, path=path)
    if not per_process:
        yield from itertools.chain.from_iterable(map(run, groups))
        return
    # One process at a time, so that nothing else runs while it is timed.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=per_process) as pool:
        yield from itertools.chain.from_iterable(pool.imap(run, groups))


def list_points(options: argparse.Namespace) -> list[tuple[str, int, int]]:
    """Returns method, budget and seed of every row, the cheapest first."""
    return [
        (name, budget, seed)
        for budget in sorted(options.budgets)
        for name in options.methods
        if METHODS[name].can_spend(budget)
        for seed in range(options.seeds)
    ]


def grouped(points: Sequence[tuple[str, int, int]]) -> list[Group]:
    """Returns the groups of points, in their order."""
    return [
        Group(*key, tuple(seed for *_, seed in group))
        for key, group in itertools.groupby(points, key=lambda point: point[:2])
    ]


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures the points that have no row yet, and returns the rows of all that were asked for."""
    table = options.output / "bound_comparison.csv"
    rows: list[dict[str, Any]] = list(toy.read_rows(table))
    points = list_points(options)
    measured = {point_of(row) for row in rows}
    missing = [point for point in points if point not in measured]
    path = options.output / "bound_comparison.npz"
    for row in rows_of(grouped(missing), path, options.per_process):
        rows.append(row)
        toy.write_rows(table, rows)
        print(
            f"{row['method']}, n = {row['budget']}, seed {row['seed']}: gap {row['gap']:.3f} ± "
            f"{row['gap_error']:.3f} nats, {row['seconds']:.0f} s",
            flush=True,
        )
    return [row for row in rows if point_of(row) in points]


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
    "steps": (400, "training steps of each method"),
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
    text = "methods and budgets of a child process; 0 runs all in this one (default: 10)"
    add("--per-process", type=int, default=10, help=text)
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
    print_table(rows, float(np.mean(problem.log_evidence)), problem.error)


if __name__ == "__main__":
    toy.quiet()
    main()
