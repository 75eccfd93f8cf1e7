"""Held-out log-likelihood with error bars: ELBO, IWAE-k, and annealed importance sampling.

Every function takes images as an array or a `tf.data.Dataset` of batches (`x` or `(x, y)`), draws
from one seed, and returns a `LogLikelihoodEstimate`. All estimates are in nats per example and are
lower bounds in expectation, which tighten with their settings.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.annealing import AnnealedPath, sigmoid_temperatures
from tf_mcvae.bounds import standard_normal_log_prob
from tf_mcvae.checks import check_not_empty, check_positive_integer, plain_errors
from tf_mcvae.importance import AnnealedSamples, annealed_importance_sampling
from tf_mcvae.kernels import HamiltonianMonteCarlo, TransitionResults
from tf_mcvae.models import MonteCarloVAE

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LogLikelihoodEstimate:
    """An estimate of the mean of `log p(x)` over a data set.

    Attributes:
        method: How it was made.
        mean: Mean over the examples, in nats.
        standard_error: Standard error of the mean over the examples: how far another test set of
            this size would lie.
        monte_carlo_error: Standard error from the random draws alone, these examples held fixed.
        per_example: The estimate of each example, `[N]`, in the order of the data.
        effective_sample_size: Minimum and median over the examples of `(sum w)^2 / sum w^2`, where
            there is more than one weight.
        acceptance: Minimum and mean over the transitions, where there are any.
        settings: What the estimate was made with, the seed included.
    """

    method: str
    mean: float
    standard_error: float
    monte_carlo_error: float
    effective_sample_size: tuple[float, float] | None
    acceptance: tuple[float, float] | None
    settings: dict[str, Any]
    per_example: Array = field(repr=False)

    @property
    def nll(self) -> float:
        """The negative log-likelihood, `-mean`."""
        return -self.mean

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the examples' values, as JSON knows it; NaN becomes None."""
        values = asdict(self)
        del values["per_example"]
        return _plain(values)

    def __str__(self) -> str:
        return f"{self.method}: {self.mean:.3f} ± {self.standard_error:.3f} nats per example"


def estimate_elbo(
    model: MonteCarloVAE, data: Any, num_samples: int = 16, batch_size: int = 100, seed: int = 0
) -> LogLikelihoodEstimate:
    """Estimates the ELBO of encoder and decoder, `E_q[log p(x, z) - log q(z|x)]`.

    Transitions, where the model has any, take no part; the flow of a FlowVAE is part of its
    encoder. See `estimate_iwae` for the arguments.
    """
    return _from_encoder("ELBO", np.mean, model, data, num_samples, batch_size, seed)


def estimate_iwae(
    model: MonteCarloVAE, data: Any, num_samples: int = 5000, batch_size: int = 100, seed: int = 0
) -> LogLikelihoodEstimate:
    """Estimates `log p(x)` by importance sampling from the encoder, `log (1/k sum_s w_s)`.

    Args:
        model: A trained model.
        data: Images `[N, ...]`, or a dataset of batches.
        num_samples: k.
        batch_size: Examples at a time.
        seed: Seed of the draws.

    Returns:
        A `LogLikelihoodEstimate`; a lower bound in expectation.

    Raises:
        ValueError: If there are no examples, or they do not fit the model.

    Reference:
        Burda et al., Importance Weighted Autoencoders, arXiv 1509.00519.
    """
    name = f"IWAE-{num_samples}"
    return _from_encoder(name, _log_mean_exp, model, data, num_samples, batch_size, seed)


def estimate_bound(
    model: MonteCarloVAE, data: Any, batch_size: int = 100, seed: int = 0
) -> LogLikelihoodEstimate:
    """Estimates the bound that the model is trained on, its transitions included.

    See `estimate_iwae` for the arguments.
    """

    @tf.function(reduce_retracing=True)
    def log_weights(x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return model.bound(x, seed)[tf.newaxis]

    settings = {"num_samples": model.num_samples, "seed": seed}
    name = f"{type(model).__name__} bound"
    columns = _each_batch(log_weights, model, data, batch_size, seed)
    return _summarise(name, columns, np.mean, settings)


def estimate_log_likelihood(
    model: MonteCarloVAE,
    data: Any,
    num_chains: int = 16,
    num_temperatures: int = 1000,
    num_leapfrog_steps: int = 10,
    target_acceptance: float = 0.65,
    start: str = "encoder",
    batch_size: int = 100,
    seed: int = 0,
) -> LogLikelihoodEstimate:
    """Estimates `log p(x)` by annealed importance sampling with Hamiltonian Monte Carlo.

    Each chain starts from the encoder and is annealed to the posterior along the sigmoid schedule.
    A pilot run on the first 10 examples tunes one step size per temperature to the target
    acceptance, beginning from 0.1 and moving it by a few per cent from temperature to temperature:
    below some hundred temperatures the target is not reached. The scored run uses other random
    numbers and keeps the steps fixed, so that `E[w] = p(x)` holds.

    Args:
        model: A trained model of any kind.
        data: Images `[N, ...]`, or a dataset of batches.
        num_chains: Chains for each example.
        num_temperatures: T; the chains make T - 1 transitions. At least 2.
        num_leapfrog_steps: Leapfrog steps of a transition.
        target_acceptance: Acceptance that the pilot run tunes to.
        start: `"encoder"`, in a FlowVAE with its flow; or `"prior"` as a cross-check.
        batch_size: Examples at a time.
        seed: Seed of the draws.

    Returns:
        A `LogLikelihoodEstimate`; a lower bound in expectation.

    Raises:
        ValueError: If there are no examples, they do not fit the model, or a setting is out of
            range.

    Reference:
        Wu et al., On the Quantitative Analysis of Decoder-Based Generative Models,
        arXiv 1611.04273; Huang et al., Evaluating Lossy Compression Rates of Deep Generative
        Models, arXiv 2008.06653.
    """
    check_positive_integer("num_chains", num_chains)
    check_positive_integer("num_leapfrog_steps", num_leapfrog_steps)
    _check_annealing(num_temperatures, target_acceptance, start)
    anneal = _Annealing(model, num_chains, num_temperatures, num_leapfrog_steps, start)
    pilot_seed, score_seed = random.split(random.as_seed(seed))
    pilot = next(iter(_batches(model, data, min(batch_size, _PILOT_EXAMPLES))))
    step_sizes = anneal.tune(pilot, pilot_seed, target_acceptance)

    acceptances: list[tuple[int, Array]] = []

    def log_weights(x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        weights, acceptance = anneal.score(x, step_sizes, seed)
        acceptances.append((len(x), acceptance.numpy()))
        return weights

    columns = _each_batch(log_weights, model, data, batch_size, score_seed)
    sizes, values = zip(*acceptances, strict=True)
    acceptance = np.average(np.stack(values), axis=0, weights=sizes)
    settings = {
        "num_chains": num_chains,
        "num_temperatures": num_temperatures,
        "num_leapfrog_steps": num_leapfrog_steps,
        "target_acceptance": target_acceptance,
        "start": start,
        "seed": seed,
    }
    name = f"AIS-{num_temperatures}"
    return _summarise(name, columns, _log_mean_exp, settings, acceptance)


class _Annealing:
    """The two compiled runs of annealed importance sampling: one tunes the steps, one scores."""

    def __init__(
        self,
        model: MonteCarloVAE,
        num_chains: int,
        num_temperatures: int,
        num_leapfrogs: int,
        start: str,
    ) -> None:
        self.model = model
        self.num_chains = num_chains
        self.temperatures = tf.constant(sigmoid_temperatures(num_temperatures))
        self.num_transitions = num_temperatures - 1
        self.num_leapfrogs = num_leapfrogs
        self.start = start
        self.follow = tf.function(self._follow, reduce_retracing=True)
        self.score = tf.function(self._score, reduce_retracing=True)

    def tune(self, x: tf.Tensor, seed: tf.Tensor, target: float) -> tf.Tensor:
        """Returns a step size for each transition, `[T - 1]`, at the target acceptance.

        The first run follows the acceptance from temperature to temperature. With few temperatures
        it does not get far; further runs then correct each step size by its own acceptance.
        """
        step_sizes = self.follow(x, seed, tf.constant(target))
        for number in range(min(_MOST_CORRECTIONS, _PILOT_UPDATES // self.num_transitions)):
            _, acceptance = self.score(x, step_sizes, random.fold_in(seed, number))
            step_sizes *= tf.exp(_GAIN * (acceptance - target))
        return step_sizes

    def _follow(self, x: tf.Tensor, seed: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        """Returns step sizes that follow the acceptance of the transitions before them."""

        def step_size(index: tf.Tensor, results: TransitionResults | None) -> tf.Tensor:
            if results is None:
                return tf.constant(0.1)
            acceptance = tf.reduce_mean(tf.cast(results.is_accepted, tf.float32))
            return results.step_size * tf.exp(_GAIN * (acceptance - target))

        return self._run(x, seed, step_size, lambda state, results: results.step_size).trace

    def _score(
        self, x: tf.Tensor, step_sizes: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns log weights `[S, B]` and each transition's acceptance `[T - 1]`."""

        def acceptance(state: tf.Tensor, results: TransitionResults) -> tf.Tensor:
            return tf.reduce_mean(tf.cast(results.is_accepted, tf.float32))

        run = self._run(x, seed, lambda index, results: step_sizes[index], acceptance)
        return run.log_weights, run.trace

    def _run(
        self,
        x: tf.Tensor,
        seed: tf.Tensor,
        step_size: Callable[[tf.Tensor, TransitionResults | None], tf.Tensor],
        trace_fn: Callable[[tf.Tensor, TransitionResults], tf.Tensor],
    ) -> AnnealedSamples:
        start_seed, chain_seed = random.split(seed)
        path, state = self._begin(x, start_seed)

        def kernel_fn(index: tf.Tensor, results: TransitionResults | None) -> HamiltonianMonteCarlo:
            temperature = self.temperatures[index + 1]
            return HamiltonianMonteCarlo(
                path, step_size(index, results), self.num_leapfrogs, temperature
            )

        return annealed_importance_sampling(
            path, state, kernel_fn, self.num_transitions, chain_seed, trace_fn=trace_fn
        )

    def _begin(self, x: tf.Tensor, seed: tf.Tensor) -> tuple[AnnealedPath, tf.Tensor]:
        posterior = self.model.posterior(x)
        if self.start == "encoder":
            state = self.model.draw_posterior(posterior, self.num_chains, seed)
            return self.model.path(x, posterior), state
        shape = [self.num_chains, *random.shape_of(posterior.distribution.loc)]
        # In z, in which a flow takes no part.
        path = AnnealedPath(standard_normal_log_prob, lambda z: self.model.log_joint(x, z))
        return path, random.normal(shape, seed)


def _check_annealing(num_temperatures: Any, target_acceptance: Any, start: Any) -> None:
    check_positive_integer("num_temperatures", num_temperatures)
    if num_temperatures < 2:
        raise ValueError(
            "`num_temperatures` must be at least 2; use `estimate_iwae` for none between encoder "
            f"and posterior. Received: num_temperatures={num_temperatures}"
        )
    if not 0.0 < target_acceptance < 1.0:
        raise ValueError(
            "`target_acceptance` must lie between 0 and 1. "
            f"Received: target_acceptance={target_acceptance!r}"
        )
    if start not in ("encoder", "prior"):
        raise ValueError(f"`start` must be 'encoder' or 'prior'. Received: start={start!r}")


# Examples whose chains' acceptance the pilot run follows.
_PILOT_EXAMPLES = 10
# How fast a step size follows: its logarithm moves by this times what the acceptance is off.
_GAIN = 0.4
# Updates of the step size that a pilot run needs, and the most runs that are added to have them.
_PILOT_UPDATES, _MOST_CORRECTIONS = 300, 30

# Draws for one example held in memory at a time.
_SAMPLES_AT_A_TIME = 50


def _from_encoder(
    name: str,
    reduce: Callable[..., Array],
    model: MonteCarloVAE,
    data: Any,
    num_samples: int,
    batch_size: int,
    seed: int,
) -> LogLikelihoodEstimate:
    """Estimates from log weights of draws from the encoder alone."""
    check_positive_integer("num_samples", num_samples)

    @tf.function(reduce_retracing=True)
    def chunk(x: tf.Tensor, seed: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        posterior = model.posterior(x)
        path = model.path(x, posterior)
        state = model.draw_posterior(posterior, size, seed)
        return path.target_log_prob_fn(state) - path.base_log_prob_fn(state)

    def log_weights(x: tf.Tensor, seed: tf.Tensor) -> Array:
        starts = range(0, num_samples, _SAMPLES_AT_A_TIME)
        sizes = [min(_SAMPLES_AT_A_TIME, num_samples - start) for start in starts]
        parts = [
            chunk(x, random.fold_in(seed, number), tf.constant(size))
            for number, size in enumerate(sizes)
        ]
        return np.concatenate(parts)

    columns = _each_batch(log_weights, model, data, batch_size, seed)
    return _summarise(name, columns, reduce, {"num_samples": num_samples, "seed": seed})


def _batches(model: MonteCarloVAE, data: Any, batch_size: int) -> Iterator[tf.Tensor]:
    """Yields batches `[<= batch_size, ...]` of arrays or of datasets; labels are left out."""
    check_positive_integer("batch_size", batch_size)
    if not isinstance(data, tf.data.Dataset) and not hasattr(data, "shape"):
        raise TypeError(
            "`data` must be an array [N, ...] or a `tf.data.Dataset` of batches. "
            f"Received: data of type {type(data).__name__}"
        )
    data = model.check_inputs(data)
    if not isinstance(data, tf.data.Dataset):
        yield from (data[i : i + batch_size] for i in range(0, len(data), batch_size))
        return
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "The data set never ends; take a number of batches of it with `.take(n)`. "
            "Received: a data set of infinite cardinality"
        )
    number = 0
    with plain_errors():
        for number, batch in enumerate(data.unbatch().batch(batch_size), 1):  # noqa: B007
            yield keras.utils.unpack_x_y_sample_weight(batch)[0]
    check_not_empty(number)


def _each_batch(
    log_weights: Callable[[tf.Tensor, tf.Tensor], Any],
    model: MonteCarloVAE,
    data: Any,
    batch_size: int,
    seed: Any,
) -> Array:
    """Returns the log weights of all examples, `[S, N]`, in float64."""
    seed = random.as_seed(seed)
    columns = [
        np.asarray(log_weights(tf.convert_to_tensor(x), random.fold_in(seed, number)), np.float64)
        for number, x in enumerate(_batches(model, data, batch_size))
    ]
    return np.concatenate(columns, axis=1)


def _log_mean_exp(log_weights: Array, axis: int = 0) -> Array:
    highest = np.max(log_weights, axis=axis)
    return highest + np.log(np.mean(np.exp(log_weights - highest), axis=axis))


def _summarise(
    method: str,
    log_weights: Array,
    reduce: Callable[..., Array],
    settings: dict[str, Any],
    acceptance: Array | None = None,
) -> LogLikelihoodEstimate:
    """Reduces log weights `[S, N]` to each example's estimate, and those to a mean with errors."""
    values = reduce(log_weights, axis=0)
    num_samples, num_examples = log_weights.shape
    weights = np.exp(log_weights - log_weights.max(axis=0))
    weights /= weights.sum(axis=0)
    sizes = 1.0 / np.sum(np.square(weights), axis=0)
    # By the delta method the error of a log-mean-exp is the relative error of the mean weight.
    terms = log_weights if reduce is np.mean else num_samples * weights
    return LogLikelihoodEstimate(
        method=method,
        mean=float(np.mean(values)),
        standard_error=float(_standard_error(values)),
        monte_carlo_error=float(np.linalg.norm(_standard_error(terms)) / num_examples),
        per_example=values,
        effective_sample_size=_pair(np.min, np.median, sizes) if num_samples > 1 else None,
        acceptance=None if acceptance is None else _pair(np.min, np.mean, acceptance),
        settings={**settings, "num_examples": num_examples},
    )


def _pair(
    first: Callable[..., Any], second: Callable[..., Any], values: Array
) -> tuple[float, float]:
    return float(first(values)), float(second(values))


def _plain(value: Any) -> Any:
    """Returns nested values as JSON knows them."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _standard_error(values: Array) -> Array:
    """Returns the standard error of the mean over axis 0; of a single value that is NaN."""
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    return np.asarray(np.std(values, axis=0, ddof=1) / np.sqrt(len(values)))
