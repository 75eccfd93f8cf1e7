"""A trained encoder as a Keras layer, for models that learn from its features."""

import os
from typing import Any, Self

import keras
import tensorflow as tf

from tf_mcvae import distribute, random
from tf_mcvae.models import MonteCarloVAE, load_model
from tf_mcvae.models.posterior import latent_dim_of, loc_and_scale

_OUTPUTS = ("loc", "loc_and_scale", "sample")


@keras.saving.register_keras_serializable("tf_mcvae")
class EncoderFeatures(keras.layers.Layer):
    """Features of images: the posterior `q(z|x) = N(loc(x), diag(scale(x)^2))` of a trained model.

    The layer has its own copy of the encoder's weights, so that what is learned here leaves the
    model as it is. It is saved and loaded with the Keras model that it is in, once this package is
    imported; neither needs the model or its file again.

    As is usual with features that were learned elsewhere, the weights are frozen at first, and the
    encoder works as at inference (batch normalisation, dropout). Set `layer.trainable = True` and
    compile again to train on, with a small learning rate.

    Args:
        encoder: A built model of this package, the path of a `.keras` file of one, or an encoder:
            a Keras model that maps `x [B, ...]` to `[B, 2 D]`, location and log variance, which is
            not copied but frozen itself.
        output: `"loc"`; `"loc_and_scale"`, one after the other along the last axis; or `"sample"`,
            a draw `loc + scale * noise`, another one at each call, when training and after.
        seed: Integer from which samples are drawn.
        trainable: Whether the weights are trained.
        **kwargs: Arguments of `keras.layers.Layer`.

    Returns:
        `[B, D]`, or `[B, 2 D]` for `"loc_and_scale"`, for images `[B, ...]` as the model was
        trained on. Of a `FlowVAE` this is before the flow, and before all transitions.

    Raises:
        TypeError: If `encoder` is none of these, or the images are integers.
        ValueError: If the model is not built, there is no such file or output, or what the encoder
            returns is no `[B, 2 D]`.

    Example:
        >>> import keras, tf_mcvae
        >>> model = tf_mcvae.VAE(
        ...     tf_mcvae.Encoder(2, architecture="dense"),
        ...     tf_mcvae.Decoder((8, 8, 1), architecture="dense"),
        ... )
        >>> model.build((None, 8, 8, 1))  # And then it is trained.
        >>> classifier = keras.Sequential(
        ...     [keras.Input((8, 8, 1)), tf_mcvae.EncoderFeatures(model), keras.layers.Dense(10)]
        ... )
        >>> classifier.output_shape, len(classifier.trainable_variables)
        ((None, 10), 2)
    """

    def __init__(
        self,
        encoder: Any,
        output: str = "loc",
        seed: int = 0,
        trainable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(trainable=trainable, **kwargs)
        if output not in _OUTPUTS:
            raise ValueError(
                f"`output` must be one of {', '.join(map(repr, _OUTPUTS))}. "
                f"Received: output={output!r}"
            )
        random.as_seed(seed)
        self.output_kind = output
        self.seed = seed
        self.encoder = _encoder_of(encoder)
        self._freeze()

    def build(self, input_shape: tuple[Any, ...]) -> None:
        """Builds the encoder, where it is not, and checks what it returns."""
        latent_dim_of(self.encoder, input_shape)
        if self.output_kind == "sample":
            # A Python number would be the same at every call of a graph.
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
        """Has the encoder's weights frozen, if they are to be, as soon as there are any."""
        if not self.trainable:
            # Keras hands a change on to the layers within, but not what was so already.
            self.encoder.trainable = True
            self.encoder.trainable = False

    def call(self, x: Any, training: bool = False) -> Any:
        """Returns the features, `[B, D]` or `[B, 2 D]`."""
        if not tf.as_dtype(x.dtype).is_floating:
            raise TypeError(
                "Images must be floating-point numbers, as those that the model was trained on: "
                "put `keras.layers.Rescaling(1 / 255)` before this layer. "
                f"Received: images of {x.dtype}"
            )
        # Frozen features are the same whatever is trained behind them.
        code = self.encoder(x, training=bool(training and self.trainable))
        loc, scale = loc_and_scale(code)
        if self.output_kind == "loc":
            return tf.cast(loc, self.compute_dtype)
        if self.output_kind == "sample":
            noise = random.normal([1, *random.shape_of(loc)], self._next_seed())[0]
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

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """Makes a layer from `get_config`'s result."""
        encoder = keras.saving.deserialize_keras_object(
            config["encoder"], custom_objects=custom_objects
        )
        return cls(**{**config, "encoder": encoder})


def _encoder_of(source: Any) -> Any:
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
