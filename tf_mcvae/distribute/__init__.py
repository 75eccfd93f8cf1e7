"""Replicas and workers under `tf.distribute`: the only room that asks about strategies.

A *replica* is a device with a copy of the weights; a *worker* is a process with one or more of
them. `MirroredStrategy` has one worker, `MultiWorkerMirroredStrategy` one for each entry of
TF_CONFIG. Without a strategy there is one of each, and nothing is exchanged.
"""

from tf_mcvae.distribute.model import check_compiled, is_distributed, scope_of
from tf_mcvae.distribute.replicas import (
    WholeBatchMean,
    WholeBatchSum,
    all_sum,
    all_sum_gradients,
    apply_gradients,
    inner_optimizer,
    is_whole,
    make_strategy,
    num_threads,
    pooled_mean,
    replica_index,
    restore_unless,
    scope,
    share_of_batch,
    update_if,
    whole_batch,
)
from tf_mcvae.distribute.workers import (
    CONNECTION_ERRORS,
    broadcast,
    by_examples,
    gather,
    is_distributed_data,
    logs_of_step,
    num_workers,
    wait_for_all,
    worker_index,
)

__all__ = [
    "CONNECTION_ERRORS",
    "WholeBatchMean",
    "WholeBatchSum",
    "all_sum",
    "all_sum_gradients",
    "apply_gradients",
    "broadcast",
    "by_examples",
    "check_compiled",
    "gather",
    "inner_optimizer",
    "is_distributed",
    "is_distributed_data",
    "is_whole",
    "logs_of_step",
    "make_strategy",
    "num_threads",
    "num_workers",
    "pooled_mean",
    "replica_index",
    "restore_unless",
    "scope",
    "scope_of",
    "share_of_batch",
    "update_if",
    "wait_for_all",
    "whole_batch",
    "worker_index",
]
