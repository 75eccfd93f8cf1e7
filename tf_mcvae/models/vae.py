"""The variational auto-encoder."""

import keras
import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.models.base import MonteCarloVAE
from tf_mcvae.models.batch import Batch
from tf_mcvae.models.estimate import Estimate
from tf_mcvae.objectives.bounds import elbo


@keras.saving.register_keras_serializable("tf_mcvae")
class VAE(MonteCarloVAE):
    """Variational auto-encoder.

    It is trained on the evidence lower bound, with the Kullback-Leibler divergence in closed form
    and the mean over S draws as the expectation,

        ELBO = E_q[log p(x|z)] - KL(q(z|x) || N(0, I)).

    Args:
        encoder: Maps `x [B, ...]` to `[B, 2 D]`, location and log variance.
        decoder: Maps `z [B, D]` to the likelihood's parameters.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        num_samples: S.
        seed: Integer from which all draws of the model come. The initial weights of its networks do
            not: `keras.utils.set_random_seed` determines them.
        name: Name of the model.
        trainable: Whether the weights are trained.
        dtype: Data type or policy of the computations, as in Keras.

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

    def estimate(self, batch: Batch, seed: random.Seed, training: bool) -> Estimate:
        """Evaluates the ELBO on a batch."""
        posterior = self.posterior(batch, training)
        z = self.draw_posterior(posterior, self.num_samples, random.split(seed)[0])
        log_prob = self.generative.log_likelihood(batch, z, training)
        normal = posterior.distribution
        divergence = self.prior.kl_divergence(normal.loc, normal.scale)
        bound = elbo(log_prob) - tf.reduce_sum(divergence, axis=-1)
        return Estimate(-bound, bound, {})

    def bound_of(self, log_weights: tf.Tensor) -> tf.Tensor:
        """Returns the ELBO estimate `mean_s log w_s`, `[B]`, from log weights `[S, B]`."""
        return elbo(log_weights)
