"""Metropolis-Hastings and Barker acceptance, which calibrate another kernel."""

import copy
from typing import Any, Self

import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae import random
from tf_mcvae.kernels.transition import (
    Acceptance,
    AnnealedKernel,
    TransitionResults,
    draw_acceptance,
    log_accept_probs,
    required_seed,
    select,
)
from tf_mcvae.tracing import as_written


class MetropolisHastings(tfp.mcmc.TransitionKernel):
    """Calibrates a kernel by accepting or rejecting its proposals.

    Args:
        inner_kernel: An uncalibrated kernel of this package.
        acceptance: `"metropolis"`, with probability `min(1, t)`, or `"barker"`, `t / (1 + t)`.

    Reference:
        Metropolis et al. (1953); Hastings (1970); Barker (1965).
    """

    evaluates_state = True
    _inverted: tf.Tensor | None = None

    def __init__(self, inner_kernel: AnnealedKernel, acceptance: Acceptance = "metropolis") -> None:
        check_acceptance(acceptance)
        if not inner_kernel.evaluates_state:
            raise ValueError(
                "The kernel does not evaluate the densities at its states, which an acceptance "
                "test compares: use an integrator that does, such as 'kick_drift_kick'. "
                f"Received: inner_kernel={inner_kernel!r}"
            )
        self.inner_kernel = inner_kernel
        self.acceptance = acceptance

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments, which `copy` needs."""
        return {"inner_kernel": self.inner_kernel, "acceptance": self.acceptance}

    @property
    def is_calibrated(self) -> bool:
        """Whether the target is left invariant."""
        return True

    def inverting(self, decisions: tf.Tensor) -> Self:
        """Returns the kernel with the opposite decision where `decisions` holds, bool `[S, B]`."""
        kernel = copy.copy(self)
        kernel._inverted = decisions
        return kernel

    @as_written
    def bootstrap_results(self, init_state: tf.Tensor) -> TransitionResults:
        """Evaluates the endpoints at the first state."""
        return self.inner_kernel.bootstrap_results(init_state)

    @as_written
    def one_step(
        self,
        current_state: tf.Tensor,
        previous_kernel_results: TransitionResults,
        seed: random.SeedLike | None = None,
    ) -> tuple[tf.Tensor, TransitionResults]:
        """Proposes a state and accepts or rejects it; arguments as in `AnnealedKernel.one_step`."""
        proposal_seed, test_seed = random.split(required_seed(seed))
        origin = previous_kernel_results.endpoints
        kernel = self.inner_kernel.guarded(current_state)
        proposal = kernel.propose(current_state, previous_kernel_results, proposal_seed)
        log_accept_ratio = kernel.log_accept_ratio(origin, proposal)
        log_accept, log_reject = log_accept_probs(log_accept_ratio, self.acceptance)
        accepted = draw_acceptance(log_accept, test_seed)
        if self._inverted is not None:
            accepted = tf.math.logical_xor(accepted, self._inverted)
        state, endpoints, carry = select(
            accepted,
            (proposal.state, proposal.endpoints, proposal.carry_if_accepted),
            (current_state, origin, proposal.carry_if_rejected),
        )
        b = kernel.inverse_temperature
        return state, TransitionResults(
            endpoints=endpoints,
            log_ratio=origin.log_prob(b) - endpoints.log_prob(b),
            log_accept_ratio=log_accept_ratio,
            is_accepted=accepted,
            log_choice_prob=tf.where(accepted, log_accept, log_reject),
            step_size=kernel.step_size,
            carry=carry,
            diagnostics=kernel.diagnostics(origin, proposal.diagnostics),
        )


def check_acceptance(acceptance: str) -> None:
    """Raises if there is no acceptance rule of that name."""
    if acceptance not in ("metropolis", "barker"):
        raise ValueError(
            f"`acceptance` must be 'metropolis' or 'barker'. Received: acceptance={acceptance!r}"
        )
