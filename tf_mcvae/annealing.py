"""Annealing: schedules of inverse temperatures, and the path of densities they run along.

The path joins a base density `q` (in a VAE the encoder's `q(z|x)`) to a target `p` (the joint
density `p(x, z)`) geometrically,

    log pi_b(z) = (1 - b) log q(z) + b log p(z) + constant,        0 <= b <= 1.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

LogProbFn = Callable[[tf.Tensor], tf.Tensor]


class Endpoints(NamedTuple):
    """Log-densities and scores of both ends of a path at one state.

    They hold no temperature, so they stay right when the temperature changes: an annealed chain of
    K transitions evaluates them K + 1 times, once for each state. What is mixed from them at one
    temperature must never be kept for another.

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

    def log_prob(self, inverse_temperature: Any) -> tf.Tensor:
        """Returns `log pi_b` up to its constant, `[S, B]`."""
        return self.log_q + inverse_temperature * (self.log_p - self.log_q)

    def score(self, inverse_temperature: Any) -> tf.Tensor:
        """Returns the gradient of `log pi_b`, `[S, B, D]`."""
        return self.score_q + inverse_temperature * (self.score_p - self.score_q)


class AnnealedPath:
    """The geometric path between two densities.

    Args:
        base_log_prob_fn: Maps states `[S, B, D]` to `log q`, `[S, B]`.
        target_log_prob_fn: Maps states `[S, B, D]` to `log p`, `[S, B]`; each entry may depend on
            its own state only.
        recomputed: Keras variables of the target. If there are any, what lies between the state and
            the target's endpoints is computed again in the backward pass and not kept for it; the
            target must depend on nothing else that has a gradient.
    """

    def __init__(
        self,
        base_log_prob_fn: LogProbFn,
        target_log_prob_fn: LogProbFn,
        recomputed: Sequence[keras.Variable] = (),
    ) -> None:
        self.base_log_prob_fn = base_log_prob_fn
        self.target_log_prob_fn = target_log_prob_fn
        self.recomputed = tuple(recomputed)

    @classmethod
    def from_target(cls, target_log_prob_fn: "LogProbFn | AnnealedPath") -> "AnnealedPath":
        """Returns the path to a plain target (constant base); a path is returned as it is."""
        if isinstance(target_log_prob_fn, AnnealedPath):
            return target_log_prob_fn
        if not callable(target_log_prob_fn):
            raise TypeError(
                "`target_log_prob_fn` must be a callable that maps states to log-densities, or an "
                f"AnnealedPath. Received: target_log_prob_fn={target_log_prob_fn!r}"
            )
        target = target_log_prob_fn
        return cls(lambda state: tf.zeros_like(target(state)), target)

    def endpoints(self, state: tf.Tensor) -> Endpoints:
        """Evaluates both densities and their scores, each network once.

        The result is differentiable once more, with respect to the state and to the networks'
        weights: the gradient of a log weight needs this second order.
        """
        # TFP remembers how a state was drawn, by its identity, and would hand out a density that
        # no longer depends on it.
        state = tf.identity(state)
        log_q, score_q = tfp.math.value_and_gradient(self.base_log_prob_fn, state)
        target = self._target_and_score if not self.recomputed else self._recomputed_target
        log_p, score_p = target(state)
        if score_p is None:
            raise ValueError(
                "The target's log-density must be differentiable with respect to the state. "
                f"Received: a density without gradient, {self.target_log_prob_fn!r}"
            )
        score_q = tf.zeros_like(state) if score_q is None else score_q  # a constant base
        return Endpoints(log_q, log_p, score_q, score_p)

    def _target_and_score(self, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        log_p, score_p = tfp.math.value_and_gradient(self.target_log_prob_fn, state)
        return log_p, score_p

    def _recomputed_target(self, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Not tf.recompute_grad, which cannot be differentiated within a loop: there the variables
        # must be inputs.
        def evaluate(state: tf.Tensor, *values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            with keras.StatelessScope(list(zip(self.recomputed, values, strict=True))):
                return self._target_and_score(state)

        @tf.custom_gradient
        def endpoints(*inputs: tf.Tensor) -> Any:
            def gradient(*upstream: tf.Tensor) -> Any:
                # As tensors of the graph that this is called in, so that the tape knows them.
                here = [tf.identity(value) for value in inputs]
                with tf.GradientTape() as tape:
                    tape.watch(here)
                    outputs = evaluate(*here)
                return tape.gradient(outputs, here, upstream)

            return evaluate(*inputs), gradient

        values = [tf.convert_to_tensor(variable.value) for variable in self.recomputed]
        log_p, score_p = endpoints(state, *values)
        return log_p, score_p


class Schedule(keras.layers.Layer):
    """Base of the schedules: K + 2 inverse temperatures `0 = b_0 < b_1 <= ... < b_{K+1} = 1`.

    Transition k of K targets `pi_{b_k}`. `build(K)` makes the weights.
    """

    num_transitions: int

    def build(self, num_transitions: int) -> None:
        """Makes the weights for `num_transitions` transitions."""
        self.num_transitions = int(num_transitions)
        self.built = True

    def inverse_temperatures(self) -> tf.Tensor:
        """Returns `b_0, ..., b_{K+1}`, a `float32` tensor of shape `[K + 2]`."""
        raise NotImplementedError

    def _grid(self) -> np.ndarray[Any, Any]:
        """Returns `t_k = k / (K + 1)`."""
        return np.linspace(0.0, 1.0, self.num_transitions + 2, dtype=np.float32)


@keras.saving.register_keras_serializable("tf_mcvae")
class LinearSchedule(Schedule):
    """Equidistant inverse temperatures, `b_k = k / (K + 1)`."""

    def inverse_temperatures(self) -> tf.Tensor:
        """Returns the inverse temperatures, `[K + 2]`."""
        return tf.constant(self._grid())


@keras.saving.register_keras_serializable("tf_mcvae")
class SigmoidalSchedule(Schedule):
    """Sigmoidal inverse temperatures with one weight, their steepness.

    With `s(t) = sigmoid(delta (2 t - 1))` and `t_k = k / (K + 1)`,

        b_k = (s(t_k) - s(0)) / (s(1) - s(0)),        delta = exp(log_steepness).

    Args:
        log_steepness: First value of the logarithm of `delta`; -3 is all but linear.
        learnable: Whether the steepness is trained.

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """

    def __init__(self, log_steepness: float = -3.0, learnable: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initial_log_steepness = log_steepness
        self.learnable = learnable

    def build(self, num_transitions: int) -> None:
        """Makes the steepness."""
        self.log_steepness = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(self.initial_log_steepness),
            trainable=self.learnable,
            name="log_steepness",
        )
        super().build(num_transitions)

    def inverse_temperatures(self) -> tf.Tensor:
        """Returns the inverse temperatures, `[K + 2]`."""
        # With sigmoid(u) = (1 + tanh(u / 2)) / 2 nothing cancels where the steepness is small.
        half = 0.5 * tf.exp(tf.convert_to_tensor(self.log_steepness))
        return 0.5 + 0.5 * tf.tanh(half * (2.0 * self._grid() - 1.0)) / tf.tanh(half)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = {"log_steepness": self.initial_log_steepness, "learnable": self.learnable}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable("tf_mcvae")
class LearnedSchedule(Schedule):
    """Inverse temperatures that are all learned, through their ratios.

    With weights `u_1, ..., u_K` that start at 0, `b_k / b_{k+1} = sigmoid(u_k)`, that is

        b_k = sigmoid(u_k) sigmoid(u_{k+1}) ... sigmoid(u_K),     b_0 = 0,  b_{K+1} = 1.

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """

    def build(self, num_transitions: int) -> None:
        """Makes the K logits of the ratios."""
        self.logits = self.add_weight(shape=(num_transitions,), initializer="zeros", name="logits")
        super().build(num_transitions)

    def inverse_temperatures(self) -> tf.Tensor:
        """Returns the inverse temperatures, `[K + 2]`."""
        ratios = tf.sigmoid(tf.convert_to_tensor(self.logits))
        inner = tf.math.cumprod(ratios, reverse=True)
        return tf.concat([[0.0], inner, [1.0]], axis=0)


SCHEDULES: dict[str, type[Schedule]] = {
    "linear": LinearSchedule,
    "sigmoidal": SigmoidalSchedule,
    "all_learnable": LearnedSchedule,
}


def get_schedule(identifier: Any) -> Schedule:
    """Returns the schedule of a name (`linear`, `sigmoidal`, `all_learnable`), or the one given.

    Raises:
        ValueError: If there is no schedule of that name.
    """
    if isinstance(identifier, Schedule):
        return identifier
    if isinstance(identifier, str) and identifier in SCHEDULES:
        return SCHEDULES[identifier]()
    raise ValueError(
        f"`schedule` must be one of {sorted(SCHEDULES)}, or a tf_mcvae Schedule layer. "
        f"Received: schedule={identifier!r}"
    )


def sigmoid_temperatures(num_temperatures: int, steepness: float = 4.0) -> np.ndarray[Any, Any]:
    """Returns the fixed sigmoid schedule of annealed importance sampling for evaluation.

        b_t = (sigmoid(delta (2t/T - 1)) - sigmoid(-delta)) / (sigmoid(delta) - sigmoid(-delta))

    Args:
        num_temperatures: T, at least 1.
        steepness: `delta`.

    Returns:
        Inverse temperatures `b_0 = 0, ..., b_T = 1` of shape `[T + 1]`, `float32`.

    Reference:
        Wu et al., On the Quantitative Analysis of Decoder-Based Generative Models, ICLR 2017,
        arXiv 1611.04273.
    """
    grid = np.linspace(-1.0, 1.0, num_temperatures + 1)
    values = 1.0 / (1.0 + np.exp(-steepness * grid))
    return ((values - values[0]) / (values[-1] - values[0])).astype(np.float32)


def linear_temperatures(num_temperatures: int) -> np.ndarray[Any, Any]:
    """Returns equidistant inverse temperatures `b_t = t / T`, `[T + 1]`, `float32`."""
    return np.linspace(0.0, 1.0, num_temperatures + 1, dtype=np.float32)
