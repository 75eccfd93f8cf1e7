"""Annealed importance sampling with Hamiltonian Monte Carlo, forwards and backwards."""

import functools
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Unpack

import numpy as np
import tensorflow as tf

from tf_mcvae import distribute, random
from tf_mcvae.checks import check_positive_integer
from tf_mcvae.evaluation import chains
from tf_mcvae.evaluation.chunks import (
    SEED_SPEC,
    Progress,
    batches,
    even_size,
    images_spec,
    of_all_workers,
    score_in_chunks,
    score_in_parts,
    start_progress,
)
from tf_mcvae.evaluation.doubts import LEAST_SIMULATED
from tf_mcvae.evaluation.graphs import graph_of
from tf_mcvae.evaluation.pilot import tuned
from tf_mcvae.evaluation.results import BidirectionalGap, LogLikelihoodEstimate, summarise
from tf_mcvae.evaluation.uncertainty import (
    Array,
    Moments,
    shared_draw_errors,
    standard_error,
)
from tf_mcvae.layers.schedules import linear_temperatures, sigmoid_temperatures
from tf_mcvae.models import MonteCarloVAE
from tf_mcvae_commands.ais import AISOverrides, AISSettings

# Number of examples of the pilot run.
_PILOT_EXAMPLES = 10
# The signature of the number of chains.
_COUNT = tf.TensorSpec([], tf.int32)


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
    examples tunes one step size for each transition to the target acceptance: it starts from the
    curvature along the path and corrects by the acceptance, over 300 transitions or more. The
    scored run uses other random numbers and keeps the step sizes fixed, so that `E[w] = p(x)`
    holds.

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
    anneal = _Annealing(model, images_spec(model, data), settings)
    pilot_seed, score_seed = random.split(random.as_seed(seed))
    used = {**asdict(settings), "seed": seed}
    progress = start_progress(checkpoint, model, data, used, verbose)
    if "step_sizes" not in progress.constants:
        pilot = next(iter(batches(model, data, _PILOT_EXAMPLES)))
        progress.constants["step_sizes"] = anneal.step_sizes(pilot, pilot_seed).numpy()
    step_sizes = tf.constant(progress.constants["step_sizes"])

    def score(x: tf.Tensor, first: int) -> tuple[Array, Array]:
        return _results(*anneal.forward(x, step_sizes, random.at_row(score_seed, first)))

    results = score_in_chunks(score, model, data, settings.num_chains, chunk_size, progress)
    return _summary(model, *results, used)


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
    anneal = _Annealing(model, images_spec(model, None), settings)
    data_seed, pilot_seed, lower_seed, upper_seed = random.split(random.as_seed(seed), 4)
    pilot, _ = simulate(model, min(_PILOT_EXAMPLES, num_examples), random.at_row(data_seed, 0))
    step_sizes = anneal.step_sizes(pilot, pilot_seed)
    size = even_size(num_examples, max(1, chunk_size // settings.num_chains))

    def score_below(x: tf.Tensor, first: int) -> tuple[Array, Array]:
        return _results(*anneal.forward(x, step_sizes, random.at_row(lower_seed, first)))

    def score_above(pairs: tuple[tf.Tensor, tf.Tensor], first: int) -> tuple[Array, Array]:
        return _results(*anneal.backward(*pairs, step_sizes, random.at_row(upper_seed, first)))

    rows: list[int] = []
    runs = Progress(), Progress()
    own = range(distribute.worker_index() * size, num_examples, distribute.num_workers() * size)
    for first in own:
        count = min(size, num_examples - first)
        x, z = simulate(model, count, random.at_row(data_seed, first))
        runs[0].add(x, *score_in_parts(score_below, x, first))
        runs[1].add(x, *score_in_parts(score_above, (x, z), first))
        rows.extend(range(first, first + count))
    joined = [of_all_workers(rows, run.columns, run.sums) for run in runs]
    return _gap(model, *joined[0], *joined[1], {**asdict(settings), "seed": seed})


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


class _Annealing:
    """The compiled runs of annealed importance sampling: to tune step sizes, and to score."""

    def __init__(self, model: MonteCarloVAE, images: tf.TensorSpec, settings: AISSettings) -> None:
        self.model = model
        self.images = images
        self.settings = settings
        is_linear = settings.schedule == "linear"
        schedule = linear_temperatures if is_linear else sigmoid_temperatures
        self.dtype = model.density_dtype
        self.temperatures = tf.constant(schedule(settings.num_temperatures, dtype=self.dtype))
        self.num_chains = tf.constant(settings.num_chains, tf.int32)
        self.number = tf.TensorSpec([], self.dtype)
        self.numbers = tf.TensorSpec([None], self.dtype)  # One a temperature or a transition.

    def step_sizes(self, pilot: tf.Tensor, seed: random.Seed) -> tf.Tensor:
        """Returns a step size for each transition, `[T - 1]`: the given one, or tuned."""
        given, target = self.settings.step_size, self.settings.target_acceptance
        if given is not None:
            return tf.fill([self.settings.num_temperatures - 1], tf.constant(given, self.dtype))
        curvature_seed, run_seed = random.split(random.at_row(seed, 0))
        run = self._graph(
            chains.follow, _COUNT, self.numbers, self.numbers, self.numbers, self.number
        )
        common = pilot, self.num_chains, self.temperatures

        def follow(log_steps: Array, gains: Array, number: int) -> tuple[Array, Array]:
            values = (tf.constant(value, self.dtype) for value in (log_steps, gains, target))
            results = run(*common, *values, random.fold_in(run_seed, number))
            used, acceptance = (np.asarray(result, np.float64) for result in results)
            return used, acceptance

        curvature = self._graph(chains.curvature, _COUNT, self.numbers)(*common, curvature_seed)
        return tf.constant(
            tuned(np.asarray(curvature, np.float64)[1:-1], follow, target), self.dtype
        )

    def forward(
        self, x: tf.Tensor, step_sizes: tf.Tensor, seed: random.Seed
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs `chains.forward`."""
        return self.forward_graph(x, self.num_chains, self.temperatures, step_sizes, seed)

    def backward(
        self, x: tf.Tensor, z: tf.Tensor, step_sizes: tf.Tensor, seed: random.Seed
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs `chains.backward`."""
        return self.backward_graph(x, z, self.num_chains, self.temperatures, step_sizes, seed)

    @functools.cached_property
    def forward_graph(self) -> Any:
        """`chains.forward`, compiled."""
        return self._graph(chains.forward, _COUNT, self.numbers, self.numbers)

    @functools.cached_property
    def backward_graph(self) -> Any:
        """`chains.backward`, compiled."""
        latents = tf.TensorSpec([None, self.model.latent_dim], self.dtype)
        return self._graph(chains.backward, latents, _COUNT, self.numbers, self.numbers)

    def _graph(self, function: Callable[..., Any], *specs: tf.TypeSpec) -> Any:
        start, leapfrogs = self.settings.start, self.settings.num_leapfrog_steps
        signature = [self.images, *specs, SEED_SPEC]
        return graph_of(function, self.model, start, leapfrogs, signature=signature)


def _results(log_weights: tf.Tensor, acceptance: tf.Tensor) -> tuple[Array, Array]:
    """Returns log weights `[S, n]` and the sums over the examples of the acceptance, `[T - 1]`."""
    weights = np.asarray(log_weights, np.float64)
    return weights, weights.shape[1] * np.asarray(acceptance, np.float64)


def _summary(
    model: MonteCarloVAE, log_weights: Array, accepted: Array, settings: dict[str, Any]
) -> LogLikelihoodEstimate:
    moments, acceptance = Moments.of(log_weights), accepted / log_weights.shape[1]
    name, errors = f"AIS-{settings['num_temperatures']}", moments.log_mean_errors
    return summarise(name, moments.log_mean, errors, moments, settings, model.weights, acceptance)


def _gap(
    model: MonteCarloVAE,
    log_weights: Array,
    accepted: Array,
    reverse_log_weights: Array,
    reverse_accepted: Array,
    settings: dict[str, Any],
) -> BidirectionalGap:
    """Returns the bounds from log weights `[S, N]` with `E[w] = p(x)` and `E[w] = 1 / p(x)`."""
    below = _summary(model, log_weights, accepted, settings)
    moments, errors = Moments.of(reverse_log_weights), Moments.of(log_weights).log_mean_errors
    bounds = -moments.log_mean
    gaps = bounds - below.per_example
    above = summarise(
        f"{below.method} backwards",
        bounds,
        shared_draw_errors(gaps, errors, moments.log_mean_errors),
        moments,
        settings,
        model.weights,
        reverse_accepted / len(gaps),
        least_examples=LEAST_SIMULATED,
    )
    return BidirectionalGap(below, above, float(np.mean(gaps)), standard_error(gaps))
