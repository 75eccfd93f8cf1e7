"""CMCD: controlled Monte Carlo diffusion."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae import random
from tf_mcvae.kernels import Drift, Endpoints, Place, TransitionResults, UnadjustedLangevin
from tf_mcvae.layers.schedules import Schedule
from tf_mcvae.layers.step_size import StepSize
from tf_mcvae.layers.transition_networks import DriftNetwork
from tf_mcvae.models.annealed import ScheduleName, Transition
from tf_mcvae.models.base import LikelihoodLike
from tf_mcvae.models.batch import Batch
from tf_mcvae.models.changes import Check, check_choice
from tf_mcvae.models.estimate import Estimate, Gradient
from tf_mcvae.models.mcdvae import MCDVAE
from tf_mcvae.models.posterior import diagonal_normal
from tf_mcvae.models.statistics import trace_statistics
from tf_mcvae.objectives.annealed import AnnealedSamples
from tf_mcvae.objectives.bounds import iwae, log_variance
from tf_mcvae.objectives.detached import sum_over_transitions

Objective = Literal["kl", "log_variance"]


@keras.saving.register_keras_serializable("tf_mcvae")
class CMCDVAE(MCDVAE):
    """Controlled Monte Carlo diffusion: a learned drift that guides the chain along the path.

    The transitions and the kernels that run backwards have the means

        z_{k-1} + e_k s_{b_k}(z_{k-1}) + e_k a(z_{k-1}, h(x), (k-1)/K)    and
        z_k     + e_k s_{b_k}(z_k)     - e_k a(z_k, h(x), k/K)

    with the network `a` of `MCDVAE`. With the best `a`, the states follow the densities `pi_b`, and
    the two processes are each other's reversal as the steps become small. It costs K + 1
    evaluations of the decoder and its gradient, and 3 K of the network.

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
        objective: `"kl"`, minus the importance-weighted bound; or `"log_variance"`, half the
            variance of `log w` over S >= 2 chains, whose states are held constant. It is 0 where
            the two processes are each other's reversal, and no bound, which is reported beside it.
            Its gradient does not run through the chain: it needs no second derivatives, and
            memory that hardly grows with K. The decoder is trained on `log p(x, z_K)` at the last
            states.
        seed: Integer from which all random numbers are drawn, but not the networks' initial
            weights, which `keras.utils.set_random_seed` seeds.
        name: Name of the model.
        trainable: Whether the weights are trained.
        dtype: Data type or policy of the computations, as in Keras.

    Reference:
        Vargas et al., Transport meets Variational Inference: Controlled Monte Carlo Diffusions,
        arXiv 2307.01050.
    """

    suits_xla = True
    changeable: ClassVar[Mapping[str, Check]] = {
        **MCDVAE.changeable,
        "objective": check_choice("kl", "log_variance"),
    }

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
        objective: Objective = "kl",
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
            network=network,
            seed=seed,
            name=name,
            trainable=trainable,
            dtype=dtype,
        )
        self.objective = objective

    def make_kernel(self, transition: Transition) -> UnadjustedLangevin:
        """Makes an unadjusted Langevin kernel with the learned drift both ways."""

        def forward_drift(place: Place) -> Drift:
            return Drift(place.score + self.learned_drift(transition, place, 0))

        def backward_drift(place: Place) -> Drift:
            return Drift(place.score - self.learned_drift(transition, place, 1))

        return UnadjustedLangevin(
            transition.path,
            transition.step_size,
            transition.inverse_temperature,
            forward_drift=forward_drift,
            backward_drift=backward_drift,
        )

    def estimate(self, batch: Batch, seed: random.Seed, training: bool) -> Estimate:
        """Evaluates the bound and the loss on a batch."""
        if self.objective == "kl" or not training:
            return super().estimate(batch, seed, training)
        if self.num_samples < 2 or self.cloned_decoder:
            raise ValueError(
                "The log-variance loss needs at least two samples, and trains no clone of the "
                "decoder: set `num_samples` to 2 or more, and `cloned_decoder=False`. "
                f"Received: num_samples={self.num_samples}, cloned_decoder={self.cloned_decoder}"
            )
        posterior = self.posterior(batch, training)
        run = self.run_transitions(
            batch, seed, self.num_samples, trace_fn=_trace_states, posterior=posterior
        )
        run = tf.nest.map_structure(tf.stop_gradient, run)
        log_joint = self.generative.bind(batch)(run.state)
        log_weights = tf.stop_gradient(log_joint) + self._log_ratios(batch, posterior, run)
        loss = log_variance(log_weights) - tf.reduce_mean(log_joint, axis=0)
        statistics, *_ = run.trace
        metrics = self.transition_metrics(statistics)
        return Estimate(loss, iwae(run.log_weights), metrics, statistics)

    def _log_ratios(
        self, batch: Batch, posterior: tfp.distributions.Distribution, run: AnnealedSamples
    ) -> tf.Tensor:
        """Returns `log w - log p(x, z_K)` at given states, `[S, B]`, with a constant decoder."""
        path = self.path(batch, posterior)
        start = run.initial_state
        _, score = tfp.math.value_and_gradient(path.target_log_prob_fn, start)
        _, states, scores = run.trace
        states = tf.concat([start[tf.newaxis], states], axis=0)
        scores = tf.stop_gradient(tf.concat([score[tf.newaxis], scores], axis=0))

        def log_ratio(
            index: tf.Tensor,
            loc: tf.Tensor,
            scale: tf.Tensor,
            temperatures: tf.Tensor,
            step_sizes: tf.Tensor,
            *weights: tf.Tensor,
        ) -> tf.Tensor:
            posterior = diagonal_normal(loc, scale)

            def at(number: tf.Tensor) -> tuple[tf.Tensor, Endpoints]:
                state = states[number]
                log_q, score_q = tfp.math.value_and_gradient(posterior.log_prob, state)
                return state, Endpoints(log_q, tf.zeros_like(log_q), score_q, scores[number])

            step_size, temperature = step_sizes[index], temperatures[index + 1]
            kernel = self.make_kernel(
                Transition(
                    index, path, step_size, temperature, batch, posterior, self.num_transitions
                )
            )
            with keras.StatelessScope(zip(self.network.variables, weights, strict=True)):
                return kernel.log_ratio_between(*at(index), *at(index + 1))

        normal = posterior.distribution
        weights = [tf.convert_to_tensor(variable) for variable in self.network.variables]
        inputs = [normal.loc, normal.scale, *self.settings_of_transitions(), *weights]
        log_ratios = sum_over_transitions(log_ratio, self.num_transitions, inputs)
        return log_ratios - posterior.log_prob(start)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "objective": self.objective}


def _trace_states(state: tf.Tensor, results: TransitionResults) -> tuple[Any, ...]:
    return trace_statistics(state, results), state, results.endpoints.score_p
