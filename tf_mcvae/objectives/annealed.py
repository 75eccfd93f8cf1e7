"""Annealed importance sampling: the loop over transitions, for all bounds and evaluations.

From `z_0 ~ q` a chain makes K transitions, each with its own kernel; the log weight is

    log w = log p(x, z_K) - log q(z_0) + sum_k log_ratio_k,

where `log_ratio_k` is the log of the backward over the forward density of transition k. For
unadjusted Langevin this is sequential importance sampling (the bound of L-MCVAE), for uncalibrated
Hamiltonian dynamics the bounds of UHA, DAIS, LDVI and HVAE. For a calibrated
kernel `log_ratio_k = log pi_{b_k}(z_{k-1}) - log pi_{b_k}(z_k)`, and `log w` is that of annealed
importance sampling, `sum_k (b_{k+1} - b_k) (log p(x, z_k) - log q(z_k))` (the bound of A-MCVAE).
Either way `E[w] = p(x)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.kernels.metropolis import MetropolisHastings
from tf_mcvae.kernels.path import AnnealedPath, LogProbFn
from tf_mcvae.kernels.transition import AnnealedKernel, TransitionResults
from tf_mcvae.tracing import as_written

KernelFn = Callable[[tf.Tensor, TransitionResults | None], AnnealedKernel | MetropolisHastings]
TraceFn = Callable[[tf.Tensor, TransitionResults], Any]


class AnnealedSamples(NamedTuple):
    """The result of a run of the loop.

    Attributes:
        initial_state: `z_0`, `[S, B, D]`.
        state: `z_K`, `[S, B, D]`.
        log_weights: `log w`, `[S, B]`.
        trace: What `trace_fn` returned, stacked over the K transitions.
    """

    initial_state: tf.Tensor
    state: tf.Tensor
    log_weights: tf.Tensor
    trace: Any


def trace_acceptance(state: tf.Tensor, results: TransitionResults) -> tf.Tensor:
    """Traces whether each proposal passed its acceptance test, `[S, B]` per transition."""
    del state
    return results.is_accepted


@as_written
def annealed_importance_sampling(
    path: AnnealedPath,
    initial_state: tf.Tensor,
    kernel_fn: KernelFn,
    num_transitions: int | tf.Tensor,
    seed: random.Seed,
    initial_log_prob_fn: LogProbFn | None = None,
    final_log_prob_fn: LogProbFn | None = None,
    trace_fn: TraceFn = trace_acceptance,
) -> AnnealedSamples:
    """Runs K transitions from `initial_state` and computes the log weights.

    The loop is a `tf.while_loop` with a static maximum, so that XLA compiles its gradient and its
    graph does not grow with K. Kernels that take one gradient evaluate the endpoints K + 1 times.

    Args:
        path: The path from the density of `initial_state` to the target.
        initial_state: `z_0`, `[S, B, D]`.
        kernel_fn: Returns the kernel of a transition, given its number k = 0, ..., K - 1 (a scalar
            tensor) and the results of the previous transition (None before the first).
        num_transitions: K, a positive integer; a scalar tensor if XLA differentiates nothing.
        seed: A seed.
        initial_log_prob_fn: `log q(z_0)` of the weight; None for the path's base.
        final_log_prob_fn: `log p(x, z_K)` of the weight; None for the path's target.
        trace_fn: Called with the state and the results after each transition, as in `tfp.mcmc`;
            the tensors it returns are stacked.

    Reference:
        Neal, Annealed Importance Sampling (2001); Thin et al., Monte Carlo Variational
        Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """
    start = _hide_num_samples(initial_state)
    kernel = kernel_fn(tf.constant(0), None)
    results = kernel.bootstrap_results(start)
    log_q = initial_log_prob_fn(start) if initial_log_prob_fn else results.endpoints.log_q
    if final_log_prob_fn is None and not kernel.evaluates_state:
        final_log_prob_fn = path.target_log_prob_fn
    # The results of each transition have the same shapes.
    example = trace_fn(start, results)

    def body(
        index: tf.Tensor, state: tf.Tensor, results: Any, log_ratios: tf.Tensor, arrays: list[Any]
    ) -> tuple[Any, ...]:
        kernel = kernel_fn(index, results)
        state, results = kernel.one_step(state, results, seed=random.fold_in(seed, index))
        values = tf.nest.flatten(trace_fn(state, results))
        arrays = [array.write(index, value) for array, value in zip(arrays, values, strict=True)]
        return index + 1, state, results, log_ratios + results.log_ratio, arrays

    arrays = [
        tf.TensorArray(value.dtype, size=num_transitions, element_shape=value.shape)
        for value in tf.nest.flatten(example)
    ]
    _, state, results, log_ratios, arrays = tf.while_loop(
        lambda index, *_: index < num_transitions,
        body,
        (tf.constant(0), start, results, tf.zeros_like(log_q), arrays),
        maximum_iterations=num_transitions,
    )
    log_p = final_log_prob_fn(state) if final_log_prob_fn else results.endpoints.log_p
    trace = tf.nest.pack_sequence_as(example, [array.stack() for array in arrays])
    log_weights = log_p - log_q + log_ratios
    # The loop has hidden the sizes that are known outside it.
    state.set_shape(initial_state.shape)
    log_weights.set_shape(initial_state.shape[: log_weights.shape.rank])
    return AnnealedSamples(initial_state, state, log_weights, trace)


def _hide_num_samples(state: tf.Tensor) -> tf.Tensor:
    """Returns `state [S, B, D]` as a tensor whose S a graph does not know (XLA does)."""
    # If a graph knows all sizes and its loop holds more than some 200 MB, TensorFlow turns sums in
    # the loop's gradient into temporary variables. It does not destroy all of them, and the next
    # step fails with an AlreadyExistsError (tensorflow issue 23780).
    return tf.raw_ops.PlaceholderWithDefault(input=state, shape=[None, *state.shape[1:]])
