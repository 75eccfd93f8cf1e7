"""VAE whose posterior is a normalising flow of the encoder's Gaussian."""

from typing import Any

import keras
import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.flows import FlowStack
from tf_mcvae.kernels.path import AnnealedPath
from tf_mcvae.models.base import Estimate, MonteCarloVAE
from tf_mcvae.objectives.bounds import elbo


@keras.saving.register_keras_serializable("tf_mcvae")
class FlowVAE(MonteCarloVAE):
    """Variational auto-encoder with a normalising flow after the encoder.

    With `q(u|x) = N(loc(x), diag(scale(x)^2))` the posterior is that of `z = T(u)`, the flow T
    being the same for all x. Trained on the evidence lower bound,

        ELBO = E_q[log p(x, T(u)) + log |det T'(u)| - log q(u|x)],

    the expectation being the mean over S draws. `encode`, `draw_posterior` and `path` are those of
    u, the base space, in which chains run; `posterior_sample` and `reconstruct` are after the flow.

    Args:
        encoder: Maps `x [B, ...]` to `[B, 2 D]`, location and log variance of u.
        decoder: Maps `z [B, D]` to the likelihood's parameters.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        flow: `"realnvp"`, `"iaf"`, `"bnaf"`, or the first flow, a `Flow` layer; see `FlowStack`.
        num_flows: Number of flows. A single `"realnvp"` leaves half of the dimensions as they are.
        num_samples: S.
        seed: Integer from which all random numbers are drawn.

    Example:
        >>> import numpy as np, tf_mcvae
        >>> model = tf_mcvae.FlowVAE(
        ...     tf_mcvae.Encoder(2, architecture="dense"),
        ...     tf_mcvae.Decoder((8, 8, 1), architecture="dense"),
        ...     flow="realnvp",
        ...     num_flows=2,
        ... )
        >>> model.compile("adam")
        >>> history = model.fit(np.zeros([16, 8, 8, 1], "float32"), verbose=0)
        >>> model.posterior_sample(np.zeros([16, 8, 8, 1], "float32"), 5).shape
        TensorShape([5, 16, 2])

    Reference:
        Rezende and Mohamed, Variational Inference with Normalizing Flows, arXiv 1505.05770.
    """

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        likelihood: Any = "bernoulli",
        flow: Any = "realnvp",
        num_flows: int = 1,
        num_samples: int = 1,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, decoder, likelihood, num_samples, seed, **kwargs)
        self.flow = FlowStack(flow, num_flows)

    def build(self, input_shape: tuple[Any, ...]) -> None:
        """Builds networks and flow for inputs of shape `[B, ...]`."""
        super().build(input_shape)
        if not self.flow.built:
            self.flow.build((None, self.latent_dim))

    def path(
        self,
        x: tf.Tensor,
        posterior: Any,
        decoder: keras.Model | None = None,
        training: bool = False,
    ) -> AnnealedPath:
        """Returns the path from `q(u|x)` to `p(x, T(u)) |det T'(u)|`, for states `u [S, B, D]`."""

        def target_log_prob(u: tf.Tensor) -> tf.Tensor:
            z, log_det = self.flow.forward(u)
            return self.log_joint(x, z, decoder, training) + log_det

        return AnnealedPath(posterior.log_prob, target_log_prob)

    def estimate(self, x: tf.Tensor, seed: tf.Tensor, training: bool) -> Estimate:
        """Evaluates the ELBO on a batch."""
        bound = elbo(self._weigh(x, seed, self.num_samples, training))
        return Estimate(-bound, bound, {})

    def _weigh(
        self, x: tf.Tensor, seed: tf.Tensor, num_samples: int, training: bool = False
    ) -> tf.Tensor:
        posterior = self.posterior(x, training)
        # The same draws as those of the models without flow.
        u = self.draw_posterior(posterior, num_samples, random.split(seed)[0])
        path = self.path(x, posterior, training=training)
        return path.target_log_prob_fn(u) - path.base_log_prob_fn(u)

    def log_weights(self, x: Any, seed: Any = None, num_samples: int | None = None) -> tf.Tensor:
        """Returns `log p(x, T(u)) + log |det T'(u)| - log q(u|x)` for `u ~ q(u|x)`, `[S, B]`.

        See the base class.
        """
        x = self._checked(x)
        seed = self._seed_or_next(seed, x.shape[0])
        return self._weigh(x, seed, self._count_or_own(num_samples))

    def bound(self, x: Any, seed: Any = None, num_samples: int | None = None) -> tf.Tensor:
        """Returns the ELBO estimate `mean_s log w_s`, `[B]`, in nats."""
        return elbo(self.log_weights(x, seed, num_samples))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns reconstructions, `[B, ...]`: the mean of `p(x|T(loc))`."""
        z, _ = self.flow.forward(self.posterior(x, training).mean())
        return self.likelihood.mean(self.likelihood_parameters(z, training=training))

    def posterior_sample(self, x: Any, num_samples: int = 1, seed: Any = None) -> tf.Tensor:
        """Draws `z = T(u)` for `u ~ q(u|x)`, `[num_samples, B, D]`; see the base class."""
        return self.flow.forward(super().posterior_sample(x, num_samples, seed))[0]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = self.flow.get_config()
        return {**super().get_config(), "flow": config["flow"], "num_flows": config["num_flows"]}
