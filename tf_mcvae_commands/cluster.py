"""The workers of a run on several machines, as TF_CONFIG names them.

Which of them this process is can be told without TensorFlow.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any

_EXAMPLE = (
    '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Worker:
    """A process that takes part in a run.

    Attributes:
        index: Its number; the chief, which alone writes files, has 0.
        count: The number of workers.
    """

    index: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this is the worker that writes files."""
        return self.index == 0


ALONE = Worker()


def this_worker(strategy: str) -> Worker:
    """Returns which worker this process is under a strategy.

    Args:
        strategy: `"none"`, `"mirrored"`, or `"multiworker"`, whose workers TF_CONFIG names.

    Raises:
        ValueError: If TF_CONFIG is missing, or does not describe workers with this one among them.
    """
    if strategy != "multiworker":
        return ALONE
    text = os.environ.get("TF_CONFIG", "")
    try:
        return _read(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            "--strategy multiworker needs the environment variable TF_CONFIG, in every process "
            f"with its own index, such as {_EXAMPLE}. Received: TF_CONFIG={text!r}"
        ) from error


class LostWorkerError(Exception):
    """Another worker is gone, and this one cannot continue without it."""


@contextlib.contextmanager
def joined(strategy: str) -> Iterator[tuple[Worker, Any]]:
    """Joins this process with the other workers; only the chief prints.

    Args:
        strategy: See `this_worker`.

    Yields:
        Which worker this is, and the `tf.distribute.Strategy` or None.

    Raises:
        LostWorkerError: If another worker is gone.
    """
    from tf_mcvae import distribute

    worker = this_worker(strategy)
    with contextlib.ExitStack() as stack:
        if not worker.is_chief:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            yield worker, distribute.make_strategy(strategy)
        except distribute.CONNECTION_ERRORS as error:
            if worker.count == 1:
                raise
            raise LostWorkerError(type(error).__name__) from error


def _read(config: Any) -> Worker:
    tasks = {kind: config["cluster"].get(kind, []) for kind in ("chief", "worker")}
    if set(config["cluster"]) - set(tasks) or len(tasks["chief"]) > 1:
        raise ValueError("There are tasks other than a chief and workers")
    known = [(kind, index) for kind in tasks for index in range(len(tasks[kind]))]
    task = (config["task"]["type"], int(config["task"]["index"]))
    return Worker(known.index(task), len(known))
