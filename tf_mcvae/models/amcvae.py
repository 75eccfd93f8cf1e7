"""A-MCVAE: Metropolis-adjusted Langevin transitions."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import keras
import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.kernels import MetropolisAdjustedLangevin, MetropolisHastings, TransitionResults
from tf_mcvae.kernels.metropolis import check_acceptance
from tf_mcvae.kernels.transition import Acceptance, acceptance_slope
from tf_mcvae.layers.schedules import Schedule
from tf_mcvae.layers.step_size import StepSize
from tf_mcvae.models.annealed import AnnealedVAE, Kernel, ScheduleName, Transition
from tf_mcvae.models.base import LikelihoodLike
from tf_mcvae.models.batch import Batch
from tf_mcvae.models.changes import Check, check_boolean, check_choice
from tf_mcvae.models.estimate import Estimate
from tf_mcvae.models.penalties import keeping_penalties
from tf_mcvae.models.statistics import TransitionStatistics, trace_statistics
from tf_mcvae.objectives.bounds import choose_transition, coupled_loss, elbo, score_function_loss


@keras.saving.register_keras_serializable("tf_mcvae")
class AMCVAE(AnnealedVAE):
    """Annealed Monte Carlo VAE: annealed importance sampling with Metropolis-adjusted Langevin.

    With `z_k` from a kernel that leaves `pi_{b_k}` invariant,

        log w = sum_{k=0..K} (b_{k+1} - b_k) (log p(x, z_k) - log q(z_k|x)),

    and the bound is `E[log w] <= log p(x)`, the mean over S chains. The gradient runs along the
    accepted path; a further term, which `gradient` chooses, accounts for the accept/reject choices.

    Args:
        encoder: Maps `x [B, ...]` to `[B, 2 D]`, location and log variance.
        decoder: Maps `z [B, D]` to the likelihood's parameters; run in inference mode.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        num_transitions: K.
        num_samples: S; 1 needs `gradient="coupled"`, since the other has no baseline then, and a
            variance that drowns the gradient.
        schedule: `"linear"`, `"sigmoidal"`, `"all_learnable"`, or a `Schedule` layer.
        step_size: A fixed step size, or a `StepSize` layer for learned or adapted ones.
        cloned_decoder: Whether the transitions use a separately trained copy of the decoder.
        recompute: Whether the backward pass computes the decoder's activations again rather than
            keep them: less memory at large K, for longer training steps.
        gradient: The term of the choices. `"leave_one_out"` is a score-function term whose baseline
            is the mean of the other chains. `"coupled"` runs a second chain next to each, with the
            same random numbers and one choice inverted: the difference of the two log weights is
            the effect of that choice. Both are unbiased. The second has a far lower variance for
            one chain, and a lower one for several; it costs K + 1 more evaluations of the decoder
            and its gradient, which are not differentiated.
        acceptance: `"metropolis"` or `"barker"`.
        alpha_annealing: Whether the term of the choices is warmed up: in epoch n of `fit` (from 0)
            it is multiplied by `min(1, 0.1 n)`.
        seed: Integer from which all random numbers are drawn, but not the networks' initial
            weights, which `keras.utils.set_random_seed` seeds.
        name: Name of the model.
        trainable: Whether the weights are trained.
        dtype: Data type or policy of the computations, as in Keras.

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921; Arya et
        al., Differentiating Metropolis-Hastings to Optimize Intractable Densities, arXiv
        2306.07961, for coupled chains.
    """

    suits_xla = True
    changeable: ClassVar[Mapping[str, Check]] = {
        **AnnealedVAE.changeable,
        "gradient": check_choice("leave_one_out", "coupled"),
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
        gradient: Literal["leave_one_out", "coupled"] = "leave_one_out",
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
        if self.gradient == "coupled" and training:
            return self._coupled_estimate(batch, seed)
        run = self.run_transitions(batch, seed, self.num_samples, training)
        bound, metrics = elbo(run.log_weights), self.transition_metrics(run.trace)
        if not training:
            return Estimate(-bound, bound, metrics)
        log_choice_probs = tf.reduce_sum(run.trace.log_choice_prob, axis=0)
        loss = score_function_loss(run.log_weights, log_choice_probs, self._coefficient())
        return Estimate(loss, bound, metrics, run.trace)

    def _coupled_estimate(self, batch: Batch, seed: random.Seed) -> Estimate:
        """Runs each chain, and once more with one of its choices inverted."""
        posterior = self.posterior(batch, training=True)
        run = self.run_transitions(
            batch, seed, self.num_samples, posterior=posterior, trace_fn=_trace_with_ratio
        )
        statistics, log_accept_ratios = run.trace
        slopes = tf.stop_gradient(acceptance_slope(log_accept_ratios, self.acceptance))
        choice_seed = random.split(seed, 3)[2]  # `run_transitions` uses the other two.
        draws = random.uniform(random.shape_of(run.log_weights), choice_seed)
        is_inverted = choose_transition(slopes, draws)
        with keeping_penalties(self):
            inverted = self.run_transitions(
                batch,
                seed,
                self.num_samples,
                posterior=posterior,
                trace_fn=lambda state, results: (),
                change_kernel=lambda k, kernel: self._inverting(kernel, is_inverted[k]),
            )
        loss = coupled_loss(
            run.log_weights,
            tf.stop_gradient(inverted.log_weights),
            log_accept_ratios,
            slopes,
            statistics.is_accepted,
            is_inverted,
            self._coefficient(),
        )
        metrics = self.transition_metrics(statistics)
        return Estimate(loss, elbo(run.log_weights), metrics, statistics)

    def _inverting(self, kernel: Kernel, decisions: tf.Tensor) -> MetropolisHastings:
        """Returns the kernel with the opposite decision where `decisions [S, B]` holds."""
        if not isinstance(kernel, MetropolisHastings) or kernel.acceptance != self.acceptance:
            raise ValueError(
                "`gradient='coupled'` needs kernels that accept and reject by the model's "
                "`acceptance`: make them so in `make_kernel`, or use 'leave_one_out'. "
                f"Received: kernel={kernel!r}, acceptance={self.acceptance!r}"
            )
        return kernel.inverting(decisions)

    def _coefficient(self) -> tf.Tensor | float:
        """Returns the factor of the term of the choices."""
        if not self.alpha_annealing:
            return 1.0
        epoch = tf.cast(tf.convert_to_tensor(self.epoch), self.density_dtype)
        return tf.minimum(0.1 * epoch, 1.0)  # In a graph, the first argument decides the dtype.

    def own_callbacks(self) -> list[keras.callbacks.Callback]:
        """Adds one that keeps the epoch, for the factor of the term of the choices."""
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


def _trace_with_ratio(
    state: tf.Tensor, results: TransitionResults
) -> tuple[TransitionStatistics, tf.Tensor]:
    return trace_statistics(state, results), results.log_accept_ratio
