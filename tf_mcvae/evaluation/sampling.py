"""Estimates without annealing: ELBO, IWAE-k, the model's own bound; and its use of latents."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.checks import check_positive_integer
from tf_mcvae.evaluation.chunks import (
    SEED_SPEC,
    batches,
    images_spec,
    score_in_chunks,
    start_progress,
)
from tf_mcvae.evaluation.doubts import not_finite
from tf_mcvae.evaluation.graphs import graph_of
from tf_mcvae.evaluation.results import (
    LogLikelihoodEstimate,
    summarise,
    to_plain,
    with_warnings,
)
from tf_mcvae.evaluation.uncertainty import NUM_GROUPS, Array, Errors, Moments, quiet
from tf_mcvae.models import MonteCarloVAE
from tf_mcvae.models.batch import Batch

# Number of draws of an example in a block. The random numbers depend on it, so it is not a setting.
# The running sums have a group for each draw of a block.
_BLOCK = NUM_GROUPS


def estimate_elbo(
    model: MonteCarloVAE,
    data: Any,
    num_samples: int = 100,
    chunk_size: int = 5000,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    verbose: int = 0,
) -> LogLikelihoodEstimate:
    """Estimates the ELBO of encoder and decoder, `E_q[log p(x, z) - log q(z|x)]`.

    Transitions are not part of it; the flow of a FlowVAE is, as part of the encoder. See
    `estimate_iwae` for the arguments.
    """
    moments, settings = _from_encoder(
        model, data, num_samples, chunk_size, seed, checkpoint, verbose
    )
    values, errors = moments.mean_log, moments.mean_log_errors
    return summarise("ELBO", values, errors, moments, settings, model.weights, judge="draws")


def estimate_iwae(
    model: MonteCarloVAE,
    data: Any,
    num_samples: int = 5000,
    chunk_size: int = 5000,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    verbose: int = 0,
) -> LogLikelihoodEstimate:
    """Estimates `log p(x)` by importance sampling from the encoder, `log (1/k sum_s w_s)`.

    Draws are decoded in blocks, and only running sums are kept, so that memory does not grow with
    k.

    Args:
        model: A trained model.
        data: Images `[N, ...]`, or a dataset of batches.
        num_samples: k.
        chunk_size: Largest number of draws (examples times draws of each) in memory at a time; the
            result depends on it only by rounding.
        seed: Seed of the draws.
        checkpoint: A `.npz` file, written after each chunk of examples; an existing one is
            continued. None disables checkpointing.
        verbose: 1 shows a progress bar with the time left.

    Returns:
        A `LogLikelihoodEstimate`; a lower bound in expectation.

    Raises:
        ValueError: If there are no examples, they do not fit the model, or the checkpoint is that
            of another evaluation.

    Reference:
        Burda et al., Importance Weighted Autoencoders, arXiv 1509.00519.
    """
    moments, settings = _from_encoder(
        model, data, num_samples, chunk_size, seed, checkpoint, verbose
    )
    name, values, errors = f"IWAE-{num_samples}", moments.log_mean, moments.log_mean_errors
    return summarise(name, values, errors, moments, settings, model.weights)


def estimate_bound(
    model: MonteCarloVAE, data: Any, chunk_size: int = 1600, seed: int = 0
) -> LogLikelihoodEstimate:
    """Estimates the bound that the model is trained on, its transitions included.

    See `estimate_iwae` for the arguments.
    """
    check_positive_integer("chunk_size", chunk_size)
    base_seed = random.as_seed(seed)

    bound = graph_of(_bound, model, signature=[images_spec(model, data), SEED_SPEC])

    def score(x: tf.Tensor, first: int) -> tuple[Array, Array]:
        return np.asarray(bound(x, random.at_row(base_seed, first)), np.float64), np.zeros([0])

    values, _ = score_in_chunks(score, model, data, model.num_samples, chunk_size)
    settings = {"num_samples": model.num_samples, "seed": seed}
    name, unknown = f"{type(model).__name__} bound", np.full_like(values[0], np.nan)
    errors, moments = Errors(unknown, unknown), Moments.of(values)
    return summarise(name, values[0], errors, moments, settings, model.weights, judge="nothing")


def _from_encoder(
    model: MonteCarloVAE,
    data: Any,
    num_samples: int,
    chunk_size: int,
    seed: int,
    checkpoint: str | os.PathLike[str] | None,
    verbose: int,
) -> tuple[Moments, dict[str, Any]]:
    """Returns the moments of log weights of draws from the encoder alone, and the settings."""
    check_positive_integer("num_samples", num_samples)
    check_positive_integer("chunk_size", chunk_size)
    settings = {"num_samples": num_samples, "seed": seed}
    block = min(_BLOCK, num_samples)
    size, signature = tf.constant(block, tf.int32), [images_spec(model, data), SEED_SPEC]
    draw = graph_of(_weigh_encoder, model, signature=[*signature, tf.TensorSpec([], tf.int32)])
    base_seed = random.as_seed(seed)

    def score(x: tf.Tensor, first: int) -> tuple[Array, Array]:
        moments: Moments | None = None
        for number in range(-(-num_samples // block)):
            block_seed = random.fold_in(base_seed, number)
            log_weights = draw(x, random.at_row(block_seed, first), size)
            part = Moments.of(log_weights[: num_samples - number * block])
            moments = part if moments is None else moments.merged(part)
        return np.vstack(moments[1:] if moments else []), np.zeros([0])

    fingerprint = {"draws": "encoder", "groups": block, **settings}
    progress = start_progress(checkpoint, model, data, fingerprint, verbose)
    columns, _ = score_in_chunks(score, model, data, block, chunk_size, progress)
    return Moments(num_samples, columns[:block], *columns[block:]), settings


def _bound(model: MonteCarloVAE, x: tf.Tensor, seed: random.Seed) -> tf.Tensor:
    """Returns the model's own bound, `[1, B]`."""
    return model.bound(x, seed)[tf.newaxis]


def _weigh_encoder(
    model: MonteCarloVAE, x: tf.Tensor, seed: random.Seed, size: tf.Tensor
) -> tf.Tensor:
    """Returns log weights of `size` draws of each example, `[size, B]`."""
    return model.weigh_encoder(Batch(x), seed, size)


def _encode(model: MonteCarloVAE, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns locations and KL divergences, each `[B, D]`."""
    normal = model.posterior(Batch(x)).distribution
    return normal.loc, model.prior.kl_divergence(normal.loc, normal.scale)


@dataclass(frozen=True)
class LatentStatistics:
    """How a model uses its latent dimensions, over a data set.

    Attributes:
        kl: `KL(q(z_d|x) || N(0, 1))` of each dimension, the mean over the data, in nats, `[D]`.
        variance: Variance over the data of each dimension's location, `[D]`.
        active_units: Number of dimensions whose variance is above 0.01.
        num_examples: N.
        warnings: Reasons to doubt the numbers.
    """

    kl: Array
    variance: Array
    active_units: int
    num_examples: int
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the statistics as JSON types."""
        return to_plain(self)

    def __str__(self) -> str:
        text = f"{self.active_units} of {len(self.kl)} latent dimensions active, "
        return with_warnings(f"{text}KL {np.sum(self.kl):.2f} nats", self.warnings)


def latent_statistics(model: MonteCarloVAE, data: Any, chunk_size: int = 1000) -> LatentStatistics:
    """Computes active units and the KL divergence of each latent dimension.

    A dimension is active if its location varies over the data, `Var_x(E_q[z_d]) > 0.01`. In a
    FlowVAE, dimensions are those of the base space, before the flow.

    Args:
        model: A trained model.
        data: Images `[N, ...]`, or a dataset of batches.
        chunk_size: Number of examples in memory at a time.

    Returns:
        `LatentStatistics`.

    Reference:
        Burda et al., Importance Weighted Autoencoders, arXiv 1509.00519.
    """
    check_positive_integer("chunk_size", chunk_size)
    encode = graph_of(_encode, model, signature=[images_spec(model, data)])
    parts = [[np.asarray(part) for part in encode(x)] for x in batches(model, data, chunk_size)]
    locs, divergences = (
        np.concatenate(part).astype(np.float64) for part in zip(*parts, strict=True)
    )
    with quiet():
        variance = np.var(locs, axis=0, ddof=1) if len(locs) > 1 else np.zeros(locs.shape[1])
        active, kl = int(np.sum(variance > 0.01)), np.mean(divergences, axis=0)
        warnings = not_finite(np.sum(divergences, axis=1), model.weights)
    return LatentStatistics(kl, variance, active, len(locs), warnings)
