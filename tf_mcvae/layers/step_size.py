"""The step sizes of a model's transitions, as a layer: fixed, learned or adapted."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae.checks import ExplicitArguments
from tf_mcvae.kernels.step_size_rules import acceptance_update, variance_update
from tf_mcvae.precision import density_dtype

StepSizeRule = Literal["fixed", "learned", "acceptance", "variance"]
RULES = get_args(StepSizeRule)


@keras.saving.register_keras_serializable("tf_mcvae")
class StepSize(ExplicitArguments, keras.layers.Layer):
    """Step sizes, one for each of K transitions, and the rule by which they change.

    `values()` returns the step sizes, `[K]` or, per dimension, `[K, D]`. The rules are:

    - `"fixed"`: they do not change.
    - `"learned"`: their logarithms are trained with the networks.
    - `"acceptance"`: each training step multiplies a transition's step size by 1.002 if its
      acceptance reaches the target, and by 0.998 if not, within [0.001, 0.5].
    - `"variance"`: each step size, one per dimension, moves towards the inverse spread of the score
      over the batch.

    Adapted values are non-trainable weights: they are saved, and change only in training.

    Args:
        initial: Initial step size of `UnadjustedLangevin`: a scalar; `[K]`, one per transition; or
            `[1, D]` or `[K, D]`, one per dimension.
        rule: One of the rules above.
        target_acceptance: Target of the rules `"acceptance"` and `"variance"`.
        name: Name of the layer.
        trainable: Whether the weights are trained.
        dtype: Data type or policy, as in Keras.

    Raises:
        ValueError: If a step size is negative, not finite or (if learned) 0, the rule is unknown,
            or the target is not between 0 and 1.

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """

    def __init__(
        self,
        initial: float | Sequence[Any] | np.ndarray[Any, Any] = 0.01,
        rule: StepSizeRule = "fixed",
        target_acceptance: float = 0.9,
        *,
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
        values = np.asarray(initial, density_dtype(self.dtype_policy))
        if values.ndim > 2 or not np.all(np.isfinite(values)) or np.any(values < 0):
            raise ValueError(
                "A step size must be finite and not negative: a scalar, [K] or [K, D]. "
                f"Received: {initial!r}"
            )
        if rule == "learned" and np.any(values == 0):
            raise ValueError(
                "A learned step size must start above 0, as its logarithm is trained. "
                f"Received: {initial!r}"
            )
        self.initial = values
        self.rule = rule
        self.target_acceptance = target_acceptance

    def build(self, num_transitions: int, latent_dim: int) -> None:
        """Makes the weights for K transitions in D dimensions."""
        per_dimension = self.rule == "variance" or self.initial.ndim == 2
        shape = (num_transitions, latent_dim) if per_dimension else (num_transitions,)
        try:
            values = np.broadcast_to(
                self.initial[:, None] if per_dimension and self.initial.ndim == 1 else self.initial,
                shape,
            )
        except ValueError as error:
            raise ValueError(
                f"The step sizes must fit {num_transitions} transitions in {latent_dim} "
                f"dimensions: a scalar, [K] or [K, D]. Received: shape {self.initial.shape}"
            ) from error
        if self.rule == "learned":
            self._make("log_step_size", np.log(values), trainable=True)
        else:
            self._make("step_size", values, trainable=False)
        if self.rule == "variance":
            self._make("variance_scale", np.full([num_transitions], 0.1), trainable=False)
        self.built = True

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
        return self.rule in ("acceptance", "variance")

    def values(self) -> tf.Tensor:
        """Returns the step sizes, `[K]` or `[K, D]`."""
        if self.rule == "learned":
            return tf.exp(tf.convert_to_tensor(self.log_step_size))
        return tf.convert_to_tensor(self.step_size)

    def update(self, acceptance: tf.Tensor, score_std: tf.Tensor) -> None:
        """Applies the rule after a training step.

        Args:
            acceptance: Mean acceptance of each transition, `[K]`.
            score_std: Standard deviation of the score over the batch, `[K, D]`.
        """
        dtype = self.initial.dtype
        acceptance, score_std = tf.cast(acceptance, dtype), tf.cast(score_std, dtype)
        if self.rule == "acceptance":
            self.step_size.assign(
                acceptance_update(
                    tf.convert_to_tensor(self.step_size), acceptance, self.target_acceptance
                )
            )
        elif self.rule == "variance":
            step_size, scale = variance_update(
                tf.convert_to_tensor(self.step_size),
                tf.convert_to_tensor(self.variance_scale),
                acceptance,
                score_std,
                self.target_acceptance,
            )
            self.step_size.assign(step_size)
            self.variance_scale.assign(scale)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "initial": self.initial.tolist(),
            "rule": self.rule,
            "target_acceptance": self.target_acceptance,
        }
