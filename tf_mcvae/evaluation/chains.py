"""The chains of annealed importance sampling, with step sizes that are given or adapted."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.evaluation.chunks import SEED_SPEC
from tf_mcvae.evaluation.graphs import graph_of
from tf_mcvae.kernels import HamiltonianMonteCarlo, TransitionResults
from tf_mcvae.kernels.path import AnnealedPath
from tf_mcvae.layers.schedules import linear_temperatures, sigmoid_temperatures
from tf_mcvae.models import MonteCarloVAE
from tf_mcvae.models.batch import Batch
from tf_mcvae.objectives.annealed import AnnealedSamples, annealed_importance_sampling
from tf_mcvae_commands.ais import AISSettings

# Gain of the adaptation: the log of a step size changes by this times the acceptance's error.
GAIN = 0.4


class Chains:
    """Runs of annealed importance sampling; `graph` returns them compiled.

    Args:
        model: The model, built.
        images: The signature of its examples.
        settings: The settings; `step_size` and `target_acceptance` are not used.
    """

    def __init__(self, model: MonteCarloVAE, images: tf.TensorSpec, settings: AISSettings) -> None:
        self.model = model
        self.images = images
        self.settings = settings
        is_linear = settings.schedule == "linear"
        schedule = linear_temperatures if is_linear else sigmoid_temperatures
        dtype = self.dtype = model.density_dtype
        self.temperatures = tf.constant(schedule(settings.num_temperatures, dtype=dtype))
        self.num_transitions = settings.num_temperatures - 1

    def graph(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the method `Chains.follow`, `Chains.forward` or `Chains.backward` as a graph."""
        images, dtype = self.images, self.dtype
        number, steps = tf.TensorSpec([], dtype), tf.TensorSpec([self.num_transitions], dtype)
        latents = tf.TensorSpec([None, self.model.latent_dim], dtype)
        signatures = {
            Chains.follow: [images, SEED_SPEC, number],
            Chains.forward: [images, steps, SEED_SPEC],
            Chains.backward: [images, latents, steps, SEED_SPEC],
        }
        same = self.settings.updated(step_size=None, target_acceptance=0.5)
        return graph_of(_run, self.model, run, images, same, signature=signatures[run])

    def follow(self, x: tf.Tensor, seed: random.Seed, target: tf.Tensor) -> tf.Tensor:
        """Returns step sizes, each adapted to the acceptance of the transition before it."""

        def step_size(index: tf.Tensor, results: TransitionResults | None) -> tf.Tensor:
            if results is None:
                return tf.constant(0.1, self.dtype)
            return results.step_size * tf.exp(GAIN * (_acceptance(None, results) - target))

        start_seed, chain_seed = random.split(seed)
        path, state = self._begin(x, start_seed)
        run = self._run(
            path, state, self.temperatures, step_size, chain_seed, lambda _, r: r.step_size
        )
        return run.trace

    def forward(
        self, x: tf.Tensor, step_sizes: tf.Tensor, seed: random.Seed
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns log weights `[S, B]` and each transition's acceptance `[T - 1]`."""
        start_seed, chain_seed = random.split(seed)
        path, state = self._begin(x, start_seed)
        run = self._run(
            path, state, self.temperatures, lambda k, _: step_sizes[k], chain_seed, _acceptance
        )
        return run.log_weights, run.trace

    def backward(
        self, x: tf.Tensor, z: tf.Tensor, step_sizes: tf.Tensor, seed: random.Seed
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The same for chains from exact draws `z [B, D]` of the posterior: `E[w] = 1 / p(x)`.

        It is the same sampler on the path with its ends exchanged.
        """
        path, _ = self._begin(x, seed)
        state = self.model.to_states(z) if self.settings.start == "encoder" else z
        shape = [self.settings.num_chains, *random.shape_of(state)]
        run = self._run(
            path.reversed(),
            tf.broadcast_to(state, shape),
            1.0 - tf.reverse(self.temperatures, [0]),
            lambda k, _: step_sizes[self.num_transitions - 1 - k],
            seed,
            _acceptance,
        )
        return run.log_weights, run.trace

    def _begin(self, x: tf.Tensor, seed: random.Seed) -> tuple[AnnealedPath, tf.Tensor]:
        model, batch, num_chains = self.model, Batch(x), self.settings.num_chains
        if self.settings.start == "encoder":
            posterior = model.posterior(batch)
            state = model.draw_posterior(posterior, num_chains, seed)
            return model.path(batch, posterior), state
        # In the space of z, without the flow.
        path = AnnealedPath(model.prior.bind(), model.generative.bind(batch))
        draws = model.prior.sample([num_chains, tf.shape(x)[0], model.latent_dim], seed)
        return path, tf.cast(draws, self.dtype)

    def _run(
        self,
        path: AnnealedPath,
        state: tf.Tensor,
        temperatures: tf.Tensor,
        step_size: Callable[[tf.Tensor, TransitionResults | None], tf.Tensor],
        seed: random.Seed,
        trace_fn: Callable[[Any, TransitionResults], tf.Tensor],
    ) -> AnnealedSamples:
        def kernel_fn(index: tf.Tensor, results: TransitionResults | None) -> HamiltonianMonteCarlo:
            step, leapfrogs = step_size(index, results), self.settings.num_leapfrog_steps
            return HamiltonianMonteCarlo(path, step, leapfrogs, temperatures[index + 1])

        return annealed_importance_sampling(
            path, state, kernel_fn, self.num_transitions, seed, trace_fn=trace_fn
        )


def _acceptance(state: Any, results: TransitionResults) -> tf.Tensor:
    del state
    return tf.reduce_mean(tf.cast(results.is_accepted, results.log_ratio.dtype))


def _run(
    model: MonteCarloVAE,
    run: Callable[..., Any],
    images: tf.TensorSpec,
    settings: AISSettings,
    *tensors: Any,
) -> Any:
    return run(Chains(model, images, settings), *tensors)
