"""The path of densities that chains are annealed along.

The path joins a base density `q` (in a VAE the encoder's `q(z|x)`) to a target `p` (the joint
density `p(x, z)`) geometrically,

    log pi_b(z) = (1 - b) log q(z) + b log p(z) + constant,        0 <= b <= 1.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

LogProbFn = Callable[..., tf.Tensor]


# The log-densities of a state at which they cannot be computed, low enough for certain rejection.
_IMPOSSIBLE = -1e30


class Endpoints(NamedTuple):
    """Log-densities and scores of both ends of a path at one state.

    They do not depend on the temperature, so they remain valid when it changes: an annealed chain
    of K transitions evaluates them K + 1 times, once per state. Values that are computed from them
    at one temperature must not be kept for another.

    Attributes:
        log_q: Base log-density, `[S, B]`.
        log_p: Target log-density, `[S, B]`.
        score_q: Gradient of `log_q` with respect to the state, `[S, B, D]`.
        score_p: Gradient of `log_p` with respect to the state, `[S, B, D]`.
    """

    log_q: tf.Tensor
    log_p: tf.Tensor
    score_q: tf.Tensor
    score_p: tf.Tensor

    def log_prob(self, inverse_temperature: tf.Tensor | float) -> tf.Tensor:
        """Returns `log pi_b` up to its constant, `[S, B]`."""
        return self.log_q + inverse_temperature * (self.log_p - self.log_q)

    def score(self, inverse_temperature: tf.Tensor | float) -> tf.Tensor:
        """Returns the gradient of `log pi_b`, `[S, B, D]`."""
        return self.score_q + inverse_temperature * (self.score_p - self.score_q)

    @property
    def is_impossible(self) -> tf.Tensor:
        """Whether a `GuardedPath` found that the densities cannot be computed, `[S, B]`."""
        return self.log_p <= _IMPOSSIBLE


class AnnealedPath:
    """The geometric path between two densities.

    Args:
        base_log_prob_fn: Maps states `[S, B, D]` to `log q`, `[S, B]`.
        target_log_prob_fn: Maps states `[S, B, D]`, followed by the tensors of `recomputed`, to
            `log p`, `[S, B]`; each entry may depend on its own state only.
        recomputed: Tensors (a decoder's weights) that are further arguments of the target. If there
            are any, the backward pass recomputes the target's activations instead of keeping them;
            the target must not depend on anything else that has a gradient.
    """

    def __init__(
        self,
        base_log_prob_fn: LogProbFn,
        target_log_prob_fn: LogProbFn,
        recomputed: Sequence[tf.Tensor] = (),
    ) -> None:
        self.base_log_prob_fn = base_log_prob_fn
        self.target_log_prob_fn = target_log_prob_fn
        self.recomputed = tuple(recomputed)

    @classmethod
    def from_target(cls, target_log_prob_fn: "LogProbFn | AnnealedPath") -> "AnnealedPath":
        """Returns the path from a constant base to a target; a path is returned unchanged."""
        if isinstance(target_log_prob_fn, AnnealedPath):
            return target_log_prob_fn
        if not callable(target_log_prob_fn):
            raise TypeError(
                "`target_log_prob_fn` must be a callable that maps states to log-densities, or an "
                f"AnnealedPath. Received: target_log_prob_fn={target_log_prob_fn!r}"
            )
        target = target_log_prob_fn
        return _ConstantBasePath(lambda state: tf.zeros_like(target(state)), target)

    def reversed(self) -> "AnnealedPath":
        """Returns the path with its ends exchanged; not for a path that is recomputed."""
        if self.recomputed:
            raise ValueError(
                "A path whose target is computed again in the backward pass has no reverse: make "
                f"it without `recomputed`. Received: {len(self.recomputed)} recomputed tensors"
            )
        return AnnealedPath(self.target_log_prob_fn, self.base_log_prob_fn)

    def endpoints(self, state: tf.Tensor) -> Endpoints:
        """Evaluates both densities and their scores, each network once.

        The result is differentiable once more, with respect to the state and to the networks'
        weights: the gradient of a log weight needs this second order.
        """
        # A bijector of TFP caches the origin of a state by the tensor's identity; its density would
        # then not depend on the state.
        state = tf.identity(state)
        target = self._recomputed_target if self.recomputed else self._target_and_score
        log_p, score_p = target(state)
        if score_p is None:
            raise ValueError(
                "The target's log-density must be differentiable with respect to the state. "
                f"Received: a density without gradient, {self.target_log_prob_fn!r}"
            )
        log_q, score_q = self._base_and_score(state, log_p)
        return Endpoints(log_q, log_p, score_q, score_p)

    def nearest(self, state: tf.Tensor) -> tf.Tensor:
        """Returns the state at which `endpoints` evaluates the densities; see `GuardedPath`."""
        return state

    def _base_and_score(self, state: tf.Tensor, log_p: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        del log_p
        log_q, score_q = tfp.math.value_and_gradient(self.base_log_prob_fn, state)
        return log_q, tf.zeros_like(state) if score_q is None else score_q  # a constant base

    def _target_and_score(
        self, state: tf.Tensor, *recomputed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        log_p, score_p = tfp.math.value_and_gradient(
            lambda z: self.target_log_prob_fn(z, *recomputed), state
        )
        return log_p, score_p

    def _recomputed_target(self, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # `tf.recompute_grad` cannot be differentiated in a loop, where variables must be inputs.
        @tf.custom_gradient
        def endpoints(*inputs: tf.Tensor) -> Any:
            def gradient(*upstream: tf.Tensor) -> Any:
                # Tensors of the graph that this is called in, which the tape can watch.
                here = [tf.identity(value) for value in inputs]
                with tf.GradientTape() as tape:
                    tape.watch(here)
                    outputs = self._target_and_score(*here)
                return tape.gradient(outputs, here, upstream)

            return self._target_and_score(*inputs), gradient

        log_p, score_p = endpoints(state, *self.recomputed)
        return log_p, score_p


class _ConstantBasePath(AnnealedPath):
    """A path from a constant base, which evaluates its target once."""

    def _base_and_score(self, state: tf.Tensor, log_p: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.zeros_like(log_p), tf.zeros_like(state)


class GuardedPath(AnnealedPath):
    """A path for proposals that may be rejected, with finite endpoints for all of them.

    A rejected proposal has no share in the gradient, but zero times the derivative of an overflow
    is NaN. Where the square of a state overflows, the densities are therefore evaluated at the
    fallback; where a density or score is not finite, the endpoints are constants. Both are
    `Endpoints.is_impossible`, which means certain rejection. All other endpoints are unchanged.

    Args:
        path: A path.
        fallback: The current state, `[S, B, D]`.
    """

    def __init__(self, path: AnnealedPath, fallback: tf.Tensor) -> None:
        super().__init__(path.base_log_prob_fn, path.target_log_prob_fn, path.recomputed)
        self._path = path
        self._fallback = fallback

    def nearest(self, state: tf.Tensor) -> tf.Tensor:
        """Returns the state, with the fallback's elements in place of those that overflow."""
        return tf.where(tf.math.is_finite(tf.square(state)), state, self._fallback)

    def endpoints(self, state: tf.Tensor) -> Endpoints:
        """Evaluates both densities and their scores; see the class."""
        found = self._path.endpoints(self.nearest(state))
        events = tf.square(state) + found.score_q + found.score_p
        axes = list(range(found.log_p.shape.rank, events.shape.rank))
        total = found.log_q + found.log_p + tf.reduce_sum(events, axis=axes)
        is_possible = tf.math.is_finite(total)
        extra = [1] * len(axes)
        of_event = tf.reshape(is_possible, [*tf.unstack(tf.shape(is_possible)), *extra])
        lowest = tf.constant(_IMPOSSIBLE, found.log_p.dtype)
        return Endpoints(
            tf.where(is_possible, found.log_q, lowest),
            tf.where(is_possible, found.log_p, lowest),
            tf.where(of_event, found.score_q, tf.zeros_like(state)),
            tf.where(of_event, found.score_p, tf.zeros_like(state)),
        )
