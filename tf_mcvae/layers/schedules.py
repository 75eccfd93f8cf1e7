"""Schedules of inverse temperatures, from the base density of a path to its target."""

import inspect
from typing import Any, Literal, Self

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae.checks import ExplicitArguments
from tf_mcvae.precision import density_dtype

# Beyond these limits, the logarithm of a steepness and the logit of a ratio no longer change a
# float32 temperature by more than rounding, but their exponentials over- or underflow.
_MOST_LOG_STEEPNESS, _MOST_LOGIT = 40.0, 80.0


class Schedule(ExplicitArguments, keras.layers.Layer):
    """Base of the schedules: K + 2 inverse temperatures `0 = b_0 < b_1 <= ... < b_{K+1} = 1`.

    Transition k of K targets `pi_{b_k}`. `build(K)` makes the weights.

    A subclass defines `inverse_temperatures`. If its temperatures are a function of `k / (K + 1)`,
    the method takes any number of transitions; models then do too, in `bound` for example.
    """

    num_transitions: int

    @property
    def density_dtype(self) -> str:
        """The dtype of the inverse temperatures; see `precision`."""
        return density_dtype(self.dtype_policy)

    def build(self, num_transitions: int) -> None:
        """Makes the weights for `num_transitions` transitions."""
        self.num_transitions = int(num_transitions)
        self.built = True

    def inverse_temperatures(self, num_transitions: int | tf.Tensor | None = None) -> tf.Tensor:
        """Returns `b_0, ..., b_{K+1}`, a tensor of shape `[K + 2]` in the dtype of densities.

        Args:
            num_transitions: K; None for the number that the schedule is built for.

        Raises:
            ValueError: If the schedule has weights for each transition, and K is not None.
        """
        raise NotImplementedError

    def resampled(self, num_transitions: int | tf.Tensor) -> tf.Tensor:
        """Returns the inverse temperatures of another number of transitions, `[K + 2]`.

        Raises:
            ValueError: If the schedule has none.
        """
        if not inspect.signature(self.inverse_temperatures).parameters:
            raise ValueError(
                f"{type(self).__name__} has inverse temperatures for {self.num_transitions} "
                "transitions only: let its method `inverse_temperatures` take an argument "
                "`num_transitions`, None for the number that it is built for. "
                f"Received: num_transitions={num_transitions}"
            )
        return self.inverse_temperatures(num_transitions)

    def _grid(self, num_transitions: int | tf.Tensor | None) -> tf.Tensor:
        """Returns `t_k = k / (K + 1)`, `[K + 2]`, in the dtype of densities."""
        if num_transitions is None:
            num_transitions = self.num_transitions
        if not tf.is_tensor(num_transitions):
            return tf.constant(linear_temperatures(int(num_transitions) + 1, self.density_dtype))
        last = tf.cast(num_transitions, tf.int32) + 1
        grid = tf.cast(tf.range(last + 1), tf.float64) / tf.cast(last, tf.float64)
        return tf.cast(grid, self.density_dtype)

    def check_values(self, num_transitions: int) -> None:
        """Raises a `ValueError` unless the built schedule goes from 0 to 1 in K + 1 steps."""
        with tf.init_scope():
            values = np.asarray(self.inverse_temperatures(), np.float64)
        expected = (num_transitions + 2,)
        if (
            values.shape != expected
            or not np.all(np.isfinite(values))
            or not np.allclose([values[0], values[-1]], [0.0, 1.0], rtol=0.0, atol=1e-5)
            or np.any(np.diff(values) < -1e-6)
        ):
            raise ValueError(
                f"The inverse temperatures of {type(self).__name__} must be {expected[0]} finite "
                f"numbers, K + 2 for {num_transitions} transitions, that begin with 0, "
                f"never decrease and end with 1. Received: {values.tolist()}"
            )


@keras.saving.register_keras_serializable("tf_mcvae")
class LinearSchedule(Schedule):
    """Equidistant inverse temperatures, `b_k = k / (K + 1)`."""

    def inverse_temperatures(self, num_transitions: int | tf.Tensor | None = None) -> tf.Tensor:
        """Returns the inverse temperatures, `[K + 2]`."""
        return self._grid(num_transitions)


@keras.saving.register_keras_serializable("tf_mcvae")
class SigmoidalSchedule(Schedule):
    """Sigmoidal inverse temperatures with one weight, their steepness.

    With `s(t) = sigmoid(delta (2 t - 1))` and `t_k = k / (K + 1)`,

        b_k = (s(t_k) - s(0)) / (s(1) - s(0)),        delta = exp(log_steepness).

    Args:
        log_steepness: Initial value of `log(delta)`; -3 is almost linear.
        learnable: Whether the steepness is trained.
        name: Name of the layer.
        trainable: Whether the weights are trained.
        dtype: Data type or policy, as in Keras.

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """

    def __init__(
        self,
        log_steepness: float = -3.0,
        learnable: bool = True,
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        self.initial_log_steepness = log_steepness
        self.learnable = learnable

    def build(self, num_transitions: int) -> None:
        """Makes the steepness."""
        self.log_steepness = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(self.initial_log_steepness),
            trainable=self.learnable,
            dtype=self.density_dtype,
            autocast=False,
            name="log_steepness",
        )
        super().build(num_transitions)

    def inverse_temperatures(self, num_transitions: int | tf.Tensor | None = None) -> tf.Tensor:
        """Returns the inverse temperatures, `[K + 2]`."""
        # With sigmoid(u) = (1 + tanh(u / 2)) / 2 nothing cancels if the steepness is small.
        log_steepness = tf.convert_to_tensor(self.log_steepness)
        limit = _MOST_LOG_STEEPNESS
        half = 0.5 * tf.exp(tf.clip_by_value(log_steepness, -limit, limit))
        grid = self._grid(num_transitions)
        return 0.5 + 0.5 * tf.tanh(half * (2.0 * grid - 1.0)) / tf.tanh(half)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = {"log_steepness": self.initial_log_steepness, "learnable": self.learnable}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable("tf_mcvae")
class LearnedSchedule(Schedule):
    """Inverse temperatures that are all learned, through their ratios.

    With weights `u_1, ..., u_K`, `b_k / b_{k+1} = sigmoid(u_k)`, so that

        b_k = sigmoid(u_k) sigmoid(u_{k+1}) ... sigmoid(u_K),     b_0 = 0,  b_{K+1} = 1.

    Args:
        start: `"halving"`, as published: `u_k = 0`, so that `b_k = 2^(k - K - 1)`. Of many
            transitions, all but the last ten then hardly leave the base. Or `"linear"`:
            `b_k = k / (K + 1)`.
        name: Name of the layer.
        trainable: Whether the weights are trained.
        dtype: Data type or policy, as in Keras.

    Raises:
        ValueError: If there is no such start.

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """

    def __init__(
        self,
        start: Literal["halving", "linear"] = "halving",
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        if start not in ("halving", "linear"):
            raise ValueError(f"`start` must be 'halving' or 'linear'. Received: start={start!r}")
        self.start = start

    def build(self, num_transitions: int) -> None:
        """Makes the K logits of the ratios."""
        # sigmoid(log k) = k / (k + 1), the ratio of two linear ones.
        numbers = np.arange(1.0, 1.0 + num_transitions)
        start = np.log(numbers) if self.start == "linear" else np.zeros_like(numbers)
        self.logits = self.add_weight(
            shape=(num_transitions,),
            initializer=keras.initializers.Constant(start),
            dtype=self.density_dtype,
            autocast=False,
            name="logits",
        )
        super().build(num_transitions)

    def inverse_temperatures(self, num_transitions: int | tf.Tensor | None = None) -> tf.Tensor:
        """Returns the inverse temperatures, `[K + 2]`, of the K that has weights."""
        if num_transitions is not None:
            raise ValueError(
                "A schedule whose inverse temperatures are all learned has a weight for each of "
                f"its {self.num_transitions} transitions, and none for others: leave out "
                "`num_transitions`, or choose a linear or sigmoidal schedule. "
                f"Received: num_transitions={num_transitions}"
            )
        # The gradient of a product divides by its factors, which must not underflow to 0.
        logits = tf.convert_to_tensor(self.logits)
        ratios = tf.sigmoid(tf.clip_by_value(logits, -_MOST_LOGIT, _MOST_LOGIT))
        inner = tf.math.cumprod(ratios, reverse=True)
        return tf.concat([tf.zeros([1], inner.dtype), inner, tf.ones([1], inner.dtype)], axis=0)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "start": self.start}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Makes a layer from the constructor's arguments; also from those that 0.1.0 saved."""
        # Files of 0.1.0 hold two arguments more, of Keras' base class.
        extra = ("activity_regularizer", "autocast")
        return cls(**{name: value for name, value in config.items() if name not in extra})


SCHEDULES: dict[str, type[Schedule]] = {
    "linear": LinearSchedule,
    "sigmoidal": SigmoidalSchedule,
    "all_learnable": LearnedSchedule,
}


def get_schedule(
    identifier: str | Schedule, dtype: str | keras.DTypePolicy | None = None
) -> Schedule:
    """Returns a schedule of a name and dtype, or the given layer.

    Args:
        identifier: `"linear"`, `"sigmoidal"`, `"all_learnable"`, or a `Schedule` layer.
        dtype: Data type or policy of a schedule that is given by its name.

    Raises:
        ValueError: If there is no schedule of that name.
    """
    if isinstance(identifier, Schedule):
        return identifier
    if isinstance(identifier, str) and identifier in SCHEDULES:
        return SCHEDULES[identifier](dtype=dtype)
    raise ValueError(
        f"`schedule` must be one of {sorted(SCHEDULES)}, or a tf_mcvae Schedule layer. "
        f"Received: schedule={identifier!r}"
    )


def sigmoid_temperatures(
    num_temperatures: int, steepness: float = 4.0, dtype: str = "float32"
) -> np.ndarray[Any, Any]:
    """Returns the fixed sigmoid schedule of annealed importance sampling for evaluation.

        b_t = (sigmoid(delta (2t/T - 1)) - sigmoid(-delta)) / (sigmoid(delta) - sigmoid(-delta))

    Args:
        num_temperatures: T, at least 1.
        steepness: `delta`.
        dtype: Data type of the result.

    Returns:
        Inverse temperatures `b_0 = 0, ..., b_T = 1` of shape `[T + 1]`.

    Reference:
        Wu et al., On the Quantitative Analysis of Decoder-Based Generative Models, ICLR 2017,
        arXiv 1611.04273.
    """
    grid = np.linspace(-1.0, 1.0, num_temperatures + 1)
    values = 1.0 / (1.0 + np.exp(-steepness * grid))
    return ((values - values[0]) / (values[-1] - values[0])).astype(dtype)


def linear_temperatures(num_temperatures: int, dtype: str = "float32") -> np.ndarray[Any, Any]:
    """Returns equidistant inverse temperatures `b_t = t / T`, `[T + 1]`."""
    return np.linspace(0.0, 1.0, num_temperatures + 1, dtype=dtype)
