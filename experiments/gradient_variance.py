"""Variance of gradient estimators at equal cost.

Each estimator makes many estimates of the gradient of its bound, with new draws, on the same batch
and with the same weights. With `g` an estimate, of all weights of the decoder or of the encoder,

    variance = E|g - E g|^2 / |E g|^2,

the trace of its covariance relative to the squared norm of its mean. Averaging n estimates divides
it by n, so that variance times cost compares estimators at equal cost. There are two costs of an
estimate: `evaluations` of the decoder for an image, S (K + 1) of L-MCVAE and A-MCVAE, twice as many
with coupled chains; and `seconds`, of the estimate alone, without the update. Not all evaluations
cost the same, since those of a second, coupled chain are not differentiated.

Estimators with the same expected gradient share one estimate of it, the mean over all of them,
weighted by their precision. Errors are jackknife standard errors over the repeats. All estimators
have the same random numbers where their draws have the same shape.

- `linear-Gaussian`: the model of `linear_gaussian.py` with its step size. The means of its encoder
  are 0.95 times the best ones, at which the gradient of the encoder would vanish.
- Images, by default MNIST with Bernoulli pixels: dense networks, which are first trained as a VAE.
  Where the data are missing, the script says so and leaves them out.

Writes `gradient_variance.csv` and `gradient_variance.png` to the output folder, and prints a table.
"""

import argparse
import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import keras
import linear_gaussian
import numpy as np
import tensorflow as tf
import toy

import tf_mcvae
from tf_mcvae import AMCVAE, IWAE, LMCVAE, UHAVAE, Encoder, random
from tf_mcvae.models.annealed import AnnealedVAE
from tf_mcvae.models.batch import Batch
from tf_mcvae.models.generative import GenerativeModel

Array = np.ndarray[Any, Any]
PARTS = ("decoder", "encoder")
COSTS = ("evaluations", "seconds")
CHOICES = ("leave_one_out", "coupled")  # The gradients of A-MCVAE.


class Case(NamedTuple):
    """An estimator.

    Attributes:
        model_class: Class of the model.
        settings: Its arguments. Without a step size, chains have that of the problem.
        expectation: Name of the expected gradient; estimators with the same name share it.
    """

    model_class: Any
    settings: dict[str, Any]
    expectation: str


def a_mcvae(num_transitions: int, num_samples: int, gradient: str) -> Case:
    """Returns an A-MCVAE, whose bound does not depend on S."""
    sizes = {"num_transitions": num_transitions, "num_samples": num_samples}
    return Case(AMCVAE, {**sizes, "gradient": gradient}, f"A K={num_transitions}")


def weighted(model_class: Any, name: str, num_samples: int, gradient: str) -> Case:
    """Returns a model whose bound is importance-weighted, with K = 5 if it has transitions."""
    sizes = {"num_transitions": 5} if issubclass(model_class, AnnealedVAE) else {}
    # Sticking the landing is biased for several samples.
    is_biased = gradient == "stl" and num_samples > 1
    expectation = f"{name} S={num_samples}{' stl' if is_biased else ''}"
    settings = {**sizes, "num_samples": num_samples, "gradient": gradient}
    return Case(model_class, settings, expectation)


# The networks of LDVI, MCD and CMCD start at 0, where these gradients are those of UHA and L-MCVAE.
OTHERS = {
    "DAIS": tf_mcvae.DAISVAE,
    "HVAE": tf_mcvae.HVAE,
    "LDVI": tf_mcvae.LDVIVAE,
    "MCD": tf_mcvae.MCDVAE,
    "CMCD": tf_mcvae.CMCDVAE,
}

# To measure another estimator, add a line.
CASES: dict[str, Case] = {
    **{
        f"A K={k} S={s} {gradient}": a_mcvae(k, s, gradient)
        for k in (3, 5)
        for s in (1, 5)
        for gradient in CHOICES
    },
    **{f"IWAE S=5 {g}": weighted(IWAE, "IWAE", 5, g) for g in ("plain", "stl", "dreg")},
    **{f"L K=5 S=1 {g}": weighted(LMCVAE, "L K=5", 1, g) for g in ("plain", "stl")},
    **{f"L K=5 S=5 {g}": weighted(LMCVAE, "L K=5", 5, g) for g in ("plain", "dreg")},
    **{f"UHA K=5 S=5 {g}": weighted(UHAVAE, "UHA K=5", 5, g) for g in ("plain", "dreg")},
    **{f"{n} K=5 S=5 plain": weighted(m, f"{n} K=5", 5, "plain") for n, m in OTHERS.items()},
    "VAE S=5": Case(tf_mcvae.VAE, {"num_samples": 5}, "VAE"),
}


class Problem(NamedTuple):
    """Networks with weights, and a batch.

    Attributes:
        name: Name in the table.
        x: Examples, `[B, ...]`.
        make_model: Returns a model of a class with these weights, given further settings.
        step_size: The step size of Langevin transitions.
    """

    name: str
    x: Array
    make_model: Callable[[Any, dict[str, Any]], Any]
    step_size: float

    def model(self, case: Case) -> Any:
        """Returns the model of a case."""
        settings = case.settings
        if issubclass(case.model_class, AnnealedVAE):
            step = self.step_size
            if issubclass(case.model_class, (UHAVAE, tf_mcvae.HVAE)):
                step = (2.0 * step) ** 0.5  # A leapfrog's, which moves as far.
            settings = {"step_size": step, **settings}
        return self.make_model(case.model_class, settings)


def gaussian_problem(options: argparse.Namespace) -> Problem:
    """Returns the problem of `linear_gaussian.py`."""
    problem = linear_gaussian.make_problem(
        options.num_pixels, options.latent_dim, options.batch_size, options.seed
    )

    def make(model_class: Any, settings: dict[str, Any]) -> Any:
        model = linear_gaussian.make_model(problem, model_class, settings, options.seed)
        kernel, bias = model.encoder.get_weights()
        kernel[:, : options.latent_dim] *= 0.95
        model.encoder.set_weights([kernel, bias])
        return model

    x = problem.x.astype(np.float32)
    return Problem("linear-Gaussian", x, make, linear_gaussian.STEP_SIZE)


def image_problem(options: argparse.Namespace) -> Problem:
    """Trains dense networks as a VAE, and returns them with a batch of held-out images."""
    data = tf_mcvae.datasets.load(
        options.data,
        batch_size=100,
        validation_batch_size=options.batch_size,
        binarize="static",
    )
    dense: dict[str, Any] = {"architecture": "dense", "hidden_units": (options.hidden_units,)}
    shape = data.spec.image_shape
    networks = Encoder(options.image_latents, **dense), tf_mcvae.Decoder(shape, **dense)

    def make(model_class: Any, settings: dict[str, Any]) -> Any:
        model = model_class(*networks, likelihood="bernoulli", seed=options.seed, **settings)
        model.build((None, *shape))
        return model

    vae = make(tf_mcvae.VAE, {})
    vae.compile(keras.optimizers.Adam(1e-3))
    history = vae.fit(data.train, epochs=options.epochs, verbose=0).history
    print(f"VAE on {options.data} trained: bound {history['bound'][-1]:.1f} nats", flush=True)
    return Problem(options.data, next(iter(data.test)).numpy(), make, options.step_size)


def make_problems(options: argparse.Namespace) -> list[Problem]:
    """Returns the problems, without the images if there are none."""
    keras.utils.set_random_seed(options.seed)
    problems = [gaussian_problem(options)]
    try:
        problems.append(image_problem(options))
    except (ValueError, ImportError) as error:
        print(f"LEFT OUT: {options.data}, which could not be loaded. {error}", flush=True)
    return problems


class Estimator:
    """Estimates of the gradient of one case on one problem.

    Attributes:
        evaluations: Evaluations of the decoder for each example.
        seconds: Of each call of `estimate` that `time_once` has made.
        acceptance: Mean acceptance of the first estimate; NaN without transitions.
    """

    def __init__(self, case: Case, problem: Problem) -> None:
        model, x = problem.model(case), tf.constant(problem.x)
        parts = [getattr(model, part).trainable_variables for part in PARTS]
        variables = [variable.value for variable in (*parts[0], *parts[1])]
        sizes = [sum(int(np.prod(variable.shape)) for variable in part) for part in parts]

        def gradients(seed: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                estimate = model.estimate(Batch(x), seed, training=True)
                loss = tf.reduce_mean(estimate.loss)
            found = tape.gradient(loss, variables)
            return tf.split(tf.concat([tf.reshape(g, [-1]) for g in found], axis=0), sizes)

        self.estimate = tf.function(gradients)
        self.seconds: list[float] = []
        seed = random.as_seed(0)
        with counting() as counted:
            metrics = model.estimate(Batch(x), seed, training=True).metrics
        self.evaluations = sum(counted) / len(problem.x)
        self.acceptance = float(metrics.get("acceptance", np.nan))

    def repeat(self, num_repeats: int, seed: int) -> list[Array]:
        """Returns estimates of the gradients of each part, `[N, P]`."""
        seeds = [random.fold_in(random.as_seed(seed), number) for number in range(num_repeats)]
        rows = [[part.numpy() for part in self.estimate(seed)] for seed in seeds]
        return [np.stack(values) for values in zip(*rows, strict=True)]

    def time_once(self) -> None:
        """Times one estimate."""
        seed = random.as_seed(0)
        start = time.perf_counter()
        self.estimate(seed)[0].numpy()
        self.seconds.append(time.perf_counter() - start)


@contextlib.contextmanager
def counting() -> Iterator[list[int]]:
    """Lists how many latents decoders are run on within, eagerly."""
    counted: list[int] = []
    run = GenerativeModel.parameters

    def parameters(self: GenerativeModel, z: tf.Tensor, training: bool = False) -> tf.Tensor:
        counted.append(int(np.prod(z.shape[:-1])))
        return run(self, z, training)

    with mock.patch.object(GenerativeModel, "parameters", parameters):
        yield counted


def moments(rows: Array) -> tuple[Array, Array]:
    """Returns unbiased estimates of `E|g - E g|^2` and `|E g|^2` from rows `g`, `[N, P]`.

    The first of each, `[N + 1]`, is from all rows, the others are without one row each.
    """
    rows = rows.astype(np.float64)
    total, squares = rows.sum(0), np.square(rows).sum(1)
    num = np.array([len(rows), *[len(rows) - 1] * len(rows)])
    of_total = total @ total + np.array([0.0, *(squares - 2.0 * rows @ total)])
    of_rows = squares.sum() - np.array([0.0, *squares])
    return (of_rows - of_total / num) / (num - 1), (of_total - of_rows) / (num * (num - 1))


def relative_variances(gradients: dict[str, Array]) -> dict[str, tuple[float, float]]:
    """Returns relative variances and their errors of estimators of the same gradient.

    They are NaN if too few estimates tell that the gradient is not 0.

    Args:
        gradients: Estimates `[N, P]` by the name of the estimator.
    """
    variances = {name: moments(rows)[0] for name, rows in gradients.items()}
    precisions = {name: 1.0 / values[0] for name, values in variances.items()}
    weights = {name: value / sum(precisions.values()) for name, value in precisions.items()}
    _, norms = moments(sum(weight * gradients[name] for name, weight in weights.items()))
    results = {}
    for name, values in variances.items():
        value, *others = values / np.where(norms > 0.0, norms, np.nan)
        error = np.sqrt((len(others) - 1) * np.var(others))
        results[name] = (float(value), float(error))
    return results


def measure(problem: Problem, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the rows of all cases on a problem."""
    estimators: dict[str, Estimator] = {}
    variances: dict[tuple[str, str], tuple[float, float]] = {}
    for expectation in dict.fromkeys(case.expectation for case in CASES.values()):
        gradients: dict[str, dict[str, Array]] = {part: {} for part in PARTS}
        for name, case in CASES.items():
            if case.expectation == expectation:
                estimators[name] = Estimator(case, problem)
                rows_of_parts = estimators[name].repeat(options.repeats, options.seed)
                for part, rows in zip(PARTS, rows_of_parts, strict=True):
                    gradients[part][name] = rows
        for part in PARTS:
            results = relative_variances(gradients[part])
            variances |= {(part, name): result for name, result in results.items()}
        print(f"{problem.name}: {', '.join(gradients['decoder'])}", flush=True)
    for _ in range(options.timings):  # In turn, since other programs may slow down some of them.
        for estimator in estimators.values():
            estimator.time_once()
    return [
        row_of(problem, name, part, estimators[name], *variances[part, name])
        for part in PARTS
        for name in CASES
    ]


def row_of(
    problem: Problem, name: str, part: str, estimator: Estimator, variance: float, error: float
) -> dict[str, Any]:
    """Returns a row of the table."""
    costs = {"evaluations": estimator.evaluations, "seconds": float(np.median(estimator.seconds))}
    return {
        "problem": problem.name,
        "part": part,
        "case": name,
        "acceptance": estimator.acceptance,
        "variance": variance,
        "error": error,
        **costs,
        **{f"variance_x_{cost}": variance * value for cost, value in costs.items()},
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the rows."""
    for problem, part in dict.fromkeys((row["problem"], row["part"]) for row in rows):
        print(f"\n{problem}, {part}")
        columns = ("variance", "evaluations", "ms", "var x evals", "var x ms", "acceptance")
        print(f"{'':26}{columns[0]:>20}" + "".join(f"{column:>13}" for column in columns[1:]))
        for row in rows:
            if (row["problem"], row["part"]) == (problem, part):
                numbers = (
                    row["evaluations"],
                    1e3 * row["seconds"],
                    row["variance_x_evaluations"],
                    1e3 * row["variance_x_seconds"],
                    row["acceptance"],
                )
                variance = f"{row['variance']:.4g} ± {row['error']:.2g}"
                print(f"{row['case']:26}{variance:>20}" + "".join(f"{n:13.4g}" for n in numbers))


def draw(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws variance times cost, for each problem and part."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((row["problem"], row["part"]) for row in rows))
    figure = Figure(figsize=(4.5 * len(panels), 0.27 * len(CASES) + 1.5), layout="constrained")
    for ax, panel in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        shown = [row for row in rows if (row["problem"], row["part"]) == panel]
        for cost, marker in zip(COSTS, "os", strict=True):
            # Relative to the smallest, so that both costs have one axis.
            values = np.array([row[f"variance_x_{cost}"] for row in shown])
            errors = values * [row["error"] / row["variance"] for row in shown]
            smallest = np.nanmin(values)
            y = np.arange(len(shown))
            options = {"fmt": marker, "markersize": 4, "label": f"variance x {cost}"}
            ax.errorbar(values / smallest, y, xerr=errors / smallest, **options)
        ax.set_yticks(y, [row["case"] for row in shown], fontsize=8)
        ax.set_xscale("log")
        ax.set_title(f"{panel[0]}, {panel[1]}", fontsize=10)
        ax.set_xlabel("relative to the best", fontsize=8)
        ax.grid(alpha=0.3)
    ax.invert_yaxis()
    ax.legend(fontsize=7)
    toy.save_figure(figure, path)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(flag: str, default: Any, text: str) -> None:
        parser.add_argument(
            flag, type=type(default), default=default, help=f"{text} (default: {default})"
        )

    add("--repeats", 300, "estimates of each estimator")
    add("--timings", 30, "timed estimates of each estimator")
    add("--batch-size", 10, "examples")
    add("--num-pixels", 784, "pixels of the linear-Gaussian model")
    add("--latent-dim", 100, "its latents")
    add("--data", "mnist", "images, as `tf_mcvae.datasets.load` takes them")
    add("--hidden-units", 200, "width of the hidden layers of their networks")
    add("--image-latents", 16, "their latents")
    add("--epochs", 3, "epochs of their training")
    add("--step-size", 0.02, "step size of Langevin transitions on them")
    add("--seed", 0, "seed of all random numbers")
    add("--output", pathlib.Path("docs/studies"), "folder of CSV and PNG")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the study."""
    options = parse(argv)
    toy.quiet()
    rows = [row for problem in make_problems(options) for row in measure(problem, options)]
    toy.write_rows(options.output / "gradient_variance.csv", rows)
    draw(rows, options.output / "gradient_variance.png")
    print_table(rows)


if __name__ == "__main__":
    main()
