"""The base of all models: densities from networks, the methods for users, saving."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NoReturn

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae import random
from tf_mcvae.checks import ExplicitArguments, check_positive_integer, check_seeds
from tf_mcvae.kernels import AnnealedPath
from tf_mcvae.layers import likelihoods
from tf_mcvae.layers.composite import Composite, finish_build
from tf_mcvae.layers.likelihoods import Likelihood
from tf_mcvae.layers.priors import StandardNormal
from tf_mcvae.models.batch import Array, Batch
from tf_mcvae.models.changes import Check, CheckedChanges
from tf_mcvae.models.estimate import Estimate
from tf_mcvae.models.generative import GenerativeModel, LogProbFn
from tf_mcvae.models.posterior import diagonal_normal, latent_dim_of, loc_and_scale
from tf_mcvae.models.training import CALL_STREAM, TrainedModel
from tf_mcvae.objectives.bounds import iwae
from tf_mcvae.tracing import as_written

LikelihoodLike = Literal["bernoulli", "gaussian"] | str | dict[str, Any] | Likelihood


class MonteCarloVAE(ExplicitArguments, CheckedChanges, Composite, TrainedModel):
    """Base of the models: an encoder, a generative model, and a bound on `log p(x)`.

    The generative model is `p(x, z) = N(z; 0, I) p(x|z)`, the encoder's posterior
    `q(z|x) = N(loc(x), diag(scale(x)^2))`. A subclass may define the log weights
    (`weigh`), the bound that is made of them (`bound_of`), and the loss (`estimate`). Train with
    `compile(optimizer)` and `fit` on batches of `x` or `(x, y)`; `y` is ignored.

    Args:
        encoder: Any Keras model that maps `x [B, ...]` to `[B, 2 D]`: location and log variance.
        decoder: Any Keras model that maps `z [B, D]` to the likelihood's parameters `[B, ...]`.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        num_samples: S, the number of importance samples.
        seed: Integer from which all random numbers are drawn, but not the networks' initial
            weights, which `keras.utils.set_random_seed` seeds.
        name: Name of the model.
        trainable: Whether the weights are trained.
        dtype: Data type or policy of the computations, as in Keras. Networks have their own.
            Densities, chains and weights are in `float64` if it is `"float64"`, and in `float32`
            otherwise, mixed precision included; see `precision`.
    """

    fixed = frozenset({"encoder", "decoder", "likelihood"})
    changeable: ClassVar[Mapping[str, Check]] = {
        "num_samples": check_positive_integer,
        "seed": lambda name, value: random.as_seed(value),
    }

    def __init__(
        self,
        encoder: keras.Layer,
        decoder: keras.Layer,
        *,
        likelihood: LikelihoodLike = "bernoulli",
        num_samples: int = 1,
        seed: int = 0,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        for argument, network in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(network, keras.Layer):
                raise TypeError(
                    f"`{argument}` must be a Keras model. Received: {argument}={network!r}"
                )
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihoods.get(likelihood, self.density_dtype)
        self.prior = StandardNormal()
        self.num_samples = num_samples
        self.seed = seed
        self._num_calls = 0

    # For training.

    def members(self) -> tuple[keras.Layer, ...]:
        """Returns the networks and the likelihood."""
        return (self.encoder, self.decoder, self.likelihood)

    # Networks to densities.

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds both networks for inputs of shape `[B, ...]` and checks that they fit together."""
        self.latent_dim = latent_dim_of(self.encoder, input_shape)
        output = self.decoder(keras.KerasTensor((None, self.latent_dim), dtype="float32"))
        expected = (*input_shape[1:-1], self.likelihood.num_parameters(input_shape[-1] or 0))
        if tuple(output.shape[1:]) != expected:
            raise ValueError(
                f"The decoder must return the {type(self.likelihood).__name__} likelihood's "
                f"parameters, [B, {', '.join(map(str, expected))}] for inputs of shape "
                f"{tuple(input_shape)}. "
                f"Received: decoder output of shape {tuple(output.shape)}"
            )
        if not self.likelihood.built:
            self.likelihood.build(output.shape)
        self.likelihood.check_methods(output.shape[1:])
        super().build(input_shape)
        finish_build(self)

    @property
    def generative(self) -> GenerativeModel:
        """The generative model `p(z) p(x|z)`."""
        return GenerativeModel(self.prior, self.decoder, self.likelihood)

    def posterior(self, batch: Batch, training: bool = False) -> tfp.distributions.Distribution:
        """Returns the encoder's `q(z|x)` as a `tfd.Distribution` with batch shape `[B]`."""
        code = tf.cast(self.encoder(batch.x, training=training), self.density_dtype)
        return diagonal_normal(*loc_and_scale(code))

    def draw_posterior(
        self, posterior: tfp.distributions.Distribution, num_samples: int, seed: random.Seed
    ) -> tf.Tensor:
        """Draws `z_0 = loc + scale * noise`, `[S, B, D]`, differentiably."""
        loc, scale = posterior.distribution.loc, posterior.distribution.scale
        noise = random.normal([num_samples, *random.shape_of(loc)], seed)
        return loc + scale * tf.cast(noise, loc.dtype)

    # The space that chains run in: that of z, or the base space of a FlowVAE's flow.

    def to_latents(self, state: tf.Tensor) -> tf.Tensor:
        """Returns the latents z of states of a chain, both `[..., D]`."""
        return state

    def to_states(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the states whose latents are z, both `[..., D]`.

        Raises:
            ValueError: If they cannot be computed, as with some flows.
        """
        return z

    def state_density(self, log_joint: LogProbFn) -> LogProbFn:
        """Returns the log-density of states, `[S, B]`, given `log p(x, z)` as a function of z."""
        return log_joint

    def path(
        self,
        batch: Batch,
        posterior: tfp.distributions.Distribution,
        generative: GenerativeModel | None = None,
        training: bool = False,
    ) -> AnnealedPath:
        """Returns the path from `q(z|x)` to `p(x, z)`, for states `[S, B, D]`.

        Args:
            batch: The examples.
            posterior: `q(z|x)`.
            generative: The generative model; None for the model's own.
            training: Whether the decoder runs in training mode.
        """
        log_joint = (generative or self.generative).bind(batch, training)
        return AnnealedPath(posterior.log_prob, self.state_density(log_joint))

    def weigh_encoder(
        self, batch: Batch, seed: random.Seed, num_samples: int, training: bool = False
    ) -> tf.Tensor:
        """Returns `log p(x, z) - log q(z|x)` in nats, `[S, B]`, for `z ~ q(z|x)`."""
        posterior = self.posterior(batch, training)
        state = self.draw_posterior(posterior, num_samples, seed)
        path = self.path(batch, posterior, training=training)
        return path.target_log_prob_fn(state) - path.base_log_prob_fn(state)

    def weigh(
        self, batch: Batch, seed: random.Seed, num_samples: int, training: bool = False
    ) -> tf.Tensor:
        """Returns log weights `[S, B]` with `E[exp(log_weights)] = p(x)`, in nats."""
        # The first of two seeds, with which annealed models draw the same first states.
        return self.weigh_encoder(batch, random.split(seed)[0], num_samples, training)

    def estimate(self, batch: Batch, seed: random.Seed, training: bool) -> Estimate:
        """Evaluates the bound on a batch; the loss is minus the bound."""
        bound = self.bound_of(self.weigh(batch, seed, self.num_samples, training))
        return Estimate(-bound, bound, {})

    # Methods for users.

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns reconstructions, `[B, ...]`: the mean of `p(x|z)` at the encoder's location."""
        loc = self.posterior(Batch(x), training).mean()
        return self.generative.mean(self.to_latents(loc), training)

    @as_written
    def encode(self, x: Array) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns location and scale of `q(z|x)`, each `[B, D]`."""
        posterior = self.posterior(self._batch(x))
        return posterior.mean(), posterior.stddev()

    @as_written
    def decode(self, z: Array) -> tf.Tensor:
        """Returns the mean of `p(x|z)`, `[..., *event]`, for latents `[..., D]`."""
        return self.generative.mean(tf.cast(z, self.density_dtype))

    @as_written
    def reconstruct(self, x: Array) -> tf.Tensor:
        """Returns the mean of `p(x|z)` at the encoder's location, `[B, ...]`."""
        return self.call(self._batch(x).x)

    @as_written
    def log_joint(self, x: Array, z: tf.Tensor) -> tf.Tensor:
        """Returns `log p(x, z)` in nats, `[S, B]`, for `x [B, ...]` and latents `z [S, B, D]`."""
        return self.generative.bind(self._batch(x))(tf.cast(z, self.density_dtype))

    @as_written
    def sample(self, num_samples: int, seed: random.SeedLike | None = None) -> tf.Tensor:
        """Returns means of `p(x|z)` for `z` drawn from the prior, `[num_samples, ...]`.

        Args:
            num_samples: Number of draws.
            seed: As for `log_weights`.
        """
        check_positive_integer("num_samples", num_samples)
        self.require_built()
        seed = self._seed_or_next(seed, num_samples)
        return self.decode(self.prior.sample([1, num_samples, self.latent_dim], seed)[0])

    @as_written
    def posterior_sample(
        self,
        x: Array,
        num_samples: int = 1,
        seed: random.SeedLike | None = None,
        num_transitions: int | tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Draws latents from the model's approximation of `p(z|x)`.

        Args:
            x: `[B, ...]`.
            num_samples: Draws for each example.
            seed: As for `log_weights`.
            num_transitions: As for `log_weights`.

        Returns:
            `[num_samples, B, D]`; in the Monte Carlo models the states after all transitions.
        """
        check_positive_integer("num_samples", num_samples)
        batch = self._batch(x)
        seed = self._seed_or_next(seed, batch.x.shape[0])
        options = self.transition_options(num_transitions)
        return self.to_latents(self.draw_states(batch, seed, num_samples, **options))

    def draw_states(self, batch: Batch, seed: random.Seed, num_samples: int) -> tf.Tensor:
        """Draws the states, `[S, B, D]`, whose latents `posterior_sample` returns."""
        return self.draw_posterior(self.posterior(batch), num_samples, seed)

    def transition_options(self, num_transitions: int | tf.Tensor | None) -> dict[str, Any]:
        """Returns the options of `weigh` and `draw_states` for another number of transitions.

        Raises:
            ValueError: If the model has no transitions, or cannot make another number of them.
        """
        if num_transitions is not None:
            raise ValueError(
                f"{type(self).__name__} has no transitions: leave out `num_transitions`, or choose "
                f"a model with transitions. Received: num_transitions={num_transitions}"
            )
        return {}

    @as_written
    def log_weights(
        self,
        x: Array,
        seed: random.SeedLike | None = None,
        num_samples: int | None = None,
        num_transitions: int | tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns log weights with `E[exp(log_weights)] = p(x)`.

        Args:
            x: `[B, ...]`.
            seed: Integer, or a seed of `tf_mcvae.random` (`random.per_row` gives each row its own).
                None takes the model's next seed.
            num_samples: S; by default the model's.
            num_transitions: K; by default the model's, for which it was trained. Another one, for
                which a scalar integer tensor may stand, needs a linear or sigmoidal schedule and no
                learned drift or reverse kernel; step sizes are interpolated over `k / (K + 1)`.

        Returns:
            `[S, B]`, in nats.

        Raises:
            ValueError: If the model cannot make that number of transitions.
        """
        batch = self._batch(x)
        if num_samples is None:
            num_samples = self.num_samples
        check_positive_integer("num_samples", num_samples)
        options = self.transition_options(num_transitions)
        seed = self._seed_or_next(seed, batch.x.shape[0])
        return self.weigh(batch, seed, num_samples, **options)

    @as_written
    def bound(
        self,
        x: Array,
        seed: random.SeedLike | None = None,
        num_samples: int | None = None,
        num_transitions: int | tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the model's lower bound on `log p(x)`, `[B]`, in nats.

        Args:
            x: `[B, ...]`.
            seed: As for `log_weights`.
            num_samples: S; by default the model's.
            num_transitions: As for `log_weights`.
        """
        return self.bound_of(self.log_weights(x, seed, num_samples, num_transitions))

    def bound_of(self, log_weights: tf.Tensor) -> tf.Tensor:
        """Returns the model's bound, `[B]`, from log weights `[S, B]`."""
        return iwae(log_weights)

    def _batch(self, x: Any) -> Batch:
        """Checks examples, their values only outside a graph, and builds the model if needed."""
        if isinstance(x, tf.Tensor) and not hasattr(x, "numpy"):
            self.require_built()
            return Batch(self._input_check().tensor(x))
        return Batch(tf.convert_to_tensor(self.check_batch(x)))

    def _seed_or_next(self, seed: random.SeedLike | None, num_rows: int | None) -> random.Seed:
        if seed is not None:
            seed = random.as_seed(seed)
            check_seeds(seed, num_rows)
            return seed
        if not tf.executing_eagerly():
            raise ValueError(
                "Inside a tf.function, pass a `seed`; without one every call would draw the same. "
                "Received: seed=None"
            )
        self._num_calls += 1
        return random.fold_in(
            random.fold_in(random.as_seed(self.seed), CALL_STREAM), self._num_calls
        )

    # Saving.

    def export(self, filepath: Any, format: str = "tf_saved_model", **kwargs: Any) -> NoReturn:
        """Raises: `tf_mcvae.export` writes models, with signatures that Keras does not know of."""
        raise ValueError(
            "Keras' `export` knows none of the model's functions but `call`. Use "
            "`tf_mcvae.export.export_saved_model(model, path)` for TensorFlow, `export_onnx` for "
            "ONNX or `export_tflite` for TFLite; `model.save` writes a model that can be trained. "
            f"Received: {type(self).__name__}.export({filepath!r}, format={format!r})"
        )

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
