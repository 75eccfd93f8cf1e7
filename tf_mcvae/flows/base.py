"""Base classes of flows: shapes, weights, and the contract of a map with its log-determinant."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.checks import ExplicitArguments, check_positive_integer
from tf_mcvae.precision import density_dtype, wide


class Flow(ExplicitArguments, keras.layers.Layer):
    """Base class of flows: an invertible map `z = T(u)` of `[..., D]` and its log-determinant.

    Calling the layer is the same as calling `forward`. The weights are created by
    `build((None, D))` or by the first call. Weights and computations are in `float32` or `float64`,
    as densities are; see `precision`.

    A subclass defines `make_weights` and `forward_rows`, and `inverse_rows` if the inverse can be
    computed.

    Args:
        name, trainable, dtype: As in `keras.layers.Layer`.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=density_dtype(dtype))

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the weights for inputs of shape `[..., D]`."""
        if input_shape[-1] is None:
            raise ValueError(
                "A flow needs to know its dimension D: build it with `(None, D)`. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.latent_dim = int(input_shape[-1])
        self.make_weights(self.latent_dim)
        self.built = True

    def make_weights(self, latent_dim: int) -> None:
        """Creates the weights for D dimensions."""

    def forward_rows(self, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `T(u)`, `[N, D]`, and `log |det T'(u)|`, `[N]`, for `u [N, D]`."""
        raise NotImplementedError

    def inverse_rows(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the u with `T(u) = z`, `[N, D]`, for `z [N, D]`."""
        raise ValueError(
            f"{type(self).__name__} has no inverse in closed form. If you need one, use a RealNVP "
            f"or IAF flow. Received: {self.name}.inverse(z)"
        )

    def forward(self, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps `u` to `z = T(u)`.

        Args:
            u: `[..., D]`, usually `[S, B, D]`.

        Returns:
            `z`, `[..., D]`, and `log |det T'(u)|`, `[...]`, in the dtype of `u` or `float32`.

        Raises:
            ValueError: If the layer is not built, or was built for another D.
        """
        u = wide(u)
        rows, shape = self._rows(u)
        z, log_det = (tf.cast(values, u.dtype) for values in self.forward_rows(rows))
        return tf.reshape(z, shape), tf.reshape(log_det, shape[:-1])

    def inverse(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the `u` with `T(u) = z`, `[..., D]`, for `z [..., D]`.

        Raises:
            ValueError: If the flow does not implement an inverse, or if the layer is not built or
                was built for another D.
        """
        z = wide(z)
        rows, shape = self._rows(z)
        return tf.reshape(tf.cast(self.inverse_rows(rows), z.dtype), shape)

    def call(self, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `forward(u)`."""
        return self.forward(u)

    def _rows(self, states: tf.Tensor) -> tuple[tf.Tensor, list[Any]]:
        """Returns states `[..., D]` as rows `[N, D]` in the layer's dtype, and their shape."""
        if not self.built:
            raise ValueError(
                "The flow has no weights yet: call `flow.build((None, D))`. "
                f"Received: an unbuilt {type(self).__name__}"
            )
        shape = random.shape_of(states)
        if not shape or shape[-1] != self.latent_dim:
            raise ValueError(
                f"The flow was built for states [..., {self.latent_dim}]. "
                f"Received: states of shape {states.shape}"
            )
        rows = tf.cast(states, self.variable_dtype)
        return tf.reshape(rows, [-1, self.latent_dim]), shape


class NetworkFlow(Flow):
    """Base class of flows that contain a network.

    Args:
        hidden_units: Widths of the hidden layers.
        name, trainable, dtype: As in `keras.layers.Layer`.
    """

    def __init__(
        self,
        hidden_units: Sequence[int] = (128, 128),
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        if not isinstance(hidden_units, list | tuple):
            raise TypeError(
                "`hidden_units` must be a list or tuple of widths. "
                f"Received: hidden_units={hidden_units!r}"
            )
        for units in hidden_units:
            check_positive_integer("hidden_units", units)
        self.hidden_units = tuple(int(units) for units in hidden_units)

    def normal_weight(
        self, name: str, shape: Sequence[int], mean: float, stddev: float
    ) -> keras.Variable:
        """Adds a weight with normally distributed initial values."""
        return self.add_weight(
            shape=shape,
            # Keras initializers return the same values at every call, so each weight gets its own.
            initializer=keras.initializers.RandomNormal(mean, stddev),
            # Otherwise a model of mixed precision would cast the weight to half precision.
            autocast=False,
            name=name,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "hidden_units": list(self.hidden_units)}


def mask(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any], dtype: tf.DType) -> tf.Tensor:
    """Returns `[before, after]`: 1 where a unit may see one of the previous layer, 0 elsewhere."""
    # Compared in the graph: every function of an exported model would store a copy of a constant.
    return tf.cast(tf.constant(before)[:, tf.newaxis] <= tf.constant(after), dtype)
