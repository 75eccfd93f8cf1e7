"""A trained encoder as a Keras layer, for models that use its features."""

import os
from typing import Any, Literal, get_args

import keras
import tensorflow as tf

from tf_mcvae import distribute, random
from tf_mcvae.checks import ExplicitArguments
from tf_mcvae.layers.composite import Composite
from tf_mcvae.models import MonteCarloVAE, load_model
from tf_mcvae.models.posterior import latent_dim_of, loc_and_scale

Output = Literal["loc", "loc_and_scale", "sample"]


@keras.saving.register_keras_serializable("tf_mcvae")
class EncoderFeatures(ExplicitArguments, Composite, keras.layers.Layer):
    """Features of images: the posterior `q(z|x) = N(loc(x), diag(scale(x)^2))` of a trained model.

    The layer copies the encoder of a model, so training the layer does not change the model. It is
    saved and loaded as a part of the surrounding Keras model; loading needs an import of this
    package, but neither the original model nor its file.

    By default the weights are frozen, and the encoder runs in inference mode (batch normalisation,
    dropout). To fine-tune it, set `layer.trainable = True` and compile again, usually with a small
    learning rate.

    Args:
        encoder: A built tf_mcvae model; the path of its `.keras` file; or an encoder, that is a
            Keras model that maps `x [B, ...]` to `[B, 2 D]`, location and log variance. An encoder
            is not copied, and is itself frozen.
        output: `"loc"`; `"loc_and_scale"`, concatenated along the last axis; or `"sample"`, a draw
            `loc + scale * noise` that differs at each call, in training and in inference.
        seed: Integer from which samples are drawn.
        trainable: Whether the weights are trained.
        name, dtype: As in `keras.layers.Layer`.

    Returns:
        `[B, D]`, or `[B, 2 D]` for `"loc_and_scale"`, for images `[B, ...]` like those that the
        model was trained on. The posterior is that before all transitions, and before the flow of a
        `FlowVAE`.

    Raises:
        TypeError: If `encoder` has another type, or the images are integers.
        ValueError: If the model is not built, there is no such file or output, or the encoder does
            not return `[B, 2 D]`.

    Example:
        >>> import keras, tf_mcvae
        >>> model = tf_mcvae.VAE(
        ...     tf_mcvae.Encoder(2, architecture="dense"),
        ...     tf_mcvae.Decoder((8, 8, 1), architecture="dense"),
        ... )
        >>> model.build((None, 8, 8, 1))  # Training would follow.
        >>> classifier = keras.Sequential(
        ...     [keras.Input((8, 8, 1)), tf_mcvae.EncoderFeatures(model), keras.layers.Dense(10)]
        ... )
        >>> classifier.output_shape, len(classifier.trainable_variables)
        ((None, 10), 2)
    """

    def __init__(
        self,
        encoder: MonteCarloVAE | keras.Layer | str | os.PathLike[str],
        output: Output = "loc",
        seed: int = 0,
        trainable: bool = False,
        *,
        name: str | None = None,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(trainable=trainable, name=name, dtype=dtype)
        if output not in get_args(Output):
            raise ValueError(
                f"`output` must be one of {', '.join(map(repr, get_args(Output)))}. "
                f"Received: output={output!r}"
            )
        random.as_seed(seed)
        self.output_kind = output
        self.seed = seed
        self.encoder = _encoder_of(encoder)
        self._freeze()

    def build(self, input_shape: tuple[Any, ...]) -> None:
        """Builds the encoder if it is not built, and checks the shape of its output."""
        latent_dim_of(self.encoder, input_shape)
        if self.output_kind == "sample":
            # A weight, since a Python number would be a constant in a graph.
            self.num_calls = self.add_weight(
                shape=(),
                dtype="int32",
                initializer="zeros",
                trainable=False,
                aggregation="only_first_replica",
                name="num_calls",
            )
        self._freeze()
        self.built = True

    def _freeze(self) -> None:
        """Freezes the encoder's weights if the layer is not trainable."""
        if not self.trainable:
            # Keras passes a value on to inner layers only if it changes.
            self.encoder.trainable = True
            self.encoder.trainable = False

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns the features, `[B, D]` or `[B, 2 D]`."""
        dtype = tf.as_dtype(x.dtype)
        if dtype == tf.bool:
            x = tf.cast(x, self.compute_dtype)
        elif not dtype.is_floating:
            raise TypeError(
                "Images must be floating-point numbers, like those that the model was trained on: "
                "put `keras.layers.Rescaling(1 / 255)` before this layer for pixels of 0 to 255, "
                f"or convert other integers by `tf.cast`. Received: images of {x.dtype}"
            )
        # A frozen encoder stays in inference mode when the surrounding model is trained.
        code = self.encoder(x, training=bool(training and self.trainable))
        loc, scale = loc_and_scale(code)
        if self.output_kind == "loc":
            return tf.cast(loc, self.compute_dtype)
        if self.output_kind == "sample":
            noise = random.normal([1, *random.shape_of(loc)], self._next_seed())[0]
            noise = tf.cast(noise, loc.dtype)
            return tf.cast(loc + scale * noise, self.compute_dtype)
        return tf.cast(tf.concat([loc, scale], axis=-1), self.compute_dtype)

    def _next_seed(self) -> tf.Tensor:
        seed = random.fold_in(random.as_seed(self.seed), tf.convert_to_tensor(self.num_calls))
        self.num_calls.assign_add(1)
        return random.fold_in(seed, distribute.replica_index())

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, the encoder serialised without its weights."""
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "output": self.output_kind,
            "seed": self.seed,
        }


def _encoder_of(source: MonteCarloVAE | keras.Layer | str | os.PathLike[str]) -> keras.Layer:
    if isinstance(source, str | os.PathLike):
        return load_model(source).encoder
    if not isinstance(source, MonteCarloVAE):
        if isinstance(source, keras.Layer):
            return source
        raise TypeError(
            "`encoder` must be a tf_mcvae model, the path of a .keras file of one, or a Keras "
            f"model. Received: {type(source).__name__}"
        )
    source.require_built()
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(source.encoder)
    )
    copy(keras.KerasTensor((None, *source.event_shape), dtype="float32"))
    copy.set_weights(source.encoder.get_weights())
    return copy
