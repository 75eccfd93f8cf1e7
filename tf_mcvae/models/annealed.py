"""What L-MCVAE and A-MCVAE share: a schedule, step sizes, and K transitions from the encoder."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.checks import check_positive_integer
from tf_mcvae.distribute.replicas import all_sum, pooled_mean
from tf_mcvae.kernels import AnnealedKernel, MetropolisHastings, TransitionResults
from tf_mcvae.kernels.path import AnnealedPath
from tf_mcvae.layers.activations import ACTIVATIONS
from tf_mcvae.layers.likelihoods import Bernoulli, Gaussian
from tf_mcvae.layers.networks import Decoder, Encoder
from tf_mcvae.layers.schedules import get_schedule
from tf_mcvae.layers.step_size import ADAPTED, StepSize
from tf_mcvae.models.base import MonteCarloVAE
from tf_mcvae.objectives.annealed import AnnealedSamples, TraceFn, annealed_importance_sampling
from tf_mcvae.performance import cores

# Weights of dense networks up to which XLA on one core is faster than a graph on all.
_FEW_WEIGHTS = 100_000


class Transition(NamedTuple):
    """What the kernel of one transition is made from.

    Attributes:
        index: Its number k = 0, ..., K - 1, a scalar tensor.
        path: From `q(z|x)` to `p(x, z)`.
        step_size: Scalar or `[D]`.
        inverse_temperature: Scalar.
        x: The examples, `[B, ...]`.
        posterior: The encoder's `q(z|x)`.
    """

    index: tf.Tensor
    path: AnnealedPath
    step_size: tf.Tensor
    inverse_temperature: tf.Tensor
    x: tf.Tensor
    posterior: Any


class TransitionStatistics(NamedTuple):
    """What is kept of each transition.

    Attributes:
        is_accepted: `[K, S, B]`.
        log_choice_prob: `[K, S, B]`.
        score_std: Standard deviation over S and B of the score before the move, `[K, D]`.
        drift_error: `[K, S, B]`.
        score_mean: Its mean over S and B, `[K, D]`.
    """

    is_accepted: tf.Tensor
    log_choice_prob: tf.Tensor
    score_std: tf.Tensor
    drift_error: tf.Tensor
    score_mean: tf.Tensor

    @property
    def acceptance(self) -> tf.Tensor:
        """Mean acceptance of each transition, `[K]`."""
        return tf.reduce_mean(tf.cast(self.is_accepted, tf.float32), axis=[1, 2])

    @property
    def count(self) -> tf.Tensor:
        """Number of states that a transition moves, `S B`, `float32`."""
        return tf.cast(tf.size(self.is_accepted[0]), tf.float32)

    def scatter(self, mean: tf.Tensor) -> tf.Tensor:
        """Sum of the score's squared distances from `mean [K, D]`, `[K, D]`; 0 of no states."""
        around_own = tf.math.multiply_no_nan(
            tf.square(self.score_std), tf.nn.relu(self.count - 1.0)
        )
        return around_own + tf.math.multiply_no_nan(tf.square(self.score_mean - mean), self.count)


def pool_statistics(parts: Sequence[TransitionStatistics]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns acceptance and spread of the score over the whole batch, `[K]` and `[K, D]`.

    Args:
        parts: The statistics of the batch's parts; on several replicas of the replica's, and the
            results are those of all of them.
    """
    if len(parts) == 1 and not tf.distribute.has_strategy():
        return parts[0].acceptance, parts[0].score_std
    counts = [part.count for part in parts]
    means = [(part.acceptance, part.score_mean) for part in parts]
    acceptance, mean = pooled_mean(means, counts)
    scatter = tf.add_n([part.scatter(mean) for part in parts])
    scatter, total = all_sum((scatter, tf.add_n(counts)))
    return acceptance, tf.sqrt(scatter / (total - 1.0))


def trace_statistics(state: tf.Tensor, results: TransitionResults) -> TransitionStatistics:
    """Traces what the losses, the metrics and the step-size rules need of a transition."""
    del state
    score = tf.stop_gradient(results.diagnostics["score"])
    count = tf.cast(tf.size(results.log_ratio), score.dtype)
    mean = tf.reduce_mean(score, axis=[0, 1])
    variance = tf.reduce_sum(tf.square(score - mean), axis=[0, 1]) / (count - 1.0)
    return TransitionStatistics(
        results.is_accepted,
        results.log_choice_prob,
        tf.sqrt(variance),
        results.diagnostics.get("drift_error", tf.zeros_like(results.log_ratio)),
        mean,
    )


class AnnealedVAE(MonteCarloVAE):
    """Base of the models that move the encoder's draws towards the posterior.

    `z_0 ~ q(z|x)` makes K transitions; transition k targets `pi_{b_k}`, on the path from `q(z|x)`
    to `p(x, z)`.

    Args:
        encoder: Maps `x [B, ...]` to `[B, 2 D]`, location and log variance.
        decoder: Maps `z [B, D]` to the likelihood's parameters. It is run in inference mode, since
            the transitions need a density that stays the same: no dropout or batch statistics.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        num_transitions: K.
        num_samples: S.
        schedule: `"linear"`, `"sigmoidal"`, `"all_learnable"`, or a `Schedule` layer.
        step_size: A fixed step size, or a `StepSize` layer for learned or adapted ones.
        cloned_decoder: Whether the transitions use a copy of the decoder, which begins equal and is
            trained on its own. The last state is always weighed with the decoder itself.
        recompute: Whether the backward pass computes the decoder's activations again, in place of
            keeping them: less memory at large K, for longer training steps.
        seed: Integer from which all random numbers are drawn.
    """

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        likelihood: Any = "bernoulli",
        num_transitions: int = 5,
        num_samples: int = 1,
        schedule: Any = "linear",
        step_size: Any = 0.01,
        cloned_decoder: bool = False,
        recompute: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_positive_integer("num_transitions", num_transitions)
        self.num_transitions = num_transitions
        super().__init__(encoder, decoder, likelihood, num_samples, seed, **kwargs)
        self.schedule = get_schedule(schedule)
        self.step_size = step_size if isinstance(step_size, StepSize) else StepSize(step_size)
        self.transition_decoder = clone(decoder) if cloned_decoder else decoder
        self.cloned_decoder = cloned_decoder
        self.recompute = recompute

    def metric_names(self) -> tuple[str, ...]:
        """Acceptance (its mean, and of each transition) and the mean step size."""
        numbered = [f"acceptance_{k + 1}" for k in range(self.num_transitions)]
        return ("acceptance", *numbered, "step_size")

    def build(self, input_shape: tuple[Any, ...]) -> None:
        """Builds networks, schedule and step sizes."""
        is_first = not self.built
        super().build(input_shape)
        # Loaded from a file, or shared with another model, they have their weights already.
        if not self.schedule.built:
            self.schedule.build(self.num_transitions)
        if not self.step_size.built:
            self.step_size.build(self.num_transitions, self.latent_dim)
        if self.cloned_decoder and is_first:
            self.transition_decoder(keras.KerasTensor((None, self.latent_dim), dtype="float32"))
            self.transition_decoder.set_weights(self.decoder.get_weights())

    def make_kernel(self, transition: Transition) -> AnnealedKernel | MetropolisHastings:
        """Makes the kernel of one transition."""
        raise NotImplementedError

    def run_transitions(
        self,
        x: tf.Tensor,
        seed: tf.Tensor,
        num_samples: int,
        training: bool = False,
        trace_fn: TraceFn = trace_statistics,
    ) -> AnnealedSamples:
        """Draws from the encoder, makes the K transitions, and weighs the result.

        Args:
            x: `[B, ...]`.
            seed: Seed tensor.
            num_samples: S.
            training: Whether the encoder runs in training mode.
            trace_fn: What to keep of each transition.

        Returns:
            `AnnealedSamples`.
        """
        initial_seed, transition_seed = random.split(seed)
        posterior = self.posterior(x, training)
        path = self.path(x, posterior, self.transition_decoder)
        if self.recompute:
            target = [self.transition_decoder, self.likelihood]
            variables = [v for layer in target for v in layer.trainable_variables]
            path = recomputing(path, variables)
        temperatures, step_sizes = self.schedule.inverse_temperatures(), self.step_size.values()

        def kernel_fn(index: tf.Tensor, results: TransitionResults | None) -> Any:
            del results
            step_size, temperature = step_sizes[index], temperatures[index + 1]
            return self.make_kernel(Transition(index, path, step_size, temperature, x, posterior))

        return annealed_importance_sampling(
            path,
            self.draw_posterior(posterior, num_samples, initial_seed),
            kernel_fn,
            self.num_transitions,
            transition_seed,
            final_log_prob_fn=self.path(x, posterior).target_log_prob_fn
            if self.cloned_decoder
            else None,
            trace_fn=trace_fn,
        )

    def log_weights(self, x: Any, seed: Any = None, num_samples: int | None = None) -> tf.Tensor:
        """Returns the log weights of K transitions from the encoder, `[S, B]`; see the base."""
        x = self._checked(x)
        seed = self._seed_or_next(seed, x.shape[0])
        return self.run_transitions(x, seed, self._count_or_own(num_samples)).log_weights

    def posterior_sample(self, x: Any, num_samples: int = 1, seed: Any = None) -> tf.Tensor:
        """Draws latents after all transitions, `[num_samples, B, D]`; see the base."""
        check_positive_integer("num_samples", num_samples)
        x = self._checked(x)
        seed = self._seed_or_next(seed, x.shape[0])
        return self.run_transitions(x, seed, num_samples).state

    def transition_metrics(self, statistics: TransitionStatistics) -> dict[str, tf.Tensor]:
        """Returns the metrics of `metric_names`."""
        acceptance = statistics.acceptance
        numbered = zip(self.metric_names()[1:], tf.unstack(acceptance), strict=False)
        return {
            "acceptance": tf.reduce_mean(acceptance),
            **dict(numbered),
            "step_size": tf.reduce_mean(self.step_size.values()),
        }

    def trains_faster_by_xla(self) -> bool:
        """Returns whether on a CPU XLA's training steps are faster: with dense networks.

        Of what is not this package's, subclasses included, nobody knows whether XLA has all that is
        in it.
        """
        for network in (self.encoder, self.decoder):
            if type(network) not in (Encoder, Decoder) or network.architecture != "dense":
                return False
            if network.activation not in ACTIVATIONS.values():
                return False
        is_own = type(self).__module__.startswith(f"{__package__}.")
        if not is_own or type(self.likelihood) not in (Bernoulli, Gaussian):
            return False
        return cores.num_parts() == 1 or self.num_trained() <= _FEW_WEIGHTS

    def adapt(self, parts: Sequence[TransitionStatistics]) -> None:
        """Applies the step-size rule."""
        if self.step_size.rule in ADAPTED:
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
        }


def recomputing(path: AnnealedPath, variables: Sequence[keras.Variable]) -> AnnealedPath:
    """Returns a path whose target is computed again in the backward pass."""

    def target_log_prob(state: tf.Tensor, *values: tf.Tensor) -> tf.Tensor:
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return path.target_log_prob_fn(state)

    values = [tf.convert_to_tensor(variable.value) for variable in variables]
    return AnnealedPath(path.base_log_prob_fn, target_log_prob, values)


def clone(network: keras.Model) -> keras.Model:
    """Returns a network of the same configuration with weights of its own."""
    try:
        return network.__class__.from_config(network.get_config())
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            "`cloned_decoder=True` copies the decoder through `get_config`, which a subclassed "
            f"model must define. Received: decoder of class {type(network).__name__}"
        ) from error
