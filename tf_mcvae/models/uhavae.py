"""UHA: uncorrected Hamiltonian annealing."""

from collections.abc import Sequence
from typing import Any

import keras

from tf_mcvae.checks import check_positive_integer
from tf_mcvae.kernels import UncalibratedHamiltonian
from tf_mcvae.kernels.hamiltonian import Integrator, RefreshFn
from tf_mcvae.layers.composite import finish_build
from tf_mcvae.layers.momentum import MomentumRefresh
from tf_mcvae.layers.schedules import Schedule
from tf_mcvae.layers.step_size import StepSize
from tf_mcvae.models.annealed import AnnealedVAE, ScheduleName, Transition
from tf_mcvae.models.base import LikelihoodLike
from tf_mcvae.models.estimate import Gradient


@keras.saving.register_keras_serializable("tf_mcvae")
class UHAVAE(AnnealedVAE):
    """Uncorrected Hamiltonian annealing: leapfrog steps with a momentum that is refreshed in part.

    Transition k refreshes the momentum, `v_k = r v'_{k-1} + sqrt(1 - r^2) M^1/2 xi_k`, makes L
    leapfrog steps of size `e_k` under `pi_{b_k}`, from `(z_{k-1}, v_k)` to `(z_k, v'_k)`, and

        log w = log p(x, z_K) - log q(z_0|x) + sum_k [log N(v'_k; 0, M) - log N(v_k; 0, M)].

    The bound is `E[log (1/S sum_s w_s)] <= log p(x)`, with its exact gradient. It costs K L + 1
    evaluations of the decoder and its gradient. With `r = 0` and L = 1 it is `LMCVAE` with steps
    `e^2 / 2`.

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
        seed: Integer from which all random numbers are drawn, but not the networks' initial
            weights, which `keras.utils.set_random_seed` seeds.
        name: Name of the model.
        trainable: Whether the weights are trained.
        dtype: Data type or policy of the computations, as in Keras.

    Example:
        >>> import numpy as np, tf_mcvae
        >>> model = tf_mcvae.UHAVAE(
        ...     tf_mcvae.Encoder(2, architecture="dense"),
        ...     tf_mcvae.Decoder((8, 8, 1), architecture="dense"),
        ...     num_transitions=3,
        ...     step_size=tf_mcvae.StepSize(0.1, rule="learned"),
        ...     momentum=tf_mcvae.MomentumRefresh(0.5, learn_persistence=True, learn_mass=True),
        ... )
        >>> model.bound(np.zeros([4, 8, 8, 1], "float32"), seed=1, num_samples=6).shape
        TensorShape([4])

    Reference:
        Geffner and Domke, MCMC Variational Inference via Uncorrected Hamiltonian Annealing, arXiv
        2107.04150.
    """

    suits_xla = True
    integrator: Integrator = "kick_drift_kick"
    fixed = AnnealedVAE.fixed | {"num_leapfrog_steps", "momentum"}

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
            seed=seed,
            name=name,
            trainable=trainable,
            dtype=dtype,
        )
        check_positive_integer("num_leapfrog_steps", num_leapfrog_steps)
        self.num_leapfrog_steps = num_leapfrog_steps
        if not isinstance(momentum, MomentumRefresh):
            momentum = MomentumRefresh(momentum, dtype=self.density_dtype)
        self.momentum = momentum

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds networks, schedule, step sizes and momentum."""
        super().build(input_shape)
        if not self.momentum.built:
            self.momentum.build(self.latent_dim)
        finish_build(self)

    def make_kernel(self, transition: Transition) -> UncalibratedHamiltonian:
        """Makes an uncalibrated Hamiltonian kernel."""
        return UncalibratedHamiltonian(
            transition.path,
            transition.step_size,
            self.num_leapfrog_steps,
            transition.inverse_temperature,
            self.momentum.persistence(),
            mass=self.momentum.mass(),
            integrator=self.integrator,
            backward_refresh=self.backward_refresh(transition),
        )

    def backward_refresh(self, transition: Transition) -> RefreshFn | None:
        """Returns a learned backward refreshment; None for the refreshment's own reversal."""
        return None

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_leapfrog_steps": self.num_leapfrog_steps,
            "momentum": keras.saving.serialize_keras_object(self.momentum),
        }
