"""Statistics of transitions, for losses, metrics and step-size rules."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tf_mcvae.distribute import all_sum, is_whole, pooled_mean
from tf_mcvae.kernels import TransitionResults


class TransitionStatistics(NamedTuple):
    """Statistics of transitions, stacked over K.

    Attributes:
        is_accepted: `[K, S, B]`.
        log_choice_prob: `[K, S, B]`.
        score_mean: Mean over S and B of the score before the transition, `[K, D]`.
        score_std: Standard deviation of that score over S and B, `[K, D]`; 0 for a single state.
        drift_error: `[K, S, B]`; 0 if the drift is the score.
    """

    is_accepted: tf.Tensor
    log_choice_prob: tf.Tensor
    score_mean: tf.Tensor
    score_std: tf.Tensor
    drift_error: tf.Tensor

    @property
    def acceptance(self) -> tf.Tensor:
        """Mean acceptance of each transition, `[K]`."""
        return tf.reduce_mean(tf.cast(self.is_accepted, self.score_mean.dtype), axis=[1, 2])

    @property
    def count(self) -> tf.Tensor:
        """Number of states that a transition starts from, `S B`, in the scores' data type."""
        return tf.cast(tf.size(self.is_accepted[0]), self.score_mean.dtype)

    def scatter(self, mean: tf.Tensor) -> tf.Tensor:
        """Returns the sum of the score's squared distances from `mean`, `[K, D]`; 0 if empty."""
        around_own = tf.math.multiply_no_nan(
            tf.square(self.score_std), tf.nn.relu(self.count - 1.0)
        )
        return around_own + tf.math.multiply_no_nan(tf.square(self.score_mean - mean), self.count)


def trace_statistics(state: tf.Tensor, results: TransitionResults) -> TransitionStatistics:
    """Returns the statistics of one transition, without the axis K."""
    del state
    score = tf.stop_gradient(results.diagnostics["score"])
    count = tf.cast(tf.size(results.log_ratio), score.dtype)
    mean = tf.reduce_mean(score, axis=[0, 1])
    variance = _variance(tf.reduce_sum(tf.square(score - mean), axis=[0, 1]), count)
    error = results.diagnostics.get("drift_error", tf.zeros_like(results.log_ratio))
    return TransitionStatistics(
        results.is_accepted, results.log_choice_prob, mean, tf.sqrt(variance), error
    )


def pool_statistics(parts: Sequence[TransitionStatistics]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the acceptance `[K]` and the score's standard deviation `[K, D]` of the whole batch.

    Args:
        parts: Statistics of the batch's parts on this replica; the results are of all replicas.
    """
    if is_whole(parts):
        return parts[0].acceptance, parts[0].score_std
    counts = [part.count for part in parts]
    means = [(part.acceptance, part.score_mean) for part in parts]
    acceptance, mean = pooled_mean(means, counts)
    scatter = tf.add_n([part.scatter(mean) for part in parts])
    scatter, total = all_sum((scatter, tf.add_n(counts)))
    return acceptance, tf.sqrt(_variance(scatter, total))


def _variance(scatter: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Returns the unbiased variance from the sum of squared distances; 0 for a single state."""
    return scatter / tf.maximum(count - 1.0, 1.0)
