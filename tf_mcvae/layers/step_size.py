"""The step sizes of a model's transitions, as a layer: fixed, learned or adapted."""

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae.checks import ExplicitArguments
from tf_mcvae.kernels.step_size_rules import (
    ACCEPTANCE_LIMITS,
    PUBLISHED_LIMITS,
    Limits,
    acceptance_update,
    published_acceptance_update,
    variance_update,
)
from tf_mcvae.precision import density_dtype

StepSizeRule = Literal["fixed", "learned", "acceptance", "published_acceptance", "variance"]
RULES = get_args(StepSizeRule)
LIMITS = {"acceptance": ACCEPTANCE_LIMITS, "published_acceptance": PUBLISHED_LIMITS}


@keras.saving.register_keras_serializable("tf_mcvae")
class StepSize(ExplicitArguments, keras.layers.Layer):
    """Step sizes of K transitions, and the rule by which they change.

    `values()` returns the step sizes, `[K]` or, per dimension, `[K, D]`. A kernel decides what they
    are: `e` of `UnadjustedLangevin`, the leapfrog step of Hamiltonian kernels. The rules are:

    - `"fixed"`: they do not change.
    - `"learned"`: they are trained with the networks: as `exp(w)`, or, with limits `(low, high)`,
      as `low + (high - low) sigmoid(w)`.
    - `"acceptance"`: each training step changes the logarithm of a transition's step size in
      proportion to the difference of its acceptance from the target. The changes become smaller:
      up to twofold at first; after 678 steps, with everything accepted and a target of 0.9, 2.2 %.
      The target is reached within 200 steps from a start 30 times too small or too large.
    - `"published_acceptance"`: each training step multiplies a transition's step size by 1.002 if
      its acceptance reaches the target, and by 0.998 if not.
    - `"variance"`: each step size, one per dimension, moves towards the inverse spread of the score
      over the batch. A batch of one state has no spread, and changes nothing.

    Adapted values are non-trainable weights: they are saved, and change only in training, for the
    training steps that follow. Training steps whose update is skipped, or whose gradient or
    statistics are not finite, do not change them.

    Args:
        initial: Initial step size: a scalar; `[K]`, one per transition; or `[1, D]` or `[K, D]`,
            one per dimension.
        rule: One of the rules above.
        target_acceptance: Target of the rules that adapt step sizes.
        per_transition: Whether each transition has its own step size. If not, all share one, which
            suits the rules `"fixed"` and `"learned"`.
        per_dimension: Whether each latent dimension has its own step size. An initial value with
            two axes, and the rule `"variance"`, imply it.
        limits: The smallest and the largest step size that an acceptance rule may set. None: 1e-8
            and 100; 0.001 and 0.5 by the published rule. Or the bounds between which learned ones
            stay, of which the lower may be 0; None: 0 and infinity.
        name: Name of the layer.
        trainable: Whether the weights are trained.
        dtype: Data type or policy, as in Keras.

    Raises:
        ValueError: If a step size is negative, not finite, (if learned) 0 or (with limits) outside
            them, the rule is unknown, the target is not between 0 and 1, limits do not increase
            from above 0 or are given to another rule, or one step size is shared by transitions
            that have several initial values, or whose step sizes a rule adapts.

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921. The rule
        `"acceptance"`: see `kernels.step_size_rules.acceptance_update`.
    """

    def __init__(
        self,
        initial: float | Sequence[Any] | np.ndarray[Any, Any] = 0.01,
        rule: StepSizeRule = "fixed",
        target_acceptance: float = 0.9,
        *,
        per_transition: bool = True,
        per_dimension: bool = False,
        limits: tuple[float, float] | None = None,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        if rule not in RULES:
            raise ValueError(f"`rule` must be one of {RULES}. Received: rule={rule!r}")
        if not 0.0 < target_acceptance < 1.0:
            raise ValueError(
                "`target_acceptance` must lie between 0 and 1. "
                f"Received: target_acceptance={target_acceptance!r}"
            )
        self.rule = rule
        self.target_acceptance = target_acceptance
        self.limits = _limits(rule, limits)
        self.initial: np.ndarray[Any, Any] = np.asarray(initial, density_dtype(self.dtype_policy))
        _check_initial(self.initial, rule, self.limits)
        self.per_transition = per_transition
        self.per_dimension = per_dimension or rule == "variance" or self.initial.ndim == 2
        if not per_transition:
            _check_shared(self.initial, rule)

    def build(self, num_transitions: int, latent_dim: int) -> None:
        """Makes the weights for K transitions in D dimensions."""
        self.num_transitions = num_transitions
        values = self._initial_values(num_transitions if self.per_transition else 1, latent_dim)
        if self.rule == "learned" and self._is_bounded:
            low, high = self.limits
            values = values.astype(np.float64)
            self._make("logit_step_size", np.log((values - low) / (high - values)), trainable=True)
        elif self.rule == "learned":
            self._make("log_step_size", np.log(values), trainable=True)
        else:
            self._make("step_size", values, trainable=False)
        if self.rule == "variance":
            self._make("variance_scale", np.full([num_transitions], 0.1), trainable=False)
        if self.rule == "acceptance":
            self.num_updates = self.add_weight(
                shape=(num_transitions,),
                dtype="int32",
                initializer="zeros",
                trainable=False,
                name="num_updates",
            )
        self.built = True

    def _initial_values(self, num_values: int, latent_dim: int) -> np.ndarray[Any, Any]:
        """Returns the initial values of the weight, `[K]` or `[K, D]`; K is 1 if shared."""
        column = self.per_dimension and self.initial.ndim == 1
        try:
            return np.broadcast_to(
                self.initial[:, None] if column else self.initial,
                (num_values, latent_dim) if self.per_dimension else (num_values,),
            )
        except ValueError as error:
            raise ValueError(
                f"The step sizes must fit {self.num_transitions} transitions in {latent_dim} "
                f"dimensions: a scalar, [K] or [K, D]. Received: shape {self.initial.shape}"
            ) from error

    def _make(self, name: str, values: np.ndarray[Any, Any], trainable: bool) -> None:
        def initializer(shape: Any, dtype: Any = None) -> tf.Tensor:
            return tf.constant(values, dtype, shape)

        weight = self.add_weight(
            shape=values.shape,
            initializer=initializer,
            dtype=density_dtype(self.dtype_policy),
            trainable=trainable,
            autocast=False,
            name=name,
        )
        setattr(self, name, weight)

    @property
    def is_adapted(self) -> bool:
        """Whether `update` changes the step sizes."""
        return self.rule not in ("fixed", "learned")

    @property
    def _is_bounded(self) -> bool:
        """Whether limits are given, or the rule has its own."""
        return self.limits[1] < np.inf

    def values(self) -> tf.Tensor:
        """Returns the step sizes, `[K]` or `[K, D]`."""
        if self.rule == "learned" and self._is_bounded:
            low, high = self.limits
            values = low + (high - low) * tf.sigmoid(tf.convert_to_tensor(self.logit_step_size))
        elif self.rule == "learned":
            values = tf.exp(tf.convert_to_tensor(self.log_step_size))
        else:
            values = tf.convert_to_tensor(self.step_size)
        if self.per_transition:
            return values
        return tf.broadcast_to(values, [self.num_transitions, *values.shape[1:]])

    def update(self, acceptance: tf.Tensor, score_std: tf.Tensor) -> None:
        """Applies the rule after a training step, where its statistics and results are finite.

        Args:
            acceptance: Mean acceptance of each transition, `[K]`.
            score_std: Standard deviation of the score over the batch, `[K, D]`.
        """
        if not self.is_adapted:
            return
        step_size = self.values()
        acceptance = tf.cast(acceptance, step_size.dtype)
        is_known = tf.math.is_finite(acceptance)
        if self.rule == "acceptance":
            count = tf.convert_to_tensor(self.num_updates)
            new = acceptance_update(
                step_size, acceptance, self.target_acceptance, count, self.limits
            )
            self.num_updates.assign(count + tf.cast(is_known, count.dtype))
        elif self.rule == "published_acceptance":
            new = published_acceptance_update(
                step_size, acceptance, self.target_acceptance, self.limits
            )
        else:
            scale = tf.convert_to_tensor(self.variance_scale)
            score_std = tf.cast(score_std, step_size.dtype)
            is_known &= tf.reduce_all(tf.math.is_finite(score_std), axis=-1)
            # Scores without any spread are those of a single state.
            is_known &= tf.reduce_any(score_std > 0.0, axis=-1)
            new, new_scale = variance_update(
                step_size, scale, acceptance, score_std, self.target_acceptance
            )
            _write(self.variance_scale, new_scale, is_known)
        _write(self.step_size, new, is_known)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "initial": self.initial.tolist(),
            "rule": self.rule,
            "target_acceptance": self.target_acceptance,
            "per_transition": self.per_transition,
            "per_dimension": self.per_dimension,
            "limits": list(self.limits) if self._is_bounded else None,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Makes a layer from the constructor's arguments; also from those that 0.1.0 saved."""
        # Files of 0.1.0 have no limits. Their "acceptance" is the published rule, whose first
        # update put an initial value within its limits.
        if "limits" not in config and config.get("rule") == "acceptance":
            initial = np.clip(config["initial"], *PUBLISHED_LIMITS).tolist()
            config = {**config, "rule": "published_acceptance", "initial": initial}
        return cls(**config)


def _limits(rule: StepSizeRule, given: Sequence[float] | None) -> Limits:
    """Returns the limits of the rule, checked."""
    if given is None:
        return LIMITS.get(rule, (0.0, np.inf))
    with_limits = ("learned", *LIMITS)
    if rule not in with_limits:
        raise ValueError(
            f"`limits` are for the rules {', '.join(map(repr, with_limits))}: leave them out, or "
            f"choose one of these. Received: limits={given!r}, rule={rule!r}"
        )
    values = np.asarray(given, np.float64)
    if values.shape != (2,) or not 0.0 <= values[0] < values[1] < np.inf:
        raise ValueError(
            "`limits` must be the smallest and the largest step size, finite, not negative and "
            f"increasing. Received: limits={given!r}"
        )
    if rule != "learned" and values[0] == 0.0:
        raise ValueError(
            "Limits of a rule that adapts step sizes must be above 0, where it could not leave. "
            f"Received: limits={given!r}, rule={rule!r}"
        )
    return float(values[0]), float(values[1])


def _check_initial(values: np.ndarray[Any, Any], rule: StepSizeRule, limits: Limits) -> None:
    """Raises unless step sizes suit the rule."""
    if values.ndim > 2 or not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError(
            "A step size must be finite and not negative: a scalar, [K] or [K, D]. "
            f"Received: {values.tolist()!r}"
        )
    smallest, largest = np.asarray(limits, values.dtype)  # Rounded as the values are.
    if rule == "learned" and not np.all((smallest < values) & (values < largest)):
        raise ValueError(
            f"A learned step size must start above {limits[0]:g} and below {limits[1]:g}, as its "
            "distance from them is trained on a logarithmic scale: start between them, or give "
            f"other `limits=`. Received: {values.tolist()!r}"
        )
    if np.any(values < smallest) or np.any(values > largest):
        raise ValueError(
            f"A step size that the rule {rule!r} adapts must start within its limits, "
            f"{limits[0]:g} and {limits[1]:g}: start within them, or give `limits=`. "
            f"Received: {values.tolist()!r}"
        )


def _check_shared(initial: np.ndarray[Any, Any], rule: StepSizeRule) -> None:
    """Raises unless all transitions can share the step size."""
    if rule not in ("fixed", "learned"):
        raise ValueError(
            f"The rule {rule!r} adapts the step size of each transition, so that they cannot share "
            "one: choose 'fixed' or 'learned', or leave out `per_transition`. "
            f"Received: per_transition=False, rule={rule!r}"
        )
    if initial.ndim and len(initial) != 1:
        raise ValueError(
            "Transitions that share a step size start at the same: give a scalar, [1] or [1, D], "
            "or leave out `per_transition`. "
            f"Received: per_transition=False, initial of shape {initial.shape}"
        )


def _write(weight: keras.Variable, values: tf.Tensor, is_known: tf.Tensor) -> None:
    """Writes the values that are finite, of the transitions `[K]` that are known."""
    if values.shape.rank == 2:
        is_known = is_known[:, tf.newaxis]
    old = tf.convert_to_tensor(weight)
    weight.assign(tf.where(is_known & tf.math.is_finite(values), values, old))
