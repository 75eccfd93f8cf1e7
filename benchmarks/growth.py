"""Measures the training step of an L-MCVAE against K, S, batch size, latent dimension and image.

    python -m benchmarks.growth

writes growth.csv and growth.png: seconds against each size, with the other sizes as in
benchmarks/cases.py, and the slope of the logarithms between the two largest sizes; a slope of 1 is
linear growth. It takes five minutes.
"""

import argparse
import csv
import dataclasses
import math
import pathlib
import statistics
from typing import Any

from benchmarks import ROOT
from benchmarks.cases import Case
from benchmarks.run import Worker

BASE = Case("L-MCVAE", num_transitions=5)
SIZES: dict[str, tuple[int, ...]] = {
    "num_transitions": (1, 5, 10, 20, 50),
    "num_samples": (1, 2, 5, 10),
    "batch_size": (25, 50, 100, 200, 400),
    "latent_dim": (16, 64, 256),
    "image_size": (16, 28, 40, 56),
}
_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5)
LABELS = {
    "num_transitions": "K",
    "num_samples": "S",
    "batch_size": "batch",
    "latent_dim": "latent dimension",
    "image_size": "pixels",
}


def extent(name: str, size: int) -> int:
    """Returns the number in which time should be linear: for images the number of pixels."""
    return size**2 if name == "image_size" else size


def measure(case: Case, repeats: int = 3) -> dict[str, float]:
    """Returns the median seconds of a training step, the seconds of compiling it, and memory."""
    worker = Worker(case, "cores", "cpu")
    first = worker.ask("first train")["seconds"]
    answers = [worker.ask("train") for _ in range(repeats)]
    worker.stop()
    seconds = statistics.median(answer["seconds"] for answer in answers)
    return {"seconds": seconds, "compile": first - seconds, "memory_mib": answers[-1]["memory_mib"]}


def slope(points: list[tuple[int, float]]) -> float:
    """Returns the slope of the logarithms between the last two points."""
    (size, time), (larger, longer) = points[-2:]
    return math.log(longer / time) / math.log(larger / size)


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws seconds against each size."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(SIZES), figsize=(15, 3.2), sharey=True, layout="constrained")
    for axis, name in zip(axes, SIZES, strict=True):
        points = [(extent(name, r["size"]), r["seconds"]) for r in rows if r["varied"] == name]
        axis.loglog(*zip(*points, strict=True), "o-")
        axis.set(xlabel=LABELS[name], title=f"slope {slope(points):.2f}")
        axis.set_xticks([size for size, _ in points], [f"{size:g}" for size, _ in points])
        axis.set_yticks(_SECONDS, [f"{seconds:g}" for seconds in _SECONDS])
        axis.minorticks_off()
        axis.grid(True, alpha=0.3)
    axes[0].set_ylabel("seconds per training step")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures, writes the table and draws the figure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--folder",
        type=pathlib.Path,
        default=ROOT / "docs/performance",
        help="folder of the files (default: docs/performance)",
    )
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name, sizes in SIZES.items():
        for size in sizes:
            numbers = measure(dataclasses.replace(BASE, **{name: size}))
            rows.append({"varied": name, "size": size, **numbers})
            print(*(f"{key} {value}" for key, value in rows[-1].items()), sep="  ", flush=True)
    with (folder / "growth.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(
            {key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}
            for row in rows
        )
    draw(rows, folder / "growth.png")


if __name__ == "__main__":
    main()
