"""Hamiltonian Monte Carlo."""

import math
from typing import Any, NamedTuple

import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.kernels.metropolis import MetropolisHastings
from tf_mcvae.kernels.path import AnnealedPath, Endpoints, LogProbFn
from tf_mcvae.kernels.transition import (
    Acceptance,
    AnnealedKernel,
    Proposal,
    TransitionResults,
    select,
    sum_event,
)


class Momentum(NamedTuple):
    """The momentum that a kernel carries to its next transition.

    Attributes:
        value: `[S, B, D]`.
        is_kept: Whether the next transition keeps part of it, `[S, B]`. False before the first one,
            which draws a whole momentum.
    """

    value: tf.Tensor
    is_kept: tf.Tensor


class UncalibratedHamiltonian(AnnealedKernel):
    """A new momentum, then leapfrog steps of Hamilton's equations with unit mass.

    The momentum is `v = rho v' + sqrt(1 - rho^2) xi` with `xi ~ N(0, I)`, the momentum `v'` after
    the previous transition, and the persistence `rho`; 0 refreshes it fully. Each of the L leapfrog
    steps of size `e` is

        v <- v + e/2 s_b(z);    z <- z + e v;    v <- v + e/2 s_b(z).

    The steps preserve volume and are reversible, so the log ratio is `(|v_0|^2 - |v_L|^2) / 2`.
    Where a calibrated kernel rejects the proposal, a persistent momentum is reversed.

    Args:
        target_log_prob_fn: Callable that maps states to log-densities, or an `AnnealedPath`.
        step_size: `e`, a scalar or `[D]` tensor.
        num_leapfrog_steps: L, a Python integer, as XLA differentiates only loops of static length.
        inverse_temperature: Scalar `b` in [0, 1].
        momentum_persistence: `rho` in [0, 1).

    Reference:
        Neal, MCMC using Hamiltonian dynamics, arXiv 1206.1901; Horowitz, A generalized guided Monte
        Carlo algorithm, Physics Letters B 268 (1991).
    """

    def __init__(
        self,
        target_log_prob_fn: LogProbFn | AnnealedPath,
        step_size: tf.Tensor | float,
        num_leapfrog_steps: int,
        inverse_temperature: tf.Tensor | float = 1.0,
        momentum_persistence: float = 0.0,
    ) -> None:
        super().__init__(target_log_prob_fn, step_size, inverse_temperature)
        if num_leapfrog_steps < 1:
            raise ValueError(
                "`num_leapfrog_steps` must be a positive integer. "
                f"Received: num_leapfrog_steps={num_leapfrog_steps}"
            )
        if not 0.0 <= momentum_persistence < 1.0:
            raise ValueError(
                "`momentum_persistence` must be at least 0 and below 1. "
                f"Received: momentum_persistence={momentum_persistence!r}"
            )
        self._parameters.update(
            num_leapfrog_steps=num_leapfrog_steps,
            momentum_persistence=momentum_persistence,
        )
        self.num_leapfrog_steps = num_leapfrog_steps
        self.momentum_persistence = momentum_persistence

    def initial_carry(self, state: tf.Tensor, endpoints: Endpoints) -> Momentum | tuple[()]:
        """Returns a momentum of which nothing is kept; nothing if the persistence is 0."""
        if not self.momentum_persistence:
            return ()
        return Momentum(tf.zeros_like(state), tf.zeros_like(endpoints.log_p, dtype=tf.bool))

    def propose(self, state: tf.Tensor, previous: TransitionResults, seed: random.Seed) -> Proposal:
        """Refreshes the momentum and integrates."""
        momentum = tf.cast(random.normal(random.shape_of(state), seed), state.dtype)
        rho = self.momentum_persistence
        if rho:
            carried = previous.carry
            mixed = rho * carried.value + (1.0 - rho**2) ** 0.5 * momentum
            momentum = select(carried.is_kept, mixed, momentum)
        new_state, new_momentum, endpoints = self.leapfrogs(state, momentum, previous.endpoints)
        # As in `GuardedPath`: what overflows must not reach the gradient of what is chosen.
        energy = sum_event(tf.square(new_momentum), endpoints.log_p)
        is_finite = tf.math.is_finite(energy)
        new_momentum = select(is_finite, new_momentum, momentum)
        log_ratio = 0.5 * sum_event(tf.square(momentum) - tf.square(new_momentum), endpoints.log_p)
        log_ratio = tf.where(is_finite, log_ratio, tf.constant(-math.inf, log_ratio.dtype))
        proposal = Proposal(new_state, endpoints, log_ratio)
        if not rho:
            return proposal
        is_kept = tf.ones_like(endpoints.log_p, dtype=tf.bool)
        return proposal._replace(
            carry_if_accepted=Momentum(new_momentum, is_kept),
            carry_if_rejected=Momentum(-momentum, is_kept),
        )

    def leapfrogs(
        self, state: tf.Tensor, momentum: tf.Tensor, endpoints: Endpoints
    ) -> tuple[tf.Tensor, tf.Tensor, Endpoints]:
        """Makes L leapfrog steps, each of which evaluates the endpoints once."""
        step, b = tf.cast(self.step_size, state.dtype), self.inverse_temperature

        def leapfrog(
            index: tf.Tensor, state: tf.Tensor, momentum: tf.Tensor, endpoints: Endpoints
        ) -> tuple[Any, ...]:
            momentum += 0.5 * step * endpoints.score(b)
            state += step * momentum
            endpoints = self.path.endpoints(state)
            momentum += 0.5 * step * endpoints.score(b)
            return index + 1, state, momentum, endpoints

        _, state, momentum, endpoints = tf.while_loop(
            lambda index, *_: index < self.num_leapfrog_steps,
            leapfrog,
            (tf.constant(0), state, momentum, endpoints),
            maximum_iterations=self.num_leapfrog_steps,
        )
        return state, momentum, endpoints


class HamiltonianMonteCarlo(MetropolisHastings):
    """Hamiltonian Monte Carlo: `UncalibratedHamiltonian`, calibrated.

    Args:
        target_log_prob_fn: Callable that maps states to log-densities, or an `AnnealedPath`.
        step_size: Step of the leapfrog integrator, a scalar or `[D]` tensor.
        num_leapfrog_steps: Leapfrog steps of one transition, a Python integer.
        inverse_temperature: Scalar `b` in [0, 1].
        acceptance: `"metropolis"` or `"barker"`.
        momentum_persistence: `rho` in [0, 1), the share of the momentum that is kept.

    Reference:
        Neal, MCMC using Hamiltonian dynamics, arXiv 1206.1901.
    """

    def __init__(
        self,
        target_log_prob_fn: LogProbFn | AnnealedPath,
        step_size: tf.Tensor | float,
        num_leapfrog_steps: int,
        inverse_temperature: tf.Tensor | float = 1.0,
        acceptance: Acceptance = "metropolis",
        momentum_persistence: float = 0.0,
    ) -> None:
        inner = UncalibratedHamiltonian(
            target_log_prob_fn,
            step_size,
            num_leapfrog_steps,
            inverse_temperature,
            momentum_persistence,
        )
        super().__init__(inner, acceptance)

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments, which `copy` needs."""
        return {**self.inner_kernel.parameters, "acceptance": self.acceptance}
