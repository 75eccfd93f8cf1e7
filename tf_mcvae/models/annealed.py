"""The base of the models with transitions: a schedule, step sizes, and K transitions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae import random
from tf_mcvae.checks import check_positive_integer
from tf_mcvae.kernels import AnnealedKernel, AnnealedPath, MetropolisHastings, TransitionResults
from tf_mcvae.layers.composite import finish_build, is_restored
from tf_mcvae.layers.schedules import Schedule, get_schedule
from tf_mcvae.layers.step_size import StepSize
from tf_mcvae.models.base import LikelihoodLike, MonteCarloVAE
from tf_mcvae.models.batch import Batch
from tf_mcvae.models.changes import Check, check_boolean, check_choice
from tf_mcvae.models.estimate import Estimate
from tf_mcvae.models.generative import GenerativeModel, LogProbFn, Recomputed, clone
from tf_mcvae.models.penalties import ChainPath
from tf_mcvae.models.posterior import diagonal_normal
from tf_mcvae.models.resampling import resampled_steps, scalar_integer
from tf_mcvae.models.statistics import TransitionStatistics, pool_statistics, trace_statistics
from tf_mcvae.objectives.annealed import AnnealedSamples, TraceFn, annealed_importance_sampling
from tf_mcvae.objectives.bounds import LateFactor, iwae
from tf_mcvae.tracing import as_written

ScheduleName = Literal["linear", "sigmoidal", "all_learnable"]
Kernel = AnnealedKernel | MetropolisHastings
ChangeKernel = Callable[[tf.Tensor, Kernel], Kernel]


class Transition(NamedTuple):
    """The arguments of `make_kernel`.

    Attributes:
        index: Number k = 0, ..., K - 1 of the transition, a scalar tensor.
        path: From `q(z|x)` to `p(x, z)`.
        step_size: Scalar or `[D]`.
        inverse_temperature: Scalar.
        batch: The examples.
        posterior: The encoder's `q(z|x)`.
        num_transitions: K, an integer or a scalar tensor.
    """

    index: tf.Tensor
    path: AnnealedPath
    step_size: tf.Tensor
    inverse_temperature: tf.Tensor
    batch: Batch
    posterior: tfp.distributions.Distribution
    num_transitions: int | tf.Tensor

    def time(self, position: tf.Tensor | int) -> tf.Tensor:
        """Returns `position / K`, the time of the state after so many transitions, a scalar."""
        dtype = self.posterior.dtype
        return tf.cast(position, dtype) / tf.cast(self.num_transitions, dtype)


class AnnealedVAE(MonteCarloVAE):
    """Base of the models that anneal the encoder's draws towards the posterior.

    `z_0 ~ q(z|x)` makes K transitions; transition k targets `pi_{b_k}`, on the path from `q(z|x)`
    to `p(x, z)`. By default the bound is importance-weighted; a subclass defines `make_kernel`.

    Attributes:
        reaches_target: Whether the last transition targets `p(x, z)` itself, `b_K = 1`.
        has_acceptance: Whether the transitions have an acceptance test, which step sizes may be
            adapted to.

    Args:
        encoder: Maps `x [B, ...]` to `[B, 2 D]`, location and log variance.
        decoder: Maps `z [B, D]` to the likelihood's parameters. It is run in inference mode, since
            all transitions need the same density: no dropout, no statistics of the batch. The
            losses that it reports (activity regularisers, `add_loss`) are those of one more call,
            at the states after all transitions.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        num_transitions: K.
        num_samples: S.
        schedule: `"linear"`, `"sigmoidal"`, `"all_learnable"`, or a `Schedule` layer.
        step_size: A fixed step size, or a `StepSize` layer for learned or adapted ones.
        cloned_decoder: Whether the transitions use a copy of the decoder, which starts equal and is
            trained separately. `log p(x, z_K)` of the weight always uses the decoder itself.
        recompute: Whether the backward pass computes the decoder's activations again rather than
            keep them: less memory at large K, for longer training steps.
        gradient: The estimator of the gradient of the first draws: `"plain"`, `"stl"` or `"dreg"`;
            see `LMCVAE`.
        seed: Integer from which all random numbers are drawn, but not the networks' initial
            weights, which `keras.utils.set_random_seed` seeds.
        name: Name of the model.
        trainable: Whether the weights are trained.
        dtype: Data type or policy of the computations, as in Keras.
    """

    has_transitions = True
    reaches_target = False
    has_acceptance = True
    fixed = MonteCarloVAE.fixed | {
        "num_transitions",
        "schedule",
        "step_size",
        "cloned_decoder",
        "transition_decoder",
    }
    changeable: ClassVar[Mapping[str, Check]] = {
        **MonteCarloVAE.changeable,
        "recompute": check_boolean,
        "gradient": check_choice("plain", "stl", "dreg"),
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
        gradient: str = "plain",
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
        check_positive_integer("num_transitions", num_transitions)
        self.num_transitions = num_transitions
        self.schedule = get_schedule(schedule, self.density_dtype)
        if not isinstance(step_size, StepSize):
            step_size = StepSize(step_size, dtype=self.density_dtype)
        if step_size.is_adapted and not self.has_acceptance:
            raise ValueError(
                f"The transitions of {type(self).__name__} have no acceptance test, to which a "
                "step size could be adapted: use the rule 'learned' or 'fixed'. "
                f"Received: step_size with the rule {step_size.rule!r}"
            )
        self.step_size = step_size
        self.transition_decoder = clone(decoder) if cloned_decoder else decoder
        self.cloned_decoder = cloned_decoder
        self.recompute = recompute
        self.gradient = gradient

    def metric_names(self) -> tuple[str, ...]:
        """Mean acceptance, acceptance of each transition, and mean step size."""
        if not self.has_acceptance:
            return ("step_size",)
        numbered = [f"acceptance_{k + 1}" for k in range(self.num_transitions)]
        return ("acceptance", *numbered, "step_size")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds networks, schedule and step sizes."""
        is_first = not self.built
        super().build(input_shape)
        # Layers that are loaded from a file or shared with another model have their weights.
        num_between = self._num_between(self.num_transitions)
        if not self.schedule.built:
            self.schedule.build(num_between)
        self.schedule.check_values(num_between)
        if not self.step_size.built:
            self.step_size.build(self.num_transitions, self.latent_dim)
        if self.cloned_decoder and is_first:
            self.transition_decoder(keras.KerasTensor((None, self.latent_dim), dtype="float32"))
            if not is_restored(self.transition_decoder):
                self.transition_decoder.set_weights(self.decoder.get_weights())
        finish_build(self)

    def make_kernel(self, transition: Transition) -> Kernel:
        """Makes the kernel of one transition."""
        raise NotImplementedError

    @as_written
    def run_transitions(
        self,
        batch: Batch,
        seed: random.Seed,
        num_samples: int,
        training: bool = False,
        trace_fn: TraceFn = trace_statistics,
        num_transitions: int | tf.Tensor | None = None,
        landing_fn: Callable[[tf.Tensor], tf.Tensor] | None = None,
        posterior: tfp.distributions.Distribution | None = None,
        change_kernel: ChangeKernel | None = None,
    ) -> AnnealedSamples:
        """Draws from the encoder, makes the K transitions, and computes the log weights.

        Args:
            batch: The examples.
            seed: A seed.
            num_samples: S.
            training: Whether the encoder runs in training mode.
            trace_fn: See `annealed_importance_sampling`.
            num_transitions: K, if it is not the model's own; see `transition_options`.
            landing_fn: If not None, `log q(z_0|x)` of the weight has a gradient through `z_0`
                alone, and this function, whose value is `z_0`, may change that gradient.
            posterior: `q(z|x)`, if it is known.
            change_kernel: Returns the kernel to use, given the number k and the model's own.
        """
        initial_seed, transition_seed = random.split(seed)
        if posterior is None:
            posterior = self.posterior(batch, training)
        path = self._transition_path(batch, posterior)
        temperatures, step_sizes = self.settings_of_transitions(num_transitions)
        count = self.num_transitions if num_transitions is None else num_transitions

        def kernel_fn(index: tf.Tensor, results: TransitionResults | None) -> Kernel:
            del results
            step_size, temperature = step_sizes[index], temperatures[index + 1]
            kernel = self.make_kernel(
                Transition(index, path, step_size, temperature, batch, posterior, count)
            )
            return kernel if change_kernel is None else change_kernel(index, kernel)

        start = self.draw_posterior(posterior, num_samples, initial_seed)
        samples = annealed_importance_sampling(
            path,
            start if landing_fn is None else landing_fn(start),
            kernel_fn,
            count,
            transition_seed,
            initial_log_prob_fn=self.initial_log_prob_fn(posterior, landing_fn is not None),
            final_log_prob_fn=self.path(batch, posterior).target_log_prob_fn
            if self.cloned_decoder
            else None,
            trace_fn=trace_fn,
        )
        path.report(samples.state)
        return samples

    def base_log_prob_fn(self, posterior: tfp.distributions.Distribution) -> LogProbFn:
        """Returns the log-density that the path begins at, by default `log q(z|x)`."""
        return posterior.log_prob

    def initial_log_prob_fn(
        self, posterior: tfp.distributions.Distribution, is_constant: bool
    ) -> LogProbFn | None:
        """Returns `log q(z_0|x)` of the weight, or None for that of the path.

        Args:
            posterior: The encoder's `q(z|x)`.
            is_constant: Whether the encoder has no gradient through it.
        """
        if not is_constant:
            return None
        normal = posterior.distribution
        return diagonal_normal(
            tf.stop_gradient(normal.loc), tf.stop_gradient(normal.scale)
        ).log_prob

    def _num_between(self, num_transitions: int | tf.Tensor) -> int | tf.Tensor:
        """Returns the number of inverse temperatures between 0 and 1."""
        return num_transitions - 1 if self.reaches_target else num_transitions

    def settings_of_transitions(
        self, num_transitions: int | tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns inverse temperatures, from `b_0 = 0`, and step sizes, `[K, ...]`."""
        temperatures, step_sizes = self.schedule.inverse_temperatures(), self.step_size.values()
        if num_transitions is not None:
            temperatures = self.schedule.resampled(self._num_between(num_transitions))
            step_sizes = resampled_steps(step_sizes, num_transitions)
        # Layers that are made before the model may have another dtype.
        dtype = self.density_dtype
        return tf.cast(temperatures, dtype), tf.cast(step_sizes, dtype)

    def _transition_path(
        self, batch: Batch, posterior: tfp.distributions.Distribution
    ) -> ChainPath:
        """Returns the path that the transitions follow, with their decoder."""
        generative = GenerativeModel(self.prior, self.transition_decoder, self.likelihood)
        target = self.path(batch, posterior, generative).target_log_prob_fn
        path = AnnealedPath(self.base_log_prob_fn(posterior), target)
        if not self.recompute:
            return ChainPath(path)

        def target_of(x: tf.Tensor) -> LogProbFn:
            return self.path(batch._replace(x=x), posterior, generative).target_log_prob_fn

        return ChainPath(path, Recomputed(target_of, batch.x, generative))

    def transition_options(self, num_transitions: int | tf.Tensor | None) -> dict[str, Any]:
        """Returns the options of `weigh` and `draw_states` for another number of transitions.

        The schedule and the step sizes keep their course over `k / (K + 1)`: step sizes are
        interpolated linearly.

        Raises:
            ValueError: If it is not a positive integer, or if something has weights for each of the
                model's own transitions.
        """
        if num_transitions is None:
            return {}
        self.require_built()
        num_transitions = scalar_integer(num_transitions)
        if not tf.is_tensor(num_transitions) and num_transitions == self.num_transitions:
            return {}
        self.schedule.resampled(self._num_between(num_transitions))  # Raises if it cannot.
        return {"num_transitions": num_transitions}

    def weigh(
        self,
        batch: Batch,
        seed: random.Seed,
        num_samples: int,
        training: bool = False,
        num_transitions: int | tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the log weights of K transitions from the encoder, `[S, B]`."""
        return self.run_transitions(
            batch, seed, num_samples, training, num_transitions=num_transitions
        ).log_weights

    def draw_states(
        self,
        batch: Batch,
        seed: random.Seed,
        num_samples: int,
        num_transitions: int | tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Draws states after all transitions, `[S, B, D]`."""
        return self.run_transitions(batch, seed, num_samples, num_transitions=num_transitions).state

    def estimate(self, batch: Batch, seed: random.Seed, training: bool) -> Estimate:
        """Evaluates the importance-weighted bound on a batch; the loss is minus the bound."""
        run = self.run_for_loss(batch, seed, training)
        bound = iwae(run.log_weights)
        return Estimate(-bound, bound, self.transition_metrics(run.trace), run.trace)

    def run_for_loss(self, batch: Batch, seed: random.Seed, training: bool) -> AnnealedSamples:
        """Runs the transitions so that the importance-weighted bound has the model's `gradient`."""
        if self.gradient == "plain" or not training:
            return self.run_transitions(batch, seed, self.num_samples, training)
        factor = LateFactor()
        run = self.run_transitions(
            batch,
            seed,
            self.num_samples,
            training,
            landing_fn=factor.scale_gradient if self.gradient == "dreg" else tf.identity,
        )
        factor.value = tf.stop_gradient(tf.nn.softmax(run.log_weights, axis=0))
        return run

    def transition_metrics(self, statistics: TransitionStatistics) -> dict[str, tf.Tensor]:
        """Returns the metrics of acceptance and step size, by name."""
        acceptance = statistics.acceptance
        step_size = tf.cast(tf.reduce_mean(self.step_size.values()), acceptance.dtype)
        if not self.has_acceptance:
            return {"step_size": step_size}
        numbered = {f"acceptance_{k + 1}": a for k, a in enumerate(tf.unstack(acceptance))}
        return {
            "acceptance": tf.reduce_mean(acceptance),
            **numbered,
            "step_size": step_size,
        }

    def causes_of_divergence(self) -> list[str]:
        """Adds the step sizes."""
        steps = np.ravel(self.step_size.values())
        text = f"up to {np.max(steps):g}" if np.all(np.isfinite(steps)) else "that are not finite"
        return [*super().causes_of_divergence(), f"step sizes {text}"]

    def adapt(self, parts: Sequence[TransitionStatistics]) -> None:
        """Applies the step-size rule."""
        if self.step_size.is_adapted:
            self.step_size.update(*pool_statistics(parts))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, layers serialised."""
        return {
            **super().get_config(),
            "num_transitions": self.num_transitions,
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "step_size": keras.saving.serialize_keras_object(self.step_size),
            "cloned_decoder": self.cloned_decoder,
            "recompute": self.recompute,
            "gradient": self.gradient,
        }
