"""The suite of estimators that both commands run, and its results as a table and as JSON."""

import math
import os
import pathlib
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import tensorflow as tf

from tf_mcvae.evaluation.annealed import bidirectional_gap, estimate_log_likelihood
from tf_mcvae.evaluation.results import BidirectionalGap, LogLikelihoodEstimate
from tf_mcvae.evaluation.sampling import (
    LatentStatistics,
    estimate_bound,
    estimate_elbo,
    estimate_iwae,
    latent_statistics,
)
from tf_mcvae.models import MonteCarloVAE
from tf_mcvae_commands.ais import PRESETS, AISSettings

_Estimator = Callable[[], LogLikelihoodEstimate | BidirectionalGap]

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


@dataclass(frozen=True)
class Suite:
    """Estimators of `log p(x)` and their settings.

    Args:
        estimates: The estimators to run: `"bound"` (the model's own), `"elbo"`, `"iwae"`, `"ais"`.
        elbo_samples: Draws of each example for the ELBO.
        iwae_samples: k of IWAE-k.
        annealing: The settings of annealed importance sampling.
        gap: Number of simulated examples for `bidirectional_gap`; 0 leaves it out.
        chunk_size: Largest number of draws or chains in memory at a time. None takes each
            estimator's default.
        seed: Seed of the draws.
        checkpoint: A folder for the checkpoints of `"elbo"`, `"iwae"` and `"ais"`. None disables
            checkpointing.
        verbose: 1 shows progress bars with the time left.
    """

    estimates: tuple[Literal["bound", "elbo", "iwae", "ais"], ...] = ("elbo", "iwae", "ais")
    elbo_samples: int = 100
    iwae_samples: int = 5000
    annealing: AISSettings = PRESETS["standard"]
    gap: int = 0
    chunk_size: int | None = None
    seed: int = 0
    checkpoint: str | os.PathLike[str] | None = None
    verbose: int = 0

    def run(self, model: MonteCarloVAE, data: Any) -> "Scores":
        """Runs the estimators, each after a line of text that says what it computes.

        Args:
            model: A trained model.
            data: Images `[N, ...]`, or a dataset of batches.

        Raises:
            ValueError: If the images do not fit the model, a checkpoint is that of another
                evaluation, or the gap needs an inverse that the flow does not have.
        """
        if self.gap:
            self._check_backwards(model)
        results: dict[str, Any] = {}
        seconds: dict[str, float] = {}
        latents = latent_statistics(model, data)
        for key, (text, estimate) in self._estimators(model, data).items():
            print(f"{text} ...", flush=True)
            start = time.perf_counter()
            results[key] = estimate()
            seconds[key] = time.perf_counter() - start
        gap = results.pop("gap", None)
        in_bits = model.likelihood.is_in_bits
        return Scores(
            results, seconds, latents, gap, math.prod(model.event_shape) if in_bits else None
        )

    def _estimators(self, model: MonteCarloVAE, data: Any) -> dict[str, tuple[str, _Estimator]]:
        """Returns a line of text and a call for each estimator that is to run."""
        common: dict[str, Any] = {"seed": self.seed}
        if self.chunk_size is not None:
            common["chunk_size"] = self.chunk_size

        def kept(key: str) -> dict[str, Any]:
            folder = self.checkpoint
            path = None if folder is None else pathlib.Path(folder) / f"{key}.npz"
            return {"checkpoint": path, "verbose": self.verbose, **common}

        draws, k, ais = self.elbo_samples, self.iwae_samples, self.annealing
        gap = f"gap: {ais.summary()}, both ways on {self.gap} simulated images"
        estimators: list[tuple[str, str, _Estimator]] = [
            ("bound", "bound", lambda: estimate_bound(model, data, **common)),
            (
                "elbo",
                f"ELBO: {draws} draws",
                lambda: estimate_elbo(model, data, draws, **kept("elbo")),
            ),
            ("iwae", f"IWAE: {k} draws", lambda: estimate_iwae(model, data, k, **kept("iwae"))),
            (
                "ais",
                f"AIS: {ais.summary()}",
                lambda: estimate_log_likelihood(model, data, ais, **kept("ais")),
            ),
            ("gap", gap, lambda: bidirectional_gap(model, self.gap, ais, **common)),
        ]
        wanted = {*self.estimates, *(["gap"] if self.gap else [])}
        return {key: (text, estimate) for key, text, estimate in estimators if key in wanted}

    def _check_backwards(self, model: MonteCarloVAE) -> None:
        """Raises before the long computation if chains cannot start backwards."""
        if self.annealing.start == "prior":
            return
        try:
            model.to_states(tf.zeros([1, model.latent_dim]))
        except ValueError as error:
            raise ValueError(
                "The gap needs the inverse of the flow, which this flow does not have: take "
                'start="prior" (--start prior), with which chains run without the flow. '
                f"Received: gap={self.gap}"
            ) from error


class Scores(NamedTuple):
    """The results of a `Suite`.

    Attributes:
        estimates: The estimates by the names of their estimators.
        seconds: The time that each took in this process, `"gap"` among them.
        latents: How the model uses its latent dimensions.
        gap: Bounds on the error of annealed importance sampling, if they were asked for.
        num_dimensions: Elements of an example, if results are also given in bits per dimension.
    """

    estimates: dict[str, LogLikelihoodEstimate]
    seconds: dict[str, float]
    latents: LatentStatistics
    gap: BidirectionalGap | None
    num_dimensions: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the results as JSON types, including the values of each example."""
        bits = {key: {"bits_per_dimension": value[0]} for key, value in self.bits().items()}
        return {
            "estimates": {
                key: {
                    **result.to_dict(examples=True),
                    **bits.get(key, {}),
                    "seconds": self.seconds[key],
                }
                for key, result in self.estimates.items()
            },
            "latents": self.latents.to_dict(),
            "gap": self.gap and {**self.gap.to_dict(examples=True), "seconds": self.seconds["gap"]},
        }

    def bits(self) -> dict[str, tuple[float, float]]:
        """Returns bits per dimension with standard errors, where there are any, by estimator."""
        if self.num_dimensions is None:
            return {}
        results = self.estimates.items()
        return {key: result.bits_per_dimension(self.num_dimensions) for key, result in results}

    def warnings(self) -> list[str]:
        """Returns the warnings of all estimates, each with the name of its estimate."""
        results = list(self.estimates.values())
        found = [f"latents: {text}" for text in self.latents.warnings]
        found += [f"{result.method}: {text}" for result in results for text in result.warnings]
        if self.gap is not None:
            found += [f"gap, {text}" for text in self.gap.warnings]
        return found


def report(scores: Scores) -> str:
    """Returns the table, the other results and last the warnings, in at most 100 columns."""
    # The first lines; the warnings come last, all together.
    lines = [
        f"{scores.estimates[key].method}: {bits:.4f} ± {_number(error)} bits per dimension"
        for key, (bits, error) in scores.bits().items()
    ]
    lines += [str(scores.latents).splitlines()[0]]
    if scores.gap is not None:
        lines += [f"{str(scores.gap).splitlines()[0]}, {scores.seconds['gap']:.1f} s"]
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
    return "-" if math.isnan(value) else f"{value:.3f}"  # Unknown from a single draw or image.


def _pair(values: tuple[float, float] | None, digits: int) -> str:
    return "-" if values is None else "/".join(f"{value:.{digits}f}" for value in values)
