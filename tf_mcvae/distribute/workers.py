"""Workers: the processes that a strategy joins. Without one there is a single worker."""

from typing import Any

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
        # One of a worker's replicas gives its rows.
        is_first = replica_index() % _replicas_per_worker() == 0
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
        is_first = replica_index() == 0
        return all_reduce(tf.where(is_first, tf.constant(values), tf.zeros_like(values)))

    shared = tf.function(lambda: strategy.run(share), autograph=False)()
    flat = np.asarray(strategy.experimental_local_results(shared)[0])
    parts = np.split(flat, np.cumsum([np.prod(v.shape, dtype=int) for v in variables])[:-1])
    for variable, part in zip(variables, parts, strict=True):
        variable.assign(part.reshape(variable.shape).astype(variable.numpy().dtype))


def all_reduce(values: Any) -> Any:
    """Returns the sum over the replicas of a tensor, or of each tensor of a list."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def replica_index() -> tf.Tensor:
    """Returns the number of this replica among all replicas, a scalar."""
    context = tf.distribute.get_replica_context()  # None where replicas are joined.
    return tf.convert_to_tensor(0 if context is None else context.replica_id_in_sync_group)


def _replicas_per_worker() -> int:
    return tf.distribute.get_strategy().num_replicas_in_sync // num_workers()
