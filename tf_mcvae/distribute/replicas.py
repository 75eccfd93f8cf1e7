"""Several replicas under `tf.distribute`: their shares of a batch, their sums, and their workers.

A *replica* is a device with a copy of the weights; a *worker* is a process with one or more of
them. `MirroredStrategy` has one worker, `MultiWorkerMirroredStrategy` one for each entry of
TF_CONFIG. Outside a strategy all that follows is the identity.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

Array = np.ndarray[Any, Any]

# What an exchange with the other workers raises when one of them is gone.
CONNECTION_ERRORS = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)


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


def by_examples(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the data set, of which each worker takes its part of every batch.

    TensorFlow may else give each worker some of the files.
    """
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


def check_distributed_compile(model: Any) -> None:
    """Raises if a model was compiled with what does not work under a strategy.

    Args:
        model: A Keras model, compiled, that was made inside `strategy.scope()`.

    Raises:
        ValueError: If its optimizer was made outside, or accumulates gradients, or several steps
            are to be taken at a time.
    """
    optimizer = model.optimizer
    inner = getattr(optimizer, "inner_optimizer", optimizer)
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
    if not tf.distribute.has_strategy():
        return Share(tf.constant(0), size)
    index = _replica_index()
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
    if not tensors or not tf.distribute.has_strategy():
        return values
    flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
    total = _all_reduce(flat)
    parts = tf.split(total, [tf.size(tensor) for tensor in tensors], num=len(tensors))
    sums = [tf.reshape(part, tf.shape(tensor)) for part, tensor in zip(parts, tensors, strict=True)]
    for value, tensor in zip(sums, tensors, strict=True):
        value.set_shape(tensor.shape)
    return tf.nest.pack_sequence_as(values, sums)


def all_sum_gradients(gradients: list[Any]) -> list[Any]:
    """Sums gradients over the replicas; None stays None."""
    if not tf.distribute.has_strategy():
        return gradients
    sums = iter(_all_reduce([tf.convert_to_tensor(g) for g in gradients if g is not None]))
    return [None if gradient is None else next(sums) for gradient in gradients]


def _all_reduce(values: Any) -> Any:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def pooled_mean(parts: Sequence[Any], counts: Sequence[tf.Tensor]) -> Any:
    """Pools means over the parts of a batch and over the replicas; those from none are left out.

    Args:
        parts: Means over each of the replica's parts, a structure of tensors.
        counts: From how many numbers each of them is, `float32`.
    """
    if len(parts) == 1 and not tf.distribute.has_strategy():
        return parts[0]

    def weighted_sum(*means: tf.Tensor) -> tf.Tensor:
        return tf.add_n(
            [tf.math.multiply_no_nan(*pair) for pair in zip(means, counts, strict=True)]
        )

    total, sums = all_sum((tf.add_n(counts), tf.nest.map_structure(weighted_sum, *parts)))
    return tf.nest.map_structure(lambda v: v / total, sums)


def weighted_mean(values: Any, weight: tf.Tensor | None) -> tuple[Any, tf.Tensor]:
    """Averages examples' values over all replicas, for metrics.

    Args:
        values: A structure of `[B]`.
        weight: `[B]`, or None for equal ones.

    Returns:
        The structure of means, and the sum of the weights.
    """
    first = tf.nest.flatten(values)[0]
    weight = tf.ones_like(first) if weight is None else tf.cast(weight, first.dtype)
    weight = tf.reshape(weight, tf.shape(first))
    sums = tf.nest.map_structure(lambda v: tf.reduce_sum(weight * v), values)
    total, sums = all_sum((tf.reduce_sum(weight), sums))
    return tf.nest.map_structure(lambda v: tf.math.divide_no_nan(v, total), sums), total


# Workers.


def num_workers() -> int:
    """Returns the number of processes that the strategy in force joins."""
    return len(_tasks())


def worker_index() -> int:
    """Returns this process's number among the workers; the chief's is 0."""
    resolver = tf.distribute.get_strategy().cluster_resolver
    if num_workers() == 1:
        return 0
    return _tasks().index((resolver.task_type, resolver.task_id))


def _tasks() -> list[tuple[str, int]]:
    resolver = tf.distribute.get_strategy().cluster_resolver
    tasks = resolver.cluster_spec().as_dict() if resolver is not None else {}
    kinds = ("chief", "worker")
    return [(kind, task) for kind in kinds for task in range(len(tasks.get(kind, [])))] or [("", 0)]


def gather(rows: Array) -> Array:
    """Returns the rows of all workers, one worker's after another's.

    Args:
        rows: `[n, R]`; n may differ from worker to worker, and be 0, but not all of them.
    """
    return rows if num_workers() == 1 else np.asarray(_gather(rows.astype(np.float64)))


@tf.function(input_signature=[tf.TensorSpec([None, None], tf.float64)], autograph=False)
def _gather(rows: tf.Tensor) -> tf.Tensor:
    strategy = tf.distribute.get_strategy()

    def part(rows: tf.Tensor) -> tf.Tensor:
        # Of a worker's replicas one gives its rows.
        is_first = _replica_index() % _replicas_per_worker() == 0
        return rows[: tf.where(is_first, tf.shape(rows)[0], 0)]

    return strategy.gather(strategy.run(part, [rows]), axis=0)


def wait_for_all() -> None:
    """Returns when all workers have called it."""
    gather(np.zeros([1, 1]))


def broadcast(variables: list[Any]) -> None:
    """Gives the variables of all workers the values that they have on the chief."""
    strategy = tf.distribute.get_strategy()
    if num_workers() == 1:
        return
    # All in one message: 64 bits hold floats and counters alike.
    values = np.concatenate([np.ravel(v.numpy()).astype(np.float64) for v in variables])

    def share() -> tf.Tensor:
        is_first = _replica_index() == 0
        return _all_reduce(tf.where(is_first, tf.constant(values), tf.zeros_like(values)))

    shared = tf.function(lambda: strategy.run(share), autograph=False)()
    flat = np.asarray(strategy.experimental_local_results(shared)[0])
    parts = np.split(flat, np.cumsum([np.prod(v.shape, dtype=int) for v in variables])[:-1])
    for variable, part in zip(variables, parts, strict=True):
        variable.assign(part.reshape(variable.shape).astype(variable.numpy().dtype))


def _replica_index() -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    return tf.convert_to_tensor(context.replica_id_in_sync_group)


def _replicas_per_worker() -> int:
    return num_replicas() // num_workers()
