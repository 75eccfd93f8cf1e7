"""The contract of this package's kernels, in addition to that of `tfp.mcmc.TransitionKernel`.

A kernel proposes `z' ~ m(z'|z)`. A bound needs one number from it, the *log ratio*

    log_ratio = log m~(z|z') - log m(z'|z),

where `m~` is the kernel that runs backwards. For an uncalibrated kernel `m~` is by default the
kernel itself; then `log_accept_ratio = log pi(z') - log pi(z) + log_ratio` is the log of the
Metropolis-Hastings ratio. For a calibrated kernel `m~` is its time reversal under `pi`, and
`log_ratio = log pi(z) - log pi(z')`.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self

import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae import random
from tf_mcvae.kernels.path import AnnealedPath, Endpoints, GuardedPath, LogProbFn
from tf_mcvae.tracing import as_written

Acceptance = Literal["metropolis", "barker"]


class TransitionResults(NamedTuple):
    """The report of every kernel on its last transition.

    Attributes:
        endpoints: Log-densities and scores at the current state, free of temperature; see
            `AnnealedKernel.evaluates_state`.
        log_ratio: Log of the backward over the forward density of the transition, `[S, B]`.
        log_accept_ratio: Log of the Metropolis-Hastings ratio of the proposal, `[S, B]`; NaN if the
            densities at the states are not evaluated.
        is_accepted: Whether the proposal passed the acceptance test, `[S, B]`. An uncalibrated
            kernel draws the test as a diagnostic only, and takes every proposal.
        log_choice_prob: Log-probability of the drawn acceptance or rejection, `[S, B]`; 0 for a
            kernel that takes every proposal.
        step_size: The step size used.
        carry: State of the kernel for its next transition (a momentum); most have none, `()`.
        diagnostics: Further tensors by name. All kernels report `"score"`, the gradient of
            `log pi_b` at the state before the transition, `[S, B, D]`.
    """

    endpoints: Endpoints
    log_ratio: tf.Tensor
    log_accept_ratio: tf.Tensor
    is_accepted: tf.Tensor
    log_choice_prob: tf.Tensor
    step_size: tf.Tensor
    carry: Any
    diagnostics: Mapping[str, tf.Tensor]


class Proposal(NamedTuple):
    """A proposed state, its endpoints, and the log ratio of the transition to it.

    Attributes:
        state: `[S, B, D]`.
        endpoints: Log-densities and scores there.
        log_ratio: `[S, B]`.
        own_log_ratio: `[S, B]`, for the acceptance test: the log ratio with the kernel itself
            running backwards. None if `log_ratio` is that already.
        carry_if_accepted: `TransitionResults.carry` if the proposal is accepted.
        carry_if_rejected: The same if it is rejected.
        diagnostics: See `TransitionResults`; the same names as in `initial_diagnostics`.
    """

    state: tf.Tensor
    endpoints: Endpoints
    log_ratio: tf.Tensor
    own_log_ratio: tf.Tensor | None = None
    carry_if_accepted: Any = ()
    carry_if_rejected: Any = ()
    diagnostics: Mapping[str, tf.Tensor] = {}


def sum_event(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Sums `values` over the axes that the log-density `like` does not have."""
    return tf.reduce_sum(values, axis=list(range(like.shape.rank, values.shape.rank)))


def select(condition: tf.Tensor, new: Any, old: Any) -> Any:
    """Takes `new` where `condition` ([S, B]) holds and `old` elsewhere, in nested tensors."""

    def pick(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        extra = [1] * (a.shape.rank - condition.shape.rank)
        shape = random.shape_of(condition) + extra
        return tf.where(tf.reshape(condition, shape) if extra else condition, a, b)

    return tf.nest.map_structure(pick, new, old)


def required_seed(seed: random.SeedLike | None) -> random.Seed:
    """Returns the argument of `one_step` as a seed, and raises if there is none."""
    if seed is None:
        raise ValueError(
            "A kernel's `one_step` needs a seed; with `tfp.mcmc.sample_chain`, pass `seed=`. "
            "Received: seed=None"
        )
    return random.as_seed(seed)


class AnnealedKernel(tfp.mcmc.TransitionKernel):
    """Base of the kernels, with a target, its inverse temperature, and a step size.

    A subclass defines `propose`. It also defines `initial_carry` if it carries anything to the next
    transition, and `initial_diagnostics` if it reports further diagnostics. `one_step` and
    `MetropolisHastings(kernel)` need nothing else.

    Attributes:
        evaluates_state: Whether `TransitionResults.endpoints` are those of the current state. A
            kernel that evaluates the densities elsewhere has no acceptance test.

    Args:
        target_log_prob_fn: Callable that maps states to log-densities, as in `tfp.mcmc`, or an
            `AnnealedPath`.
        step_size: Scalar or `[D]` tensor.
        inverse_temperature: Scalar `b` in [0, 1]: the kernel targets `pi_b`.
    """

    evaluates_state = True

    def __init__(
        self,
        target_log_prob_fn: LogProbFn | AnnealedPath,
        step_size: tf.Tensor | float,
        inverse_temperature: tf.Tensor | float = 1.0,
    ) -> None:
        self._parameters: dict[str, Any] = {
            "target_log_prob_fn": target_log_prob_fn,
            "step_size": step_size,
            "inverse_temperature": inverse_temperature,
        }
        self.path = AnnealedPath.from_target(target_log_prob_fn)
        self.step_size = tf.convert_to_tensor(step_size)
        self.inverse_temperature = inverse_temperature

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments, which `copy` needs."""
        return self._parameters

    @property
    def is_calibrated(self) -> bool:
        """Whether the target is left invariant."""
        return False

    def propose(self, state: tf.Tensor, previous: TransitionResults, seed: random.Seed) -> Proposal:
        """Proposes a state.

        Args:
            state: `[S, B, D]`.
            previous: Results of the previous transition.
            seed: The only source of the proposal's random numbers.
        """
        raise NotImplementedError

    def initial_carry(self, state: tf.Tensor, endpoints: Endpoints) -> Any:
        """Returns `TransitionResults.carry` before the first transition."""
        return ()

    def initial_diagnostics(self, endpoints: Endpoints) -> Mapping[str, tf.Tensor]:
        """Returns placeholders for the proposal's diagnostics, of the same names and shapes."""
        return {}

    def initial_endpoints(self, state: tf.Tensor) -> Endpoints:
        """Returns `TransitionResults.endpoints` before the first transition."""
        return self.path.endpoints(state)

    @as_written
    def bootstrap_results(self, init_state: tf.Tensor) -> TransitionResults:
        """Evaluates the endpoints at the first state."""
        init_state = tf.convert_to_tensor(init_state)
        endpoints = self.initial_endpoints(init_state)
        zeros = tf.zeros_like(endpoints.log_p)
        return TransitionResults(
            endpoints=endpoints,
            log_ratio=zeros,
            log_accept_ratio=zeros,
            is_accepted=tf.ones_like(zeros, dtype=tf.bool),
            log_choice_prob=zeros,
            step_size=self.step_size,
            carry=self.initial_carry(init_state, endpoints),
            diagnostics=self.diagnostics(endpoints, self.initial_diagnostics(endpoints)),
        )

    def diagnostics(
        self, origin: Endpoints, proposed: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Returns the diagnostics of a transition from `origin`, including its proposal's."""
        return {"score": origin.score(self.inverse_temperature), **proposed}

    def log_accept_ratio(self, origin: Endpoints, proposal: Proposal) -> tf.Tensor:
        """Returns the log of the Metropolis-Hastings ratio of a proposal, `[S, B]`."""
        if not self.evaluates_state:
            return tf.fill(tf.shape(proposal.log_ratio), tf.constant(math.nan, origin.log_p.dtype))
        b = self.inverse_temperature
        change = proposal.endpoints.log_prob(b) - origin.log_prob(b)
        own = proposal.own_log_ratio
        ratio = change + (proposal.log_ratio if own is None else own)
        return tf.where(proposal.endpoints.is_impossible, _log_zero(ratio), ratio)

    def guarded(self, state: tf.Tensor) -> Self:
        """Returns the kernel on a `GuardedPath`: its proposals from `state` may be rejected."""
        kernel = copy.copy(self)
        kernel.path = GuardedPath(self.path, state)
        return kernel

    @as_written
    def one_step(
        self,
        current_state: tf.Tensor,
        previous_kernel_results: TransitionResults,
        seed: random.SeedLike | None = None,
    ) -> tuple[tf.Tensor, TransitionResults]:
        """Takes the proposal, whatever the result of the acceptance test.

        Args:
            current_state: `[S, B, D]`; any shape that begins with the log-density's.
            previous_kernel_results: Results of the last step, or of `bootstrap_results`.
            seed: A seed of `tf_mcvae.random`, or an integer.

        Returns:
            The next state and its `TransitionResults`.
        """
        proposal_seed, test_seed = random.split(required_seed(seed))
        origin = previous_kernel_results.endpoints
        proposal = self.propose(current_state, previous_kernel_results, proposal_seed)
        log_accept_ratio = self.log_accept_ratio(origin, proposal)
        log_accept, _ = log_accept_probs(log_accept_ratio, "metropolis")
        return proposal.state, TransitionResults(
            endpoints=proposal.endpoints,
            log_ratio=proposal.log_ratio,
            log_accept_ratio=log_accept_ratio,
            is_accepted=draw_acceptance(log_accept, test_seed),
            log_choice_prob=tf.zeros_like(log_accept_ratio),
            step_size=self.step_size,
            carry=proposal.carry_if_accepted,
            diagnostics=self.diagnostics(origin, proposal.diagnostics),
        )


def log_accept_probs(
    log_accept_ratio: tf.Tensor, acceptance: Acceptance
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the logs of the probabilities of acceptance and of rejection.

    With `t` the Metropolis-Hastings ratio, acceptance has probability `min(1, t)` (Metropolis) or
    `t / (1 + t)` (Barker); both leave the target invariant.

    Args:
        log_accept_ratio: `log t`, `[S, B]`; NaN is certain rejection.
        acceptance: `"metropolis"` or `"barker"`.
    """
    is_unknown = tf.math.is_nan(log_accept_ratio)
    log_accept_ratio = tf.where(is_unknown, _log_zero(log_accept_ratio), log_accept_ratio)
    if acceptance == "barker":
        return tf.math.log_sigmoid(log_accept_ratio), tf.math.log_sigmoid(-log_accept_ratio)
    log_accept = tf.minimum(log_accept_ratio, 0.0)
    # The small constant keeps the logarithm finite where acceptance is certain. With `1 - exp`
    # instead of `expm1`, a compiler would add it to the 1, where rounding removes it.
    return log_accept, tf.math.log(1e-8 - tf.math.expm1(log_accept))


def acceptance_slope(log_accept_ratio: tf.Tensor, acceptance: Acceptance) -> tf.Tensor:
    """Returns the derivative of the probability of acceptance with respect to `log t`, `[S, B]`.

    It is `t` where `t < 1` and otherwise 0 (Metropolis), or the product of the probabilities of
    acceptance and of rejection (Barker).

    Args:
        log_accept_ratio: `log t`, `[S, B]`; NaN is certain rejection.
        acceptance: `"metropolis"` or `"barker"`.
    """
    log_accept, log_reject = log_accept_probs(log_accept_ratio, acceptance)
    if acceptance == "barker":
        return tf.exp(log_accept + log_reject)
    return tf.where(log_accept < 0.0, tf.exp(log_accept), tf.zeros_like(log_accept))


def draw_acceptance(log_accept: tf.Tensor, seed: random.Seed) -> tf.Tensor:
    """Draws the acceptance test, true with probability `exp(log_accept)`.

    The draws are at least 2^-24: what is less probable is never accepted, and neither is NaN.
    """
    draws = random.uniform(random.shape_of(log_accept), seed)
    return tf.cast(draws, log_accept.dtype) < tf.exp(log_accept)


def _log_zero(like: tf.Tensor) -> tf.Tensor:
    return tf.constant(-math.inf, like.dtype)
