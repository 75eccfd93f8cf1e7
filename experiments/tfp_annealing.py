"""Annealed importance sampling in TensorFlow Probability and in this package, with known Z.

Both anneal from q = N(0, I) to p in N increments of b, along `pi_b = q^(1-b) p^b`, b = 0, 1/N, ...,
1, with the same kernel and step size at every b. The problems, whose normaliser Z is known exactly:

- `normal`: p(z) = N(z; 3, 0.5^2), Z = 1;
- `scaled`: p(z) = exp(-10) N(z; 3, 0.5^2), Z = exp(-10), which changes only the constant of pi_b;
- `ppca`: p(x, z) = N(z; 0, I_2) N(x; W z + m, 0.7^2 I_5) at one x, Z = p(x).

The implementations:

- `tf_mcvae`: this package's `annealed_importance_sampling`;
- `tfp`: `tfp.mcmc.sample_annealed_importance_chain` with the kernels of `tfp.mcmc`;
- `tfp-bootstrapped`: the same, but each kernel computes log-density, gradient and drift at its own
  temperature instead of reusing those in the results of the previous transition.

A row of `tfp_annealing.csv` has E[Z_hat] / Z, the mean of log (1/16 sum of 16 Z_hat) - log Z (which
is at most 0 where Z_hat is unbiased), their standard errors, and the share of the chains that
accepted their last proposal. `tfp_annealing.png` shows E[Z_hat] / Z with error bars of 5 standard
errors. The two rows of TFP have the same seed; all other rows are independent.

TFP makes N transitions, at b = 1/N, ..., 1. The last one does not change the weight, which is
complete before it; this package makes N - 1.

Reference: Neal, Annealed importance sampling, Statistics and Computing 11 (2001).
"""

import argparse
import csv
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae import kernels, random
from tf_mcvae.files import replacing
from tf_mcvae.kernels.path import AnnealedPath, LogProbFn
from tf_mcvae.layers import StandardNormal
from tf_mcvae.layers.schedules import linear_temperatures
from tf_mcvae.objectives import bounds
from tf_mcvae.objectives.annealed import annealed_importance_sampling

IMPLEMENTATIONS = ("tf_mcvae", "tfp", "tfp-bootstrapped")
NUM_STEPS = (5, 10, 20, 50, 100, 200, 500)
STEP_SIZES = {"HMC": 0.3, "MALA": 0.1}
NUM_LEAPFROG_STEPS = 3
GROUP = 16  # Chains in one estimate of log Z.

Row = dict[str, Any]
Sampler = Callable[[int, tf.Tensor], tuple[np.ndarray[Any, Any], float]]


class Problem(NamedTuple):
    """A target whose normaliser is known, to be reached from N(0, I).

    Attributes:
        title: Title in the figure.
        target_log_prob_fn: `log p`, from states `[S, 1, D]` to `[S, 1]`.
        log_normaliser: The exact `log Z`, in nats.
        dim: D.
    """

    title: str
    target_log_prob_fn: LogProbFn
    log_normaliser: float
    dim: int


def normal_problem(log_normaliser: float = 0.0) -> Problem:
    """Returns the problem in one dimension."""
    target = tfp.distributions.Normal([3.0], 0.5)
    constant = rf"e^{{{log_normaliser:.0f}}}\," if log_normaliser else ""

    def log_prob(z: tf.Tensor) -> tf.Tensor:
        return log_normaliser + tf.reduce_sum(target.log_prob(z), -1)

    title = rf"$p(z) = {constant}\mathcal{{N}}(z;\,3,\,0.5^2)$"
    return Problem(title, log_prob, log_normaliser, 1)


def ppca_problem(seed: int = 0, latent_dim: int = 2, data_dim: int = 5) -> Problem:
    """Returns a linear-Gaussian model's joint density, and `log p(x)`, at an x drawn from it."""
    rng, sigma = np.random.default_rng(seed), 0.7
    weight = 0.6 * rng.normal(size=[data_dim, latent_dim])
    loc = 0.3 * rng.normal(size=data_dim)
    x = loc + weight @ rng.normal(size=latent_dim) + sigma * rng.normal(size=data_dim)
    covariance = weight @ weight.T + sigma**2 * np.eye(data_dim)
    distance = (x - loc) @ np.linalg.solve(covariance, x - loc)
    log_evidence = -0.5 * (distance + np.linalg.slogdet(2.0 * np.pi * covariance)[1])
    likelihood = tfp.distributions.Normal(0.0, np.float32(sigma))
    matrix, residual = tf.constant(weight.T, tf.float32), tf.constant(x - loc, tf.float32)

    def log_joint(z: tf.Tensor) -> tf.Tensor:
        log_likelihood = tf.reduce_sum(likelihood.log_prob(residual - z @ matrix), -1)
        return StandardNormal().log_prob(z) + log_likelihood

    title = rf"PPCA, $\log p(x) = {log_evidence:.2f}$"
    return Problem(title, log_joint, log_evidence, latent_dim)


PROBLEMS = {
    "normal": normal_problem,
    "scaled": lambda: normal_problem(-10.0),
    "ppca": ppca_problem,
}


class Bootstrapped(tfp.mcmc.TransitionKernel):
    """Runs each step of a kernel from results that the kernel itself computes at the state."""

    def __init__(self, inner_kernel: Any) -> None:
        self.inner_kernel = inner_kernel

    @property
    def is_calibrated(self) -> bool:
        return self.inner_kernel.is_calibrated

    def bootstrap_results(self, init_state: tf.Tensor) -> Any:
        return self.inner_kernel.bootstrap_results(init_state)

    def one_step(self, current_state: tf.Tensor, previous_kernel_results: Any, seed: Any) -> Any:
        del previous_kernel_results
        results = self.bootstrap_results(current_state)
        return self.inner_kernel.one_step(current_state, results, seed=seed)


def run_own(
    problem: Problem, kernel: str, state: tf.Tensor, num_steps: int, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs this package's sampler; returns log weights `[S, 1]` and the last acceptance rate."""
    path = AnnealedPath(StandardNormal().log_prob, problem.target_log_prob_fn)
    temperatures, step_size = tf.constant(linear_temperatures(num_steps)), STEP_SIZES[kernel]

    def kernel_fn(index: tf.Tensor, results: Any) -> Any:
        b = temperatures[index + 1]
        if kernel == "HMC":
            return kernels.HamiltonianMonteCarlo(path, step_size, NUM_LEAPFROG_STEPS, b)
        return kernels.MetropolisAdjustedLangevin(path, step_size, b)

    run = annealed_importance_sampling(
        path, state, kernel_fn, num_steps - 1, seed, trace_fn=lambda _, r: rate(r.is_accepted)
    )
    return run.log_weights, run.trace[-1]


def run_tfp(
    problem: Problem,
    kernel: str,
    state: tf.Tensor,
    num_steps: tf.Tensor,
    seed: tf.Tensor,
    bootstrapped: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs TFP's sampler; returns log weights `[S, 1]` and the last acceptance rate."""
    step_size = STEP_SIZES[kernel]

    def make_kernel(log_prob_fn: LogProbFn) -> Any:
        if kernel == "HMC":
            made = tfp.mcmc.HamiltonianMonteCarlo(log_prob_fn, step_size, NUM_LEAPFROG_STEPS)
        else:  # TFP's step size is twice this package's.
            made = tfp.mcmc.MetropolisAdjustedLangevinAlgorithm(log_prob_fn, 2.0 * step_size)
        return Bootstrapped(made) if bootstrapped else made

    base, target = StandardNormal().log_prob, problem.target_log_prob_fn
    _, log_weights, results = tfp.mcmc.sample_annealed_importance_chain(
        num_steps, base, target, state, make_kernel, seed=seed
    )
    return log_weights, rate(results.inner_results.is_accepted)


def rate(is_accepted: tf.Tensor) -> tf.Tensor:
    """Returns the share of the chains that accepted a proposal."""
    return tf.reduce_mean(tf.cast(is_accepted, tf.float32))


def make_sampler(problem: Problem, kernel: str, implementation: str, num_chains: int) -> Sampler:
    """Returns a function from N and a seed to `log Z_hat - log Z`, `[S]`, and last acceptance."""

    @tf.function
    def run(num_steps: Any, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        start_seed, chain_seed = random.split(seed)
        state = random.normal([num_chains, 1, problem.dim], start_seed)
        if implementation == "tf_mcvae":
            return run_own(problem, kernel, state, num_steps, chain_seed)
        bootstrapped = implementation == "tfp-bootstrapped"
        return run_tfp(problem, kernel, state, num_steps, chain_seed, bootstrapped)

    def sample(num_steps: int, seed: tf.Tensor) -> tuple[np.ndarray[Any, Any], float]:
        # A tensor avoids a new graph for each N, but this package's loop has a static length.
        steps = num_steps if implementation == "tf_mcvae" else tf.constant(num_steps)
        log_weights, acceptance = run(steps, seed)
        return np.asarray(log_weights, np.float64)[:, 0] - problem.log_normaliser, float(acceptance)

    return sample


def summarise(log_ratios: np.ndarray[Any, Any]) -> Row:
    """Returns E[Z_hat] / Z and the bias of log Z_hat of groups of chains, with standard errors."""
    groups = log_ratios[: len(log_ratios) // GROUP * GROUP].reshape(GROUP, -1)
    ratio, ratio_error = mean_and_error(np.exp(log_ratios))
    log_bias, log_bias_error = mean_and_error(bounds.iwae(tf.constant(groups)).numpy())
    return {
        "ratio": ratio,
        "ratio_error": ratio_error,
        "log_bias": log_bias,
        "log_bias_error": log_bias_error,
    }


def mean_and_error(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Returns the mean of independent values and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def compare(name: str, kernel: str, all_steps: Sequence[int], chains: int, seed: int) -> list[Row]:
    """Runs the implementations on one problem; returns a row for each N and implementation."""
    problem, rows = PROBLEMS[name](), []
    case = list(itertools.product(PROBLEMS, STEP_SIZES)).index((name, kernel))
    case_seed = random.fold_in(random.as_seed(seed), case)
    for number, implementation in enumerate(IMPLEMENTATIONS):
        sampler = make_sampler(problem, kernel, implementation, chains // problem.dim)
        own_seed = random.fold_in(case_seed, min(number, 1))  # The same for both of TFP.
        for num_steps in all_steps:
            log_ratios, acceptance = sampler(num_steps, random.fold_in(own_seed, num_steps))
            names = {"problem": name, "kernel": kernel, "implementation": implementation}
            sizes = {"num_steps": num_steps, "num_chains": len(log_ratios)}
            row = {**names, **sizes, **summarise(log_ratios), "last_acceptance": acceptance}
            rows.append(row)
            print_row(row)
    return rows


def print_row(row: Row) -> None:
    """Prints a row in readable form."""
    print(
        f"{row['problem']:8}{row['kernel']:6}{row['implementation']:18}N ={row['num_steps']:4}   "
        f"E[Z_hat]/Z {row['ratio']:.4f} ± {row['ratio_error']:.4f}   log of {GROUP} "
        f"{row['log_bias']:+.4f} ± {row['log_bias_error']:.4f}   "
        f"last acceptance {row['last_acceptance']:.3f}",
        flush=True,
    )


def write_rows(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Writes the rows as CSV, with six digits per number."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            texts = {key: f"{v:.6g}" for key, v in row.items() if isinstance(v, float)}
            writer.writerow({**row, **texts})


STYLES = {
    "tf_mcvae": ("this package", "#0072b2", "o", 1.0),
    "tfp": ("TFP", "#d55e00", "s", 1.08),
    "tfp-bootstrapped": ("TFP, bootstrapped at every temperature", "#009e73", "^", 0.925),
}


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws E[Z_hat] / Z against N, with one panel per problem and kernel."""
    from matplotlib.figure import Figure

    columns = list(dict.fromkeys(row["problem"] for row in rows))
    lines = list(dict.fromkeys(row["kernel"] for row in rows))
    size = (0.6 + 3.1 * len(columns), 0.9 + 2.2 * len(lines))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(lines), len(columns), sharex=True, sharey="col", squeeze=False)
    for line, kernel in enumerate(lines):
        for column, name in enumerate(columns):
            chosen = [row for row in rows if row["problem"] == name and row["kernel"] == kernel]
            draw_panel(axes[line, column], chosen)
            axes[0, column].set_title(PROBLEMS[name]().title, fontsize=10)
            axes[-1, column].set_xlabel("increments of the temperature, $N$")
        axes[line, 0].set_ylabel(f"{kernel}:  E[$\\hat{{Z}}$] / $Z$")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=200, format="png")


def draw_panel(ax: Any, rows: Sequence[Row]) -> None:
    """Draws the panel of one problem and kernel."""
    ax.axhline(1.0, color="black", linewidth=0.8)
    for implementation, (label, color, marker, shift) in STYLES.items():
        chosen = [row for row in rows if row["implementation"] == implementation]
        ax.errorbar(
            [shift * row["num_steps"] for row in chosen],  # Side by side.
            [row["ratio"] for row in chosen],
            [5.0 * row["ratio_error"] for row in chosen],
            label=label,
            color=color,
            marker=marker,
            markersize=4,
            linewidth=1.0,
            capsize=2,
        )
    steps = sorted({row["num_steps"] for row in rows})
    ax.set_xscale("log")
    ax.set_xticks(steps, labels=[str(number) for number in steps])
    ax.minorticks_off()
    ax.grid(axis="y", alpha=0.3)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    add("--kernels", nargs="+", choices=STEP_SIZES, default=list(STEP_SIZES))
    add("--steps", nargs="+", type=int, default=NUM_STEPS, help="values of N, each at least 2")
    add("--chains", type=int, default=40_000, help="chains, divided by the dimension (40000)")
    add("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")
    add("--output", type=pathlib.Path, default=pathlib.Path("docs/evaluation"))
    options = parser.parse_args(argv)
    if min(options.steps) < 2:
        parser.error(f"--steps must be at least 2 each. Received: {options.steps}")
    if options.chains < 4 * GROUP:
        parser.error(f"--chains must be at least {4 * GROUP}. Received: {options.chains}")
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name in options.problems:
        for kernel in options.kernels:
            rows += compare(name, kernel, options.steps, options.chains, options.seed)
            write_rows(rows, options.output / "tfp_annealing.csv")
    draw(rows, options.output / "tfp_annealing.png")


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")  # Silences a warning that each N is compiled.
    main()
