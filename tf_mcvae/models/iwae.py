"""The importance-weighted auto-encoder."""

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.models.base import LikelihoodLike, MonteCarloVAE
from tf_mcvae.models.batch import Batch
from tf_mcvae.models.changes import Check, check_choice
from tf_mcvae.models.estimate import Estimate, Gradient
from tf_mcvae.models.penalties import ChainPath
from tf_mcvae.models.posterior import diagonal_normal
from tf_mcvae.objectives.bounds import dreg_loss, iwae


@keras.saving.register_keras_serializable("tf_mcvae")
class IWAE(MonteCarloVAE):
    """Importance-weighted auto-encoder, trained on `log (1/S sum_s w_s)`.

    Args:
        encoder: Maps `x [B, ...]` to `[B, 2 D]`, location and log variance.
        decoder: Maps `z [B, D]` to the likelihood's parameters.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        num_samples: S.
        gradient: The encoder's gradient estimator: `"plain"`; `"stl"`, sticking the landing
            (Roeder et al., arXiv 1703.09194), which omits the score term and is biased for S > 1;
            or `"dreg"`, doubly reparameterised, which is unbiased and has a lower variance.
        seed: Integer from which all random numbers are drawn, but not the networks' initial
            weights, which `keras.utils.set_random_seed` seeds.
        name: Name of the model.
        trainable: Whether the weights are trained.
        dtype: Data type or policy of the computations, as in Keras.

    Reference:
        Burda et al., Importance Weighted Autoencoders, arXiv 1509.00519; Tucker et al., Doubly
        Reparameterized Gradient Estimators, arXiv 1810.04152.
    """

    changeable: ClassVar[Mapping[str, Check]] = {
        **MonteCarloVAE.changeable,
        "gradient": check_choice("plain", "stl", "dreg"),
    }

    def __init__(
        self,
        encoder: keras.Layer,
        decoder: keras.Layer,
        *,
        likelihood: LikelihoodLike = "bernoulli",
        num_samples: int = 10,
        gradient: Gradient = "plain",
        seed: int = 0,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(
            encoder,
            decoder,
            likelihood=likelihood,
            num_samples=num_samples,
            seed=seed,
            name=name,
            trainable=trainable,
            dtype=dtype,
        )
        self.gradient = gradient

    def estimate(self, batch: Batch, seed: random.Seed, training: bool) -> Estimate:
        """Evaluates the importance-weighted bound on a batch."""
        if self.gradient == "plain" or not training:
            return super().estimate(batch, seed, training)
        posterior = self.posterior(batch, training)
        z = self.draw_posterior(posterior, self.num_samples, random.split(seed)[0])
        normal = posterior.distribution
        frozen = diagonal_normal(tf.stop_gradient(normal.loc), tf.stop_gradient(normal.scale))
        path = self.path(batch, frozen, training=training)
        if self.gradient == "stl":
            bound = iwae(path.target_log_prob_fn(z) - path.base_log_prob_fn(z))
            return Estimate(-bound, bound, {})
        path = ChainPath(path)
        ends = path.endpoints(tf.stop_gradient(z))
        path.report(z)  # At z itself, so that penalties of the decoder also train the encoder.
        log_weights = ends.log_p - ends.log_q
        loss = dreg_loss(log_weights, z, ends.score_p - ends.score_q)
        return Estimate(loss, iwae(log_weights), {})

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "gradient": self.gradient}
