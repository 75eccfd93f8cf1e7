"""Quantiles of Student's t, for errors that are estimated from few values."""

import math

import numpy as np


def student_quantile(level: float, count: int) -> float:
    """Returns t with `Pr(|T| < t) = level` for the error of the mean of `count` values.

    T has n = `count - 1` degrees of freedom. With `t = sqrt(n) tan(a)`, the probability is
    `sin(a) (1 + 1/2 cos^2(a) + 1/2 3/4 cos^4(a) + ...)` for even n, with n / 2 terms, and
    `2/pi (a + sin(a) cos(a) (1 + 2/3 cos^2(a) + 2/3 4/5 cos^4(a) + ...))` for odd n, with
    (n - 1) / 2 terms. It is inverted by bisection. (TFP 0.25's `betaincinv` is wrong for some
    levels, such as 0.5.)

    Args:
        level: A probability.
        count: Number of values; the result is NaN for fewer than two.

    Raises:
        ValueError: If `level` is not between 0 and 1.

    Reference:
        Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(
            f"`level` must be a probability between 0 and 1, such as 0.95. Received: level={level}"
        )
    if count < 2:
        return math.nan
    low, high = 0.0, 0.5 * math.pi
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _probability(middle, count - 1) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(count - 1) * math.tan(low)


def _probability(angle: float, freedom: int) -> float:
    odd = freedom % 2
    step = 2.0 * np.arange(1, (freedom - odd) // 2)
    factors = (step - 1.0 + odd) / (step + odd) * math.cos(angle) ** 2
    total = (1.0 + float(np.sum(np.cumprod(factors)))) if freedom > 1 else 0.0
    if not odd:
        return math.sin(angle) * total
    return 2.0 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
