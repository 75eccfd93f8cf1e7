"""The kernels' common contract, and Metropolis-Hastings and Barker acceptance.

A kernel proposes `z' ~ m(z'|z)`. All that a bound needs of it is one number, the *log ratio*

    log_ratio = log m~(z|z') - log m(z'|z),

where `m~` is the kernel that runs backwards. Of an uncalibrated kernel `m~` is the kernel itself;
then `log_accept_ratio = log pi(z') - log pi(z) + log_ratio` is the Metropolis-Hastings ratio. Of a
calibrated one `m~` is its time reversal under `pi`, so that `log_ratio = log pi(z) - log pi(z')`.
"""

from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae import random
from tf_mcvae.kernels.path import AnnealedPath, Endpoints, LogProbFn


class TransitionResults(NamedTuple):
    """What every kernel of this package reports of its last transition.

    Attributes:
        endpoints: Log-densities and scores at the current state, free of temperature.
        target_log_prob: `log pi_b` at the current state, `[S, B]`.
        log_ratio: Log of the backward over the forward density of the move made, `[S, B]`.
        log_accept_ratio: Log of the Metropolis-Hastings ratio of the move proposed, `[S, B]`.
        is_accepted: Whether the move passed the acceptance test, `[S, B]`. An uncalibrated kernel
            draws the test too, as a diagnostic, and moves all the same.
        log_choice_prob: Log-probability of the accept or reject that was realised, `[S, B]`; zero
            where the kernel always moves.
        score: Gradient of `log pi_b` at the state that the transition began from, `[S, B, D]`.
        drift_error: `|drift - score|^2` at that state, `[S, B]`; zero unless the drift is learned.
        step_size: The step size used.
        momentum: What a kernel that keeps its momentum goes on with, `[S, B, D]`; else empty.
    """

    endpoints: Endpoints
    target_log_prob: tf.Tensor
    log_ratio: tf.Tensor
    log_accept_ratio: tf.Tensor
    is_accepted: tf.Tensor
    log_choice_prob: tf.Tensor
    score: tf.Tensor
    drift_error: tf.Tensor
    step_size: tf.Tensor
    momentum: Any = ()


class Proposal(NamedTuple):
    """A proposed state, its endpoints, and the log ratio of the move to it.

    Attributes:
        state: `[S, B, D]`.
        endpoints: Log-densities and scores there.
        log_ratio: `[S, B]`.
        drift_error: `|drift - score|^2` where the move began, `[S, B]`; None for the score itself.
        own_log_ratio: `[S, B]`, with the kernel itself running backwards, where `log_ratio` is
            with another: acceptance is judged by it. None where they are the same.
        momentum: To go on with after the move, and after staying, where there is one.
    """

    state: tf.Tensor
    endpoints: Endpoints
    log_ratio: tf.Tensor
    drift_error: tf.Tensor | None = None
    own_log_ratio: tf.Tensor | None = None
    momentum: tuple[Any, Any] = ((), ())


def sum_event(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Sums the axes of `values` that the log-density `like` does not have."""
    return tf.reduce_sum(values, axis=list(range(like.shape.rank, values.shape.rank)))


def log_accept_probs(log_accept_ratio: tf.Tensor, acceptance: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the logs of the acceptance and of the rejection probability.

    With `t` the Metropolis-Hastings ratio, acceptance has probability `min(1, t)` (Metropolis) or
    `t / (1 + t)` (Barker); both leave the target invariant.

    Args:
        log_accept_ratio: `log t`, `[S, B]`.
        acceptance: `"metropolis"` or `"barker"`.
    """
    if acceptance == "barker":
        return tf.math.log_sigmoid(log_accept_ratio), tf.math.log_sigmoid(-log_accept_ratio)
    log_accept = tf.minimum(log_accept_ratio, 0.0)
    # The small constant keeps the logarithm finite where a move is certain to be accepted. With
    # `1 - exp` in place of `expm1`, a compiled graph would add it to the 1, and lose it.
    return log_accept, tf.math.log(1e-8 - tf.math.expm1(log_accept))


def draw_acceptance(log_accept: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws the acceptance test, true with probability `exp(log_accept)`."""
    draws = random.uniform(random.shape_of(log_accept), seed)
    return tf.cast(draws, log_accept.dtype) < tf.exp(log_accept)


def select(condition: tf.Tensor, new: Any, old: Any) -> Any:
    """Takes `new` where `condition` ([S, B]) holds, else `old`, in every tensor of a structure."""

    def pick(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        extra = [1] * (a.shape.rank - condition.shape.rank)
        shape = random.shape_of(condition) + extra
        return tf.where(tf.reshape(condition, shape) if extra else condition, a, b)

    return tf.nest.map_structure(pick, new, old)


class AnnealedKernel(tfp.mcmc.TransitionKernel):
    """Base of the kernels: a target, the inverse temperature at which it is taken, a step size.

    Args:
        target_log_prob_fn: Callable that maps states to log-densities, as in `tfp.mcmc`, or an
            `AnnealedPath`.
        step_size: Scalar or `[D]` tensor.
        inverse_temperature: Scalar `b` in [0, 1]: the kernel targets `pi_b`.
    """

    def __init__(
        self,
        target_log_prob_fn: LogProbFn | AnnealedPath,
        step_size: Any,
        inverse_temperature: Any = 1.0,
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

    def bootstrap_results(self, init_state: tf.Tensor) -> TransitionResults:
        """Evaluates the endpoints at the first state."""
        endpoints = self.path.endpoints(tf.convert_to_tensor(init_state))
        log_prob = endpoints.log_prob(self.inverse_temperature)
        zeros = tf.zeros_like(log_prob)
        accepted = tf.ones_like(log_prob, dtype=tf.bool)
        return TransitionResults(
            endpoints=endpoints,
            target_log_prob=log_prob,
            log_ratio=zeros,
            log_accept_ratio=zeros,
            is_accepted=accepted,
            log_choice_prob=zeros,
            score=endpoints.score(self.inverse_temperature),
            drift_error=zeros,
            step_size=self.step_size,
        )

    def propose(self, state: tf.Tensor, previous: TransitionResults, seed: tf.Tensor) -> Proposal:
        """Proposes a move from `state`, given the results of the move that led there."""
        raise NotImplementedError

    def log_accept_ratio(self, endpoints: Endpoints, proposal: Proposal) -> tf.Tensor:
        """Returns the log of the Metropolis-Hastings ratio of a proposal, `[S, B]`."""
        b = self.inverse_temperature
        change = proposal.endpoints.log_prob(b) - endpoints.log_prob(b)
        own = proposal.own_log_ratio
        return change + (proposal.log_ratio if own is None else own)

    def one_step(
        self, current_state: tf.Tensor, previous_kernel_results: TransitionResults, seed: Any = None
    ) -> tuple[tf.Tensor, TransitionResults]:
        """Moves to the proposal, whatever the acceptance test would say.

        Args:
            current_state: `[S, B, D]`; any shape that begins with the log-density's.
            previous_kernel_results: Results of the last step, or of `bootstrap_results`.
            seed: Seed tensor, or an integer.

        Returns:
            The next state and its `TransitionResults`.
        """
        proposal_seed, test_seed = random.split(_required(seed))
        previous = previous_kernel_results.endpoints
        proposal = self.propose(current_state, previous_kernel_results, proposal_seed)
        log_accept_ratio = self.log_accept_ratio(previous, proposal)
        zeros = tf.zeros_like(log_accept_ratio)
        return proposal.state, TransitionResults(
            endpoints=proposal.endpoints,
            target_log_prob=proposal.endpoints.log_prob(self.inverse_temperature),
            log_ratio=proposal.log_ratio,
            log_accept_ratio=log_accept_ratio,
            is_accepted=draw_acceptance(
                log_accept_probs(log_accept_ratio, "metropolis")[0], test_seed
            ),
            log_choice_prob=zeros,
            score=previous.score(self.inverse_temperature),
            drift_error=zeros if proposal.drift_error is None else proposal.drift_error,
            step_size=self.step_size,
            momentum=proposal.momentum[0],
        )


def _required(seed: Any) -> tf.Tensor:
    if seed is None:
        raise ValueError(
            "A kernel's `one_step` needs a seed; `tfp.mcmc.sample_chain` hands one over when it is "
            "given `seed=`. Received: seed=None"
        )
    return random.as_seed(seed)


class MetropolisHastings(tfp.mcmc.TransitionKernel):
    """Calibrates a kernel by accepting or rejecting its proposals.

    Args:
        inner_kernel: An uncalibrated kernel of this package.
        acceptance: `"metropolis"`, with probability `min(1, t)`, or `"barker"`, `t / (1 + t)`.

    Reference:
        Metropolis et al. (1953); Hastings (1970); Barker (1965).
    """

    def __init__(self, inner_kernel: AnnealedKernel, acceptance: str = "metropolis") -> None:
        if acceptance not in ("metropolis", "barker"):
            raise ValueError(
                "`acceptance` must be 'metropolis' or 'barker'. "
                f"Received: acceptance={acceptance!r}"
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

    def bootstrap_results(self, init_state: tf.Tensor) -> TransitionResults:
        """Evaluates the endpoints at the first state."""
        return self.inner_kernel.bootstrap_results(init_state)

    def one_step(
        self, current_state: tf.Tensor, previous_kernel_results: TransitionResults, seed: Any = None
    ) -> tuple[tf.Tensor, TransitionResults]:
        """Proposes a move and accepts or rejects it.

        Args:
            current_state: `[S, B, D]`; any shape that begins with the log-density's.
            previous_kernel_results: Results of the last step, or of `bootstrap_results`.
            seed: Seed tensor, or an integer.

        Returns:
            The next state and its `TransitionResults`.
        """
        proposal_seed, test_seed = random.split(_required(seed))
        kernel, previous = self.inner_kernel, previous_kernel_results.endpoints
        proposal = kernel.propose(current_state, previous_kernel_results, proposal_seed)
        log_accept_ratio = kernel.log_accept_ratio(previous, proposal)
        log_accept, log_reject = log_accept_probs(log_accept_ratio, self.acceptance)
        accepted = draw_acceptance(log_accept, test_seed)
        moved, stayed = proposal.momentum
        state, endpoints, momentum = select(
            accepted,
            (proposal.state, proposal.endpoints, moved),
            (current_state, previous, stayed),
        )
        # The previous results' log-density belongs to the previous temperature: mix it anew.
        log_prob = endpoints.log_prob(kernel.inverse_temperature)
        return state, TransitionResults(
            endpoints=endpoints,
            target_log_prob=log_prob,
            log_ratio=previous.log_prob(kernel.inverse_temperature) - log_prob,
            log_accept_ratio=log_accept_ratio,
            is_accepted=accepted,
            log_choice_prob=tf.where(accepted, log_accept, log_reject),
            score=previous.score(kernel.inverse_temperature),
            drift_error=tf.zeros_like(log_prob),
            step_size=kernel.step_size,
            momentum=momentum,
        )
