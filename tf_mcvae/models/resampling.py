"""Another number of transitions than a model has: the number, and its step sizes."""

from typing import Any

import tensorflow as tf

from tf_mcvae.checks import check_positive_integer


def scalar_integer(num_transitions: Any) -> int | tf.Tensor:
    """Returns a positive integer, or a scalar integer tensor of a graph."""
    if tf.is_tensor(num_transitions):
        if not num_transitions.dtype.is_integer or num_transitions.shape.rank != 0:
            raise ValueError(
                "`num_transitions` must be a positive integer, or a scalar integer tensor. "
                f"Received: num_transitions={num_transitions!r}"
            )
        value = tf.get_static_value(num_transitions)
        if value is None:
            return num_transitions
        num_transitions = int(value)
    check_positive_integer("num_transitions", num_transitions)
    return int(num_transitions)


def resampled_steps(step_sizes: tf.Tensor, num_transitions: int | tf.Tensor) -> tf.Tensor:
    """Interpolates step sizes `[K, ...]` over `k / (K + 1)`, to another number of transitions."""
    own = step_sizes.shape[0]
    positions = tf.range(1, num_transitions + 1) / (num_transitions + 1)
    numbers = tf.clip_by_value(positions * (own + 1) - 1.0, 0.0, own - 1.0)
    below = tf.minimum(tf.cast(numbers, tf.int32), max(own - 2, 0))
    share = tf.cast(numbers - tf.cast(below, numbers.dtype), step_sizes.dtype)
    share = tf.reshape(share, [-1, *[1] * (step_sizes.shape.rank - 1)])
    left, right = (
        tf.gather(step_sizes, below),
        tf.gather(step_sizes, tf.minimum(below + 1, own - 1)),
    )
    return left + share * (right - left)
