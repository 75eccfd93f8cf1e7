"""What all models share: networks to densities, sampling, saving."""

from typing import Any, Self

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae import random
from tf_mcvae.checks import check_positive_integer, check_seeds
from tf_mcvae.kernels.path import AnnealedPath
from tf_mcvae.layers import likelihoods
from tf_mcvae.models.inputs import check_floats
from tf_mcvae.models.training_loop import CALL_STREAM, Estimate, TrainingLoop
from tf_mcvae.objectives.bounds import iwae, standard_normal_log_prob

__all__ = ["Estimate", "MonteCarloVAE", "diagonal_normal"]

tfd = tfp.distributions


def diagonal_normal(loc: tf.Tensor, scale: tf.Tensor) -> Any:
    """Returns `N(loc, diag(scale^2))` over the last axis."""
    return tfd.Independent(tfd.Normal(loc, scale), 1)


def latent_dim_of(encoder: Any, input_shape: tuple[Any, ...]) -> int:
    """Builds an encoder for inputs `[B, ...]`, and returns D of its output `[B, 2 D]`."""
    code = encoder(keras.KerasTensor(input_shape, dtype="float32"))
    shape: Any = getattr(code, "shape", ())
    if len(shape) != 2 or shape[-1] is None or shape[-1] % 2:
        raise ValueError(
            "The encoder must return a tensor [B, 2 * latent_dim], location and log variance. "
            f"Received: encoder output {code}"
        )
    return int(shape[-1]) // 2


def loc_and_scale(code: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns location and scale of `q(z|x)`, `[B, D]`, from an encoder's output `[B, 2 D]`."""
    loc, log_variance = tf.split(tf.cast(code, tf.float32), 2, axis=-1)
    return loc, tf.exp(0.5 * log_variance)


class MonteCarloVAE(TrainingLoop):
    """Base of the models: an encoder, a decoder, a likelihood, and a bound on `log p(x)`.

    The generative model is `p(x, z) = N(z; 0, I) p(x|z)`, the encoder's posterior
    `q(z|x) = N(loc(x), diag(scale(x)^2))`. A subclass says how log weights come from them
    (`log_weights`) and what is minimised (`estimate`). Train with `compile(optimizer)` and `fit` on
    batches of `x` or `(x, y)`; `y` is ignored.

    Args:
        encoder: Any `keras.Model` that maps `x [B, ...]` to `[B, 2 D]`: location and log variance.
        decoder: Any `keras.Model` that maps `z [B, D]` to the likelihood's parameters `[B, ...]`.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        num_samples: S, the number of importance samples.
        seed: Integer from which all random numbers are drawn.
    """

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        likelihood: Any = "bernoulli",
        num_samples: int = 1,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive_integer("num_samples", num_samples)
        for name, network in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(network, keras.Layer):
                raise TypeError(f"`{name}` must be a Keras model. Received: {name}={network!r}")
        random.as_seed(seed)
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihoods.get(likelihood)
        self.num_samples = num_samples
        self.seed = seed
        self._num_calls = 0
        self._make_counters()

    # Networks to densities.

    def build(self, input_shape: tuple[Any, ...]) -> None:
        """Builds both networks for inputs of shape `[B, ...]` and checks that they fit together."""
        self.latent_dim = latent_dim_of(self.encoder, input_shape)
        output = self.decoder(keras.KerasTensor((None, self.latent_dim), dtype="float32"))
        width = self.likelihood.parameters_per_channel
        expected = (*input_shape[1:-1], input_shape[-1] * width)
        if tuple(output.shape[1:]) != expected:
            raise ValueError(
                f"The decoder must return the {type(self.likelihood).__name__} likelihood's "
                f"parameters, [B, {', '.join(map(str, expected))}] for inputs of shape "
                f"{tuple(input_shape)}. "
                f"Received: decoder output of shape {tuple(output.shape)}"
            )
        if not self.likelihood.built:
            self.likelihood.build(output.shape)
        self.event_shape = tuple(input_shape[1:])
        self.built = True

    def posterior(self, x: tf.Tensor, training: bool = False) -> Any:
        """Returns the encoder's `q(z|x)` as a `tfd.Distribution` with batch shape `[B]`."""
        return diagonal_normal(*loc_and_scale(self.encoder(x, training=training)))

    def likelihood_parameters(
        self, z: tf.Tensor, decoder: keras.Model | None = None, training: bool = False
    ) -> tf.Tensor:
        """Runs the decoder on `z [..., D]`; leading axes are folded into the batch and back."""
        decoder = self.decoder if decoder is None else decoder
        shape = random.shape_of(z)
        output = tf.cast(decoder(tf.reshape(z, [-1, shape[-1]]), training=training), tf.float32)
        return tf.reshape(output, shape[:-1] + random.shape_of(output)[1:])

    def log_joint(
        self,
        x: tf.Tensor,
        z: tf.Tensor,
        decoder: keras.Model | None = None,
        training: bool = False,
    ) -> tf.Tensor:
        """Returns `log p(x, z)`.

        Args:
            x: `[B, ...]`.
            z: `[S, B, D]`.
            decoder: Decoder to use in place of the model's own.
            training: Whether the decoder runs in training mode.

        Returns:
            `[S, B]`, in nats.
        """
        parameters = self.likelihood_parameters(z, decoder, training)
        return standard_normal_log_prob(z) + self.likelihood.log_prob(parameters, x)

    def draw_posterior(self, posterior: Any, num_samples: int, seed: tf.Tensor) -> tf.Tensor:
        """Draws `z_0 = loc + scale * noise`, `[S, B, D]`, differentiably."""
        loc, scale = posterior.distribution.loc, posterior.distribution.scale
        return loc + scale * random.normal([num_samples, *random.shape_of(loc)], seed)

    def path(
        self,
        x: tf.Tensor,
        posterior: Any,
        decoder: keras.Model | None = None,
        training: bool = False,
    ) -> AnnealedPath:
        """Returns the path from `q(z|x)` to `p(x, z)`, for states `[S, B, D]`."""
        return AnnealedPath(
            posterior.log_prob, lambda z: self.log_joint(x, z, decoder, training=training)
        )

    # What a subclass defines.

    def log_weights(
        self, x: tf.Tensor, seed: Any = None, num_samples: int | None = None
    ) -> tf.Tensor:
        """Returns log weights with `E[exp(log_weights)] = p(x)`.

        Args:
            x: `[B, ...]`.
            seed: Integer, or a seed of `tf_mcvae.random` (`random.per_row` gives each row a seed of
                its own). None takes the next seed of the model.
            num_samples: S; by default the model's.

        Returns:
            `[S, B]`, in nats.
        """
        raise NotImplementedError

    # What users call.

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns reconstructions, `[B, ...]`: the mean of `p(x|z)` at the encoder's location."""
        posterior = self.posterior(x, training)
        return self.likelihood.mean(self.likelihood_parameters(posterior.mean(), training=training))

    def encode(self, x: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns location and scale of `q(z|x)`, each `[B, D]`."""
        posterior = self.posterior(self._checked(x))
        return posterior.mean(), posterior.stddev()

    def decode(self, z: Any) -> tf.Tensor:
        """Returns the mean of `p(x|z)`, `[..., *event]`, for latents `[..., D]`."""
        return self.likelihood.mean(self.likelihood_parameters(tf.convert_to_tensor(z)))

    def reconstruct(self, x: Any) -> tf.Tensor:
        """Returns the mean of `p(x|z)` at the encoder's location, `[B, ...]`."""
        return self.call(self._checked(x))

    def sample(self, num_samples: int, seed: Any = None) -> tf.Tensor:
        """Returns means of `p(x|z)` for `z` drawn from the prior, `[num_samples, ...]`.

        Args:
            num_samples: How many.
            seed: As for `log_weights`.
        """
        check_positive_integer("num_samples", num_samples)
        self.require_built()
        seed = self._seed_or_next(seed, num_samples)
        noise = random.normal([1, num_samples, self.latent_dim], seed)
        return self.decode(noise[0])

    def posterior_sample(self, x: Any, num_samples: int = 1, seed: Any = None) -> tf.Tensor:
        """Draws latents from the model's approximation of `p(z|x)`.

        Args:
            x: `[B, ...]`.
            num_samples: Draws for each example.
            seed: As for `log_weights`.

        Returns:
            `[num_samples, B, D]`; in the Monte Carlo models the states after all transitions.
        """
        check_positive_integer("num_samples", num_samples)
        x = self._checked(x)
        return self.draw_posterior(
            self.posterior(x), num_samples, self._seed_or_next(seed, x.shape[0])
        )

    def bound(self, x: Any, seed: Any = None, num_samples: int | None = None) -> tf.Tensor:
        """Returns the model's lower bound on `log p(x)`, `[B]`, in nats.

        Args:
            x: `[B, ...]`.
            seed: As for `log_weights`.
            num_samples: S; by default the model's.
        """
        return iwae(self.log_weights(x, seed, num_samples))

    def _checked(self, x: Any) -> tf.Tensor:
        """Checks what a user hands over (values only outside a graph), building if need be."""
        if tf.is_tensor(x) and not hasattr(x, "numpy"):
            self.require_built()
            check_floats(x.dtype)
            return x
        self.check_inputs(x if hasattr(x, "shape") else tf.convert_to_tensor(x))
        return tf.convert_to_tensor(x)

    def _count_or_own(self, num_samples: int | None) -> int:
        if num_samples is None:
            return self.num_samples
        check_positive_integer("num_samples", num_samples)
        return num_samples

    def _seed_or_next(self, seed: Any, num_rows: int | None) -> tf.Tensor:
        if seed is not None:
            seed = random.as_seed(seed)
            check_seeds(seed, num_rows)
            return seed
        if not tf.executing_eagerly():
            raise ValueError(
                "Inside a tf.function a `seed` must be given, or every call would draw the same. "
                "Received: seed=None"
            )
        self._num_calls += 1
        return random.fold_in(
            random.fold_in(random.as_seed(self.seed), CALL_STREAM), self._num_calls
        )

    # Saving.

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, networks and likelihood serialised."""
        serialise = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "encoder": serialise(self.encoder),
            "decoder": serialise(self.decoder),
            "likelihood": serialise(self.likelihood),
            "num_samples": self.num_samples,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """Makes a model from `get_config`'s result."""
        restored = {
            name: keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)
            if isinstance(value, dict) and "class_name" in value
            else value
            for name, value in config.items()
        }
        return cls(**restored)
