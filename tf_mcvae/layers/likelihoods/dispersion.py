"""Likelihoods of a location and one positive number, such as a scale."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae.layers.likelihoods.base import Likelihood

Learned = bool | Literal["per_feature", "predicted"]


class Dispersed(Likelihood):
    """Base of likelihoods that have a positive number in addition to their location.

    The number `s` is fixed; a weight, for all elements of `x` or for each feature (index of its
    last axis); or predicted for each element: the decoder's last axis is then twice as long as that
    of `x`, and holds all locations, then all `log (s / initial)`. Weights are of `log s`.

    Args:
        initial: `s`, or its initial value if it is learned.
        learned: `False`, `True`, `"per_feature"` or `"predicted"`.
        name, trainable, dtype: As in `keras.layers.Layer`.

    Attributes:
        dispersion_name: Name of the number, and of the constructor's argument.

    Raises:
        ValueError: If the number is not positive and finite, or `learned` is unknown.
    """

    dispersion_name = "scale"

    def __init__(
        self,
        initial: float,
        learned: Learned,
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        check_positive(self.dispersion_name, initial)
        if learned not in (False, True, "per_feature", "predicted"):
            raise ValueError(
                "`learned` must be False, True, 'per_feature' or 'predicted'. "
                f"Received: learned={learned!r}"
            )
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        self.initial = float(initial)
        self.learned: Learned = learned if isinstance(learned, str) else bool(learned)
        self.parameters_per_channel = 2 if learned == "predicted" else 1
        self.log_value: keras.Variable | None = None
        self.built = learned != "per_feature"
        if self.learned is True:
            self._add_log_value(())

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes the weights of features, for parameters `[..., F]`."""
        if self.learned == "per_feature" and self.log_value is None:
            self._add_log_value((int(input_shape[-1] or 0),))
        self.built = True

    def _add_log_value(self, shape: tuple[int, ...]) -> None:
        # A model of mixed precision must not cast the weight to half precision.
        self.log_value = self.add_weight(
            shape=shape,
            initializer=keras.initializers.Constant(math.log(self.initial)),
            autocast=False,
            name=f"log_{self.dispersion_name}",
        )

    def dispersion(self) -> tf.Tensor:
        """Returns the number where it is not predicted, a scalar or `[F]`."""
        if self.learned == "predicted":
            raise ValueError(
                f"This {self.dispersion_name} is predicted by the decoder: it is part of the "
                "likelihood's parameters. Received: learned='predicted'"
            )
        if self.log_value is not None:
            return tf.exp(tf.convert_to_tensor(self.log_value))
        return tf.constant(self.initial, self.variable_dtype)

    def split(self, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns locations and positive numbers, the latter a scalar, `[F]` or `[..., F]`."""
        if self.learned != "predicted":
            return parameters, tf.cast(self.dispersion(), parameters.dtype)
        location, log_ratio = tf.split(parameters, 2, axis=-1)
        return location, self.initial * tf.exp(log_ratio)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        own = {self.dispersion_name: self.initial, "learned": self.learned}
        return {**super().get_config(), **own}


def check_positive(name: str, value: Any) -> None:
    """Raises a `ValueError` unless a value is a positive finite number."""
    if not isinstance(value, int | float | np.number) or not 0.0 < value < math.inf:
        raise ValueError(f"`{name}` must be a positive number. Received: {name}={value!r}")
