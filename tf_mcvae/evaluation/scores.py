"""What an evaluation finds out, as a table and as JSON."""

import math
import textwrap
from typing import Any, NamedTuple

from tf_mcvae.evaluation import BidirectionalGap, LatentStatistics, LogLikelihoodEstimate

_HEADER = (
    "method",
    "log p(x)",
    "MC error",
    "spread",
    "ESS min/median",
    "accept. min/mean",
    "seconds",
)
_LEGEND = """\
log p(x): nats per image, mean ± standard error over the images. MC error: of the draws alone.
spread: standard deviation of log w over an image's draws. ESS: draws that its weights are worth."""


class Scores(NamedTuple):
    """What an evaluation finds out.

    Attributes:
        estimates: By `"elbo"`, `"iwae"` and `"ais"`.
        seconds: That they took, in this process.
        latents: How the model uses its latent dimensions.
        gap: Of annealed importance sampling, where it was asked for.
    """

    estimates: dict[str, LogLikelihoodEstimate]
    seconds: dict[str, float]
    latents: LatentStatistics
    gap: BidirectionalGap | None

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON knows it, the examples' values included."""
        return {
            "estimates": {
                key: {**result.to_dict(examples=True), "seconds": self.seconds[key]}
                for key, result in self.estimates.items()
            },
            "latents": self.latents.to_dict(),
            "gap": self.gap and {**self.gap.to_dict(examples=True), "seconds": self.seconds["gap"]},
        }

    def warnings(self) -> list[str]:
        """Returns why numbers may not be trusted, with their names."""
        results = list(self.estimates.values())
        found = [f"{result.method}: {text}" for result in results for text in result.warnings]
        if self.gap is not None:
            found += [f"gap, forwards: {text}" for text in self.gap.lower.warnings]
            found += [f"gap, backwards: {text}" for text in self.gap.upper.warnings]
        return found


def data_text(
    name: str,
    split: str,
    num_examples: int,
    num_available: int,
    image_shape: tuple[int, ...],
    binarize: bool,
) -> str:
    """Returns in a line which images are evaluated."""
    some = num_examples < num_available
    part = f"the first {num_examples} of {num_available}" if some else f"all {num_examples}"
    note = " (--examples 0: all)" if some else ""
    shape = "x".join(map(str, image_shape))
    pixels = "binarised" if binarize else "grey or colour"
    return f"{part} {split} images of {name}{note}, {shape}, {pixels} pixels"


def report(scores: Scores) -> str:
    """Returns the table, what else is known, and last what is not to be trusted; 100 columns."""
    lines = [str(scores.latents)]
    if scores.gap is not None:
        lines += [f"{scores.gap}, {scores.seconds['gap']:.1f} s"]
    lines += [f"warning: {text}" for text in scores.warnings()]
    wrapped = (textwrap.fill(line, 100, subsequent_indent="  ") for line in lines)
    return "\n".join([table(scores), _LEGEND, "", *wrapped])


def table(scores: Scores) -> str:
    """Returns a line for each estimate, under a header."""
    results = scores.estimates.items()
    rows = [_HEADER, *(_cells(result, scores.seconds[key]) for key, result in results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def _cells(result: LogLikelihoodEstimate, seconds: float) -> tuple[str, ...]:
    return (
        result.method,
        f"{result.mean:.3f} ± {_number(result.standard_error)}",
        _number(result.monte_carlo_error),
        _number(result.chain_spread),
        _pair(result.effective_sample_size, 1),
        _pair(result.acceptance, 2),
        f"{seconds:.1f}",
    )


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"  # A single draw or image says nothing.


def _pair(values: tuple[float, float] | None, digits: int) -> str:
    return "-" if values is None else "/".join(f"{value:.{digits}f}" for value in values)
