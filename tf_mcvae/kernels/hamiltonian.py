"""Hamiltonian Monte Carlo."""

from typing import Any

import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.annealing import AnnealedPath, Endpoints, LogProbFn
from tf_mcvae.kernels.metropolis import AnnealedKernel, MetropolisHastings, Proposal, sum_event


class UncalibratedHamiltonian(AnnealedKernel):
    """A fresh momentum, then leapfrog steps of Hamilton's equations with unit mass.

    The momentum is `v ~ N(0, I)`; each of the L leapfrog steps of size `e` is

        v <- v + e/2 s_b(z);    z <- z + e v;    v <- v + e/2 s_b(z).

    Volume and time reversal are kept, so the log ratio of the move is `(|v_0|^2 - |v_L|^2) / 2`.

    Args:
        target_log_prob_fn: Callable that maps states to log-densities, or an `AnnealedPath`.
        step_size: `e`, a scalar or `[D]` tensor.
        num_leapfrog_steps: L, a Python integer: a static count keeps the loop differentiable
            under XLA.
        inverse_temperature: Scalar `b` in [0, 1].

    Reference:
        Neal, MCMC using Hamiltonian dynamics, arXiv 1206.1901.
    """

    def __init__(
        self,
        target_log_prob_fn: LogProbFn | AnnealedPath,
        step_size: Any,
        num_leapfrog_steps: int,
        inverse_temperature: Any = 1.0,
    ) -> None:
        super().__init__(target_log_prob_fn, step_size, inverse_temperature)
        if num_leapfrog_steps < 1:
            raise ValueError(
                "`num_leapfrog_steps` must be a positive integer. "
                f"Received: num_leapfrog_steps={num_leapfrog_steps}"
            )
        self._parameters["num_leapfrog_steps"] = num_leapfrog_steps
        self.num_leapfrog_steps = num_leapfrog_steps

    def propose(self, state: tf.Tensor, endpoints: Endpoints, seed: tf.Tensor) -> Proposal:
        """Draws a momentum and integrates."""
        momentum = tf.cast(random.normal(random.shape_of(state), seed), state.dtype)
        new_state, new_momentum, new_endpoints = self.leapfrogs(state, momentum, endpoints)
        log_ratio = 0.5 * sum_event(tf.square(momentum) - tf.square(new_momentum), endpoints.log_p)
        return Proposal(new_state, new_endpoints, log_ratio)

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
    ) -> None:
        inner = UncalibratedHamiltonian(
            target_log_prob_fn, step_size, num_leapfrog_steps, inverse_temperature
        )
        super().__init__(inner, acceptance)

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments, which `copy` needs."""
        return {**self.inner_kernel.parameters, "acceptance": self.acceptance}
