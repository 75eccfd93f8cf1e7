"""Strategies, and a step on several replicas: shares of a batch, sums, updates, metrics."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf


def make_strategy(name: str) -> Any:
    """Returns the strategy of a name: `"none"` (which is None), `"mirrored"` or `"multiworker"`.

    It must be made before anything else is computed.
    """
    if name == "none":
        return None
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    return tf.distribute.MultiWorkerMirroredStrategy()


def scope(strategy: Any) -> Any:
    """Returns the context in which a strategy is in force; None stands for no strategy."""
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def num_replicas() -> int:
    """Returns the number of replicas of the strategy that is in force."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def replica_index() -> tf.Tensor:
    """Returns the number of the replica that computes this; 0 where none of several does."""
    context = tf.distribute.get_replica_context()
    return tf.convert_to_tensor(0 if context is None else context.replica_id_in_sync_group)


def num_threads(wanted: int) -> int:
    """Returns how many threads may compute side by side: a strategy is in force in one only."""
    return 1 if tf.distribute.has_strategy() else wanted


# Shares of a batch.


class Share(NamedTuple):
    """The part of a batch that a replica has; the parts follow each other in the batch.

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
    """Sums `float32` tensors over the replicas, all in one message.

    Args:
        values: A tensor, or a nested structure of them.

    Returns:
        The same structure, with the same numbers on every replica.
    """
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


def all_sum_gradients(gradients: list[Any]) -> list[Any]:
    """Sums gradients over the replicas; None stays None."""
    if not tf.distribute.has_strategy():
        return gradients
    sums = iter(all_reduce([tf.convert_to_tensor(g) for g in gradients if g is not None]))
    return [None if gradient is None else next(sums) for gradient in gradients]


def all_reduce(values: Any) -> Any:
    """Sums a tensor, or each of a list, over the replicas; only within a replica."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def is_whole(parts: Sequence[Any]) -> bool:
    """Returns whether the only part of a batch is the whole batch, also of all replicas."""
    return len(parts) == 1 and not tf.distribute.has_strategy()


def pooled_mean(parts: Sequence[Any], counts: Sequence[tf.Tensor]) -> Any:
    """Pools means over the parts of a batch and over the replicas, without those of no numbers.

    Args:
        parts: Means over each of the replica's parts, a structure of tensors.
        counts: How many numbers each of them is the mean of, `float32`.
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


def inner_optimizer(optimizer: Any) -> Any:
    """Returns the optimizer that Keras wraps for mixed float16, or the given one."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def apply_gradients(optimizer: Any, gradients: list[Any], variables: list[Any]) -> None:
    """Updates variables by gradients that are already summed over the replicas; None is left out.

    Keras clips on each replica and sums then. So the sums are clipped here, and divided by the
    number of replicas.
    """
    count = num_replicas()
    if count > 1:
        scale = optimizer.scale_loss(tf.ones([]))
        given = [g / scale for g in gradients if g is not None]
        # Private to Keras, which clips nowhere else.
        clipped = iter(inner_optimizer(optimizer)._clip_gradients(given))
        gradients = [g if g is None else next(clipped) * scale / count for g in gradients]
    optimizer.apply(gradients, variables)


def update_if(condition: tf.Tensor, update: Callable[[], None], variables: list[Any]) -> None:
    """Updates variables if a condition holds, which must be the same on all replicas.

    Args:
        condition: A scalar.
        update: Makes the update.
        variables: All variables that it changes.
    """
    if not tf.distribute.has_strategy():

        def updated() -> tf.Tensor:
            update()
            return tf.constant(True)

        tf.cond(condition, updated, lambda: tf.constant(False))
        return
    # Replicas cannot meet in a branch, as an update needs: it is undone afterwards.
    before = [tf.identity(variable.value) for variable in variables]
    update()
    for variable, old in zip(variables, before, strict=True):
        variable.assign(tf.where(condition, variable.value, old))


# Metrics.


class _OfWholeBatch(keras.Metric):
    """A metric that every replica updates by the same numbers, those of the whole batch.

    One replica's variables are therefore all there is to read. Keras would add up the replicas';
    before Keras 3.10 it does so at each update, together with what they were before.
    """

    def add_variable(self, *args: Any, **kwargs: Any) -> Any:
        """Adds a variable as `keras.Metric.add_variable` does, of which one replica's is read."""
        return super().add_variable(*args, **kwargs, aggregation="only_first_replica")


class WholeBatchMean(_OfWholeBatch, keras.metrics.Mean):
    """A weighted mean of what every replica knows of the whole batch."""


class WholeBatchSum(_OfWholeBatch, keras.metrics.Sum):
    """A sum of what every replica knows of the whole batch."""


def whole_batch(values: Any, weight: tf.Tensor | None) -> tuple[Any, tf.Tensor | None]:
    """Returns what to update metrics by, so that each replica has those of all examples.

    Args:
        values: A structure of `[B]`, the replica's examples.
        weight: `[B]`, or None for equal weights.

    Returns:
        Under a strategy, the structure of means over all replicas, and the sum of the weights;
        otherwise what was given.
    """
    if not tf.distribute.has_strategy():
        return values, weight
    first = tf.nest.flatten(values)[0]
    weight = tf.ones_like(first) if weight is None else tf.cast(weight, first.dtype)
    weight = tf.reshape(weight, tf.shape(first))
    sums = tf.nest.map_structure(lambda v: tf.reduce_sum(weight * v), values)
    total, sums = all_sum((tf.reduce_sum(weight), sums))
    return tf.nest.map_structure(lambda v: tf.math.divide_no_nan(v, total), sums), total
