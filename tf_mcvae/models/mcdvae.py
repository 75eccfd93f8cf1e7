"""MCD: Monte Carlo diffusion."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_mcvae.kernels import Drift, Place, UnadjustedLangevin
from tf_mcvae.layers.composite import finish_build
from tf_mcvae.layers.schedules import Schedule
from tf_mcvae.layers.step_size import StepSize
from tf_mcvae.layers.transition_networks import DriftNetwork
from tf_mcvae.models.annealed import AnnealedVAE, ScheduleName, Transition
from tf_mcvae.models.base import LikelihoodLike
from tf_mcvae.models.estimate import Gradient
from tf_mcvae.models.posterior import encoder_features


@keras.saving.register_keras_serializable("tf_mcvae")
class MCDVAE(AnnealedVAE):
    """Monte Carlo diffusion: unadjusted Langevin with a learned drift backwards.

    The transitions are those of `LMCVAE`. The kernel that runs backwards is

        N(z_{k-1}; z_k + e_k s_{b_k}(z_k) + e_k a(z_k, h(x), k/K), 2 e_k I)

    with one network `a` of position, features of the encoder and time. Its last layer starts at
    0, where the bound is exactly that of `LMCVAE`. It costs K + 1 evaluations of the decoder and
    its gradient, and K of the network.

    Args:
        encoder: Maps `x [B, ...]` to `[B, 2 D]`, location and log variance.
        decoder: Maps `z [B, D]` to the likelihood's parameters; run in inference mode.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        num_transitions: K.
        num_samples: S.
        schedule: `"linear"`, `"sigmoidal"`, `"all_learnable"`, or a `Schedule` layer.
        step_size: A fixed step size, or a `StepSize` layer for learned or adapted ones.
        cloned_decoder: Whether the transitions use a separately trained copy of the decoder.
        recompute: Whether the backward pass computes the decoder's activations again rather than
            keep them: less memory at large K, for longer training steps.
        gradient: The estimator of the gradient of the first draws: `"plain"`, `"stl"` or `"dreg"`;
            see `LMCVAE`.
        network: `a`, a `DriftNetwork`; None for one with its defaults.
        seed: Integer from which all random numbers are drawn, but not the networks' initial
            weights, which `keras.utils.set_random_seed` seeds.
        name: Name of the model.
        trainable: Whether the weights are trained.
        dtype: Data type or policy of the computations, as in Keras.

    Reference:
        Doucet et al., Score-Based Diffusion meets Annealed Importance Sampling, arXiv 2208.07698.
    """

    suits_xla = True
    fixed = AnnealedVAE.fixed | {"network"}

    def __init__(
        self,
        encoder: keras.Layer,
        decoder: keras.Layer,
        *,
        likelihood: LikelihoodLike = "bernoulli",
        num_transitions: int = 5,
        num_samples: int = 1,
        schedule: ScheduleName | Schedule = "linear",
        step_size: float | Sequence[Any] | StepSize = 0.01,
        cloned_decoder: bool = False,
        recompute: bool = False,
        gradient: Gradient = "plain",
        network: DriftNetwork | None = None,
        seed: int = 0,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(
            encoder,
            decoder,
            likelihood=likelihood,
            num_transitions=num_transitions,
            num_samples=num_samples,
            schedule=schedule,
            step_size=step_size,
            cloned_decoder=cloned_decoder,
            recompute=recompute,
            gradient=gradient,
            seed=seed,
            name=name,
            trainable=trainable,
            dtype=dtype,
        )
        self.network = DriftNetwork(dtype=self.dtype_policy) if network is None else network

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds networks, schedule and step sizes."""
        super().build(input_shape)
        if not self.network.built:  # The position, and two features for each dimension.
            self.network.build(3 * self.latent_dim, self.latent_dim)
        finish_build(self)

    def make_kernel(self, transition: Transition) -> UnadjustedLangevin:
        """Makes an unadjusted Langevin kernel with the learned drift backwards."""

        def backward_drift(place: Place) -> Drift:
            return Drift(place.score + self.learned_drift(transition, place, 1))

        return UnadjustedLangevin(
            transition.path,
            transition.step_size,
            transition.inverse_temperature,
            backward_drift=backward_drift,
        )

    def learned_drift(self, transition: Transition, place: Place, offset: int) -> tf.Tensor:
        """Returns `a` at the time of the transition's first (offset 0) or last state (1)."""
        features = encoder_features(transition.posterior)
        time = transition.time(transition.index + offset)
        return self.network((place.state, *features), time)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        serialised = keras.saving.serialize_keras_object(self.network)
        return {**super().get_config(), "network": serialised}
