"""Encoders and decoders: dense networks for any shape, and a convolutional pair for images.

Models accept any Keras model (`keras.Sequential`, functional or a subclass) in their place that
maps tensors as follows:

    encoder   x [N, *event]  ->  [N, 2 D]          D locations, then D log variances of q(z|x)
    decoder   z [N, D]       ->  [N, *parameters]  the likelihood's parameters, such as logits

The convolutional pair is that of the Monte Carlo VAE (Thin et al., 2021, arXiv 2106.15921), except
that kernels are initialised by the Keras defaults (Glorot uniform, zero biases), not PyTorch's.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from tf_mcvae.checks import ExplicitArguments, check_positive_integer
from tf_mcvae.layers.activations import (
    ACTIVATIONS,
    Activation,
    activation_config,
    get_activation,
)
from tf_mcvae.layers.composite import Composite, pass_on_frozen, track_weights
from tf_mcvae.performance.upsampling import nearest_resize, pointwise_conv, upsampled_conv

Architecture = Literal["conv", "dense"]


def _options(layer: keras.Layer) -> dict[str, Any]:
    """Returns the arguments that all image layers within `layer` share."""
    return {"data_format": "channels_last", "dtype": layer.dtype_policy}


def _weights(layer: keras.Layer) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a layer's kernel and bias, in its compute dtype."""
    return tf.convert_to_tensor(layer.kernel), tf.convert_to_tensor(layer.bias)


class _ConvBlock(keras.layers.Layer):
    """Two 3x3 convolutions, each with its activation, and a residual connection.

    The input is added to the second activation's output, padded with zeros for missing channels.
    If the input has more channels than the output, there is no residual connection.
    """

    def __init__(
        self,
        activation: Activation,
        channels: int,
        middle_channels: int | None = None,
        *,
        name: str,
        dtype: keras.DTypePolicy,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.channels, self.middle_channels = channels, middle_channels or channels
        options = {"padding": "same", "activation": activation, **_options(self)}
        self.first = keras.layers.Conv2D(self.middle_channels, 3, name="first", **options)
        self.second = keras.layers.Conv2D(channels, 3, name="second", **options)

    def build(self, input_shape: Sequence[int | None]) -> None:
        self.first.build(input_shape)
        self.second.build((*input_shape[:3], self.middle_channels))

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        outputs = self.second(self._convolve(inputs))
        missing = self.channels - inputs.shape[-1]
        if missing < 0:
            return outputs
        residual = tf.pad(inputs, [[0, 0]] * 3 + [[0, missing]]) if missing else inputs
        return self._add(outputs, residual)

    def _convolve(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.first(inputs)

    def _add(self, outputs: tf.Tensor, residual: tf.Tensor) -> tf.Tensor:
        return outputs + residual

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return (*input_shape[:3], self.channels)


class _UpsamplingBlock(_ConvBlock):
    """A block whose input is resized first.

    With `outputs`, a 1x1 convolution to that number of channels follows. It is applied to both
    terms of the residual connection separately, so that only its output channels are resized.
    """

    def __init__(
        self,
        activation: Activation,
        channels: int,
        middle_channels: int,
        size: tuple[int, int],
        outputs: int | None = None,
        *,
        name: str,
        dtype: keras.DTypePolicy,
    ) -> None:
        super().__init__(activation, channels, middle_channels, name=name, dtype=dtype)
        self.size = size
        self.last = outputs and keras.layers.Conv2D(outputs, 1, name="last", **_options(self))

    def build(self, input_shape: Sequence[int | None]) -> None:
        super().build(input_shape)
        if self.last:
            self.last.build((*input_shape[:3], self.channels))

    def _convolve(self, inputs: tf.Tensor) -> tf.Tensor:
        kernel, bias = _weights(self.first)
        return self.first.activation(upsampled_conv(inputs, kernel, bias, *self.size))

    def _add(self, outputs: tf.Tensor, residual: tf.Tensor) -> tf.Tensor:
        if self.last:
            kernel, bias = _weights(self.last)
            outputs = pointwise_conv(outputs, kernel, bias)
            residual = pointwise_conv(residual, kernel)
        return outputs + nearest_resize(residual, *self.size)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return (input_shape[0], *self.size, self.last.filters if self.last else self.channels)


def _check_integers(name: str, values: int | Sequence[int]) -> tuple[int, ...]:
    """Returns `values`, one or more integers, as a tuple, after checking that all are positive."""
    values = values if isinstance(values, list | tuple) else (values,)
    for value in values:
        check_positive_integer(name, value)
    return tuple(int(value) for value in values)


def _check_image(name: str, shape: Sequence[Any]) -> None:
    """Raises unless the convolutional networks can halve images of `shape` three times."""
    if len(shape) != 3 or None in shape or min(shape[0], shape[1]) < 8:
        raise ValueError(
            f"The convolutional {name} halves images three times, so it needs a known shape "
            '[H, W, C] with H and W at least 8. For other shapes, use architecture="dense". '
            f"Received: shape={tuple(shape)}"
        )


class _Chain(ExplicitArguments, Composite, keras.Model):
    """A sequence of layers, and the arguments that the encoder and the decoder share."""

    def __init__(
        self,
        architecture: Architecture,
        activation: str | dict[str, Any] | Activation,
        hidden_units: Sequence[int],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if architecture not in ("conv", "dense"):
            raise ValueError(
                f'`architecture` must be "conv" or "dense". Received: architecture={architecture!r}'
            )
        self.architecture = architecture
        self.activation = get_activation(activation)
        self.hidden_units = _check_integers("hidden_units", hidden_units)

    def _is_plain(self) -> bool:
        """Returns whether all layers are dense, with an activation of this package."""
        return self.architecture == "dense" and self.activation in ACTIVATIONS.values()

    def _hidden(self) -> list[keras.Layer]:
        return [self._dense(units, self.activation) for units in self.hidden_units]

    def _dense(self, units: int, activation: Activation | None = None) -> keras.Layer:
        return keras.layers.Dense(units, activation, dtype=self.dtype_policy)

    def _block(self, cls: type[_ConvBlock], index: int, *args: Any) -> _ConvBlock:
        return cls(self.activation, *args, name=f"block_{index}", dtype=self.dtype_policy)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Builds the layers for inputs of shape `input_shape`, which includes the batch axis."""
        if isinstance(self.chain[0], _ConvBlock):
            _check_image("encoder", input_shape[1:])
        for layer in self.chain:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)
        track_weights(self)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns the last layer's output."""
        outputs = tf.cast(inputs, self.compute_dtype)
        for layer in self.chain:
            outputs = layer(outputs)
        return outputs

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Returns the shape of the last layer's output."""
        for layer in self.chain:
            input_shape = layer.compute_output_shape(input_shape)
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "architecture": self.architecture,
            "activation": activation_config(self.activation),
            "hidden_units": list(self.hidden_units),
        }


@keras.saving.register_keras_serializable("tf_mcvae")
class Encoder(_Chain):
    """Computes the location and the log variance of `q(z|x) = N(loc, diag(exp(log variance)))`.

    The convolutional architecture is a block of 16 channels (two 3x3 convolutions and a residual
    connection), three pairs of 2x2 max-pooling and a block (32, 64 and 64 channels), and a linear
    layer.

    Args:
        latent_dim: Latent dimension D.
        architecture: `"conv"` for images of at least 8x8 pixels, or `"dense"`.
        activation: A name, a configuration or a function; see `get_activation`.
        hidden_units: Widths of the hidden layers of the dense architecture.
        name, trainable, dtype: As in `keras.Model`.

    Returns:
        `[N, 2 D]`, D locations, then D log variances, for inputs `[N, H, W, C]`. The dense
        architecture accepts inputs `[N, ...]` of any known shape.

    Raises:
        ValueError: If an argument is out of range, or (on building) the images are too small.

    Example:
        >>> encoder = Encoder(latent_dim=2, architecture="dense", hidden_units=(16,))
        >>> encoder(tf.zeros([5, 6, 6, 1])).shape
        TensorShape([5, 4])
    """

    suits_xla = property(_Chain._is_plain)  # See `performance.plan.suits_xla`.

    def __init__(
        self,
        latent_dim: int,
        architecture: Architecture = "conv",
        activation: str | dict[str, Any] | Activation = "gelu",
        hidden_units: Sequence[int] = (400,),
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        options = {"name": name, "trainable": trainable, "dtype": dtype}
        super().__init__(architecture, activation, hidden_units, **options)
        check_positive_integer("latent_dim", latent_dim)
        self.latent_dim = int(latent_dim)
        flatten = keras.layers.Flatten(**_options(self))
        body = [*self._conv(), flatten] if architecture == "conv" else [flatten, *self._hidden()]
        self.chain = [*body, self._dense(2 * self.latent_dim)]
        pass_on_frozen(self)

    def _conv(self) -> list[keras.Layer]:
        layers: list[keras.Layer] = [self._block(_ConvBlock, 0, 16)]
        for i, channels in enumerate((32, 64, 64), start=1):
            layers.append(keras.layers.MaxPooling2D(2, **_options(self)))
            layers.append(self._block(_ConvBlock, i, channels))
        return layers

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "latent_dim": self.latent_dim}


@keras.saving.register_keras_serializable("tf_mcvae")
class Decoder(_Chain):
    """Computes the likelihood's parameters, such as logits or locations, from z.

    The convolutional architecture is a linear layer to `[H//8, W//8, 64]`, three pairs of a
    nearest-neighbour resize and a block (32 channels at twice that size, 16 at four times, 16 at
    `H × W`), and a 1x1 convolution.

    Args:
        output_shape: Shape of one output, without the batch axis. The convolutional architecture
            needs `(H, W, C)`, where C is the number of the likelihood's parameters for each pixel.
        architecture: `"conv"` for images of at least 8x8 pixels, or `"dense"`.
        activation: A name, a configuration or a function; see `get_activation`.
        hidden_units: Widths of the hidden layers of the dense architecture, from input to output.
        name, trainable, dtype: As in `keras.Model`.

    Returns:
        `[N, *output_shape]` for inputs `[N, D]`.

    Raises:
        ValueError: If an argument is out of range, or the images are too small to be upsampled.

    Example:
        >>> decoder = Decoder(output_shape=(28, 28, 1))
        >>> decoder(tf.zeros([5, 2])).shape
        TensorShape([5, 28, 28, 1])
    """

    suits_xla = property(_Chain._is_plain)  # See `performance.plan.suits_xla`.

    def __init__(
        self,
        output_shape: Sequence[int],
        architecture: Architecture = "conv",
        activation: str | dict[str, Any] | Activation = "gelu",
        hidden_units: Sequence[int] = (400,),
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        options = {"name": name, "trainable": trainable, "dtype": dtype}
        super().__init__(architecture, activation, hidden_units, **options)
        self.event_shape = _check_integers("output_shape", output_shape)
        self.chain = self._conv() if architecture == "conv" else self._mlp()
        pass_on_frozen(self)

    def _mlp(self) -> list[keras.Layer]:
        last = self._dense(math.prod(self.event_shape))
        reshape = keras.layers.Reshape(self.event_shape, dtype=self.dtype_policy)
        return [*self._hidden(), last, reshape]

    def _conv(self) -> list[keras.Layer]:
        _check_image("decoder", self.event_shape)
        height, width, channels = self.event_shape
        rows, columns = height // 8, width // 8
        return [
            self._dense(rows * columns * 64),
            keras.layers.Reshape((rows, columns, 64), dtype=self.dtype_policy),
            self._block(_UpsamplingBlock, 0, 32, 32, (2 * rows, 2 * columns)),
            self._block(_UpsamplingBlock, 1, 16, 16, (4 * rows, 4 * columns)),
            self._block(_UpsamplingBlock, 2, 16, 8, (height, width), channels),
        ]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "output_shape": list(self.event_shape)}
