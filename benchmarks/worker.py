"""A process that holds one case in one variant, and takes steps when it is told to.

It reads a JSON line `{"case": ..., "variant": ..., "device": ...}`, and then the names of steps,
`train` or `evaluate`, with `first` before the first of each; it answers each with a JSON line.
Each variant has a process of its own, so that memory can be told apart and no thread pool waits in
another's way.
"""

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.cases import Case

# A request takes steps for this long, and returns their mean: at least one.
_SECONDS = 0.5


def images(case: Case) -> np.ndarray[Any, Any]:
    """Returns binary images, a fifth of the pixels set, about as in MNIST."""
    shape = (case.batch_size, *case.image_shape)
    return (np.random.default_rng(0).uniform(size=shape) < 0.2).astype(np.float32)


def make_trainer(case: Case, variant: str, device: str) -> Any:
    """Returns an object with `train()` and `evaluate()`, each of which takes a step."""
    if variant in ("torch", "torch_compiled"):
        from benchmarks import pytorch

        return pytorch.Trainer(case, images(case), device, compiled=variant == "torch_compiled")
    if variant == "tfp":
        from benchmarks import tfp_kernels

        return tfp_kernels.Trainer(case, images(case), device)
    from benchmarks import library

    return library.Trainer(case, images(case), device, variant)


def time_step(step: Callable[[], float], least: float = _SECONDS) -> float:
    """Returns the seconds of a step, the mean of as many as `least` seconds hold."""
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < least:
        value = step()
        if not np.isfinite(value):
            raise ValueError(f"A step gave no number. Received: loss={value}")
        count += 1
    return (time.perf_counter() - start) / count


def peak_memory() -> float:
    """Returns the most memory that the process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Answers requests until there are no more."""
    # What libraries print must not come between the answers.
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    task = json.loads(sys.stdin.readline())
    case, device = Case(**task["case"]), task["device"]
    trainer = make_trainer(case, task["variant"], device)
    before = peak_memory()
    answer(case=dataclasses.asdict(case))
    for line in sys.stdin:
        *first, step = line.split()
        seconds = time_step(getattr(trainer, step), 0.0 if first else _SECONDS)
        answer(seconds=seconds, memory_mib=peak_memory() - before)


if __name__ == "__main__":
    main()
