"""One network for the drifts of all transitions, which knows their time."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae.checks import ExplicitArguments, check_positive_integer
from tf_mcvae.layers.activations import get_activation
from tf_mcvae.layers.composite import track_weights
from tf_mcvae.layers.transition_networks import beside


@keras.saving.register_keras_serializable("tf_mcvae")
class DriftNetwork(ExplicitArguments, keras.layers.Layer):
    """A dense network `a(z, h, t) = c f(z, h, embedding(t))`, amortised over examples and time.

    The factor `c` starts at 0, so that training starts at the bound without the network. The
    embedding holds `sin` and `cos` of `pi 2^j t`, j < F.

    Args:
        hidden_units: Widths of the hidden layers.
        activation: Activation of the hidden layers, a name as for `Encoder`.
        num_frequencies: F.
        name: Name of the layer.
        trainable: Whether the weights are trained.
        dtype: Data type or policy, as in Keras.

    Reference:
        Doucet et al., Score-Based Diffusion meets Annealed Importance Sampling, arXiv 2208.07698.
    """

    suits_xla = True

    def __init__(
        self,
        hidden_units: Sequence[int] = (128, 128),
        activation: str = "gelu",
        *,
        num_frequencies: int = 8,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        for units in hidden_units:
            check_positive_integer("hidden_units", units)
        check_positive_integer("num_frequencies", num_frequencies)
        self.hidden_units = list(hidden_units)
        self.activation = activation
        self.num_frequencies = num_frequencies
        self._activate = get_activation(activation)

    def build(self, num_inputs: int, latent_dim: int) -> None:
        """Makes the weights.

        Args:
            num_inputs: Width of position, momentum and features together.
            latent_dim: D.
        """
        widths = [num_inputs + 2 * self.num_frequencies, *self.hidden_units, latent_dim]
        self.kernels = [
            self.add_weight(shape=widths[i : i + 2], name=f"kernel_{i}")
            for i in range(len(widths) - 1)
        ]
        self.biases = [
            self.add_weight(shape=[units], initializer="zeros", name=f"bias_{i}")
            for i, units in enumerate(widths[1:])
        ]
        self.factor = self.add_weight(shape=(), initializer="zeros", name="factor")
        track_weights(self)
        self.built = True

    def call(self, inputs: Sequence[tf.Tensor], time: tf.Tensor) -> tf.Tensor:
        """Returns `a`, `[S, B, D]`.

        Args:
            inputs: The state `[S, B, D]`, then tensors `[S, B, F]` or, of the examples, `[B, F]`.
            time: `t` in [0, 1], a scalar.
        """
        state, dtype = inputs[0], self.compute_dtype
        angles = tf.cast(time, state.dtype) * tf.constant(
            math.pi * 2.0 ** np.arange(self.num_frequencies), state.dtype
        )
        rows = tf.cast(beside(state, *inputs[1:]), dtype)
        embedding = tf.cast(tf.concat([tf.sin(angles), tf.cos(angles)], axis=0), dtype)
        first = tf.convert_to_tensor(self.kernels[0])
        width = rows.shape[-1]
        # All rows have one time: its part of the first layer is one vector.
        shift = tf.linalg.matvec(first[width:], embedding, transpose_a=True)
        rows = tf.matmul(rows, first[:width]) + (shift + self.biases[0])
        for kernel, bias in zip(self.kernels[1:], self.biases[1:], strict=True):
            rows = tf.matmul(self._activate(rows), tf.convert_to_tensor(kernel)) + bias
        return tf.cast(self.factor * rows, state.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "hidden_units": self.hidden_units,
            "activation": self.activation,
            "num_frequencies": self.num_frequencies,
        }
