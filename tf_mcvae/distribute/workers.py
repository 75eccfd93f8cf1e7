"""The processes that a strategy joins: their number, and what they exchange."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae.distribute.replicas import all_reduce, num_replicas, replica_index

Array = np.ndarray[Any, Any]

# Errors of an exchange with a worker that has stopped.
CONNECTION_ERRORS = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)


def num_workers() -> int:
    """Returns the number of processes that the strategy in force joins."""
    return len(_tasks())


def worker_index() -> int:
    """Returns the number of this process among the workers; 0 for the chief."""
    resolver = tf.distribute.get_strategy().cluster_resolver
    if num_workers() == 1:
        return 0
    return _tasks().index((resolver.task_type, resolver.task_id))


def _tasks() -> list[tuple[str, int]]:
    resolver = tf.distribute.get_strategy().cluster_resolver
    tasks = resolver.cluster_spec().as_dict() if resolver is not None else {}
    kinds = ("chief", "worker")
    return [(kind, task) for kind in kinds for task in range(len(tasks.get(kind, [])))] or [("", 0)]


def is_distributed_data(x: Any) -> bool:
    """Returns whether `x` is a data set that a strategy has distributed over replicas."""
    return isinstance(x, tf.distribute.DistributedDataset)


def by_examples(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Makes each worker take its part of every batch of a data set.

    By default, TensorFlow may distribute files to the workers instead.
    """
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


def gather(rows: Array) -> Array:
    """Returns the rows of all workers, in the order of the workers.

    Args:
        rows: `[n, R]`; n may differ between workers, and be 0 on some of them.
    """
    return rows if num_workers() == 1 else np.asarray(_gather(rows.astype(np.float64)))


@tf.function(input_signature=[tf.TensorSpec([None, None], tf.float64)], autograph=False)
def _gather(rows: tf.Tensor) -> tf.Tensor:
    strategy = tf.distribute.get_strategy()
    replicas_per_worker = num_replicas() // num_workers()

    def part(rows: tf.Tensor) -> tf.Tensor:
        # Only the first replica of a worker returns its rows.
        is_first = replica_index() % replicas_per_worker == 0
        return rows[: tf.where(is_first, tf.shape(rows)[0], 0)]

    return strategy.gather(strategy.run(part, [rows]), axis=0)


def wait_for_all() -> None:
    """Returns when all workers have called it."""
    gather(np.zeros([1, 1]))


def broadcast(variables: list[keras.Variable]) -> None:
    """Sets the variables of all workers to the chief's values."""
    strategy = tf.distribute.get_strategy()
    if num_workers() == 1:
        return
    # All in one message; float64 holds floats and counters exactly.
    values = np.concatenate([np.ravel(v.numpy()).astype(np.float64) for v in variables])

    def share() -> tf.Tensor:
        is_first = replica_index() == 0
        return all_reduce(tf.where(is_first, tf.constant(values), tf.zeros_like(values)))

    shared = tf.function(lambda: strategy.run(share), autograph=False)()
    flat = np.asarray(strategy.experimental_local_results(shared)[0])
    parts = np.split(flat, np.cumsum([np.prod(v.shape, dtype=int) for v in variables])[:-1])
    for variable, part in zip(variables, parts, strict=True):
        variable.assign(part.reshape(variable.shape).astype(variable.numpy().dtype))


def logs_of_step(logs: dict[str, Any]) -> dict[str, Any]:
    """Returns the logs of a step; on several workers, only the loss.

    Keras averages each log over the workers, in a separate message and along an axis.
    """
    return logs if num_workers() == 1 else {"loss": tf.reshape(logs["loss"], [1])}
