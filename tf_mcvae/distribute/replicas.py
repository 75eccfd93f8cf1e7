"""Strategies, and a step on several replicas: shares of a batch, sums, updates, metrics."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf


def make_strategy(name: str) -> tf.distribute.Strategy | None:
    """Returns the strategy `"mirrored"` or `"multiworker"`; None for `"none"`.

    Make it before TensorFlow computes anything.
    """
    if name == "none":
        return None
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    return tf.distribute.MultiWorkerMirroredStrategy()


def scope(
    strategy: tf.distribute.Strategy | None,
) -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which a strategy is in force; None for no strategy."""
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def num_replicas() -> int:
    """Returns the number of replicas of the strategy that is in force."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def replica_index() -> tf.Tensor:
    """Returns the number of the replica that calls this; 0 outside replicas."""
    context = tf.distribute.get_replica_context()
    return tf.convert_to_tensor(0 if context is None else context.replica_id_in_sync_group)


def num_threads(wanted: int) -> int:
    """Returns how many threads may compute in parallel; a strategy is in force in one only."""
    return 1 if tf.distribute.has_strategy() else wanted


# Shares of a batch.


class Share(NamedTuple):
    """The consecutive part of a batch that a replica has.

    Attributes:
        first: Number of the replica's first example in the whole batch, `int32`.
        total: Number of examples in the whole batch, `float32`.
    """

    first: tf.Tensor
    total: tf.Tensor


def share_of_batch(size: tf.Tensor) -> Share:
    """Returns the replica's share of a batch; without a strategy, all of it.

    Args:
        size: Number of the replica's examples; 0 for some replicas at the end of a data set.
    """
    size = tf.cast(size, tf.float32)
    if not tf.distribute.has_strategy():
        return Share(tf.constant(0), size)
    index = replica_index()
    sizes = all_sum(tf.one_hot(index, num_replicas()) * size)
    first = tf.cumsum(sizes, exclusive=True)[index]
    return Share(tf.cast(first, tf.int32), tf.reduce_sum(sizes))


# Sums and means over the replicas.


def all_sum(values: Any) -> Any:
    """Sums `float32` tensors, in a nested structure, over the replicas in one message."""
    tensors = tf.nest.flatten(values)
    if not tensors or not tf.distribute.has_strategy():
        return values
    flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
    total = all_reduce(flat)
    parts = tf.split(total, [tf.size(tensor) for tensor in tensors], num=len(tensors))
    sums = [tf.reshape(part, tf.shape(tensor)) for part, tensor in zip(parts, tensors, strict=True)]
    for value, tensor in zip(sums, tensors, strict=True):
        value.set_shape(tensor.shape)
    return tf.nest.pack_sequence_as(values, sums)


def all_sum_gradients(gradients: list[tf.Tensor | None]) -> list[tf.Tensor | None]:
    """Sums gradients over the replicas; None stays None."""
    if not tf.distribute.has_strategy():
        return gradients
    sums = iter(all_reduce([tf.convert_to_tensor(g) for g in gradients if g is not None]))
    return [None if gradient is None else next(sums) for gradient in gradients]


def all_reduce(values: Any) -> Any:
    """Sums tensors over the replicas; must be called within a replica."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def is_whole(parts: Sequence[Any]) -> bool:
    """Returns whether there is a single part, and no strategy."""
    return len(parts) == 1 and not tf.distribute.has_strategy()


def pooled_mean(parts: Sequence[Any], counts: Sequence[tf.Tensor]) -> Any:
    """Returns the means over all parts of a batch on all replicas; empty parts are left out.

    Args:
        parts: Means over each part on this replica, structures of tensors.
        counts: Number of values in each part, `float32`.
    """
    if is_whole(parts):
        return parts[0]

    def weighted_sum(*means: tf.Tensor) -> tf.Tensor:
        return tf.add_n(
            [tf.math.multiply_no_nan(*pair) for pair in zip(means, counts, strict=True)]
        )

    total, sums = all_sum((tf.add_n(counts), tf.nest.map_structure(weighted_sum, *parts)))
    return tf.nest.map_structure(lambda v: v / total, sums)


# The update.


def inner_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer that Keras wraps for mixed float16, or the given one."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def apply_gradients(
    optimizer: keras.optimizers.Optimizer,
    gradients: list[tf.Tensor | None],
    variables: list[keras.Variable],
) -> None:
    """Updates variables by gradients that are already summed over the replicas.

    Keras clips gradients on each replica, then sums. This function clips the sums and divides them
    by the number of replicas, so that Keras' clipping changes nothing and its sums are right.
    """
    count = num_replicas()
    if count > 1:
        scale = optimizer.scale_loss(tf.ones([]))
        given = [g / tf.cast(scale, g.dtype) for g in gradients if g is not None]
        # Private, as Keras has no public method that clips.
        clipped = iter(inner_optimizer(optimizer)._clip_gradients(given))
        factor = scale / count
        gradients = [
            g if g is None else next(clipped) * tf.cast(factor, g.dtype) for g in gradients
        ]
    optimizer.apply(gradients, variables)


def update_if(condition: tf.Tensor, update: Callable[[], None], variables: list[Any]) -> None:
    """Updates variables if a condition holds.

    Args:
        condition: A scalar, the same on all replicas.
        update: Makes the update.
        variables: All variables that it changes.
    """
    if not tf.distribute.has_strategy():

        def updated() -> tf.Tensor:
            update()
            return tf.constant(True)

        tf.cond(condition, updated, lambda: tf.constant(False))
        return
    # For an update replicas must meet, which they cannot in a branch: it is undone afterwards.
    before = [tf.identity(variable.value) for variable in variables]
    update()
    restore_unless(condition, variables, before)


def restore_unless(
    condition: tf.Tensor, variables: Sequence[Any], before: Sequence[tf.Tensor]
) -> None:
    """Gives variables the values that they had before, unless a condition holds.

    Args:
        condition: A scalar, the same on all replicas.
        variables: Variables that may have changed.
        before: Their values before.
    """

    def restore() -> tf.Tensor:
        for variable, old in zip(variables, before, strict=True):
            variable.assign(old)
        return tf.constant(True)

    if not tf.distribute.has_strategy():
        tf.cond(condition, lambda: tf.constant(False), restore)
        return
    for variable, old in zip(variables, before, strict=True):
        variable.assign(tf.where(condition, variable.value, old))


# Metrics.


class _OfWholeBatch(keras.Metric):
    """A metric that every replica updates with the same values, those of the whole batch.

    The variables of one replica are therefore read; Keras would add those of all replicas.
    """

    def add_variable(self, *args: Any, **kwargs: Any) -> Any:
        """Adds a variable that is read from the first replica."""
        return super().add_variable(*args, **kwargs, aggregation="only_first_replica")


class WholeBatchMean(_OfWholeBatch, keras.metrics.Mean):
    """A weighted mean of values of the whole batch."""


class WholeBatchSum(_OfWholeBatch, keras.metrics.Sum):
    """A sum of values of the whole batch."""


def whole_batch(
    metrics: dict[str, tuple[tf.Tensor, tf.Tensor | None]],
) -> dict[str, tuple[tf.Tensor, tf.Tensor | None]]:
    """Returns the values and the weights with which to update metrics of the whole batch.

    Args:
        metrics: For each metric the values of this replica's examples, `[B]`, and their weights,
            `[B]` or None for equal ones.

    Returns:
        Under a strategy, the means over all replicas and the sums of the weights; otherwise the
        argument.
    """
    if not tf.distribute.has_strategy():
        return metrics

    def sums(values: tf.Tensor, weights: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        weights = tf.ones_like(values) if weights is None else tf.cast(weights, values.dtype)
        return tf.reduce_sum(weights * values), tf.reduce_sum(weights)

    totals = all_sum({name: sums(*pair) for name, pair in metrics.items()})
    return {name: (tf.math.divide_no_nan(*pair), pair[1]) for name, pair in totals.items()}
