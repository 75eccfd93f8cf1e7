"""Results of evaluations: estimates with error bars, and warnings where they are doubtful."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from tf_mcvae.checks import check_positive_integer
from tf_mcvae.evaluation import doubts
from tf_mcvae.evaluation.uncertainty import (
    Array,
    Errors,
    Moments,
    quiet,
    standard_error,
    student_interval,
)


@dataclass(frozen=True)
class LogLikelihoodEstimate:
    """An estimate of the mean of `log p(x)` over a data set.

    Attributes:
        method: Name of the estimator.
        mean: Mean over the examples, in nats.
        standard_error: Standard error of the mean over the examples, for comparison with other
            test sets of this size.
        monte_carlo_error: Standard error from the random draws alone, with these examples fixed;
            NaN if it is not known.
        chain_spread: Standard deviation of `log w` over an example's chains or draws, averaged
            over the examples.
        effective_sample_size: Minimum and median over the examples of `(sum w)^2 / sum w^2`; None
            for a single weight.
        acceptance: Minimum and mean over the transitions; None without transitions.
        settings: The settings of the estimate, including the seed.
        warnings: Reasons to doubt the number, and their remedies.
        per_example: The estimate of each example, `[N]`, in the order of the data.
        bias: Estimated bias of the mean from the number of draws, in nats, negative where the mean
            is too low; `monte_carlo_error` does not include it. NaN if it is not known.
    """

    method: str
    mean: float
    standard_error: float
    monte_carlo_error: float
    chain_spread: float
    effective_sample_size: tuple[float, float] | None
    acceptance: tuple[float, float] | None
    settings: dict[str, Any]
    warnings: tuple[str, ...]
    per_example: Array = field(repr=False)
    bias: float = math.nan

    @property
    def nll(self) -> float:
        """The negative log-likelihood, `-mean`."""
        return -self.mean

    def bits_per_dimension(self, num_dimensions: int) -> tuple[float, float]:
        """Returns `-mean / (N log 2)` and its standard error, for examples of N elements.

        Raises:
            ValueError: If `num_dimensions`, N, is not a positive integer.
        """
        check_positive_integer("num_dimensions", num_dimensions)
        unit = num_dimensions * math.log(2.0)
        return self.nll / unit, self.standard_error / unit

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Returns an interval for the mean over the distribution of the examples, in nats.

        It has Student's t of N - 1 degrees of freedom, and is NaN for a single example.

        Raises:
            ValueError: If `level` is not between 0 and 1.
        """
        return student_interval(self.mean, self.standard_error, len(self.per_example), level)

    def to_dict(self, examples: bool = False) -> dict[str, Any]:
        """Returns the fields as JSON types, NaN as None; `per_example` only if `examples`."""
        return to_plain(self, () if examples else ("per_example",))

    def to_json(self) -> str:
        """Returns the fields as JSON text, including the values of each example."""
        return json.dumps(self.to_dict(examples=True), indent=2)

    def __str__(self) -> str:
        text = f"{self.method}: {self.mean:.3f} ± {self.standard_error:.3f} nats per example"
        return with_warnings(text, self.warnings)


@dataclass(frozen=True)
class BidirectionalGap:
    """Bounds on the mean of `log p(x)` from both sides, on data that the model drew itself.

    Attributes:
        lower: From chains that end at the posterior; a lower bound in expectation.
        upper: From chains that start at an exact draw of the posterior and run backwards; an upper
            bound in expectation.
        gap: Mean of upper minus lower in nats, in expectation at least the error of the lower.
        standard_error: Standard error of the gap over the examples.
    """

    lower: LogLikelihoodEstimate
    upper: LogLikelihoodEstimate
    gap: float
    standard_error: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to doubt the bounds and their gap."""
        return (
            *(f"forwards: {text}" for text in self.lower.warnings),
            *(f"backwards: {text}" for text in self.upper.warnings),
        )

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Returns an interval for the expected gap, as `LogLikelihoodEstimate.interval` does."""
        return student_interval(self.gap, self.standard_error, len(self.lower.per_example), level)

    def to_dict(self, examples: bool = False) -> dict[str, Any]:
        """Returns the fields as JSON types; the values of each example only if `examples`."""
        return {
            "lower": self.lower.to_dict(examples),
            "upper": self.upper.to_dict(examples),
            **to_plain(self, ("lower", "upper")),
        }

    def __str__(self) -> str:
        text = (
            f"{self.lower.mean:.3f} <= log p(x) <= {self.upper.mean:.3f}, "
            f"gap {self.gap:.3f} ± {self.standard_error:.3f} nats per simulated example"
        )
        return with_warnings(text, self.warnings)


@dataclass(frozen=True)
class Comparison:
    """The difference of two estimates on the same examples, example by example.

    Attributes:
        difference: Mean of first minus second, in nats.
        standard_error: Its standard error over the examples; far smaller than those of the
            estimates, which vary together.
        warnings: Reasons to doubt the difference.
        num_examples: N.
    """

    difference: float
    standard_error: float
    warnings: tuple[str, ...] = ()
    num_examples: int = 0

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Returns an interval for the difference, as `LogLikelihoodEstimate.interval` does."""
        return student_interval(self.difference, self.standard_error, self.num_examples, level)

    def __str__(self) -> str:
        text = f"{self.difference:.3f} ± {self.standard_error:.3f} nats per example"
        return with_warnings(text, self.warnings)


def compare(
    first: LogLikelihoodEstimate, second: LogLikelihoodEstimate, gap: float = 0.0
) -> Comparison:
    """Compares two models' estimates on the same examples.

    Args:
        first: An estimate.
        second: One of another model, or by another method, on the same examples in their order.
        gap: Bound on the error of the estimates, the larger gap of `bidirectional_gap`, in nats.

    Returns:
        A `Comparison`, with a warning where the gap or the bias could explain the difference.

    Raises:
        ValueError: If the numbers of examples differ.
    """
    if first.per_example.shape != second.per_example.shape:
        raise ValueError(
            "Two estimates are compared example by example, on the same data. Received: "
            f"{len(first.per_example)} and {len(second.per_example)} examples"
        )
    with quiet():
        differences = first.per_example - second.per_example
        error = standard_error(differences)
        biases = (first.bias, second.bias)
        warnings = [*doubts.of_comparison(differences, error, biases, gap)]
    if first.method != second.method:
        warnings.append(
            f"{first.method} and {second.method} are differently loose: use one estimator for both"
        )
    difference = float(np.mean(differences))
    return Comparison(difference, error, tuple(warnings), len(differences))


def summarise(
    method: str,
    values: Array,
    errors: Errors,
    moments: Moments,
    settings: dict[str, Any],
    variables: Sequence[Any],
    acceptance: Array | None = None,
    judge: Literal["weights", "draws", "nothing"] = "weights",
    least_examples: int = doubts.LEAST_EXAMPLES,
) -> LogLikelihoodEstimate:
    """Reduces the estimates of all examples to a mean with errors.

    Args:
        method: Name of the estimator.
        values: Each example's estimate, `[N]`.
        errors: Bias and variance of each from the draws alone.
        moments: Moments of the log weights.
        settings: The settings of the estimate.
        variables: The weights of the model, which may be why estimates are not finite.
        acceptance: Mean acceptance of each transition, `[T]`.
        judge: Whether few draws make the estimate doubtful (`"weights"`), only its Monte Carlo
            error (`"draws"`), or neither.
        least_examples: Fewest examples from which the errors are known well.
    """
    sizes, several = moments.effective_sample_size, moments.num_draws > 1
    bias, error = float(np.mean(errors.bias)), errors.of_mean
    draws = doubts.of_draws(moments, bias, error, judge == "weights", acceptance is not None)
    warnings = (
        *doubts.not_finite(values, variables),
        *doubts.few_examples(len(values), least_examples),
        *(() if judge == "nothing" else draws),
        *doubts.low_acceptance(acceptance),
    )
    with quiet():
        return LogLikelihoodEstimate(
            method=method,
            mean=float(np.mean(values)),
            standard_error=standard_error(values),
            monte_carlo_error=error,
            chain_spread=float(np.mean(moments.log_spread)),
            effective_sample_size=(float(np.min(sizes)), float(np.median(sizes)))
            if several
            else None,
            acceptance=None
            if acceptance is None
            else (float(np.min(acceptance)), float(np.mean(acceptance))),
            settings={**settings, "num_examples": len(values)},
            warnings=warnings,
            per_example=values,
            bias=bias,
        )


def with_warnings(text: str, warnings: Sequence[str]) -> str:
    """Returns a text with a line for each warning."""
    return "\n".join([text, *(f"  warning: {warning}" for warning in warnings)])


def to_plain(result: Any, left_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the fields of a dataclass as JSON types."""
    return {name: _plain(item) for name, item in asdict(result).items() if name not in left_out}


def _plain(value: Any) -> Any:
    """Returns nested values as JSON types; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
