"""Annealed importance sampling with Hamiltonian Monte Carlo, forwards and backwards."""

import os
from dataclasses import asdict, replace
from typing import Any, Unpack

import numpy as np
import tensorflow as tf

from tf_mcvae import distribute, random
from tf_mcvae.checks import check_positive_integer
from tf_mcvae.evaluation.chains import GAIN, Chains
from tf_mcvae.evaluation.chunks import (
    Progress,
    batches,
    even_size,
    images_spec,
    of_all_workers,
    score_in_chunks,
    score_in_parts,
    start_progress,
)
from tf_mcvae.evaluation.results import (
    Array,
    BidirectionalGap,
    LogLikelihoodEstimate,
    Moments,
    standard_error,
    summarise,
)
from tf_mcvae.models import MonteCarloVAE
from tf_mcvae_commands.ais import AISOverrides, AISSettings

# Number of examples of the pilot run.
_PILOT_EXAMPLES = 10
# Updates of the step size that a pilot run needs, and the largest number of runs that are added.
_PILOT_UPDATES, _MOST_CORRECTIONS = 300, 30


def estimate_log_likelihood(
    model: MonteCarloVAE,
    data: Any,
    settings: AISSettings | None = None,
    *,
    chunk_size: int = 1600,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    verbose: int = 0,
    **overrides: Unpack[AISOverrides],
) -> LogLikelihoodEstimate:
    """Estimates `log p(x)` by annealed importance sampling with Hamiltonian Monte Carlo.

    Each chain starts from the encoder and is annealed to the posterior. A pilot run on the first 10
    examples tunes one step size for each transition to the target acceptance, starting from 0.1 and
    adapting it by a few per cent from transition to transition; with few temperatures further runs
    correct it. The scored run uses other random numbers and keeps the step sizes fixed, so that
    `E[w] = p(x)` holds.

    Args:
        model: A trained model of any kind.
        data: Images `[N, ...]`, or a dataset of batches.
        settings: An `AISSettings`, such as `PRESETS["standard"]`; by default `AISSettings()`.
        chunk_size: Largest number of chains (examples times chains of each) in memory at a time;
            the result depends on it only by rounding.
        seed: Seed of the draws.
        checkpoint: A `.npz` file, written after each chunk of examples; an existing one is
            continued. None disables checkpointing.
        verbose: 1 shows a progress bar with the time left.
        **overrides: Fields of `AISSettings` in the place of those of `settings`.

    Returns:
        A `LogLikelihoodEstimate`; a lower bound in expectation.

    Raises:
        TypeError: If `AISSettings` has no field of a name.
        ValueError: If there are no examples, they do not fit the model, a setting is out of range,
            or the checkpoint is that of another evaluation.

    Reference:
        Wu et al., On the Quantitative Analysis of Decoder-Based Generative Models,
        arXiv 1611.04273; Huang et al., Evaluating Lossy Compression Rates of Deep Generative
        Models, arXiv 2008.06653.
    """
    settings = _resolved(settings, overrides)
    check_positive_integer("chunk_size", chunk_size)
    chains = Chains(model, images_spec(model, data), settings)
    pilot_seed, score_seed = random.split(random.as_seed(seed))
    used = {**asdict(settings), "seed": seed}
    progress = start_progress(checkpoint, model, data, used, verbose)
    if "step_sizes" not in progress.constants:
        pilot = next(iter(batches(model, data, _PILOT_EXAMPLES)))
        progress.constants["step_sizes"] = _tuned(chains, pilot, pilot_seed).numpy()
    step_sizes = tf.constant(progress.constants["step_sizes"])
    forward = chains.graph(Chains.forward)

    def score(x: tf.Tensor, first: int) -> tuple[Array, Array]:
        return _results(*forward(x, step_sizes, random.at_row(score_seed, first)))

    results = score_in_chunks(score, model, data, settings.num_chains, chunk_size, progress)
    return _summary(*results, used)


def bidirectional_gap(
    model: MonteCarloVAE,
    num_examples: int = 100,
    settings: AISSettings | None = None,
    *,
    chunk_size: int = 1600,
    seed: int = 0,
    **overrides: Unpack[AISOverrides],
) -> BidirectionalGap:
    """Bounds the error of `estimate_log_likelihood` from both sides (bidirectional Monte Carlo).

    Images are simulated, `z* ~ N(0, I)` and `x ~ p(x|z*)`, so that z* is an exact draw of `p(z|x)`.
    Chains that start there and run backwards give an unbiased estimate of `1 / p(x)`, and so a
    stochastic upper bound on `log p(x)`; the usual chains give the lower bound. The gap between the
    two bounds the error for data like the model's own; for other data it may be larger.

    Args:
        model: A trained model of any kind; a FlowVAE whose flow has no inverse needs
            `start="prior"`.
        num_examples: Number of images that are simulated.
        settings: See `estimate_log_likelihood`; the pilot run is on the first 10 simulated images.
        chunk_size: Largest number of chains in memory at a time.
        seed: Seed of the images and of the draws.
        **overrides: See `estimate_log_likelihood`.

    Returns:
        A `BidirectionalGap`.

    Raises:
        TypeError: If `AISSettings` has no field of a name.
        ValueError: If the model is not built, a setting is out of range, or the flow has no
            inverse.

    Reference:
        Grosse et al., Measuring the reliability of MCMC inference with bidirectional Monte Carlo,
        arXiv 1606.02275.
    """
    settings = _resolved(settings, overrides)
    check_positive_integer("chunk_size", chunk_size)
    check_positive_integer("num_examples", num_examples)
    model.require_built()
    chains = Chains(model, images_spec(model, None), settings)
    data_seed, pilot_seed, lower_seed, upper_seed = random.split(random.as_seed(seed), 4)
    pilot, _ = simulate(model, min(_PILOT_EXAMPLES, num_examples), random.at_row(data_seed, 0))
    step_sizes = _tuned(chains, pilot, pilot_seed)
    forward, backward = chains.graph(Chains.forward), chains.graph(Chains.backward)
    size = even_size(num_examples, max(1, chunk_size // settings.num_chains))

    def score_below(x: tf.Tensor, first: int) -> tuple[Array, Array]:
        return _results(*forward(x, step_sizes, random.at_row(lower_seed, first)))

    def score_above(pairs: tuple[tf.Tensor, tf.Tensor], first: int) -> tuple[Array, Array]:
        return _results(*backward(*pairs, step_sizes, random.at_row(upper_seed, first)))

    rows: list[int] = []
    runs = Progress(), Progress()
    own = range(distribute.worker_index() * size, num_examples, distribute.num_workers() * size)
    for first in own:
        count = min(size, num_examples - first)
        x, z = simulate(model, count, random.at_row(data_seed, first))
        runs[0].add(x, *score_in_parts(score_below, x, first))
        runs[1].add(x, *score_in_parts(score_above, (x, z), first))
        rows.extend(range(first, first + count))
    used = {**asdict(settings), "seed": seed}
    joined = (of_all_workers(rows, run.columns, run.sums) for run in runs)
    below, above = (_summary(*results, used) for results in joined)
    above = _negated(above)
    gaps = above.per_example - below.per_example
    return BidirectionalGap(below, above, float(np.mean(gaps)), standard_error(gaps))


def _resolved(settings: AISSettings | None, overrides: AISOverrides) -> AISSettings:
    if not isinstance(settings, AISSettings | None):
        raise TypeError(
            "`settings` must be an `AISSettings`, or its fields be given by name, such as "
            f"`num_chains=16`. Received: settings={settings!r}"
        )
    return (settings or AISSettings()).updated(**overrides)


def simulate(model: MonteCarloVAE, count: int, seed: random.Seed) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws images from a model.

    Returns:
        `x [count, ...]` and the latents that they come from, `z [count, D]`.
    """
    return model.generative.sample(
        count, model.latent_dim, seed, len(model.event_shape), model.density_dtype
    )


def _tuned(chains: Chains, x: tf.Tensor, seed: random.Seed) -> tf.Tensor:
    """Returns a step size for each transition, `[T - 1]`: the given one, or tuned.

    The first run adapts the step size from transition to transition. Few transitions do not
    suffice for that; further runs then correct each step size by its own acceptance.
    """
    settings, count, dtype = chains.settings, chains.num_transitions, chains.dtype
    if settings.step_size is not None:
        return tf.fill([count], tf.constant(settings.step_size, dtype))
    seed, target = random.at_row(seed, 0), settings.target_acceptance
    follow, forward = chains.graph(Chains.follow), chains.graph(Chains.forward)
    step_sizes = follow(x, seed, tf.constant(target, dtype))
    for number in range(min(_MOST_CORRECTIONS, _PILOT_UPDATES // count)):
        _, acceptance = forward(x, step_sizes, random.fold_in(seed, number))
        step_sizes *= tf.exp(GAIN * (acceptance - target))
    return step_sizes


def _results(log_weights: tf.Tensor, acceptance: tf.Tensor) -> tuple[Array, Array]:
    """Returns log weights `[S, n]` and the sums over the examples of the acceptance, `[T - 1]`."""
    weights = np.asarray(log_weights, np.float64)
    return weights, weights.shape[1] * np.asarray(acceptance, np.float64)


def _summary(
    log_weights: Array, accepted: Array, settings: dict[str, Any]
) -> LogLikelihoodEstimate:
    moments = Moments.of(log_weights)
    name = f"AIS-{settings['num_temperatures']}"
    values, variances = moments.log_mean, moments.log_mean_variance
    acceptance = accepted / log_weights.shape[1]
    return summarise(name, values, variances, moments, settings, acceptance)


def _negated(estimate: LogLikelihoodEstimate) -> LogLikelihoodEstimate:
    """Turns an estimate of `-log p(x)` into one of `log p(x)`."""
    return replace(
        estimate,
        method=f"{estimate.method} backwards",
        mean=-estimate.mean,
        per_example=-estimate.per_example,
    )
