"""Hamiltonian Monte Carlo."""

from typing import Any

import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.kernels.metropolis import (
    AnnealedKernel,
    MetropolisHastings,
    Proposal,
    TransitionResults,
    sum_event,
)
from tf_mcvae.kernels.path import AnnealedPath, Endpoints, LogProbFn


class UncalibratedHamiltonian(AnnealedKernel):
    """A new momentum, then leapfrog steps of Hamilton's equations with unit mass.

    The momentum is `v = rho v' + sqrt(1 - rho^2) xi` with `xi ~ N(0, I)`, the momentum `v'` after
    the transition before, and the persistence `rho`; with 0 it is refreshed fully. Each of the L
    leapfrog steps of size `e` is

        v <- v + e/2 s_b(z);    z <- z + e v;    v <- v + e/2 s_b(z).

    Volume and time reversal are kept, so the log ratio of the move is `(|v_0|^2 - |v_L|^2) / 2`.
    A persistent momentum is reversed where a calibrated move is rejected.

    Args:
        target_log_prob_fn: Callable that maps states to log-densities, or an `AnnealedPath`.
        step_size: `e`, a scalar or `[D]` tensor.
        num_leapfrog_steps: L, a Python integer: a static count keeps the loop differentiable
            under XLA.
        inverse_temperature: Scalar `b` in [0, 1].
        momentum_persistence: `rho` in [0, 1).
        momentum_seed: Seed of the momentum before the first transition, where `rho` is not 0.

    Reference:
        Neal, MCMC using Hamiltonian dynamics, arXiv 1206.1901; Horowitz, A generalized guided Monte
        Carlo algorithm, Physics Letters B 268 (1991).
    """

    def __init__(
        self,
        target_log_prob_fn: LogProbFn | AnnealedPath,
        step_size: Any,
        num_leapfrog_steps: int,
        inverse_temperature: Any = 1.0,
        momentum_persistence: float = 0.0,
        momentum_seed: Any = 0,
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
            momentum_seed=momentum_seed,
        )
        self.num_leapfrog_steps = num_leapfrog_steps
        self.momentum_persistence = momentum_persistence
        self.momentum_seed = momentum_seed

    def bootstrap_results(self, init_state: tf.Tensor) -> TransitionResults:
        """Evaluates the endpoints at the first state; draws its momentum if one is kept."""
        results = super().bootstrap_results(init_state)
        if not self.momentum_persistence:
            return results
        return results._replace(momentum=_normal(init_state, random.as_seed(self.momentum_seed)))

    def propose(self, state: tf.Tensor, previous: TransitionResults, seed: tf.Tensor) -> Proposal:
        """Refreshes the momentum and integrates."""
        endpoints, momentum = previous.endpoints, _normal(state, seed)
        rho = self.momentum_persistence
        if rho:
            momentum = rho * previous.momentum + (1.0 - rho**2) ** 0.5 * momentum
        new_state, new_momentum, new_endpoints = self.leapfrogs(state, momentum, endpoints)
        log_ratio = 0.5 * sum_event(tf.square(momentum) - tf.square(new_momentum), endpoints.log_p)
        kept = (new_momentum, -momentum) if rho else ((), ())
        return Proposal(new_state, new_endpoints, log_ratio, momentum=kept)

    def leapfrogs(
        self, state: tf.Tensor, momentum: tf.Tensor, endpoints: Endpoints
    ) -> tuple[tf.Tensor, tf.Tensor, Endpoints]:
        """Integrates L leapfrog steps; each evaluates the endpoints once."""
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
        momentum_persistence: How much of the momentum a transition takes over from the one before,
            in [0, 1).
        momentum_seed: Seed of the momentum before the first transition, where any is taken over.

    Reference:
        Neal, MCMC using Hamiltonian dynamics, arXiv 1206.1901.
    """

    def __init__(
        self,
        target_log_prob_fn: LogProbFn | AnnealedPath,
        step_size: Any,
        num_leapfrog_steps: int,
        inverse_temperature: Any = 1.0,
        acceptance: str = "metropolis",
        momentum_persistence: float = 0.0,
        momentum_seed: Any = 0,
    ) -> None:
        inner = UncalibratedHamiltonian(
            target_log_prob_fn,
            step_size,
            num_leapfrog_steps,
            inverse_temperature,
            momentum_persistence,
            momentum_seed,
        )
        super().__init__(inner, acceptance)

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments, which `copy` needs."""
        return {**self.inner_kernel.parameters, "acceptance": self.acceptance}


def _normal(state: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws a momentum for `state`."""
    return tf.cast(random.normal(random.shape_of(state), seed), state.dtype)
