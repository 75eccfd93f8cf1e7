"""VAE and IWAE: importance sampling without transitions."""

from typing import Any

import keras
import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.models.base import Estimate, MonteCarloVAE, diagonal_normal
from tf_mcvae.objectives.bounds import dreg_loss, elbo, gaussian_kl, iwae


class _DirectVAE(MonteCarloVAE):
    """What VAE and IWAE share: log weights straight from the encoder."""

    def _draw(self, posterior: Any, num_samples: int, seed: tf.Tensor) -> tf.Tensor:
        """Draws from the encoder; the same draws as an annealed model's first states."""
        return self.draw_posterior(posterior, num_samples, random.split(seed)[0])

    def log_weights(self, x: Any, seed: Any = None, num_samples: int | None = None) -> tf.Tensor:
        """Returns `log p(x, z) - log q(z|x)` for `z ~ q(z|x)`; see the base class."""
        x = self._checked(x)
        posterior = self.posterior(x)
        seed = self._seed_or_next(seed, x.shape[0])
        z = self._draw(posterior, self._count_or_own(num_samples), seed)
        return self.log_joint(x, z) - posterior.log_prob(z)


@keras.saving.register_keras_serializable("tf_mcvae")
class VAE(_DirectVAE):
    """Variational auto-encoder.

    Trained on the evidence lower bound, with the Kullback-Leibler divergence in closed form,

        ELBO = E_q[log p(x|z)] - KL(q(z|x) || N(0, I)),

    the expectation being the mean over S draws.

    Args:
        encoder: Maps `x [B, ...]` to `[B, 2 D]`, location and log variance.
        decoder: Maps `z [B, D]` to the likelihood's parameters.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        num_samples: S.
        seed: Integer from which all random numbers are drawn.

    Example:
        >>> import numpy as np, tf_mcvae
        >>> model = tf_mcvae.VAE(
        ...     tf_mcvae.Encoder(2, architecture="dense"),
        ...     tf_mcvae.Decoder((8, 8, 1), architecture="dense"),
        ... )
        >>> model.compile("adam")
        >>> history = model.fit(np.zeros([16, 8, 8, 1], "float32"), verbose=0)
        >>> model.sample(3).shape
        TensorShape([3, 8, 8, 1])

    Reference:
        Kingma and Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114.
    """

    def estimate(self, x: tf.Tensor, seed: tf.Tensor, training: bool) -> Estimate:
        """Evaluates the ELBO on a batch."""
        posterior = self.posterior(x, training)
        z = self._draw(posterior, self.num_samples, seed)
        log_prob = self.likelihood.log_prob(self.likelihood_parameters(z, training=training), x)
        normal = posterior.distribution
        bound = elbo(log_prob) - gaussian_kl(normal.loc, normal.scale)
        return Estimate(-bound, bound, {})

    def bound(self, x: Any, seed: Any = None, num_samples: int | None = None) -> tf.Tensor:
        """Returns the ELBO estimate `mean_s log w_s`, `[B]`, in nats."""
        return elbo(self.log_weights(x, seed, num_samples))


@keras.saving.register_keras_serializable("tf_mcvae")
class IWAE(_DirectVAE):
    """Importance-weighted auto-encoder, trained on `log (1/S sum_s w_s)`.

    Args:
        encoder: Maps `x [B, ...]` to `[B, 2 D]`, location and log variance.
        decoder: Maps `z [B, D]` to the likelihood's parameters.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        num_samples: S.
        gradient: The encoder's gradient estimator: `"plain"`; `"stl"`, sticking the landing
            (Roeder et al., arXiv 1703.09194), which leaves out the score term and is biased for
            S > 1; or `"dreg"`, doubly reparameterised, unbiased and of lower variance.
        seed: Integer from which all random numbers are drawn.

    Reference:
        Burda et al., Importance Weighted Autoencoders, arXiv 1509.00519; Tucker et al., Doubly
        Reparameterized Gradient Estimators, arXiv 1810.04152.
    """

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        likelihood: Any = "bernoulli",
        num_samples: int = 10,
        gradient: str = "plain",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if gradient not in ("plain", "stl", "dreg"):
            raise ValueError(
                f"`gradient` must be 'plain', 'stl' or 'dreg'. Received: gradient={gradient!r}"
            )
        super().__init__(encoder, decoder, likelihood, num_samples, seed, **kwargs)
        self.gradient = gradient

    def estimate(self, x: tf.Tensor, seed: tf.Tensor, training: bool) -> Estimate:
        """Evaluates the importance-weighted bound on a batch."""
        posterior = self.posterior(x, training)
        z = self._draw(posterior, self.num_samples, seed)
        if self.gradient == "plain" or not training:
            bound = iwae(self.log_joint(x, z, training=training) - posterior.log_prob(z))
            return Estimate(-bound, bound, {})
        normal = posterior.distribution
        frozen = diagonal_normal(tf.stop_gradient(normal.loc), tf.stop_gradient(normal.scale))
        if self.gradient == "stl":
            bound = iwae(self.log_joint(x, z, training=training) - frozen.log_prob(z))
            return Estimate(-bound, bound, {})
        ends = self.path(x, frozen, training=training).endpoints(tf.stop_gradient(z))
        log_weights = ends.log_p - ends.log_q
        loss = dreg_loss(log_weights, z, ends.score_p - ends.score_q)
        return Estimate(loss, iwae(log_weights), {})

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "gradient": self.gradient}
