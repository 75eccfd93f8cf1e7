"""Figure and table of `bound_comparison.py`."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import toy
from bound_methods import MARKERS, METHODS


def point_of(row: dict[str, Any]) -> tuple[str, int, int]:
    """Returns method, budget and seed of a row, new or read from a file."""
    return row["method"], int(row["budget"]), int(row["seed"])


def columns(rows: Sequence[dict[str, Any]], name: str) -> dict[int, dict[str, np.ndarray]]:
    """Returns the numbers of a method, by budget: each `[seeds]`, by name of the column."""
    keys = ("gap", "gap_error", "seconds_per_step", "seconds_per_image")
    budgets = sorted({int(row["budget"]) for row in rows if row["method"] == name})
    found = {
        budget: [row for row in rows if point_of(row)[:2] == (name, budget)] for budget in budgets
    }
    return {
        budget: {key: np.array([float(row[key]) for row in of_budget]) for key in keys}
        for budget, of_budget in found.items()
    }


def draw(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws the gap against evaluations and against times; bands are the range of the seeds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for (name, method), marker in zip(METHODS.items(), MARKERS, strict=True):
        numbers = columns(rows, name)
        if not numbers:
            continue
        gaps = [values["gap"] for values in numbers.values()]
        low, mean, high = (np.array([f(gap) for gap in gaps]) for f in (np.min, np.mean, np.max))
        times = [1e3 * np.median(values["seconds_per_image"]) for values in numbers.values()]
        style: dict[str, Any] = {"color": method.color, "marker": marker, "markersize": 4}
        for ax, horizontal in ((left, list(numbers)), (right, times)):
            # Along times, the order of the budgets may not be that of the times.
            ax.plot(horizontal, mean, label=name, linewidth=1.3, **style)
            ax.fill_between(horizontal, low, high, color=method.color, alpha=0.15, linewidth=0)
    budgets = sorted({int(row["budget"]) for row in rows})
    left.set(xscale="log", yscale="log", xlabel="evaluations of decoder and gradient per image")
    left.set_xticks(budgets, [str(budget) for budget in budgets])
    left.minorticks_off()
    left.set_ylabel(r"gap to $\log p(x)$, nats per image")
    right.set(xscale="log", xlabel="milliseconds of one evaluation of the bound per image")
    right.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    right.xaxis.set_major_formatter("{x:g}")
    right.xaxis.set_minor_formatter("")
    # What diverged is in the table.
    largest = [float(row["gap"]) for row in rows if int(row["budget"]) == budgets[0]]
    left.set_ylim(top=1.3 * max(largest))
    for ax in (left, right):
        ax.grid(alpha=0.3, which="both")
    right.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    toy.save_figure(figure, path)


def print_table(rows: Sequence[dict[str, Any]], truth: float, error: float) -> None:
    """Prints the mean gap of each method and budget, and its times at the largest, as Markdown."""
    budgets = sorted({int(row["budget"]) for row in rows})
    print(f"\nlog p(x) = {truth:.3f} ± {error:.3f}; gap in nats per image (its error)\n")
    times = f" ms per step, n = {budgets[-1]} | ms per image |"
    print("| n = |" + "".join(f" {budget} |" for budget in budgets) + times)
    print("|---|" + "---|" * (len(budgets) + 2))
    for name in METHODS:
        numbers = columns(rows, name)
        if not numbers:
            continue
        cells = []
        for budget in budgets:
            values = numbers.get(budget)
            cells.append(
                "" if values is None else f"{np.mean(values['gap']):.3f} ({_error(values):.3f})"
            )
        last = numbers.get(budgets[-1])
        for key in ("seconds_per_step", "seconds_per_image"):
            cells.append("" if last is None else f"{1000 * np.median(last[key]):.3g}")
        print(f"| {name} | " + " | ".join(cells) + " |")


def _error(values: dict[str, np.ndarray[Any, Any]]) -> float:
    """Returns the error of the mean gap: of seeds where there are several, or of the draws."""
    gaps = values["gap"]
    if len(gaps) == 1:
        return float(values["gap_error"][0])
    return float(np.std(gaps, ddof=1) / np.sqrt(len(gaps)))
