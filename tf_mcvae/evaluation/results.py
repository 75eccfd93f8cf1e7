"""Results of evaluations: estimates with error bars, and warnings where they are doubtful."""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np

Array = np.ndarray[Any, Any]

# A transition with a lower mean acceptance hardly moves; and the share of such transitions that
# draws no warning.
_LOW_ACCEPTANCE, _FEW_TRANSITIONS = 0.6, 0.25
# The weights of an example are doubtful if their effective sample size is below both this number
# and this share of the draws; and the share of such examples that draws no warning.
_FEW_DRAWS, _SHARE_OF_DRAWS, _FEW_EXAMPLES = 10.0, 0.25, 0.05


class Moments(NamedTuple):
    """Sums over the draws of each example's log weights, from which estimates are computed.

    Attributes:
        num_draws: S.
        log_sum: `log sum_s w_s`, `[N]`, `float64`.
        log_sum_squares: `log sum_s w_s^2`, `[N]`.
        mean_log: Mean of `log w`, `[N]`.
        scatter_log: Sum of the squared distances of `log w` from its mean, `[N]`.
    """

    num_draws: int
    log_sum: Array
    log_sum_squares: Array
    mean_log: Array
    scatter_log: Array

    @classmethod
    def of(cls, log_weights: Any) -> Self:
        """Returns the moments of log weights `[S, N]`."""
        values = np.asarray(log_weights, np.float64)
        mean = np.mean(values, axis=0)
        with np.errstate(invalid="ignore"):  # Weights of 0 have no spread of their logarithms.
            scatter = np.sum(np.square(values - mean), axis=0)
        return cls(
            len(values),
            np.logaddexp.reduce(values, axis=0),
            np.logaddexp.reduce(2.0 * values, axis=0),
            mean,
            scatter,
        )

    def merged(self, other: "Moments") -> "Moments":
        """Returns the moments of the draws of both together, for the same examples."""
        count = self.num_draws + other.num_draws
        shift = other.mean_log - self.mean_log
        return Moments(
            count,
            np.logaddexp(self.log_sum, other.log_sum),
            np.logaddexp(self.log_sum_squares, other.log_sum_squares),
            self.mean_log + shift * other.num_draws / count,
            self.scatter_log
            + other.scatter_log
            + shift**2 * self.num_draws * other.num_draws / count,
        )

    @property
    def log_mean(self) -> Array:
        """`log (1/S sum_s w_s)`, `[N]`."""
        return self.log_sum - math.log(self.num_draws)

    @property
    def effective_sample_size(self) -> Array:
        """`(sum w)^2 / sum w^2`, `[N]`."""
        return np.exp(2.0 * self.log_sum - self.log_sum_squares)

    @property
    def log_mean_variance(self) -> Array:
        """Variance of `log_mean` by the delta method, that of the relative mean weight, `[N]`.

        NaN for a single draw.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            excess = self.num_draws / self.effective_sample_size - 1.0
            return np.maximum(excess, 0.0) / np.float64(self.num_draws - 1)

    @property
    def log_spread(self) -> Array:
        """Standard deviation of `log w` over the draws, `[N]`; NaN for a single draw."""
        with np.errstate(invalid="ignore"):
            return np.sqrt(self.scatter_log / np.float64(self.num_draws - 1))


@dataclass(frozen=True)
class LogLikelihoodEstimate:
    """An estimate of the mean of `log p(x)` over a data set.

    Attributes:
        method: Name of the estimator.
        mean: Mean over the examples, in nats.
        standard_error: Standard error of the mean over the examples, for comparison with other
            test sets of this size.
        monte_carlo_error: Standard error from the random draws alone, with these examples fixed.
        chain_spread: Standard deviation of `log w` over an example's chains or draws, averaged
            over the examples.
        effective_sample_size: Minimum and median over the examples of `(sum w)^2 / sum w^2`; None
            for a single weight.
        acceptance: Minimum and mean over the transitions; None without transitions.
        settings: The settings of the estimate, including the seed.
        warnings: Reasons to doubt the number, and their remedies.
        per_example: The estimate of each example, `[N]`, in the order of the data.
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

    @property
    def nll(self) -> float:
        """The negative log-likelihood, `-mean`."""
        return -self.mean

    def to_dict(self, examples: bool = False) -> dict[str, Any]:
        """Returns the fields as JSON types, NaN as None; `per_example` only if `examples`."""
        return to_plain(self, () if examples else ("per_example",))

    def to_json(self) -> str:
        """Returns the fields as JSON text, including the values of each example."""
        return json.dumps(self.to_dict(examples=True), indent=2)

    def __str__(self) -> str:
        lines = [f"{self.method}: {self.mean:.3f} ± {self.standard_error:.3f} nats per example"]
        return "\n".join([*lines, *(f"  warning: {text}" for text in self.warnings)])


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

    def to_dict(self, examples: bool = False) -> dict[str, Any]:
        """Returns the fields as JSON types; the values of each example only if `examples`."""
        return {
            "lower": self.lower.to_dict(examples),
            "upper": self.upper.to_dict(examples),
            **to_plain(self, ("lower", "upper")),
        }

    def __str__(self) -> str:
        return (
            f"{self.lower.mean:.3f} <= log p(x) <= {self.upper.mean:.3f}, "
            f"gap {self.gap:.3f} ± {self.standard_error:.3f} nats per simulated example"
        )


@dataclass(frozen=True)
class Comparison:
    """The difference of two estimates on the same examples, example by example.

    Attributes:
        difference: Mean of first minus second, in nats.
        standard_error: Its standard error over the examples; far smaller than those of the
            estimates, which vary together.
        warnings: Reasons to doubt the difference.
    """

    difference: float
    standard_error: float
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.difference:.3f} ± {self.standard_error:.3f} nats per example"
        return "\n".join([text, *(f"  warning: {text}" for text in self.warnings)])


def compare(
    first: LogLikelihoodEstimate, second: LogLikelihoodEstimate, gap: float = 0.0
) -> Comparison:
    """Compares two models' estimates on the same examples.

    Args:
        first: An estimate.
        second: One of another model, or by another method, on the same examples in their order.
        gap: Bound on the error of the estimates, the larger gap of `bidirectional_gap`, in nats.

    Returns:
        A `Comparison`, with a warning where the gap could explain the difference.

    Raises:
        ValueError: If the numbers of examples differ.
    """
    if first.per_example.shape != second.per_example.shape:
        raise ValueError(
            "Two estimates are compared example by example, on the same data. Received: "
            f"{len(first.per_example)} and {len(second.per_example)} examples"
        )
    differences = first.per_example - second.per_example
    difference, error = float(np.mean(differences)), float(standard_error(differences))
    warnings = []
    if gap >= abs(difference) > 0.0:
        warnings.append(
            f"the estimates may be off by {gap:.3f} nats, more than they differ: estimate with "
            "more temperatures, until the gap is a fraction of the difference"
        )
    if first.method != second.method:
        warnings.append(
            f"{first.method} and {second.method} are differently loose: use one estimator for both"
        )
    return Comparison(difference, error, tuple(warnings))


def summarise(
    method: str,
    values: Array,
    variances: Array,
    moments: Moments,
    settings: dict[str, Any],
    acceptance: Array | None = None,
    judge_weights: bool = True,
) -> LogLikelihoodEstimate:
    """Reduces the estimates of all examples to a mean with errors.

    Args:
        method: Name of the estimator.
        values: Each example's estimate, `[N]`.
        variances: The variance of each from the draws alone, `[N]`.
        moments: Moments of the log weights.
        settings: The settings of the estimate.
        acceptance: Mean acceptance of each transition, `[T]`.
        judge_weights: Whether few effective draws make the estimate doubtful.
    """
    sizes = moments.effective_sample_size
    several = moments.num_draws > 1
    return LogLikelihoodEstimate(
        method=method,
        mean=float(np.mean(values)),
        standard_error=float(standard_error(values)),
        monte_carlo_error=float(np.sqrt(np.sum(variances)) / len(values)),
        chain_spread=float(np.mean(moments.log_spread)),
        effective_sample_size=(float(np.min(sizes)), float(np.median(sizes))) if several else None,
        acceptance=None
        if acceptance is None
        else (float(np.min(acceptance)), float(np.mean(acceptance))),
        settings={**settings, "num_examples": len(values)},
        warnings=(
            *_acceptance_warnings(acceptance),
            *(_weight_warnings(moments) if several and judge_weights else ()),
        ),
        per_example=values,
    )


def _acceptance_warnings(acceptance: Array | None) -> tuple[str, ...]:
    if acceptance is None or np.mean(acceptance < _LOW_ACCEPTANCE) <= _FEW_TRANSITIONS:
        return ()
    share = np.mean(acceptance < _LOW_ACCEPTANCE)
    return (
        f"{share:.0%} of the transitions accept less than {_LOW_ACCEPTANCE:g} of their proposals: "
        "take more temperatures, smaller steps, or a higher target acceptance",
    )


def _weight_warnings(moments: Moments) -> tuple[str, ...]:
    least = min(_FEW_DRAWS, _SHARE_OF_DRAWS * moments.num_draws)
    share = np.mean(moments.effective_sample_size < least)
    if share <= _FEW_EXAMPLES:
        return ()
    return (
        f"{share:.0%} of the examples have weights worth less than {least:g} draws, so that few of "
        "them make the estimate, which is then too low: take more temperatures or draws",
    )


def standard_error(values: Array) -> float:
    """Returns the standard error of the mean of `[N]` values; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


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
