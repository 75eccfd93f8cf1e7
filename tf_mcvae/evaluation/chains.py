"""The chains of annealed importance sampling, as functions that `graph_of` compiles.

All take the model, where chains start and the number of leapfrog steps as Python values, and the
rest as tensors: examples `x [B, ...]`, the number S of chains of each, inverse temperatures
`b_0 = 0, ..., b_T = 1` `[T + 1]`, and a seed. A chain makes T - 1 transitions, which target `b_1`
to `b_{T-1}`. One graph serves any number of chains, temperatures and examples.
"""

from collections.abc import Callable
from typing import Any, Literal

import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.kernels import HamiltonianMonteCarlo, TransitionResults
from tf_mcvae.kernels.path import AnnealedPath
from tf_mcvae.models import MonteCarloVAE
from tf_mcvae.models.batch import Batch
from tf_mcvae.objectives.annealed import AnnealedSamples, annealed_importance_sampling

Start = Literal["encoder", "prior"]


def forward(
    model: MonteCarloVAE,
    start: Start,
    num_leapfrog_steps: int,
    x: tf.Tensor,
    num_chains: tf.Tensor,
    temperatures: tf.Tensor,
    step_sizes: tf.Tensor,
    seed: random.Seed,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns log weights `[S, B]` and each transition's acceptance `[T - 1]`."""
    start_seed, chain_seed = random.split(seed)
    path, state = _begin(model, start, x, num_chains, start_seed)
    run = _run(
        path,
        state,
        num_leapfrog_steps,
        temperatures,
        lambda k, _: step_sizes[k],
        chain_seed,
        _accepted,
    )
    return run.log_weights, run.trace


def backward(
    model: MonteCarloVAE,
    start: Start,
    num_leapfrog_steps: int,
    x: tf.Tensor,
    z: tf.Tensor,
    num_chains: tf.Tensor,
    temperatures: tf.Tensor,
    step_sizes: tf.Tensor,
    seed: random.Seed,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The same for chains from exact draws `z [B, D]` of the posterior: `E[w] = 1 / p(x)`.

    It is the same sampler on the path with its ends exchanged.
    """
    path, _ = _begin(model, start, x, num_chains, seed)
    state = model.to_states(z) if start == "encoder" else z
    step_sizes = tf.reverse(step_sizes, [0])
    run = _run(
        path.reversed(),
        tf.broadcast_to(state, [num_chains, *random.shape_of(state)]),
        num_leapfrog_steps,
        1.0 - tf.reverse(temperatures, [0]),
        lambda k, _: step_sizes[k],
        seed,
        _accepted,
    )
    return run.log_weights, run.trace


def follow(
    model: MonteCarloVAE,
    start: Start,
    num_leapfrog_steps: int,
    x: tf.Tensor,
    num_chains: tf.Tensor,
    temperatures: tf.Tensor,
    log_steps: tf.Tensor,
    gains: tf.Tensor,
    target: tf.Tensor,
    seed: random.Seed,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Makes a pilot run, whose step sizes follow the acceptance of the transitions before.

        log e_k = log e_{k-1} + (l_k - l_{k-1}) + g_k (a_{k-1} - target)

    Args:
        model: The model.
        start: Where chains start.
        num_leapfrog_steps: Leapfrog steps of a transition.
        x: Examples, `[B, ...]`.
        num_chains: S.
        temperatures: `[T + 1]`.
        log_steps: `l`, `[T - 1]`.
        gains: `g`, `[T - 1]`; the first is not used.
        target: Scalar.
        seed: A seed.

    Returns:
        The step sizes and the acceptance probabilities, each `[T - 1]`.
    """
    start_seed, chain_seed = random.split(seed)
    path, state = _begin(model, start, x, num_chains, start_seed)
    changes = log_steps - tf.concat([log_steps[:1], log_steps[:-1]], axis=0)

    def step_size(index: tf.Tensor, results: TransitionResults | None) -> tf.Tensor:
        if results is None:
            return tf.exp(log_steps[0])
        gain = tf.where(index > 0, gains[index], tf.zeros_like(gains[0]))
        error = _acceptance_probability(results) - target
        return results.step_size * tf.exp(changes[index] + gain * error)

    def trace(_: Any, results: TransitionResults) -> tuple[tf.Tensor, tf.Tensor]:
        return results.step_size, _acceptance_probability(results)

    args = path, state, num_leapfrog_steps, temperatures
    used, acceptance = _run(*args, step_size, chain_seed, trace).trace
    return used, acceptance


def curvature(
    model: MonteCarloVAE,
    start: Start,
    num_leapfrog_steps: int,
    x: tf.Tensor,
    num_chains: tf.Tensor,
    temperatures: tf.Tensor,
    seed: random.Seed,
) -> tf.Tensor:
    """Returns `E|ds_b|^2 / E[-ds_b . dz]` at each temperature, `[T + 1]`, from first states.

    The expectations are over chains and examples; d is the deviation from the mean over the chains
    of an example, of which there are at least two.
    """
    del num_leapfrog_steps
    path, state = _begin(model, start, x, tf.maximum(num_chains, 2), seed)
    endpoints = path.endpoints(state)
    dz, ds_q, ds = (
        values - tf.reduce_mean(values, axis=0, keepdims=True)
        for values in (state, endpoints.score_q, endpoints.score_p - endpoints.score_q)
    )

    def mean(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.reduce_sum(a * b, axis=-1))

    b = temperatures
    squared = mean(ds_q, ds_q) + 2.0 * b * mean(ds_q, ds) + tf.square(b) * mean(ds, ds)
    return squared / -(mean(ds_q, dz) + b * mean(ds, dz))


def _begin(
    model: MonteCarloVAE, start: Start, x: tf.Tensor, num_chains: tf.Tensor, seed: random.Seed
) -> tuple[AnnealedPath, tf.Tensor]:
    """Returns the path and the chains' first states, `[S, B, D]`."""
    batch = Batch(x)
    if start == "encoder":
        posterior = model.posterior(batch)
        return model.path(batch, posterior), model.draw_posterior(posterior, num_chains, seed)
    # In the space of z, without the flow.
    path = AnnealedPath(model.prior.bind(), model.generative.bind(batch))
    draws = model.prior.sample([num_chains, tf.shape(x)[0], model.latent_dim], seed)
    return path, tf.cast(draws, model.density_dtype)


def _run(
    path: AnnealedPath,
    state: tf.Tensor,
    num_leapfrog_steps: int,
    temperatures: tf.Tensor,
    step_size: Callable[[tf.Tensor, TransitionResults | None], tf.Tensor],
    seed: random.Seed,
    trace_fn: Callable[[Any, TransitionResults], Any],
) -> AnnealedSamples:
    def kernel_fn(index: tf.Tensor, results: TransitionResults | None) -> HamiltonianMonteCarlo:
        step = step_size(index, results)
        return HamiltonianMonteCarlo(path, step, num_leapfrog_steps, temperatures[index + 1])

    num_transitions = tf.shape(temperatures)[0] - 2
    return annealed_importance_sampling(
        path, state, kernel_fn, num_transitions, seed, trace_fn=trace_fn
    )


def _accepted(state: Any, results: TransitionResults) -> tf.Tensor:
    del state
    return tf.reduce_mean(tf.cast(results.is_accepted, results.log_ratio.dtype))


def _acceptance_probability(results: TransitionResults) -> tf.Tensor:
    """Returns the mean of `min(1, ratio)`; a proposal that is not finite is not accepted."""
    probability = tf.exp(tf.minimum(results.log_accept_ratio, 0.0))
    zeros = tf.zeros_like(probability)
    return tf.reduce_mean(tf.where(tf.math.is_nan(probability), zeros, probability))
