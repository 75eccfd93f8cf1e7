"""L-MCVAE: unadjusted Langevin transitions."""

from typing import Any

import keras
import tensorflow as tf

from tf_mcvae.annealing import AnnealedPath
from tf_mcvae.bounds import iwae
from tf_mcvae.kernels import UnadjustedLangevin
from tf_mcvae.models.annealed import AnnealedVAE
from tf_mcvae.models.base import Estimate


@keras.saving.register_keras_serializable("tf_mcvae")
class LMCVAE(AnnealedVAE):
    """Langevin Monte Carlo VAE: sequential importance sampling with unadjusted Langevin moves.

    With transitions `z_k = z_{k-1} + e_k s_{b_k}(z_{k-1}) + sqrt(2 e_k) xi_k` and the noise `xi~_k`
    that would lead back,

        log w = log p(x, z_K) - log q(z_0|x) + sum_k (|xi_k|^2 - |xi~_k|^2) / 2,

    and the bound is `E[log (1/S sum_s w_s)] <= log p(x)`. Its gradient is exact: it runs through
    all transitions, second derivatives of the networks included.

    Args:
        encoder: Maps `x [B, ...]` to `[B, 2 D]`, location and log variance.
        decoder: Maps `z [B, D]` to the likelihood's parameters; run in inference mode.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        num_transitions: K.
        num_samples: S.
        schedule: `"linear"`, `"sigmoidal"`, `"all_learnable"`, or a `Schedule` layer.
        step_size: A fixed step size, or a `StepSize` layer for learned or adapted ones.
        cloned_decoder: Whether the transitions use a separately trained copy of the decoder.
        skip_threshold: Moves whose Metropolis-Hastings probability is at most this are undone.
            **Biased**: above 0 the weights no longer average to `p(x)`.
        seed: Integer from which all random numbers are drawn.

    Example:
        >>> import numpy as np, tf_mcvae
        >>> model = tf_mcvae.LMCVAE(
        ...     tf_mcvae.Encoder(2, architecture="dense"),
        ...     tf_mcvae.Decoder((8, 8, 1), architecture="dense"),
        ...     num_transitions=3,
        ...     step_size=tf_mcvae.StepSize(0.05, rule="acceptance"),
        ... )
        >>> model.compile("adam")
        >>> history = model.fit(np.zeros([16, 8, 8, 1], "float32"), verbose=0)
        >>> model.log_weights(np.zeros([4, 8, 8, 1], "float32"), seed=1, num_samples=6).shape
        TensorShape([6, 4])

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """

    def __init__(self, *args: Any, skip_threshold: float = 0.0, **kwargs: Any) -> None:
        if not 0.0 <= skip_threshold < 1.0:
            raise ValueError(
                "`skip_threshold` is a probability, at least 0 and below 1. "
                f"Received: skip_threshold={skip_threshold!r}"
            )
        super().__init__(*args, **kwargs)
        self.skip_threshold = skip_threshold

    def make_kernel(
        self, path: AnnealedPath, step_size: tf.Tensor, inverse_temperature: tf.Tensor
    ) -> UnadjustedLangevin:
        """Makes an unadjusted Langevin kernel."""
        return UnadjustedLangevin(path, step_size, inverse_temperature, self.skip_threshold)

    def estimate(self, x: tf.Tensor, seed: tf.Tensor, training: bool) -> Estimate:
        """Evaluates the bound on a batch."""
        run = self.run_transitions(x, seed, self.num_samples, training)
        bound = iwae(run.log_weights)
        return Estimate(-bound, bound, self.transition_metrics(run.trace), run.trace)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "skip_threshold": self.skip_threshold}
