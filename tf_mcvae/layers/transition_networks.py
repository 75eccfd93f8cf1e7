"""Networks of learned transitions: drifts, and the reverse kernel of Langevin transitions.

The transitions of a `TransitionNetwork` have their own weights. They are stacked along a first axis
K, so that a loop over the transitions can select them by the number k. Those of a `DriftNetwork`
share all weights, and differ by their time.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.checks import ExplicitArguments, check_positive_integer
from tf_mcvae.layers.activations import activation_config, get_activation
from tf_mcvae.layers.composite import track_weights
from tf_mcvae.precision import wide

DriftFeatures = Literal["encoder", "x"]


class TransitionNetwork(ExplicitArguments, keras.layers.Layer):
    """K dense networks of one shape, `[..., N] -> [..., M]`.

    Args:
        hidden_units: Widths of the hidden layers; None for two layers as wide as the input.
        activation: Activation of the hidden layers, a name as for `Encoder`.
        name: Name of the layer.
        trainable: Whether the weights are trained.
        dtype: Data type or policy, as in Keras.
    """

    def __init__(
        self,
        hidden_units: Sequence[int] | None,
        activation: str,
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        for units in hidden_units or ():
            check_positive_integer("hidden_units", units)
        self.hidden_units = None if hidden_units is None else list(hidden_units)
        self.activation = activation
        self._activate = get_activation(activation)

    def build_networks(self, num_transitions: int, num_inputs: int, num_outputs: int) -> None:
        """Makes the weights of `num_transitions` networks, which initially return 0."""
        hidden = [num_inputs] * 2 if self.hidden_units is None else self.hidden_units
        pairs = list(itertools.pairwise([num_inputs, *hidden, num_outputs]))
        # Glorot's bounds for each matrix; those of Keras would be for the stack.
        limits = [math.sqrt(6.0 / (fan_in + fan_out)) for fan_in, fan_out in pairs[:-1]] + [0.0]
        self.kernels = [
            self.add_weight(
                shape=(num_transitions, *pair),
                initializer=keras.initializers.RandomUniform(-limit, limit),
                name=f"kernel_{number}",
            )
            for number, (pair, limit) in enumerate(zip(pairs, limits, strict=True))
        ]
        self.biases = [
            self.add_weight(
                shape=(num_transitions, units), initializer="zeros", name=f"bias_{number}"
            )
            for number, (_, units) in enumerate(pairs)
        ]
        track_weights(self)
        self.built = True

    def run(self, inputs: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """Runs the network of transition `index`."""
        last = len(self.kernels) - 1
        for number, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            inputs = tf.matmul(inputs, tf.convert_to_tensor(kernel)[index])
            inputs += tf.convert_to_tensor(bias)[index]
            inputs = self._activate(inputs) if number < last else inputs
        return inputs

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = {"hidden_units": self.hidden_units, "activation": self.activation}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable("tf_mcvae")
class LearnedDrift(TransitionNetwork):
    """A network `drift_k(z, h(x))` that replaces the score in each Langevin transition.

    It starts at 0, and is trained on the bound and the drift-matching loss
    `sum_k |drift_k - score_{b_k}|^2`. The features `h(x)` are the location and the log scale of
    `q(z|x)`, `[B, 2 D]`, or, as published, the example itself. With K = 5 and D = 64, networks of
    default widths have half a million weights for images of any size with the former, and 1.5
    billion for images of 64x64x3 with the latter.

    Args:
        hidden_units: Widths of the hidden layers; None for two layers as wide as `[z, h(x)]`.
        activation: Activation of the hidden layers.
        features: `h(x)`: `"encoder"` or `"x"`.
        name: Name of the layer.
        trainable: Whether the weights are trained.
        dtype: Data type or policy, as in Keras.

    Raises:
        ValueError: If the features are unknown, or a width is not a positive integer.

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """

    def __init__(
        self,
        hidden_units: Sequence[int] | None = None,
        activation: str = "leakyrelu",
        *,
        features: DriftFeatures = "encoder",
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(hidden_units, activation, name=name, trainable=trainable, dtype=dtype)
        if features not in get_args(DriftFeatures):
            raise ValueError(
                f"`features` must be one of {get_args(DriftFeatures)}. "
                f"Received: features={features!r}"
            )
        self.features = features

    def build(self, num_transitions: int, latent_dim: int, num_features: int) -> None:
        """Makes the weights for K transitions, D latents and the number of features of one `x`."""
        self.build_networks(num_transitions, latent_dim + num_features, latent_dim)

    def call(self, state: tf.Tensor, features: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """Returns the drift of transition `index` at `state [S, B, D]`, for `h(x) [B, ...]`."""
        rows = tf.reshape(features, [random.shape_of(features)[0], -1])
        return self.run(_beside(state, rows), index)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "features": self.features}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Makes a layer from the constructor's arguments; also from those that 0.1.0 saved."""
        # Files of 0.1.0 do not name the features, which were the examples.
        return cls(**{"features": "x", **config})


@keras.saving.register_keras_serializable("tf_mcvae")
class LearnedReverse(TransitionNetwork):
    """A network that replaces the reverse kernel of each Langevin transition.

        r_k(z_{k-1} | z_k, x) = N(z_k + m, diag(exp v)),     (m, v) = network_k(z_k, loc(x)).

    It starts at `m = 0` and `v = log(2 e_k)`, the variance of the transition.

    Args:
        hidden_units: Widths of the hidden layers.
        activation: Activation of the hidden layers.
        name: Name of the layer.
        trainable: Whether the weights are trained.
        dtype: Data type or policy, as in Keras.

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """

    def __init__(
        self,
        hidden_units: Sequence[int] = (200,),
        activation: str = "gelu",
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(hidden_units, activation, name=name, trainable=trainable, dtype=dtype)

    def build(self, num_transitions: int, latent_dim: int) -> None:
        """Makes the weights for K transitions in D dimensions."""
        self.build_networks(num_transitions, 2 * latent_dim, 2 * latent_dim)

    def begin_at(self, step_sizes: Any) -> None:
        """Sets `v = log(2 e_k)` for step sizes `[K, 1]` or `[K, D]`."""
        shift, log_variance = np.split(self.biases[-1].numpy(), 2, axis=1)
        log_variance[:] = np.log(2.0 * step_sizes)
        self.biases[-1].assign(np.concatenate([shift, log_variance], axis=1))

    def call(
        self, state: tf.Tensor, loc: tf.Tensor, index: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `m` and `v`, `[S, B, D]`, at `z_k [S, B, D]` given `loc(x) [B, D]`."""
        shift, log_variance = tf.split(self.run(_beside(state, loc), index), 2, axis=-1)
        return shift, log_variance


@keras.saving.register_keras_serializable("tf_mcvae")
class DriftNetwork(ExplicitArguments, keras.layers.Layer):
    """A drift for all transitions, a network that is told the time t in [0, 1].

        s(z, h, t) = net([z, h, embedding(t)]),
        embedding(t) = [sin(pi 2^j t), cos(pi 2^j t)],     j = 0, ..., J - 1.

    The last layer is linear and starts at 0, and with it the drift: training starts at the bound
    that has none. Published code multiplies by a scalar weight that starts at 0, through which the
    network learns only when the scalar has left 0. The networks compute in the layer's policy; the
    drift has the dtype of the state.

    Args:
        hidden_units: Widths of the hidden layers.
        activation: Activation of the hidden layers, a name as for `Encoder`.
        num_frequencies: J, of which the highest has `2^J / 4` periods in [0, 1].
        name: Name of the layer.
        trainable: Whether the weights are trained.
        dtype: Data type or policy, as in Keras.

    Raises:
        ValueError: If a width or the number of frequencies is not a positive integer, or there is
            no such activation.

    Example:
        >>> import tensorflow as tf
        >>> from tf_mcvae import DriftNetwork
        >>> drift = DriftNetwork([16])
        >>> drift.build(num_inputs=2 + 3, latent_dim=2)
        >>> drift((tf.ones([7, 4, 2]), tf.ones([4, 3])), tf.constant(0.5)).shape
        TensorShape([7, 4, 2])

    Reference:
        Doucet et al., Score-Based Diffusion meets Annealed Importance Sampling, NeurIPS 2022, arXiv
        2208.07698; Vargas et al., Transport meets Variational Inference, ICLR 2024, arXiv
        2307.01050.
    """

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
        # Not cast by Keras, which would hide the dtype of the state.
        super().__init__(name=name, trainable=trainable, dtype=dtype, autocast=False)
        for units in hidden_units:
            check_positive_integer("hidden_units", units)
        check_positive_integer("num_frequencies", num_frequencies)
        self.hidden_units = list(hidden_units)
        self.num_frequencies = num_frequencies
        self._activate = get_activation(activation)

    def build(self, num_inputs: int, latent_dim: int) -> None:
        """Makes the weights for inputs of this total width, `[z, h]`, and D outputs."""
        widths = [num_inputs + 2 * self.num_frequencies, *self.hidden_units, latent_dim]
        initializers = ["glorot_uniform"] * len(self.hidden_units) + ["zeros"]
        pairs = itertools.pairwise(widths)
        self.kernels = [
            self.add_weight(shape=pair, initializer=initializer, name=f"kernel_{number}")
            for number, (pair, initializer) in enumerate(zip(pairs, initializers, strict=True))
        ]
        self.biases = [
            self.add_weight(shape=(units,), initializer="zeros", name=f"bias_{number}")
            for number, units in enumerate(widths[1:])
        ]
        track_weights(self)
        self.built = True

    def call(self, inputs: Sequence[tf.Tensor], time: tf.Tensor) -> tf.Tensor:
        """Returns the drift `s(z, h, t)`.

        Args:
            inputs: The state `z [..., B, D]`, and any further inputs of the network, `[..., B, F]`
                or `[B, F]`.
            time: t, a scalar.

        Returns:
            A tensor like the state.
        """
        state, dtype = inputs[0], self.compute_dtype
        kernels = [tf.cast(tf.convert_to_tensor(kernel), dtype) for kernel in self.kernels]
        biases = [tf.cast(tf.convert_to_tensor(bias), dtype) for bias in self.biases]
        outputs = tf.cast(functools.reduce(_beside, inputs), dtype)
        # The time is the same in all rows, so that its part of the first product is a bias.
        embedding = tf.cast(_embedding(time, self.num_frequencies), dtype)
        kernels[0], of_time = tf.split(kernels[0], [-1, 2 * self.num_frequencies])
        biases[0] += tf.linalg.matvec(of_time, embedding, transpose_a=True)
        for number, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
            outputs = tf.matmul(self._activate(outputs) if number else outputs, kernel) + bias
        return tf.cast(outputs, state.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "hidden_units": self.hidden_units,
            "activation": activation_config(self._activate),
            "num_frequencies": self.num_frequencies,
        }


def _embedding(time: tf.Tensor, num_frequencies: int) -> tf.Tensor:
    """Returns sines and cosines of a scalar time, `[2 J]`."""
    time = wide(time)  # Half precision cannot tell the phases of high frequencies.
    angles = tf.constant(math.pi * 2.0 ** np.arange(num_frequencies), time.dtype) * time
    return tf.concat([tf.sin(angles), tf.cos(angles)], axis=0)


def _beside(state: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
    """Concatenates states `[S, B, D]` with their examples' features `[B, F]`."""
    # Not `tf.broadcast_to`: in a loop, its gradient needs sizes that XLA does not know.
    features = tf.cast(features, state.dtype) + tf.zeros_like(state[..., :1])
    return tf.concat([state, features], axis=-1)
