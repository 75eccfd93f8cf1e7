"""How far estimates may be off: moments of log weights, the jackknife, and Student's intervals."""

import math
from typing import Any, NamedTuple, Self

import numpy as np

from tf_mcvae.objectives.student import student_quantile

Array = np.ndarray[Any, Any]

# Largest number of groups that running sums keep of an example's draws, for the jackknife.
NUM_GROUPS = 50
# Degrees of freedom from which Student's t at 95 % is within 0.3 % of 1.96.
_MUCH_FREEDOM = 500.0


def quiet() -> np.errstate:
    """Lets numbers that are not finite pass through formulas; results say how many there are."""
    return np.errstate(invalid="ignore", divide="ignore", over="ignore")


class Errors(NamedTuple):
    """How far each example's estimate is off by its random draws alone.

    Attributes:
        bias: Estimated bias in nats, negative where the estimate is too low, `[N]`.
        variance: Variance over the draws, `[N]`. NaN where either is not known.
    """

    bias: Array
    variance: Array

    @property
    def of_mean(self) -> float:
        """Standard error of the mean over the examples, whose draws are independent.

        Each example enters with its mean squared error `m_i`: few draws with heavy tails understate
        the variance, and the squared bias of each example makes up for that. If the `m_i` differ
        much, few examples make the error, which is then uncertain itself. So it is widened by
        `t / 1.96` with Student's t at 95 % and the degrees of freedom of a variance with the
        relative variance `Var(m) / (N mean(m)^2)`, which are `2 N mean(m)^2 / Var(m)`.
        """
        squares, count = self.variance + self.bias**2, len(self.variance)
        error = float(np.sqrt(np.sum(squares)) / count)
        if count == 1:
            return error
        with quiet():
            freedom = 2.0 * count * np.mean(squares) ** 2 / np.var(squares, ddof=1)
        if not freedom < _MUCH_FREEDOM:  # True if it is NaN.
            return error
        # It is at least 2, where one example makes all of the error, but for rounding.
        return student_quantile(0.95, 1 + max(2, math.floor(freedom))) / 1.96 * error


class Moments(NamedTuple):
    """Sums over the draws of each example's log weights, from which estimates are computed.

    Attributes:
        num_draws: S.
        log_sums: `log sum_s w_s` over each group of draws, `[G, N]`, `float64`; draw s belongs to
            group `s mod G`.
        log_sum_squares: `log sum_s w_s^2`, `[N]`.
        mean_log: Mean of `log w`, `[N]`.
        scatter_log: Sum of the squared distances of `log w` from its mean, `[N]`.
    """

    num_draws: int
    log_sums: Array
    log_sum_squares: Array
    mean_log: Array
    scatter_log: Array

    @classmethod
    def of(cls, log_weights: Any) -> Self:
        """Returns the moments of log weights `[S, N]`, with a group for each draw."""
        values = np.asarray(log_weights, np.float64)
        with quiet():
            mean = np.mean(values, axis=0)
            squares = np.logaddexp.reduce(2.0 * values, axis=0)
            scatter = np.sum(np.square(values - mean), axis=0)
        return cls(len(values), values, squares, mean, scatter)

    def merged(self, other: "Moments") -> "Moments":
        """Returns the moments of the draws of both together, for the same examples.

        They have at most `NUM_GROUPS` groups. `other` has a group for each draw.
        """
        count = self.num_draws + other.num_draws
        rows = np.concatenate([self.log_sums, other.log_sums])
        with quiet():
            shift = other.mean_log - self.mean_log
            groups = [np.logaddexp.reduce(rows[g::NUM_GROUPS]) for g in range(NUM_GROUPS)]
            return Moments(
                count,
                np.stack(groups[: len(rows)]),
                np.logaddexp(self.log_sum_squares, other.log_sum_squares),
                self.mean_log + shift * other.num_draws / count,
                self.scatter_log
                + other.scatter_log
                + shift**2 * self.num_draws * other.num_draws / count,
            )

    @property
    def log_sum(self) -> Array:
        """`log sum_s w_s`, `[N]`."""
        with quiet():
            return np.logaddexp.reduce(self.log_sums, axis=0)

    @property
    def log_mean(self) -> Array:
        """`log (1/S sum_s w_s)`, `[N]`."""
        return self.log_sum - math.log(self.num_draws)

    @property
    def effective_sample_size(self) -> Array:
        """`(sum w)^2 / sum w^2`, `[N]`."""
        with quiet():
            return np.exp(2.0 * self.log_sum - self.log_sum_squares)

    @property
    def log_mean_errors(self) -> Errors:
        """Bias and variance of `log_mean` by the jackknife; NaN for a single draw."""
        first = np.arange(len(self.log_sums))
        sizes = -((first - self.num_draws) // len(self.log_sums))
        return jackknife(self.log_sums, sizes)

    @property
    def mean_log_errors(self) -> Errors:
        """Bias, which is 0, and variance of `mean_log`; NaN for a single draw."""
        free = self.num_draws - 1 or math.nan
        return Errors(np.zeros_like(self.mean_log), self.scatter_log / free / self.num_draws)

    @property
    def log_spread(self) -> Array:
        """Standard deviation of `log w` over the draws, `[N]`; NaN for a single draw."""
        return np.sqrt(self.scatter_log / (self.num_draws - 1 or math.nan))


def jackknife(log_sums: Array, sizes: Array) -> Errors:
    """Estimates bias and variance of the log of a mean weight by leaving out groups of draws.

    With L the log mean of all S draws, `L_g` that without the `n_g` draws of group g, and
    `d_g = L_g - L`:

        bias = sum_g (1 - n_g/S) d_g
        variance = 1/G sum_g (bias - (S/n_g - 1) d_g)^2 / (S/n_g - 1)

    The delta method, `variance = Var(w) / (S E[w]^2)` and `bias = -variance / 2`, agrees where the
    weights are nearly equal. Where few of many weights dominate, its variance is too small: it is
    never above 1, however far the log mean falls without its largest weight.

    Args:
        log_sums: `log sum w` over the draws of each group, `[G, N]`.
        sizes: Number of draws of each group, `[G]`.

    Returns:
        `Errors`; NaN for a single group.

    Reference:
        Busing et al., Delete-m Jackknife for Unequal m, Statistics and Computing 9, 1999.
    """
    if len(log_sums) == 1:
        return Errors(*np.full([2, log_sums.shape[1]], np.nan))
    shares = (sizes / np.sum(sizes))[:, np.newaxis]
    odds = 1.0 / shares - 1.0
    with quiet():
        change = _log_without_each(log_sums) - np.log1p(-shares)
        bias = np.sum((1.0 - shares) * change, axis=0)
        return Errors(bias, np.mean(np.square(bias - odds * change) / odds, axis=0))


def _log_without_each(log_sums: Array) -> Array:
    """Returns `log (1 - w_g / sum w)` without cancellation, `[G, N]`.

    At most one share is above a half: that of the largest, whose complement is summed anew.
    """
    largest = np.arange(len(log_sums))[:, np.newaxis] == np.argmax(log_sums, axis=0)
    total = np.logaddexp.reduce(log_sums, axis=0)
    others = np.logaddexp.reduce(np.where(largest, -np.inf, log_sums), axis=0) - total
    return np.where(largest, others, np.log1p(-np.minimum(np.exp(log_sums - total), 0.5)))


def shared_draw_errors(gaps: Array, lower: Errors, upper: Errors) -> Errors:
    """Returns errors of upper bounds whose chains start at one exact draw of the posterior.

    An example's chains are not independent, so that their spread does not show the error of their
    mean. The difference of upper and lower bound, from independent draws and free of `log p(x)`,
    varies over the examples by both of their errors; without the variance of the lower bound

        Var(upper) = Var(upper - lower) - mean_i Var(lower_i)

    is left, or the variance over the chains if that is larger. Since the spread of few differences
    is not known well, it is widened by `(t / 1.96)^2` with Student's t at 95 %. The bias is half
    the variance, as that of the log of any mean that varies little.

    Args:
        gaps: Upper minus lower bound of each example, `[N]`.
        lower: Errors of the lower bounds; NaN counts as 0.
        upper: Errors of the upper bounds over their chains; NaN counts as 0.

    Returns:
        `Errors` of the upper bounds, equal for all examples; NaN for a single example.
    """
    with quiet():
        below, chains = (np.mean(np.nan_to_num(errors.variance)) for errors in (lower, upper))
        spread = np.var(gaps, ddof=1) if len(gaps) > 1 else math.nan
        bias = 0.5 * np.maximum(spread - below, chains)
        widened = (student_quantile(0.95, len(gaps)) / 1.96) ** 2 * spread
        columns = np.full([2, len(gaps)], [[bias], [np.maximum(widened - below, chains)]])
        return Errors(*columns)


def standard_error(values: Array) -> float:
    """Returns the standard error of the mean of `[N]` values; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    with quiet():
        return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def student_interval(mean: float, error: float, count: int, level: float) -> tuple[float, float]:
    """Returns the interval `mean ± t error` with Student's t of `count - 1` degrees of freedom.

    Args:
        mean: A mean of `count` values.
        error: Its standard error.
        count: Number of values; the interval is NaN for fewer than two.
        level: Probability that the interval covers the expected value.

    Raises:
        ValueError: If `level` is not between 0 and 1.
    """
    half = student_quantile(level, count) * error
    return mean - half, mean + half
