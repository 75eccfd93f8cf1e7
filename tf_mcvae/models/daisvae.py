"""DAIS: differentiable annealed importance sampling."""

from collections.abc import Sequence
from typing import Any

import keras

from tf_mcvae.kernels.hamiltonian import Integrator
from tf_mcvae.layers.momentum import MomentumRefresh
from tf_mcvae.layers.schedules import Schedule
from tf_mcvae.layers.step_size import StepSize
from tf_mcvae.models.annealed import ScheduleName
from tf_mcvae.models.base import LikelihoodLike
from tf_mcvae.models.estimate import Gradient
from tf_mcvae.models.uhavae import UHAVAE


@keras.saving.register_keras_serializable("tf_mcvae")
class DAISVAE(UHAVAE):
    """Differentiable annealed importance sampling: `UHAVAE` with the other order of leapfrogs.

    Each leapfrog evaluates the score in the middle of its step,

        z_half = z + e/2 M^-1 v;    v' = v + e s_b(z_half);    z' = z_half + e/2 M^-1 v',

    then the momentum is refreshed in part. The last transition targets `p(x, z)` itself: `b_K = 1`.
    The log weight is that of `UHAVAE`. K L gradients of the decoder and one evaluation more.

    The densities are not evaluated at the states, so that there is no acceptance: step sizes are
    fixed or learned. The publication uses `r = 0.9`, S = 5 and steps that shrink as `K^(-1/4)`.

    Args:
        encoder: Maps `x [B, ...]` to `[B, 2 D]`, location and log variance.
        decoder: Maps `z [B, D]` to the likelihood's parameters; run in inference mode.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        num_transitions: K.
        num_samples: S.
        schedule: `"linear"`, `"sigmoidal"`, `"all_learnable"`, or a `Schedule` layer.
        step_size: The leapfrogs' step size: fixed, or a `StepSize` layer for learned ones.
        cloned_decoder: Whether the transitions use a separately trained copy of the decoder.
        recompute: Whether the backward pass computes the decoder's activations again rather than
            keep them: less memory at large K, for longer training steps.
        gradient: The estimator of the gradient of the first draws: `"plain"`, `"stl"` or `"dreg"`;
            see `LMCVAE`.
        num_leapfrog_steps: L.
        momentum: The persistence `r` of the momentum, fixed and with unit mass; or a
            `MomentumRefresh` layer, which may also learn persistence and mass.
        seed: Integer from which all random numbers are drawn, but not the networks' initial
            weights, which `keras.utils.set_random_seed` seeds.
        name: Name of the model.
        trainable: Whether the weights are trained.
        dtype: Data type or policy of the computations, as in Keras.

    Reference:
        Zhang et al., Differentiable Annealed Importance Sampling and the Perils of Gradient Noise,
        arXiv 2107.10211.
    """

    suits_xla = True
    integrator: Integrator = "drift_kick_drift"
    reaches_target = True
    has_acceptance = False

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
