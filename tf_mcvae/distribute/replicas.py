"""Replicas under `tf.distribute`: their shares of a batch, their sums, and their updates.

A *replica* is a device with a copy of the weights; a *worker* is a process with one or more of
them. `MirroredStrategy` has one worker, `MultiWorkerMirroredStrategy` one for each entry of
TF_CONFIG. Outside a strategy every function here is the identity, or says that there is one
replica; nothing outside this room asks whether a strategy is in force.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_mcvae.distribute.workers import all_reduce, num_workers, replica_index


class Share(NamedTuple):
    """The part of a batch that a replica has; the parts follow each other in the batch.

    Attributes:
        first: Number of the replica's first example in the whole batch, `int32`.
        total: The whole batch's number of examples, `float32`.
    """

    first: tf.Tensor
    total: tf.Tensor


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
    """Returns the scope in which a strategy is in force; None is no strategy."""
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def is_distributed() -> bool:
    """Returns whether a strategy is in force."""
    return bool(tf.distribute.has_strategy())


def scope_of(model: Any) -> Any:
    """Returns the scope of the strategy that a Keras model was made in."""
    return scope(model.distribute_strategy if model.is_distributed else None)


def by_examples(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the data set, of which each worker takes its part of every batch.

    TensorFlow may else give each worker some of the files.
    """
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


def check_compile(model: Any) -> None:
    """Raises if a model was compiled with what does not work under a strategy.

    Args:
        model: A Keras model, compiled; one made outside `strategy.scope()` passes.

    Raises:
        ValueError: If its optimizer was made outside, or accumulates gradients, or several steps
            are taken at a time.
    """
    if not model.is_distributed:
        return
    inner = inner_optimizer(model.optimizer)
    if not isinstance(inner.variables[0].value, tf.distribute.DistributedValues):
        raise ValueError(
            "The model was made inside `strategy.scope()`, so must be its optimizer; or give its "
            f"name. Received: an optimizer made outside, {inner!r}"
        )
    if inner.gradient_accumulation_steps:
        raise ValueError(
            "Keras cannot accumulate gradients under a strategy: give a larger batch size, or "
            "train on one device. Received: gradient_accumulation_steps="
            f"{inner.gradient_accumulation_steps}"
        )
    if model.steps_per_execution > 1:
        raise ValueError(
            "Keras cannot take several steps at a time under a strategy: leave "
            "`steps_per_execution` out, or train on one device. "
            f"Received: steps_per_execution={model.steps_per_execution}"
        )


def num_replicas() -> int:
    """Returns the number of replicas of the strategy that is in force."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def share_of_batch(size: tf.Tensor) -> Share:
    """Returns the replica's share of a batch, which outside a strategy is all of it.

    Args:
        size: The replica's number of examples; 0 for some at the end of a data set.
    """
    size = tf.cast(size, tf.float32)
    if not is_distributed():
        return Share(tf.constant(0), size)
    index = replica_index()
    sizes = all_sum(tf.one_hot(index, num_replicas()) * size)
    first = tf.cumsum(sizes, exclusive=True)[index]
    return Share(tf.cast(first, tf.int32), tf.reduce_sum(sizes))


def all_sum(values: Any) -> Any:
    """Sums `float32` tensors over the replicas, all in one message.

    Args:
        values: A tensor, or a nested structure of them.

    Returns:
        The same structure, on every replica the same numbers.
    """
    tensors = tf.nest.flatten(values)
    if not tensors or not is_distributed():
        return values
    flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
    total = all_reduce(flat)
    parts = tf.split(total, [tf.size(tensor) for tensor in tensors], num=len(tensors))
    sums = [tf.reshape(part, tf.shape(tensor)) for part, tensor in zip(parts, tensors, strict=True)]
    for value, tensor in zip(sums, tensors, strict=True):
        value.set_shape(tensor.shape)
    return tf.nest.pack_sequence_as(values, sums)


def sum_gradients(gradients: list[Any]) -> list[Any]:
    """Sums gradients over the replicas; None stays None."""
    if not is_distributed():
        return gradients
    sums = iter(all_reduce([tf.convert_to_tensor(g) for g in gradients if g is not None]))
    return [None if gradient is None else next(sums) for gradient in gradients]


def pooled_mean(parts: Sequence[Any], counts: Sequence[tf.Tensor]) -> Any:
    """Pools means over the parts of a batch and over the replicas; those from none are left out.

    Args:
        parts: Means over each of the replica's parts, a structure of tensors.
        counts: From how many numbers each of them is, `float32`.
    """
    if len(parts) == 1 and not is_distributed():
        return parts[0]

    def weighted_sum(*means: tf.Tensor) -> tf.Tensor:
        return tf.add_n(
            [tf.math.multiply_no_nan(*pair) for pair in zip(means, counts, strict=True)]
        )

    total, sums = all_sum((tf.add_n(counts), tf.nest.map_structure(weighted_sum, *parts)))
    return tf.nest.map_structure(lambda v: v / total, sums)


# Updates.


def apply_gradients(optimizer: Any, gradients: list[Any], variables: Sequence[Any]) -> None:
    """Hands the sum of all replicas' gradients to an optimizer, once.

    A Keras optimizer sums the gradients of the replicas, after clipping each of them: here they are
    the same sum on every replica, which is clipped first and then divided.
    """
    count = num_replicas()
    if count > 1:
        gradients = [g if g is None else g / count for g in _clipped(optimizer, gradients)]
    optimizer.apply(gradients, variables)


def apply_gradients_if(
    condition: tf.Tensor, optimizer: Any, gradients: list[Any], variables: Sequence[Any]
) -> None:
    """Applies gradients, or leaves variables and optimizer as they are."""

    def apply() -> tf.Tensor:
        apply_gradients(optimizer, gradients, variables)
        return tf.constant(True)

    if not is_distributed():
        tf.cond(condition, apply, lambda: tf.constant(False))
        return
    # Replicas must meet in an update, which they cannot in a branch: it is undone afterwards.
    changed = [*variables, *optimizer.variables]
    before = [tf.identity(variable.value) for variable in changed]
    apply()
    for variable, old in zip(changed, before, strict=True):
        variable.assign(tf.where(condition, variable.value, old))


def inner_optimizer(optimizer: Any) -> Any:
    """Returns the optimizer that Keras wraps in mixed float16, or the one given."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _clipped(optimizer: Any, gradients: list[Any]) -> list[Any]:
    scale = optimizer.scale_loss(tf.ones([]))
    given = [g / scale for g in gradients if g is not None]
    # A private name of Keras, which has no public way to clip as an optimizer does.
    clipped = iter(inner_optimizer(optimizer)._clip_gradients(given))
    return [g if g is None else next(clipped) * scale for g in gradients]


# Metrics.


def tracked(values: Any, weight: tf.Tensor | None) -> tuple[Any, tf.Tensor | None]:
    """Returns examples' values and weights for metrics; under a strategy, means over all replicas.

    Each replica then tracks the mean of all of them, and so shows it after every step.

    Args:
        values: A structure of `[B]`.
        weight: `[B]`, or None for equal ones.

    Returns:
        The structure as it is, or of means; and the weights, or their sum.
    """
    if not is_distributed():
        return values, weight
    first = tf.nest.flatten(values)[0]
    weight = tf.ones_like(first) if weight is None else tf.cast(weight, first.dtype)
    weight = tf.reshape(weight, tf.shape(first))
    sums = tf.nest.map_structure(lambda v: tf.reduce_sum(weight * v), values)
    total, sums = all_sum((tf.reduce_sum(weight), sums))
    return tf.nest.map_structure(lambda v: tf.math.divide_no_nan(v, total), sums), total


def count_of(condition: tf.Tensor) -> tf.Tensor:
    """Returns what a replica adds to a `keras.metrics.Sum`, which is read as that of all."""
    return tf.cast(condition, tf.float32) / num_replicas()


def total_of(count: tf.Tensor) -> tf.Tensor:
    """Returns the count of all replicas within a step, where a metric has the replica's part."""
    return num_replicas() * count


def step_logs(logs: dict[str, Any]) -> dict[str, Any]:
    """Returns what a step hands to Keras to show; on several workers only the loss.

    Keras averages each of them over the workers, in a message of its own, and along an axis.
    """
    if not is_distributed() or num_workers() == 1:
        return logs
    return {"loss": tf.reshape(logs["loss"], [1])}
