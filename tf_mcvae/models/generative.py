"""The generative model: prior, decoder and likelihood in one object."""

from collections.abc import Callable

import keras
import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.layers.composite import clone_layer
from tf_mcvae.layers.likelihoods import Likelihood
from tf_mcvae.layers.priors import Prior
from tf_mcvae.models.batch import Batch

LogProbFn = Callable[[tf.Tensor], tf.Tensor]


class GenerativeModel:
    """The joint density `p(x, z) = p(z) p(x|z)`.

    Args:
        prior: `p(z)`.
        decoder: Maps `z [N, D]` to the likelihood's parameters, `[N, ...]`.
        likelihood: `p(x|z)`, from these parameters.
    """

    def __init__(self, prior: Prior, decoder: keras.Layer, likelihood: Likelihood) -> None:
        self.prior = prior
        self.decoder = decoder
        self.likelihood = likelihood

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The variables that training changes."""
        return [variable for layer in self._layers for variable in layer.trainable_variables]

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        """The other variables, such as moving averages and frozen weights."""
        return [variable for layer in self._layers for variable in layer.non_trainable_variables]

    @property
    def _layers(self) -> tuple[keras.Layer, ...]:
        return self.decoder, self.likelihood, self.prior

    def parameters(self, z: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Runs the decoder on `z [..., D]`; leading axes are folded into the batch and back.

        The decoder computes in its dtype policy; its output is cast to the dtype of z.
        """
        shape = random.shape_of(z)
        output = self.decoder(tf.reshape(z, [-1, shape[-1]]), training=training)
        output = tf.cast(output, z.dtype)
        return tf.reshape(output, shape[:-1] + random.shape_of(output)[1:])

    def mean(self, z: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns the mean of `p(x|z)`, `[..., *event]`, for latents `[..., D]`."""
        return self.likelihood.mean(self.parameters(z, training))

    def log_likelihood(self, batch: Batch, z: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns `log p(x|z)` in nats, `[S, B]`, for `z [S, B, D]`."""
        return self.likelihood.log_prob(self.parameters(z, training), batch.x)

    def bind(self, batch: Batch, training: bool = False) -> LogProbFn:
        """Returns `log p(x, z)` as a function of z, from `[S, B, D]` to `[S, B]`, in nats.

        Called once a step: what does not depend on z is computed here, not at every transition.

        Args:
            batch: The examples.
            training: Whether the decoder runs in training mode.
        """
        log_prior = self.prior.bind()
        return lambda z: log_prior(z) + self.log_likelihood(batch, z, training)

    def sample(
        self,
        num_samples: int,
        latent_dim: int,
        seed: random.Seed,
        event_ndims: int,
        dtype: str = "float32",
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws `x [num_samples, *event]` and their latents `[num_samples, D]`, both of a dtype."""
        latent_seed, x_seed = random.split(seed)
        z = tf.cast(self.prior.sample([1, num_samples, latent_dim], latent_seed), dtype)
        x = self.likelihood.sample(self.parameters(z), x_seed, event_ndims=event_ndims)
        return x[0], z[0]


class Recomputed:
    """A target whose activations the backward pass computes again, as a function of its inputs.

    The gradient of a loop cannot capture what its body does not have as an input, such as eager
    examples and moving averages: they are read here, in the graph around the loop.

    Args:
        target_of: Returns the target, given the examples.
        x: The examples.
        generative: The generative model of the target.

    Attributes:
        inputs: The tensors that `bind` takes: all that the target has a gradient with respect to.
    """

    def __init__(
        self,
        target_of: Callable[[tf.Tensor], LogProbFn],
        x: tf.Tensor,
        generative: GenerativeModel,
    ) -> None:
        def read(variable: keras.Variable) -> tf.Tensor:
            return tf.convert_to_tensor(variable.value)

        self._target_of = target_of
        self._trained = generative.trainable_variables
        self._fixed = [(v, read(v)) for v in generative.non_trainable_variables]
        self.inputs = [tf.identity(x), *map(read, self._trained)]

    def bind(
        self, x: tf.Tensor, *values: tf.Tensor
    ) -> tuple[LogProbFn, list[tuple[keras.Variable, tf.Tensor]]]:
        """Returns the target, and the values that the variables must have when it is called."""
        return self._target_of(x), [*zip(self._trained, values, strict=True), *self._fixed]


def clone(network: keras.Layer) -> keras.Layer:
    """Returns a network of the same configuration, frozen where it is, with new weights."""
    try:
        return clone_layer(network)
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            "`cloned_decoder=True` copies the decoder through `get_config`, which a subclassed "
            "model must define, and `from_config`, which needs your own classes and functions "
            "registered with `keras.saving.register_keras_serializable`. "
            f"Received: decoder of class {type(network).__name__}"
        ) from error
