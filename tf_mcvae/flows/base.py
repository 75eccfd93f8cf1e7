"""What all flows share: shapes, weights, and the contract of a map with its log-determinant."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.checks import check_positive_integer


class Flow(keras.layers.Layer):
    """Base of the flows: an invertible map `z = T(u)` of `[..., D]` and its log-determinant.

    Calling the layer is `forward`. `build((None, D))` makes the weights, and so does the first
    call. The weights are kept, and everything is computed, in `float32`.

    A subclass defines `make_weights` and `forward_rows`, and `inverse_rows` where there is an
    inverse.

    Args:
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, **kwargs: Any) -> None:
        # Densities need all of a float32, whatever the global policy is.
        super().__init__(**{"dtype": "float32", **kwargs})

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes the weights for inputs of shape `[..., D]`."""
        if input_shape[-1] is None:
            raise ValueError(
                "A flow needs to know its dimension D: build it with `(None, D)`. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.latent_dim = int(input_shape[-1])
        self.make_weights(self.latent_dim)
        self.built = True

    def make_weights(self, latent_dim: int) -> None:
        """Makes the weights for D dimensions."""

    def forward_rows(self, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `T(u)`, `[N, D]`, and `log |det T'(u)|`, `[N]`, for `u [N, D]`."""
        raise NotImplementedError

    def inverse_rows(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the u with `T(u) = z`, `[N, D]`, for `z [N, D]`."""
        raise ValueError(
            f"{type(self).__name__} has no inverse in closed form; take a RealNVP or IAF flow "
            f"where one is needed. Received: {self.name}.inverse(z)"
        )

    def forward(self, u: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps `u` to `z = T(u)`.

        Args:
            u: `[..., D]`, mostly `[S, B, D]`.

        Returns:
            `z`, `[..., D]`, and `log |det T'(u)|`, `[...]`.

        Raises:
            ValueError: If the layer is not built, or was built for another D.
        """
        rows, shape = self._rows(u)
        z, log_det = self.forward_rows(rows)
        return tf.reshape(z, shape), tf.reshape(log_det, shape[:-1])

    def inverse(self, z: Any) -> tf.Tensor:
        """Returns the `u` with `T(u) = z`, `[..., D]`, for `z [..., D]`.

        Raises:
            ValueError: If the flow has no inverse that can be computed, the layer is not built, or
                it was built for another D.
        """
        rows, shape = self._rows(z)
        return tf.reshape(self.inverse_rows(rows), shape)

    def call(self, u: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `forward(u)`."""
        return self.forward(u)

    def _rows(self, states: Any) -> tuple[tf.Tensor, list[Any]]:
        """Returns states `[..., D]` as rows `[N, D]`, and their shape."""
        if not self.built:
            raise ValueError(
                "The flow has no weights yet: call `flow.build((None, D))`. "
                f"Received: an unbuilt {type(self).__name__}"
            )
        states = tf.convert_to_tensor(states, tf.float32)
        shape = random.shape_of(states)
        if not shape or shape[-1] != self.latent_dim:
            raise ValueError(
                f"The flow was built for states [..., {self.latent_dim}]. "
                f"Received: states of shape {states.shape}"
            )
        return tf.reshape(states, [-1, self.latent_dim]), shape


class NetworkFlow(Flow):
    """Base of the flows that have a network of their own.

    Args:
        hidden_units: Widths of the hidden layers.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, hidden_units: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(hidden_units, list | tuple):
            raise TypeError(
                "`hidden_units` must be a list or tuple of widths. "
                f"Received: hidden_units={hidden_units!r}"
            )
        for units in hidden_units:
            check_positive_integer("hidden_units", units)
        self.hidden_units = tuple(int(units) for units in hidden_units)

    def normal_weight(self, name: str, shape: Sequence[int], mean: float, stddev: float) -> Any:
        """Makes a normally distributed weight."""
        return self.add_weight(
            shape=shape,
            # A new one each time: an initializer gives the same values whenever it is called.
            initializer=keras.initializers.RandomNormal(mean, stddev),
            # In a model of mixed precision a weight would else be read in the lower one.
            autocast=False,
            name=name,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "hidden_units": list(self.hidden_units)}


def mask(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> tf.Tensor:
    """Returns 1 where a unit may see one of the layer before, `[before, after]`; else 0."""
    # Compared in the graph: as a constant, each function of an exported model would hold a copy.
    return tf.cast(tf.constant(before)[:, tf.newaxis] <= tf.constant(after), tf.float32)
