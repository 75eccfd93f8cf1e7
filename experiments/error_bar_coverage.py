"""How often error bars cover the true value, in linear-Gaussian models where it is known exactly.

Each row of the table repeats an estimate with new draws (or new images, where the error is one over
images), and counts how often the truth lies within 1 and within 1.96 errors, or in `interval(0.68)`
and `interval(0.95)`: 68 % and 95 % of the time if the errors are right. The last columns count only
the repetitions whose result has no warning.

All repetitions are copies of the images in one call: an image's draws depend on its index. The
results are then made anew for the images of each repetition. Prints the table, writes
`error_bar_coverage.json` to the output folder. With all rows it also measures the pilot run, by
`pilot_acceptance.py`, and puts the tables into the page.
To add rows, write a function of the number of repetitions and a seed that returns cases, and a line
of `ROWS`.
"""

import argparse
import functools
import inspect
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import keras
import numpy as np
import pilot_acceptance
import tensorflow as tf
from linear_gaussian import Problem, log_evidence, make_model, make_problem

from tf_mcvae import LMCVAE, VAE, random
from tf_mcvae.evaluation import (
    AISSettings,
    BidirectionalGap,
    LogLikelihoodEstimate,
    annealed,
    bidirectional_gap,
    compare,
    estimate_elbo,
    estimate_iwae,
    estimate_log_likelihood,
    sampling,
)
from tf_mcvae.evaluation.results import summarise
from tf_mcvae.evaluation.uncertainty import Errors, Moments
from tf_mcvae.export.signatures import standard_error

Array = np.ndarray[Any, Any]


class Case(NamedTuple):
    """How often the errors of a quantity cover its true value.

    Attributes:
        quantity: The error.
        setting: What was estimated.
        covered_68: Share of repetitions within 1 error.
        covered_95: Share within 1.96 errors.
        warned: Share of repetitions whose result has a warning.
        silent_68: `covered_68` of the others; NaN without any.
        silent_95: `covered_95` of the others.
    """

    quantity: str
    setting: str
    covered_68: float
    covered_95: float
    warned: float
    silent_68: float
    silent_95: float


def case(
    quantity: str, setting: str, inner: Sequence[bool], outer: Sequence[bool], warned: Sequence[Any]
) -> Case:
    """Counts coverage `[R]` by the inner and the outer interval, in all and in silent results."""
    covered, loud = np.array([inner, outer], float), np.array([bool(text) for text in warned])
    silent = covered[:, ~loud].mean(1) if not np.all(loud) else np.full(2, np.nan)
    numbers = (*covered.mean(1), loud.mean(), *silent)
    return Case(quantity, setting, *map(float, numbers))


def by_errors(
    quantity: str, setting: str, off: Array, errors: Array, warned: Sequence[Any]
) -> Case:
    """Counts distances `[R]` from the truth within 1 and 1.96 errors `[R]`."""
    distance = np.abs(off) / errors
    return case(quantity, setting, distance < 1.0, distance < 1.96, warned)


def of_results(quantity: str, setting: str, results: Sequence[Any], truths: Array) -> Case:
    """Counts the truths `[R]` within the Monte Carlo errors of estimates."""
    off = np.array([result.mean for result in results]) - truths
    errors = np.array([result.monte_carlo_error for result in results])
    return by_errors(quantity, setting, off, errors, [result.warnings for result in results])


def by_intervals(
    quantity: str, setting: str, results: Sequence[Any], truth: float, warned: Sequence[Any]
) -> Case:
    """Counts the intervals of results that cover the truth."""
    covered = [
        [low <= truth <= high for low, high in (result.interval(level) for result in results)]
        for level in (0.68, 0.95)
    ]
    return case(quantity, setting, *covered, warned)


# Repetitions from one call.


def in_repetitions(
    module: Any, estimate: Callable[[Array], Any], x: Array, repeats: int
) -> list[LogLikelihoodEstimate]:
    """Estimates with all images `[R * N, ...]`, and returns the result of each repetition."""
    with mock.patch.object(module, "summarise", wraps=summarise) as spy:
        estimate(x.astype(np.float32))
    bound = inspect.signature(summarise).bind(*spy.call_args.args, **spy.call_args.kwargs)
    whole = bound.arguments
    results = []
    for rows in np.array_split(np.arange(len(x)), repeats):
        moments = whole["moments"]
        part = {
            "values": whole["values"][rows],
            "errors": Errors(*(column[rows] for column in whole["errors"])),
            "moments": Moments(moments.num_draws, *(sums[..., rows] for sums in moments[1:])),
        }
        results.append(summarise(**{**whole, **part}))
    return results


def gaps_in_repetitions(
    model: VAE, settings: AISSettings, size: int, repeats: int, seed: int
) -> list[BidirectionalGap]:
    """Simulates `R * N` images, and returns the gap of each repetition."""
    make_gap = annealed._gap
    with mock.patch.object(annealed, "_gap", wraps=make_gap) as spy:
        bidirectional_gap(model, repeats * size, settings, seed=seed, chunk_size=20_000)
    _, forward, accepted, backward, reverse_accepted, used = spy.call_args.args
    share = 1.0 / repeats
    return [
        make_gap(
            model,
            forward[:, rows],
            share * accepted,
            backward[:, rows],
            share * reverse_accepted,
            used,
        )
        for rows in np.array_split(np.arange(repeats * size), repeats)
    ]


# The models: easy, and with weights of heavy tails.


def problem_of(size: int, latent_dim: int = 2, seed: int = 0) -> Problem:
    return make_problem(4 * latent_dim, latent_dim, size, seed, sigma=0.4)


def new_images(problem: Problem, count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    latents = rng.normal(size=[count, problem.weights.shape[1]])
    noise = problem.sigma * rng.normal(size=[count, len(problem.weights)])
    return latents @ problem.weights.T + noise


# The rows.


def few_images(repeats: int, seed: int) -> list[Case]:
    """The standard error over few images: `interval`, and ± without Student's t."""
    problem = problem_of(1)
    model = make_model(problem, VAE, {}, seed)
    truth = estimate_elbo(model, new_images(problem, 100_000, seed).astype("f"), 1, 50_000).mean
    estimate = functools.partial(estimate_elbo, model, num_samples=50, chunk_size=50_000)
    cases = []
    for size in (2, 5, 10, 50):
        x = new_images(problem, repeats * size, seed + size)
        results = in_repetitions(sampling, estimate, x, repeats)
        setting, warned = f"ELBO of {size} images", [result.warnings for result in results]
        off = np.array([result.mean for result in results]) - truth
        errors = np.array([result.standard_error for result in results])
        cases += [
            by_errors("`± standard_error`", setting, off, errors, warned),
            by_intervals("`interval()`", setting, results, truth, [()] * repeats),
        ]
    return cases


def comparisons(repeats: int, seed: int) -> list[Case]:
    """The standard error of a difference between two models on the same images."""
    problem = problem_of(1)
    models = [make_model(problem, VAE, {}, seed) for _ in range(2)]
    models[1].decoder.set_weights([1.2 * weight for weight in models[1].decoder.get_weights()])
    many = new_images(problem, 100_000, seed).astype("f")
    truth = compare(*(estimate_elbo(model, many, 1, 50_000) for model in models)).difference
    estimates = [
        functools.partial(estimate_elbo, model, num_samples=50, chunk_size=50_000)
        for model in models
    ]
    cases = []
    for size in (5, 20):
        x = new_images(problem, repeats * size, seed + size)
        pairs = zip(*(in_repetitions(sampling, one, x, repeats) for one in estimates), strict=True)
        results = [compare(*pair) for pair in pairs]
        setting, warned = f"`compare`, {size} images", [()] * repeats
        cases.append(by_intervals("`interval()`", setting, results, truth, warned))
    return cases


def annealing(repeats: int, seed: int) -> list[Case]:
    """The Monte Carlo error of annealed importance sampling, against the exact value."""
    cases = []
    for latent_dim, start, temperatures, chains in (
        (2, "encoder", 10, 16),
        (2, "encoder", 10, 4),
        (2, "prior", 10, 16),
        (2, "prior", 100, 16),
        (5, "encoder", 10, 16),
        (5, "encoder", 100, 16),
        (5, "prior", 100, 16),
    ):
        problem = problem_of(10, latent_dim)
        model = make_model(problem, VAE, {}, seed)
        settings = AISSettings(chains, temperatures, 5, start=start)
        estimate = functools.partial(
            estimate_log_likelihood, model, settings=settings, seed=seed, chunk_size=40_000
        )
        x = np.tile(problem.x, [repeats, 1])
        results = in_repetitions(annealed, estimate, x, repeats)
        setting = f"AIS-{temperatures}, {chains} chains, {start}, D = {latent_dim}, 10 images"
        truth = np.mean(problem.log_evidence)
        cases.append(of_results("`monte_carlo_error`", setting, results, truth))
    return cases


def importance(repeats: int, seed: int) -> list[Case]:
    """The Monte Carlo error of IWAE-k, against the exact value."""
    cases = []
    for latent_dim, draws in ((2, 16), (2, 1000), (5, 100), (5, 1000)):
        problem = problem_of(10, latent_dim)
        model = make_model(problem, VAE, {}, seed)
        estimate = functools.partial(
            estimate_iwae, model, num_samples=draws, chunk_size=100_000, seed=seed
        )
        x = np.tile(problem.x, [repeats, 1])
        results = in_repetitions(sampling, estimate, x, repeats)
        setting = f"IWAE-{draws}, D = {latent_dim}, 10 images"
        truth = np.mean(problem.log_evidence)
        cases.append(of_results("`monte_carlo_error`", setting, results, truth))
    return cases


def both_sides(repeats: int, seed: int) -> list[Case]:
    """The errors of bidirectional Monte Carlo, against the exact and the expected value.

    The expected bound is the mean of all repetitions.
    """
    cases = []
    for start, temperatures, size in (
        ("encoder", 10, 20),
        ("prior", 10, 20),
        ("prior", 10, 50),
        ("prior", 100, 20),
    ):
        problem = problem_of(1)
        model = make_model(problem, VAE, {}, seed)
        settings = AISSettings(16, temperatures, 5, start=start)
        gaps = gaps_in_repetitions(model, settings, size, repeats, seed)
        data_seed = random.split(random.as_seed(seed), 4)[0]
        x, _ = annealed.simulate(model, repeats * size, random.at_row(data_seed, 0))
        exact = log_evidence(problem.weights, np.asarray(x, np.float64), problem.sigma)
        truths = exact.reshape(repeats, size).mean(1)
        setting = f"AIS-{temperatures} backwards, {start}, {size} images"
        uppers, quantity = [gap.upper for gap in gaps], "`upper.monte_carlo_error`"
        above = np.array([upper.mean for upper in uppers]) - truths
        errors = np.array([upper.monte_carlo_error for upper in uppers])
        expected, gap = above - above.mean(), float(np.mean([gap.gap for gap in gaps]))
        silent = [()] * repeats
        cases += [
            of_results(quantity, setting, uppers, truths),
            by_errors(quantity, f"{setting}; of the expected bound", expected, errors, silent),
            by_intervals("gap's `interval()`", setting, gaps, gap, silent),
        ]
    return cases


def served(repeats: int, seed: int) -> list[Case]:
    """The standard error of a served model, each repetition with one image."""
    cases = []
    for model_class, settings, latent_dim in (
        (VAE, {}, 2),
        (VAE, {}, 5),
        (LMCVAE, {"num_transitions": 5, "step_size": 0.02}, 5),
    ):
        problem = problem_of(repeats, latent_dim)
        model = make_model(problem, model_class, settings, seed)
        x = tf.constant(problem.x, tf.float32)
        for draws in (4, 16, 64, 256):
            seeds = random.at_row(random.as_seed(seed + draws), 0)
            weights = tf.function(model.log_weights)(x, seeds, draws)
            estimate = tf.reduce_logsumexp(weights, 0) - np.log(draws)
            off = estimate.numpy().astype(np.float64) - problem.log_evidence
            setting = f"{model_class.__name__}, D = {latent_dim}, S = {draws}"
            # Encoders with independent coordinates are too narrow; here E[w^3] does not exist.
            setting += ", heavy tails" if latent_dim == 2 else ""
            errors, silent = standard_error(weights).numpy(), [()] * repeats
            cases.append(by_errors("served `standard_error`", setting, off, errors, silent))
    return cases


ROWS: dict[str, Callable[[int, int], list[Case]]] = {
    "few_images": few_images,
    "comparisons": comparisons,
    "annealing": annealing,
    "importance": importance,
    "both_sides": both_sides,
    "served": served,
}


def table(cases: Sequence[Case]) -> str:
    """Returns the cases as a Markdown table, in per cent."""
    lines = [
        "| error | estimate | covers, of 68 / 95 % | results with a warning | covers without |",
        "|---|---|---|---|---|",
    ]
    for one in cases:
        silent = "-" if np.isnan(one.silent_68) else f"{one.silent_68:.0%} / {one.silent_95:.0%}"
        silent = silent if one.warned > 0.0 else ""
        covered = f"{one.covered_68:.0%} / {one.covered_95:.0%}"
        cells = (one.quantity, one.setting, covered, f"{one.warned:.0%}", silent)
        lines.append(f"| {' | '.join(cells)} |".replace("%", " %").replace("  |", " |"))
    return "\n".join(lines)


def put_table(text: str, page: pathlib.Path) -> None:
    """Replaces the table of a page, which stands between two comments."""
    before, begin, rest = page.read_text().partition("<!-- error_bar_coverage.py -->\n")
    _, end, after = rest.partition("<!-- end -->")
    page.write_text(f"{before}{begin}{text}\n{end}{after}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measures all rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1000, help="repetitions (default: 1000)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of all numbers (default: 0)")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("docs/evaluation"))
    parser.add_argument("--page", type=pathlib.Path, default=pathlib.Path("docs/evaluation.md"))
    options = parser.parse_args(argv)
    keras.utils.set_random_seed(options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    cases: list[Case] = []
    for name in options.rows:
        cases += ROWS[name](options.repeats, options.seed)
        print(f"{name}: done", flush=True)
    plain = [
        {key: None if value != value else value for key, value in one._asdict().items()}
        for one in cases
    ]
    results = {"repeats": options.repeats, "seed": options.seed, "cases": plain}
    path = options.output / "error_bar_coverage.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(table(cases))
    if set(options.rows) == set(ROWS):
        pilot = pilot_acceptance.measure(options.output)
        print(pilot)
        put_table(f"{table(cases)}\n\n{pilot}", options.page)


if __name__ == "__main__":
    main()
