"""Annealed importance sampling with Hamiltonian Monte Carlo, forwards and backwards."""

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Unpack

import numpy as np
import tensorflow as tf

from tf_mcvae import distribute, random
from tf_mcvae.checks import check_positive_integer
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
from tf_mcvae.evaluation.results import BidirectionalGap, LogLikelihoodEstimate, summarise
from tf_mcvae.evaluation.uncertainty import (
    Array,
    Moments,
    shared_draw_errors,
    standard_error,
)
from tf_mcvae.kernels import HamiltonianMonteCarlo, TransitionResults
from tf_mcvae.kernels.path import AnnealedPath
from tf_mcvae.layers.schedules import linear_temperatures, sigmoid_temperatures
from tf_mcvae.models import MonteCarloVAE
from tf_mcvae.models.batch import Batch
from tf_mcvae.objectives.annealed import AnnealedSamples, annealed_importance_sampling
from tf_mcvae.performance.fusion import fusing_graph
from tf_mcvae_commands.ais import AISOverrides, AISSettings

# Number of examples of the pilot run.
_PILOT_EXAMPLES = 10
# Gain of the adaptation: the log of a step size changes by this times the acceptance's error.
_GAIN = 0.4
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
        self.settings = settings
        is_linear = settings.schedule == "linear"
        schedule = linear_temperatures if is_linear else sigmoid_temperatures
        dtype = self.dtype = model.density_dtype
        self.temperatures = tf.constant(schedule(settings.num_temperatures, dtype=dtype))
        self.num_transitions = settings.num_temperatures - 1
        number, steps = tf.TensorSpec([], dtype), tf.TensorSpec([self.num_transitions], dtype)
        latents = tf.TensorSpec([None, model.latent_dim], dtype)
        self.follow = fusing_graph(self._follow, [images, SEED_SPEC, number])
        self.forward = fusing_graph(self._forward, [images, steps, SEED_SPEC])
        self.backward = fusing_graph(self._backward, [images, latents, steps, SEED_SPEC])

    def step_sizes(self, pilot: tf.Tensor, seed: random.Seed) -> tf.Tensor:
        """Returns a step size for each transition, `[T - 1]`: the given one, or tuned.

        The first run adapts the step size from transition to transition. Few transitions do not
        suffice for that; further runs then correct each step size by its own acceptance.
        """
        if self.settings.step_size is not None:
            return tf.fill([self.num_transitions], tf.constant(self.settings.step_size, self.dtype))
        seed, target = random.at_row(seed, 0), self.settings.target_acceptance
        step_sizes = self.follow(pilot, seed, tf.constant(target, self.dtype))
        for number in range(min(_MOST_CORRECTIONS, _PILOT_UPDATES // self.num_transitions)):
            _, acceptance = self.forward(pilot, step_sizes, random.fold_in(seed, number))
            step_sizes *= tf.exp(_GAIN * (acceptance - target))
        return step_sizes

    def _follow(self, x: tf.Tensor, seed: random.Seed, target: tf.Tensor) -> tf.Tensor:
        """Returns step sizes, each adapted to the acceptance of the transition before it."""

        def step_size(index: tf.Tensor, results: TransitionResults | None) -> tf.Tensor:
            if results is None:
                return tf.constant(0.1, self.dtype)
            return results.step_size * tf.exp(_GAIN * (_acceptance(None, results) - target))

        start_seed, chain_seed = random.split(seed)
        path, state = self._begin(x, start_seed)
        run = self._run(
            path, state, self.temperatures, step_size, chain_seed, lambda _, r: r.step_size
        )
        return run.trace

    def _forward(
        self, x: tf.Tensor, step_sizes: tf.Tensor, seed: random.Seed
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns log weights `[S, B]` and each transition's acceptance `[T - 1]`."""
        start_seed, chain_seed = random.split(seed)
        path, state = self._begin(x, start_seed)
        run = self._run(
            path, state, self.temperatures, lambda k, _: step_sizes[k], chain_seed, _acceptance
        )
        return run.log_weights, run.trace

    def _backward(
        self, x: tf.Tensor, z: tf.Tensor, step_sizes: tf.Tensor, seed: random.Seed
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The same for chains from exact draws `z [B, D]` of the posterior: `E[w] = 1 / p(x)`.

        It is the same sampler on the path with its ends exchanged.
        """
        path, _ = self._begin(x, seed)
        state = self.model.to_states(z) if self.settings.start == "encoder" else z
        shape = [self.settings.num_chains, *random.shape_of(state)]
        run = self._run(
            path.reversed(),
            tf.broadcast_to(state, shape),
            1.0 - tf.reverse(self.temperatures, [0]),
            lambda k, _: step_sizes[self.num_transitions - 1 - k],
            seed,
            _acceptance,
        )
        return run.log_weights, run.trace

    def _begin(self, x: tf.Tensor, seed: random.Seed) -> tuple[AnnealedPath, tf.Tensor]:
        model, batch, num_chains = self.model, Batch(x), self.settings.num_chains
        if self.settings.start == "encoder":
            posterior = model.posterior(batch)
            state = model.draw_posterior(posterior, num_chains, seed)
            return model.path(batch, posterior), state
        # In the space of z, without the flow.
        path = AnnealedPath(model.prior.bind(), model.generative.bind(batch))
        draws = model.prior.sample([num_chains, tf.shape(x)[0], model.latent_dim], seed)
        return path, tf.cast(draws, self.dtype)

    def _run(
        self,
        path: AnnealedPath,
        state: tf.Tensor,
        temperatures: tf.Tensor,
        step_size: Callable[[tf.Tensor, TransitionResults | None], tf.Tensor],
        seed: random.Seed,
        trace_fn: Callable[[Any, TransitionResults], tf.Tensor],
    ) -> AnnealedSamples:
        def kernel_fn(index: tf.Tensor, results: TransitionResults | None) -> HamiltonianMonteCarlo:
            step, leapfrogs = step_size(index, results), self.settings.num_leapfrog_steps
            return HamiltonianMonteCarlo(path, step, leapfrogs, temperatures[index + 1])

        return annealed_importance_sampling(
            path, state, kernel_fn, self.num_transitions, seed, trace_fn=trace_fn
        )


def _acceptance(state: Any, results: TransitionResults) -> tf.Tensor:
    del state
    return tf.reduce_mean(tf.cast(results.is_accepted, results.log_ratio.dtype))


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
