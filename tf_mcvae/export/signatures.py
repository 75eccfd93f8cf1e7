"""The signatures of a served model: named functions of named tensors."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf
from tensorflow.types.experimental import ConcreteFunction

from tf_mcvae import random
from tf_mcvae.export.rows import (
    Outputs,
    checked,
    common_count,
    finite,
    in_chunks,
    numbered_seeds,
    with_equal_rows,
)
from tf_mcvae.models import MonteCarloVAE
from tf_mcvae.objectives.bounds import iwae
from tf_mcvae.objectives.student import student_quantile

Images: TypeAlias = np.ndarray[Any, Any] | tf.Tensor

# Most draws of `posterior_samples` for a row, so that the size of an answer is bounded.
MAX_POSTERIOR_SAMPLES = 1024
# The number of draws in a group. Each group of a row has its own seed.
_GROUP = 8


@dataclasses.dataclass(frozen=True)
class Options:
    """Options that are fixed when a model is exported.

    Attributes:
        num_samples: S of `log_likelihood` and `anomaly_score`.
        chunk_size: Most images that are in memory at a time, counting each draw as one.
        pixel_range: The model's pixel values for 0 and 255 of `uint8` images.
        jit_compile: Whether XLA compiles the networks and transitions.
    """

    num_samples: int = 64
    chunk_size: int = 1024
    pixel_range: tuple[float, float] = (0.0, 1.0)
    jit_compile: bool = False


class Named(NamedTuple):
    """Description of a tensor.

    Attributes:
        unit: Unit, or range of the values.
        text: Meaning.
    """

    unit: str
    text: str


_PIXELS, _PRIOR = "as in training, usually 0 to 1", "standard deviations of the prior"
INPUTS = {
    "x": Named(_PIXELS, "images"),
    "z": Named(_PRIOR, "latents"),
    "seed": Named("any two integers", "seed of the row's random numbers"),
    "num_samples": Named(f"count, 1 to {MAX_POSTERIOR_SAMPLES}", "draws, equal in all rows"),
}
UINT8_IMAGES = Named("0 to 255", "images")
OUTPUTS = {
    "encode": {
        "loc": Named(_PRIOR, "the encoder's location"),
        "scale": Named(_PRIOR, "the encoder's scale"),
    },
    "posterior_sample": {"z": Named(_PRIOR, "one draw, after all transitions")},
    "posterior_samples": {"z": Named(_PRIOR, "draws, after all transitions")},
    "decode": {"image": Named(_PIXELS, "mean of x given z")},
    "reconstruct": {"image": Named(_PIXELS, "mean of x given z at the encoder's location")},
    "generate": {
        "image": Named(_PIXELS, "mean of x given z"),
        "z": Named(_PRIOR, "drawn from the prior"),
    },
    "log_likelihood": {
        "log_likelihood": Named("nats", "estimate of log p(x)"),
        "standard_error": Named("nats", "of the estimate, over draws, by the jackknife"),
    },
    "anomaly_score": {
        "anomaly_score": Named("nats", "minus the estimate of log p(x)"),
        "p_value": Named(
            "0 to 1", "share of ordinary images with a score this high; only after calibration"
        ),
        "standard_error": Named("nats", "of the score, over draws, by the jackknife"),
    },
}
OUTPUTS["serving_default"] = OUTPUTS["encode"]


class Signatures:
    """The exported functions, which map named tensors to named tensors.

    Signatures of images exist for float and for `uint8` images. Signatures that compute the same
    share a function of rows, which is traced once.

    Args:
        model: A built model.
        options: Options of the export.
        calibration: Ordinary images `[N, ...]`, from which `p_value` is computed. None leaves this
            output out.
    """

    def __init__(
        self, model: MonteCarloVAE, options: Options, calibration: Images | None = None
    ) -> None:
        self.model = model
        self.options = options
        self.images = tf.TensorSpec([None, *model.event_shape], tf.float32, "x")
        self.latents = tf.TensorSpec([None, model.latent_dim], tf.float32, "z")
        self.seeds = tf.TensorSpec([None, 2], tf.int32, "seed")
        self.counts = tf.TensorSpec([None], tf.int32, "num_samples")
        self._weigh = self._rows(self._weigh_row, self.images, self.seeds)
        self._scores = None if calibration is None else self._sorted_scores(calibration)

    def trace(self) -> dict[str, ConcreteFunction]:
        """Returns the concrete functions by the names of their signatures."""
        x, seed = self.images, self.seeds
        named: dict[str, tuple[Any, ...]] = {
            "encode": (self._plain(self._encode_row, x), x),
            "posterior_sample": (self._plain(self._draw_row, x, seed), x, seed),
            "posterior_samples": (self._posterior_samples(), x, seed, self.counts),
            "decode": (self._plain(self._decode_row, self.latents), self.latents),
            "reconstruct": (self._plain(self._reconstruct_row, x), x),
            "generate": (self._plain(self._generate_row, seed), seed),
            "log_likelihood": (self._log_likelihood, x, seed),
            "anomaly_score": (self._anomaly_score, x, seed),
        }
        functions = {}
        for name, (function, *specs) in named.items():
            functions[name] = self._served(name, function, *specs)
            if x in specs:
                bytes_ = tf.TensorSpec(x.shape, tf.uint8, "x")
                name = f"{name}_uint8"
                functions[name] = self._served(name, self._of_uint8(function), bytes_, *specs[1:])
        return {"serving_default": functions["encode"], **functions}

    # Functions of rows, without checks. With `jit_compile`, XLA compiles these.

    def _encode_row(self, x: tf.Tensor) -> Outputs:
        loc, scale = self.model.encode(x)
        return {"loc": loc, "scale": scale}

    def _draw_row(self, x: tf.Tensor, seed: tf.Tensor) -> Outputs:
        return {"z": self.model.posterior_sample(x, 1, random.per_row(seed))[0]}

    def _decode_row(self, z: tf.Tensor) -> Outputs:
        return {"image": self.model.decode(z)}

    def _reconstruct_row(self, x: tf.Tensor) -> Outputs:
        return {"image": self.model.reconstruct(x)}

    def _generate_row(self, seed: tf.Tensor) -> Outputs:
        z = random.normal([1, tf.shape(seed)[0], self.model.latent_dim], random.per_row(seed))[0]
        return {"image": self.model.decode(z), "z": z}

    def _weigh_row(self, x: tf.Tensor, seed: tf.Tensor) -> Outputs:
        log_weights = self.model.log_weights(x, random.per_row(seed), self.options.num_samples)
        return {"log_likelihood": iwae(log_weights), "standard_error": standard_error(log_weights)}

    def _draw_group_row(self, x: tf.Tensor, seed: tf.Tensor) -> Outputs:
        draws = self.model.posterior_sample(x, _GROUP, random.per_row(seed))
        return {"z": tf.transpose(draws, [1, 0, 2])}

    # Functions of whole requests.

    def _posterior_samples(self) -> Callable[..., Outputs]:
        """Returns the function that makes the requested number of draws for each row.

        A group of draws is a row of the inner function. The first draw of the first group equals
        that of `posterior_sample`, since random numbers do not depend on how many are drawn.
        """
        draw = self._rows(self._draw_group_row, self.images, self.seeds)

        def run(x: tf.Tensor, seed: tf.Tensor, num_samples: tf.Tensor) -> Outputs:
            count, num_rows = common_count(num_samples, MAX_POSTERIOR_SAMPLES), tf.shape(x)[0]
            groups = (count + _GROUP - 1) // _GROUP

            def take(index: tf.Tensor) -> list[tf.Tensor]:
                row, number = index // groups, index % groups
                return [tf.gather(x, row), numbered_seeds(tf.gather(seed, row), number)]

            rows = max(1, self.options.chunk_size // _GROUP)
            drawn = in_chunks(draw, num_rows * groups, rows, take)["z"]
            shape = [num_rows, groups * _GROUP, self.model.latent_dim]
            return {"z": tf.reshape(drawn, shape)[:, :count]}

        return run

    def _log_likelihood(self, x: tf.Tensor, seed: tf.Tensor) -> Outputs:
        rows = max(1, self.options.chunk_size // self.options.num_samples)
        return self._chunked(self._weigh, rows)(x, seed)

    def _anomaly_score(self, x: tf.Tensor, seed: tf.Tensor) -> Outputs:
        estimate = self._log_likelihood(x, seed)
        score = -estimate["log_likelihood"]
        outputs = {"anomaly_score": score, "standard_error": estimate["standard_error"]}
        if self._scores is not None:
            # The rank among the scores of the ordinary images and its own, as in permutation
            # tests, so that a p-value is never 0.
            below = tf.cast(tf.searchsorted(self._scores, score), tf.float32)
            size = float(len(self._scores))
            outputs["p_value"] = (1.0 + size - below) / (1.0 + size)
        return outputs

    def _sorted_scores(self, images: Images) -> np.ndarray[Any, Any]:
        seeds = np.stack([np.arange(len(images)), np.full(len(images), -1)], axis=1)
        estimate = tf.function(self._log_likelihood, autograph=False)(
            tf.cast(images, self.images.dtype), tf.constant(seeds, tf.int32)
        )
        scores = -estimate["log_likelihood"].numpy()
        if not np.all(np.isfinite(scores)):
            raise ValueError(
                "Calibration images must have a finite likelihood: remove those that are too far "
                "from the training data. Received: "
                f"{np.sum(~np.isfinite(scores))} of {len(scores)} images without one"
            )
        return np.sort(scores)

    # From functions of rows to signatures.

    def _rows(self, function: Callable[..., Outputs], *specs: tf.TensorSpec) -> ConcreteFunction:
        """Returns the concrete function for any number of rows."""
        jit_compile = self.options.jit_compile or None
        compiled = tf.function(function, jit_compile=jit_compile, autograph=False)
        return compiled.get_concrete_function(*specs)

    def _chunked(
        self, function: ConcreteFunction, chunk_size: int | None = None
    ) -> Callable[..., Outputs]:
        size = chunk_size or self.options.chunk_size

        def run(*inputs: tf.Tensor) -> Outputs:
            return in_chunks(
                function,
                tf.shape(inputs[0])[0],
                size,
                lambda index: [tf.gather(x, index) for x in inputs],
            )

        return run

    def _plain(
        self, function: Callable[..., Outputs], *specs: tf.TensorSpec
    ) -> Callable[..., Outputs]:
        return self._chunked(self._rows(function, *specs))

    def _of_uint8(self, function: Callable[..., Outputs]) -> Callable[..., Outputs]:
        low, high = self.options.pixel_range

        def run(x: tf.Tensor, *others: tf.Tensor) -> Outputs:
            images = low + (high - low) * (tf.cast(x, tf.float32) / 255.0)
            # Rounding must not move white pixels out of the likelihood's support.
            return function(tf.clip_by_value(images, low, high), *others)

        return run

    def _served(
        self, name: str, function: Callable[..., Outputs], *specs: tf.TensorSpec
    ) -> ConcreteFunction:
        """Returns a signature's concrete function, which checks its inputs and outputs."""

        def served(*inputs: tf.Tensor) -> Outputs:
            right = [
                checked(x, spec, self.model.likelihood)
                for x, spec in zip(inputs, specs, strict=True)
            ]
            return finite(function(*with_equal_rows(right, [spec.name for spec in specs])))

        served.__name__ = name
        return tf.function(served, autograph=False).get_concrete_function(*specs)


def standard_error(log_weights: tf.Tensor) -> tf.Tensor:
    """Returns the jackknife's standard error of `iwae(log_weights)`, `[B]`, for `[S, B]`.

    With `J_s = log (1 - w_s / sum w)`, the change of the estimate without draw s up to a constant,

        variance = (S - 1)/S sum_s (J_s - mean J)^2,    bias = (S - 1) (mean J - log (1 - 1/S)),

    and the result is the root of `variance + bias^2`, the mean squared error, times
    `t(95 %) / 1.96` with Student's t of S - 1 degrees of freedom. It is a twin of
    `tf_mcvae.evaluation.uncertainty.jackknife` for a graph.
    """
    num_samples = log_weights.shape[0]
    # At most one share is above a half: that of the largest, whose complement is summed anew.
    largest = tf.one_hot(tf.argmax(log_weights, 0), num_samples, True, False, 0, tf.bool)
    others = tf.where(largest, tf.constant(-math.inf, log_weights.dtype), log_weights)
    rest = tf.reduce_logsumexp(others, axis=0) - tf.reduce_logsumexp(log_weights, axis=0)
    shares = tf.minimum(tf.nn.softmax(log_weights, axis=0), 0.5)
    # Finite where all weights but one are 0.
    without = tf.where(largest, tf.maximum(rest, -1e9), tf.math.log1p(-shares))
    mean = tf.reduce_mean(without, axis=0)
    variance = tf.reduce_sum(tf.square(without - mean), axis=0) * (1.0 - 1.0 / num_samples)
    bias = (num_samples - 1.0) * (mean - math.log1p(-1.0 / num_samples))
    return student_quantile(0.95, num_samples) / 1.96 * tf.sqrt(variance + tf.square(bias))
