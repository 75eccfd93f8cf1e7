"""LDVI: Langevin diffusion variational inference."""

from collections.abc import Sequence
from typing import Any

import keras

from tf_mcvae.kernels.hamiltonian import RefreshFn
from tf_mcvae.layers.composite import finish_build
from tf_mcvae.layers.momentum import MomentumRefresh
from tf_mcvae.layers.schedules import Schedule
from tf_mcvae.layers.step_size import StepSize
from tf_mcvae.layers.transition_networks import DriftNetwork
from tf_mcvae.models.annealed import ScheduleName, Transition
from tf_mcvae.models.base import LikelihoodLike
from tf_mcvae.models.estimate import Gradient
from tf_mcvae.models.posterior import encoder_features
from tf_mcvae.models.uhavae import UHAVAE


@keras.saving.register_keras_serializable("tf_mcvae")
class LDVIVAE(UHAVAE):
    """Langevin diffusion variational inference: `UHAVAE` with a learned backward refreshment.

    The refreshment `v ~ N(r u, (1 - r^2) M)` of a momentum `u` is weighed by the backward one

        N(u; r v + (1 - r^2) a(z, v, h(x), t), (1 - r^2) M)

    with a network `a` of position, new momentum, features of the encoder and time. Its last layer
    starts at 0, where the weight is exactly that of `UHAVAE`. The first refreshment needs none, as
    the first momentum is drawn from `N(0, M)`.

    The publication discretises the refreshment by Euler, `N((1 - g e) u, 2 g e)` with a friction
    `g`. This one is exact, `r = exp(-g e)`: it suits every step size, and without the network it
    does not loosen the bound.

    Args:
        encoder: Maps `x [B, ...]` to `[B, 2 D]`, location and log variance.
        decoder: Maps `z [B, D]` to the likelihood's parameters; run in inference mode.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        num_transitions: K.
        num_samples: S.
        schedule: `"linear"`, `"sigmoidal"`, `"all_learnable"`, or a `Schedule` layer.
        step_size: The leapfrogs' step size: fixed, or a `StepSize` layer for learned or adapted
            ones.
        cloned_decoder: Whether the transitions use a separately trained copy of the decoder.
        recompute: Whether the backward pass computes the decoder's activations again rather than
            keep them: less memory at large K, for longer training steps.
        gradient: The estimator of the gradient of the first draws: `"plain"`, `"stl"` or `"dreg"`;
            see `LMCVAE`.
        num_leapfrog_steps: L.
        momentum: The persistence `r` of the momentum, fixed and with unit mass; or a
            `MomentumRefresh` layer, which may also learn persistence and mass.
        network: `a`, a `DriftNetwork`; None for one with its defaults.
        seed: Integer from which all random numbers are drawn, but not the networks' initial
            weights, which `keras.utils.set_random_seed` seeds.
        name: Name of the model.
        trainable: Whether the weights are trained.
        dtype: Data type or policy of the computations, as in Keras.

    Reference:
        Geffner and Domke, Langevin Diffusion Variational Inference, arXiv 2208.07743.
    """

    suits_xla = True
    fixed = UHAVAE.fixed | {"network"}

    def __init__(
        self,
        encoder: keras.Layer,
        decoder: keras.Layer,
        *,
        likelihood: LikelihoodLike = "bernoulli",
        num_transitions: int = 5,
        num_samples: int = 1,
        schedule: ScheduleName | Schedule = "linear",
        step_size: float | Sequence[Any] | StepSize = 0.1,
        cloned_decoder: bool = False,
        recompute: bool = False,
        gradient: Gradient = "plain",
        num_leapfrog_steps: int = 1,
        momentum: float | MomentumRefresh = 0.9,
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
            num_leapfrog_steps=num_leapfrog_steps,
            momentum=momentum,
            seed=seed,
            name=name,
            trainable=trainable,
            dtype=dtype,
        )
        self.network = DriftNetwork(dtype=self.dtype_policy) if network is None else network

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds networks, schedule, step sizes and momentum."""
        super().build(input_shape)
        if not self.network.built:  # Position, momentum, and two features for each dimension.
            self.network.build(4 * self.latent_dim, self.latent_dim)
        finish_build(self)

    def backward_refresh(self, transition: Transition) -> RefreshFn:
        """Returns `a` at the time of the transition's first state."""
        features = encoder_features(transition.posterior)
        time = transition.time(transition.index)

        return lambda state, momentum: self.network((state, momentum, *features), time)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        serialised = keras.saving.serialize_keras_object(self.network)
        return {**super().get_config(), "network": serialised}
