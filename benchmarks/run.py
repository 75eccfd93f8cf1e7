"""Measures training and evaluation steps of the library and of other ways to compute its bounds.

    python -m benchmarks.run

prints a table for the reference's models on images of MNIST's shape, ratios first. Each variant of
a case runs in a process of its own. After all have compiled they take their steps in turn, so that
other load on the machine affects all of them equally. The rows are PyTorch, and TFP's kernels in a
Python loop, both written from the equations (benchmarks/pytorch.py, benchmarks/tfp_kernels.py); and
the library in eager execution, as a graph, as a graph whose batch the cores share (as in
train_keras.py), and compiled by XLA. `pip install -e '.[bench]'` installs PyTorch.
"""

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import platform
import statistics
import subprocess
import sys
from typing import Any

from benchmarks import ROOT
from benchmarks.cases import CASES, Case
from benchmarks.counts import measured_peak, minimum_bytes, minimum_flops

VARIANTS = ("torch", "tfp", "eager", "graph", "cores", "xla")
GPU_VARIANTS = ("torch", "torch_compiled", "tfp", "graph", "xla")


class Worker:
    """A process that holds one case in one variant.

    Args:
        case: The case.
        variant: One of `VARIANTS` or `GPU_VARIANTS`.
        device: `"cpu"` or `"gpu"`.
    """

    def __init__(self, case: Case, variant: str, device: str) -> None:
        self.variant = variant
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        task = {"case": dataclasses.asdict(case), "variant": variant, "device": device}
        self.ask(json.dumps(task))

    def ask(self, request: str) -> dict[str, Any]:
        """Sends a request and waits for the answer."""
        print(request, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError(
                f"The process of {self.variant!r} ended. Run `python -m benchmarks.worker` to see "
                f"its error. Received: request={request!r}"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """Ends the process."""
        self.process.communicate()


def measure(case: Case, variants: list[str], device: str, repeats: int) -> dict[str, Any]:
    """Measures a case in all variants, in turn.

    Returns:
        For each variant the seconds of a training and an evaluation step (median, minimum and
        maximum), the additional seconds of the first steps, and the memory of model and steps.
    """
    workers = {variant: Worker(case, variant, device) for variant in variants}
    keys = [(variant, step) for variant in variants for step in ("train", "evaluate")]
    first = {(v, step): workers[v].ask(f"first {step}")["seconds"] for v, step in keys}
    times: dict[Any, list[float]] = {key: [] for key in keys}
    memory = {}
    for _ in range(repeats):
        for variant, step in keys:
            answer = workers[variant].ask(step)
            times[variant, step].append(answer["seconds"])
            memory[variant] = answer["memory_mib"]
    for worker in workers.values():
        worker.stop()
    results: dict[str, Any] = {variant: {"memory_mib": memory[variant]} for variant in variants}
    for variant, step in keys:
        numbers = times[variant, step]
        median = statistics.median(numbers)
        results[variant][step] = {"median": median, "least": min(numbers), "most": max(numbers)}
        # Without compilation the first step may by chance be the faster one.
        results[variant][f"compile_{step}"] = max(first[variant, step] - median, 0.0)
    return results


def report(case: Case, results: dict[str, Any], peak: float) -> list[str]:
    """Returns the lines of a case; ratios are the first variant's time over each variant's."""
    base = next(iter(results.values()))
    flops, size = (count(case, training=True) for count in (minimum_flops, minimum_bytes))
    lines = [
        f"{case.name}: at least {flops / 1e9:.1f} GFLOP and {size / 1e9:.2f} GB a training step, "
        f"{flops / peak * 1e3:.0f} ms at peak"
    ]
    for variant, times in results.items():
        train, evaluate = times["train"], times["evaluate"]
        lines.append(
            f"  {variant:<15}{base['train']['median'] / train['median']:7.2f}"
            f"{base['evaluate']['median'] / evaluate['median']:10.2f}"
            f"{100 * flops / peak / train['median']:9.0f} %"
            f"{1e3 * train['median']:10.0f}"
            f"{_spread(train):>16}"
            f"{1e3 * evaluate['median']:11.0f}"
            f"{_spread(evaluate):>16}"
            f"{times['compile_train']:9.1f}"
            f"{times['memory_mib']:10.0f}"
        )
    return lines


def _spread(times: dict[str, float]) -> str:
    return f"({1e3 * times['least']:.0f}-{1e3 * times['most']:.0f})"


_HEADER = (
    f"  {'':<15}{'training':>7}{'evaluation':>11}{'of peak':>9}{'training':>11}{'':>15}"
    f"{'evaluation':>12}{'':>15}{'compile':>9}{'memory':>10}\n"
    f"  {'':<15}{'x':>7}{'x':>10}{'':>11}{'ms':>10}{'':>16}{'ms':>11}{'':>16}{'s':>9}{'MiB':>10}"
)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names, known = [case.name for case in CASES], sorted({*VARIANTS, *GPU_VARIANTS})
    add = parser.add_argument
    add("--cases", nargs="+", choices=names, default=names, metavar="CASE", help=", ".join(names))
    add("--variants", nargs="+", choices=known, metavar="VARIANT", help=", ".join(known))
    add("--device", choices=("cpu", "gpu"), default="cpu")
    add("--repeats", type=int, default=7, help="rounds of all variants in turn (default: 7)")
    add("--num-transitions", type=int, help="K of the annealed cases, such as 50")
    add("--batch-size", type=int, help="default: 100")
    add("--latent-dim", type=int, help="default: 64")
    add("--image-size", type=int, help="default: 28")
    add("--policy", help="Keras dtype policy of the library's networks, such as mixed_bfloat16")
    add("--json", type=pathlib.Path, help="write all numbers to this file")
    return parser.parse_args(words)


def chosen_cases(given: argparse.Namespace) -> list[Case]:
    """Returns the cases with the given sizes."""
    fields = {field.name for field in dataclasses.fields(Case)}
    sizes = {name: value for name, value in vars(given).items() if name in fields and value}
    plain = {name: value for name, value in sizes.items() if name != "num_transitions"}
    cases = [case for case in CASES if case.name in given.cases]
    return [
        dataclasses.replace(case, **(sizes if case.num_transitions else plain)) for case in cases
    ]


def chosen_variants(given: argparse.Namespace, case: Case) -> list[str]:
    """Returns the variants of a case that can run on this machine."""
    variants = given.variants or (GPU_VARIANTS if given.device == "gpu" else VARIANTS)
    has_torch = importlib.util.find_spec("torch") is not None
    return [
        variant
        for variant in variants
        if (has_torch or "torch" not in variant)
        and (case.num_transitions or variant != "tfp")
        and (case.is_published or ("torch" not in variant and variant != "tfp"))
    ]


def main() -> None:
    """Runs the command line."""
    given = parse()
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed, so its rows are left out (pip install -e '.[bench]')")
    peak = measured_peak(given.device)
    speed = f"matrix products at {peak / 1e9:.0f} GFLOP/s"
    print(f"{given.device}, {speed}; x: time of the first row over that of the row")
    print(_HEADER, flush=True)
    numbers: dict[str, Any] = {"peak": peak, "device": given.device, "machine": platform.platform()}
    for case in chosen_cases(given):
        results = measure(case, chosen_variants(given, case), given.device, given.repeats)
        print("\n".join(report(case, results, peak)), flush=True)
        numbers[case.name] = {
            "case": dataclasses.asdict(case),
            "flops": minimum_flops(case, training=True),
            "bytes": minimum_bytes(case, training=True),
            "variants": results,
        }
        if given.json:
            given.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
