"""VAE whose posterior is a normalising flow of the encoder's Gaussian."""

from typing import Any, Literal

import keras
import tensorflow as tf

from tf_mcvae.flows import Flow, FlowStack
from tf_mcvae.layers.composite import finish_build
from tf_mcvae.models.base import LikelihoodLike, MonteCarloVAE
from tf_mcvae.models.generative import LogProbFn
from tf_mcvae.objectives.bounds import elbo

FlowName = Literal["realnvp", "iaf", "bnaf"]


@keras.saving.register_keras_serializable("tf_mcvae")
class FlowVAE(MonteCarloVAE):
    """Variational auto-encoder with a normalising flow after the encoder.

    The posterior is the distribution of `z = T(u)` with `u ~ q(u|x) = N(loc(x), diag(scale(x)^2))`
    and a flow T that is the same for all x. The model is trained on the evidence lower bound,

        ELBO = E_q[log p(x, T(u)) + log |det T'(u)| - log q(u|x)],

    with the mean over S draws as the expectation. `encode`, `draw_posterior` and `path` are those
    of u, in the base space, where chains run; `posterior_sample` and `reconstruct` apply the flow.

    Args:
        encoder: Maps `x [B, ...]` to `[B, 2 D]`, location and log variance of u.
        decoder: Maps `z [B, D]` to the likelihood's parameters.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        flow: `"realnvp"`, `"iaf"`, `"bnaf"`, or the first flow, a `Flow` layer; see `FlowStack`.
        num_flows: Number of flows. A single `"realnvp"` leaves half of the dimensions as they are.
        num_samples: S.
        seed: Integer from which all random numbers are drawn, but not the networks' initial
            weights, which `keras.utils.set_random_seed` seeds.
        name: Name of the model.
        trainable: Whether the weights are trained.
        dtype: Data type or policy of the computations, as in Keras.

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

    fixed = MonteCarloVAE.fixed | {"flow", "num_flows"}

    def __init__(
        self,
        encoder: keras.Layer,
        decoder: keras.Layer,
        *,
        likelihood: LikelihoodLike = "bernoulli",
        flow: FlowName | Flow = "realnvp",
        num_flows: int = 1,
        num_samples: int = 1,
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
        self.flow = FlowStack(flow, num_flows, dtype=self.density_dtype)
        self.num_flows = num_flows

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds networks and flow for inputs of shape `[B, ...]`."""
        super().build(input_shape)
        if not self.flow.built:
            self.flow.build((None, self.latent_dim))
        finish_build(self)

    def to_latents(self, state: tf.Tensor) -> tf.Tensor:
        """Returns `z = T(u)`, `[..., D]`."""
        return self.flow.forward(state)[0]

    def to_states(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the u with `T(u) = z`, `[..., D]`; see the base class."""
        return self.flow.inverse(z)

    def state_density(self, log_joint: LogProbFn) -> LogProbFn:
        """Returns `log p(x, T(u)) + log |det T'(u)|` as a function of u."""

        def log_prob(u: tf.Tensor) -> tf.Tensor:
            z, log_det = self.flow.forward(u)
            return log_joint(z) + log_det

        return log_prob

    def bound_of(self, log_weights: tf.Tensor) -> tf.Tensor:
        """Returns the ELBO estimate `mean_s log w_s`, `[B]`, from log weights `[S, B]`."""
        return elbo(log_weights)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = self.flow.get_config()
        return {**super().get_config(), "flow": config["flow"], "num_flows": config["num_flows"]}
