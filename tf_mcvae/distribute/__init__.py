"""Replicas and workers under `tf.distribute`; outside a strategy, the identity.

The only room that asks whether a strategy is in force.
"""

from tf_mcvae.distribute.replicas import (
    all_sum,
    apply_gradients,
    apply_gradients_if,
    by_examples,
    check_compile,
    count_of,
    inner_optimizer,
    is_distributed,
    make_strategy,
    pooled_mean,
    scope,
    scope_of,
    share_of_batch,
    step_logs,
    sum_gradients,
    total_of,
    tracked,
)
from tf_mcvae.distribute.workers import (
    CONNECTION_ERRORS,
    broadcast,
    gather,
    num_workers,
    replica_index,
    wait_for_all,
    worker_index,
)

__all__ = [
    "CONNECTION_ERRORS",
    "all_sum",
    "apply_gradients",
    "apply_gradients_if",
    "broadcast",
    "by_examples",
    "check_compile",
    "count_of",
    "gather",
    "inner_optimizer",
    "is_distributed",
    "make_strategy",
    "num_workers",
    "pooled_mean",
    "replica_index",
    "scope",
    "scope_of",
    "share_of_batch",
    "step_logs",
    "sum_gradients",
    "total_of",
    "tracked",
    "wait_for_all",
    "worker_index",
]
