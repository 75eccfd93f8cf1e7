"""Hamiltonian Monte Carlo."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

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

Integrator = Literal["kick_drift_kick", "drift_kick_drift"]
RefreshFn = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


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
    r"""A new momentum, then leapfrog steps of Hamilton's equations.

    The momentum is `v = r u + sqrt(1 - r^2) M^1/2 xi` with `xi ~ N(0, I)`, the momentum `u` after
    the previous transition, the persistence `r`, and the diagonal mass `M`. The first transition
    draws `v ~ N(0, M)`. Each of the L leapfrog steps of size `e` is

        v <- v + e/2 s_b(z);    z <- z + e M^-1 v;    v <- v + e/2 s_b(z)    ("kick_drift_kick"),
        z <- z + e/2 M^-1 v;    v <- v + e s_b(z);    z <- z + e/2 M^-1 v    ("drift_kick_drift").

    Both take one gradient a step. The steps preserve volume and are reversible, and the refreshment
    leaves `N(0, M)` invariant, so the log ratio is `log N(v'; 0, M) - log N(v; 0, M)` with the
    momentum `v'` after the steps. A learned backward refreshment, of mean `r v + (1 - r^2) a(z, v)`
    instead of `r v`, adds

        sum_d ((u - r v) a - (1 - r^2) a^2 / 2) / M,

    the log of its density at `u` over that of the refreshment's own reversal. It adds nothing in
    the first transition.

    With `r = 0`, `L = 1` and `M = 1`, this is `UnadjustedLangevin` with step `e^2 / 2`. With the
    second order of steps, the densities are evaluated between the states only: there is no
    acceptance test. Where a calibrated kernel rejects the proposal, a persistent momentum is
    reversed.

    Args:
        target_log_prob_fn: Callable that maps states to log-densities, or an `AnnealedPath`.
        step_size: `e`, a scalar or `[D]` tensor.
        num_leapfrog_steps: L, a Python integer, as XLA differentiates only loops of static length.
        inverse_temperature: Scalar `b` in [0, 1].
        momentum_persistence: `r` in [0, 1], a number or a scalar tensor: 0 refreshes the momentum
            fully, 1 draws the first one only.
        mass: The diagonal of `M`, a scalar or `[D]`.
        integrator: `"kick_drift_kick"` or `"drift_kick_drift"`.
        backward_refresh: `a`, a function of the state and the momentum `v`, both `[S, B, D]`, at
            which the leapfrog steps begin; None for the refreshment's own reversal.

    Reference:
        Neal, MCMC using Hamiltonian dynamics, arXiv 1206.1901; Horowitz, A generalized guided Monte
        Carlo algorithm, Physics Letters B 268 (1991); Geffner and Domke, arXiv 2107.04150 and
        2208.07743; Zhang et al., Differentiable Annealed Importance Sampling, arXiv 2107.10211.
    """

    def __init__(
        self,
        target_log_prob_fn: LogProbFn | AnnealedPath,
        step_size: tf.Tensor | float,
        num_leapfrog_steps: int,
        inverse_temperature: tf.Tensor | float = 1.0,
        momentum_persistence: tf.Tensor | float = 0.0,
        *,
        mass: tf.Tensor | float = 1.0,
        integrator: Integrator = "kick_drift_kick",
        backward_refresh: RefreshFn | None = None,
    ) -> None:
        super().__init__(target_log_prob_fn, step_size, inverse_temperature)
        _check_arguments(num_leapfrog_steps, momentum_persistence, integrator)
        self._parameters.update(
            num_leapfrog_steps=num_leapfrog_steps,
            momentum_persistence=momentum_persistence,
            mass=mass,
            integrator=integrator,
            backward_refresh=backward_refresh,
        )
        self.num_leapfrog_steps = num_leapfrog_steps
        self.momentum_persistence = momentum_persistence
        self.mass = mass
        self.integrator = integrator
        self.backward_refresh = backward_refresh
        self.evaluates_state = integrator == "kick_drift_kick"

    @property
    def carries_momentum(self) -> bool:
        """Whether the next transition needs the momentum of this one."""
        is_tensor = tf.is_tensor(self.momentum_persistence)
        return is_tensor or self.momentum_persistence > 0.0 or self.backward_refresh is not None

    def initial_endpoints(self, state: tf.Tensor) -> Endpoints:
        """Evaluates both densities, or the base alone if no step begins at the state's score."""
        if self.evaluates_state:
            return super().initial_endpoints(state)
        log_q, unknown = self.path.base_log_prob_fn(state), tf.zeros_like(state)
        return Endpoints(log_q, tf.zeros_like(log_q), unknown, unknown)

    def initial_carry(self, state: tf.Tensor, endpoints: Endpoints) -> Momentum | tuple[()]:
        """Returns a momentum of which nothing is kept; nothing if none is carried."""
        if not self.carries_momentum:
            return ()
        return Momentum(tf.zeros_like(state), tf.zeros_like(endpoints.log_p, dtype=tf.bool))

    def initial_diagnostics(self, endpoints: Endpoints) -> dict[str, tf.Tensor]:
        """Returns a score of 0 if that of the state is not evaluated."""
        return {} if self.evaluates_state else {"score": endpoints.score_p}

    def propose(self, state: tf.Tensor, previous: TransitionResults, seed: random.Seed) -> Proposal:
        """Refreshes the momentum and integrates."""
        like, mass = previous.endpoints.log_p, tf.cast(self.mass, state.dtype)
        noise = tf.cast(random.normal(random.shape_of(state), seed), state.dtype)
        momentum = self._refreshed(previous.carry, tf.sqrt(mass) * noise)
        new_state, new_momentum, endpoints = self.leapfrogs(state, momentum, previous.endpoints)
        # As in `GuardedPath`: what overflows must not reach the gradient of what is chosen.
        energy = sum_event(tf.square(new_momentum), like)
        is_finite = tf.math.is_finite(energy)
        new_momentum = select(is_finite, new_momentum, momentum)
        change = (tf.square(momentum) - tf.square(new_momentum)) / mass
        log_ratio = 0.5 * sum_event(change, like)
        if self.backward_refresh is not None:
            log_ratio += self._refresh_log_ratio(state, momentum, previous.carry)
        log_ratio = tf.where(is_finite, log_ratio, tf.constant(-math.inf, log_ratio.dtype))
        diagnostics = {}
        if not self.evaluates_state:
            diagnostics["score"] = endpoints.score(self.inverse_temperature)
        proposal = Proposal(new_state, endpoints, log_ratio, diagnostics=diagnostics)
        if not self.carries_momentum:
            return proposal
        is_kept = tf.ones_like(like, dtype=tf.bool)
        return proposal._replace(
            carry_if_accepted=Momentum(new_momentum, is_kept),
            carry_if_rejected=Momentum(-momentum, is_kept),
        )

    def _refreshed(self, carried: Momentum | tuple[()], drawn: tf.Tensor) -> tf.Tensor:
        """Mixes a carried momentum with one drawn from `N(0, M)`, both `[S, B, D]`."""
        if not isinstance(carried, Momentum):
            return drawn
        persistence = tf.cast(self.momentum_persistence, drawn.dtype)
        mixed = persistence * carried.value + tf.sqrt(1.0 - tf.square(persistence)) * drawn
        return select(carried.is_kept, mixed, drawn)

    def _refresh_log_ratio(
        self, state: tf.Tensor, momentum: tf.Tensor, carried: Momentum
    ) -> tf.Tensor:
        """Returns the term of the learned backward refreshment, `[S, B]`; see the class."""
        shift = tf.cast(self.backward_refresh(state, momentum), state.dtype)  # type: ignore[misc]
        persistence = tf.cast(self.momentum_persistence, state.dtype)
        distance = carried.value - persistence * momentum
        terms = distance * shift - 0.5 * (1.0 - tf.square(persistence)) * tf.square(shift)
        ratio = sum_event(terms / tf.cast(self.mass, state.dtype), carried.is_kept)
        return tf.where(carried.is_kept, ratio, tf.zeros_like(ratio))

    def leapfrogs(
        self, state: tf.Tensor, momentum: tf.Tensor, endpoints: Endpoints
    ) -> tuple[tf.Tensor, tf.Tensor, Endpoints]:
        """Makes L leapfrog steps, each of which evaluates the endpoints once."""
        if self.num_leapfrog_steps == 1:
            return self._leapfrog(state, momentum, endpoints)
        _, *result = tf.while_loop(
            lambda index, *_: index < self.num_leapfrog_steps,
            lambda index, *values: (index + 1, *self._leapfrog(*values)),
            (tf.constant(0), state, momentum, endpoints),
            maximum_iterations=self.num_leapfrog_steps,
        )
        state, momentum, endpoints = result
        return state, momentum, endpoints

    def _leapfrog(
        self, state: tf.Tensor, momentum: tf.Tensor, endpoints: Endpoints
    ) -> tuple[tf.Tensor, tf.Tensor, Endpoints]:
        step, b = tf.cast(self.step_size, state.dtype), self.inverse_temperature
        drift = step / tf.cast(self.mass, state.dtype)
        if self.evaluates_state:
            momentum += 0.5 * step * endpoints.score(b)
            state += drift * momentum
            endpoints = self.path.endpoints(state)
            return state, momentum + 0.5 * step * endpoints.score(b), endpoints
        state += 0.5 * drift * momentum
        endpoints = self.path.endpoints(state)
        momentum += step * endpoints.score(b)
        return state + 0.5 * drift * momentum, momentum, endpoints


def _check_arguments(
    num_leapfrog_steps: int, momentum_persistence: tf.Tensor | float, integrator: str
) -> None:
    if num_leapfrog_steps < 1:
        raise ValueError(
            "`num_leapfrog_steps` must be a positive integer. "
            f"Received: num_leapfrog_steps={num_leapfrog_steps}"
        )
    if not tf.is_tensor(momentum_persistence) and not 0.0 <= momentum_persistence <= 1.0:
        raise ValueError(
            "`momentum_persistence` must be at least 0 and at most 1. "
            f"Received: momentum_persistence={momentum_persistence!r}"
        )
    if integrator not in get_args(Integrator):
        raise ValueError(
            f"`integrator` must be one of {get_args(Integrator)}. "
            f"Received: integrator={integrator!r}"
        )


class HamiltonianMonteCarlo(MetropolisHastings):
    """Hamiltonian Monte Carlo: `UncalibratedHamiltonian`, calibrated.

    Args:
        target_log_prob_fn: Callable that maps states to log-densities, or an `AnnealedPath`.
        step_size: Step of the leapfrog integrator, a scalar or `[D]` tensor.
        num_leapfrog_steps: Leapfrog steps of one transition, a Python integer.
        inverse_temperature: Scalar `b` in [0, 1].
        acceptance: `"metropolis"` or `"barker"`.
        momentum_persistence: `r` in [0, 1], the share of the momentum that is kept.

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
        names = (
            "target_log_prob_fn",
            "step_size",
            "num_leapfrog_steps",
            "inverse_temperature",
            "momentum_persistence",
        )
        inner = {name: self.inner_kernel.parameters[name] for name in names}
        return {**inner, "acceptance": self.acceptance}
