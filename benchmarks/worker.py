"""A process that runs the steps of one case in one variant on request.

It reads a JSON line `{"case": ..., "variant": ..., "device": ...}`, and then requests for steps,
`train` or `evaluate`, with `first` before the first of each. It answers each with a JSON line. Each
variant has its own process, so that memory is measured separately and thread pools do not
interfere.
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

# A request takes steps for this many seconds, at least one step, and returns their mean.
_SECONDS = 0.5


def images(case: Case) -> np.ndarray[Any, Any]:
    """Returns binary images in which a fifth of the pixels are set, about as in MNIST."""
    shape = (case.batch_size, *case.image_shape)
    return (np.random.default_rng(0).uniform(size=shape) < 0.2).astype(np.float32)


def make_trainer(case: Case, variant: str, device: str) -> Any:
    """Returns an object whose `train()` and `evaluate()` each take a step."""
    if variant in ("torch", "torch_compiled"):
        from benchmarks import pytorch

        return pytorch.Trainer(case, images(case), device, compiled=variant == "torch_compiled")
    if variant == "tfp":
        from benchmarks import tfp_kernels

        return tfp_kernels.Trainer(case, images(case), device)
    from benchmarks import library

    return library.Trainer(case, images(case), device, variant)


def time_step(step: Callable[[], float], least: float = _SECONDS) -> float:
    """Returns the mean seconds of the steps that start within `least` seconds, at least one."""
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < least:
        value = step()
        if not np.isfinite(value):
            raise ValueError(f"The loss of a step must be finite. Received: loss={value}")
        count += 1
    return (time.perf_counter() - start) / count


def peak_memory() -> float:
    """Returns the peak memory of the process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Answers requests until the input ends."""
    # Output of libraries must not mix with the answers.
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
