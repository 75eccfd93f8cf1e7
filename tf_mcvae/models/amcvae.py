"""A-MCVAE: Metropolis-adjusted Langevin transitions."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import keras
import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.kernels import MetropolisAdjustedLangevin
from tf_mcvae.kernels.metropolis import check_acceptance
from tf_mcvae.kernels.transition import Acceptance
from tf_mcvae.layers.schedules import Schedule
from tf_mcvae.layers.step_size import StepSize
from tf_mcvae.models.annealed import AnnealedVAE, ScheduleName, Transition
from tf_mcvae.models.base import LikelihoodLike
from tf_mcvae.models.batch import Batch
from tf_mcvae.models.changes import Check, check_boolean, check_choice
from tf_mcvae.models.estimate import Estimate
from tf_mcvae.objectives.bounds import elbo, score_function_loss


@keras.saving.register_keras_serializable("tf_mcvae")
class AMCVAE(AnnealedVAE):
    """Annealed Monte Carlo VAE: annealed importance sampling with Metropolis-adjusted Langevin.

    With `z_k` from a kernel that leaves `pi_{b_k}` invariant,

        log w = sum_{k=0..K} (b_{k+1} - b_k) (log p(x, z_k) - log q(z_k|x)),

    and the bound is `E[log w] <= log p(x)`, the mean over S chains. The gradient runs along the
    accepted path; a score-function term with a leave-one-out baseline accounts for the
    accept/reject choices.

    Args:
        encoder: Maps `x [B, ...]` to `[B, 2 D]`, location and log variance.
        decoder: Maps `z [B, D]` to the likelihood's parameters; run in inference mode.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        num_transitions: K.
        num_samples: S; with 1 the score-function term has no baseline, and a large variance.
        schedule: `"linear"`, `"sigmoidal"`, `"all_learnable"`, or a `Schedule` layer.
        step_size: A fixed step size, or a `StepSize` layer for learned or adapted ones.
        cloned_decoder: Whether the transitions use a separately trained copy of the decoder.
        recompute: Whether the backward pass computes the decoder's activations again rather than
            keep them: less memory at large K, for longer training steps.
        gradient: `"leave_one_out"`, the score-function term with that baseline.
        acceptance: `"metropolis"` or `"barker"`.
        alpha_annealing: Whether the score-function term is warmed up: in epoch n of `fit` (from 0)
            it is multiplied by `min(1, 0.1 n)`.
        seed: Integer from which all random numbers are drawn, but not the networks' initial
            weights, which `keras.utils.set_random_seed` seeds.
        name: Name of the model.
        trainable: Whether the weights are trained.
        dtype: Data type or policy of the computations, as in Keras.

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """

    suits_xla = True
    changeable: ClassVar[Mapping[str, Check]] = {
        **AnnealedVAE.changeable,
        "gradient": check_choice("leave_one_out"),
        "acceptance": lambda name, value: check_acceptance(value),
        "alpha_annealing": check_boolean,
    }

    def __init__(
        self,
        encoder: keras.Layer,
        decoder: keras.Layer,
        *,
        likelihood: LikelihoodLike = "bernoulli",
        num_transitions: int = 5,
        num_samples: int = 5,
        schedule: ScheduleName | Schedule = "linear",
        step_size: float | Sequence[Any] | StepSize = 0.01,
        cloned_decoder: bool = False,
        recompute: bool = False,
        gradient: Literal["leave_one_out"] = "leave_one_out",
        acceptance: Acceptance = "metropolis",
        alpha_annealing: bool = False,
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
        self.acceptance = acceptance
        self.alpha_annealing = alpha_annealing
        self.epoch = self.add_counter("epoch")

    def make_kernel(self, transition: Transition) -> MetropolisAdjustedLangevin:
        """Makes a Metropolis-adjusted Langevin kernel."""
        return MetropolisAdjustedLangevin(
            transition.path, transition.step_size, transition.inverse_temperature, self.acceptance
        )

    def bound_of(self, log_weights: tf.Tensor) -> tf.Tensor:
        """Returns the bound that is trained, `mean_s log w_s`, `[B]`, from log weights `[S, B]`."""
        return elbo(log_weights)

    def estimate(self, batch: Batch, seed: random.Seed, training: bool) -> Estimate:
        """Evaluates the bound and its surrogate loss on a batch."""
        run = self.run_transitions(batch, seed, self.num_samples, training)
        bound, metrics = elbo(run.log_weights), self.transition_metrics(run.trace)
        if not training:
            return Estimate(-bound, bound, metrics)
        log_choice_probs = tf.reduce_sum(run.trace.log_choice_prob, axis=0)
        loss = score_function_loss(run.log_weights, log_choice_probs, self._coefficient())
        return Estimate(loss, bound, metrics, run.trace)

    def _coefficient(self) -> tf.Tensor | float:
        """Returns the factor of the score-function term."""
        if not self.alpha_annealing:
            return 1.0
        epoch = tf.cast(tf.convert_to_tensor(self.epoch), self.density_dtype)
        return tf.minimum(0.1 * epoch, 1.0)  # In a graph, the first argument decides the dtype.

    def own_callbacks(self) -> list[keras.callbacks.Callback]:
        """Adds one that keeps the epoch, for the factor of the score-function term."""
        set_epoch = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: self.epoch.assign(epoch)
        )
        return [*super().own_callbacks(), set_epoch]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "acceptance": self.acceptance,
            "alpha_annealing": self.alpha_annealing,
        }
