"""The pilot run of annealed importance sampling, which finds a step size for each transition.

The curvature of `log pi_b` is linear in the inverse temperature b, so that it is known along the
whole path once it is known at both ends: a few draws of the first state give

    h(b) = E|ds_b|^2 / E[-ds_b . dz],        s_b the score, d the deviation from a chain mean,

an average of the curvatures in all directions that the steepest ones dominate. Step sizes are
`exp(c_k) / sqrt(h(b_k))`, where `c_k` hardly changes from one temperature to the next. The runs
adapt it by stochastic approximation with falling gains (Robbins and Monro): within a run from
transition to transition; between runs by Newton's method, with the slope of the acceptance that the
runs have shown so far, and with means over neighbouring temperatures. The slope differs by a factor
of ten between few and many leapfrog steps, so that no fixed gain suits both. Acceptance enters as a
probability, which is less noisy than the outcome of the test.

Reference:
    Andrieu and Thoms, A tutorial on adaptive MCMC, Statistics and Computing 18 (2008).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Takes the logs of step sizes and the gains of each transition; returns the step sizes that the run
# used and the acceptance, `[T - 1]`.
FollowFn = Callable[[Array, Array, int], tuple[Array, Array]]

# Number of transitions that short pilot runs make in all, and the largest number of further runs.
_TRANSITIONS, _MOST_RUNS = 300, 30
# Means are over the share `2 / _SHARE` of the temperatures, and at most over `2 * _WIDEST` of them.
_SHARE, _WIDEST = 8, 25
# The first step size, in units of `1 / sqrt(h)`: small, since acceptance falls steeply above.
_FIRST_STEP = 0.5
# Gain within run r: the first number times a power of r. The very first transitions have the gain
# `_START_GAIN / k`, if it is larger.
_GAIN_WITHIN, _POWER, _START_GAIN = 0.15, -0.7, 2.0
# Limits of the gain of Newton's method, and how much a run's slope counts after the next one.
_LEAST_GAIN, _LARGEST_GAIN, _KEPT = 0.05, 1.4, 0.5
# Half the number of neighbours from which a slope is measured, and the transitions at the start of
# the first run that are too far from the target for it.
_SLOPE_WIDTH, _FAR = 4, 5


def tuned(curvature: Array, follow: FollowFn, target: float) -> Array:
    """Returns step sizes whose acceptance is near the target, `[T - 1]`.

    Args:
        curvature: `h` at the temperature of each transition, `[T - 1]`.
        follow: Makes a run, given its number.
        target: The acceptance.
    """
    count = len(curvature)
    num_runs = 1 + min(_MOST_RUNS, _TRANSITIONS // count)
    width = min(count // _SHARE, _WIDEST)
    with np.errstate(all="ignore"):
        start = np.log(_FIRST_STEP) - 0.5 * np.log(curvature)
    start = np.where(np.isfinite(start), start, np.log(0.1))
    logs = start
    moments = np.zeros(2)
    for number in range(num_runs):
        gains = np.full(count, _GAIN_WITHIN * (number + 1) ** _POWER)
        if number == 0:
            gains = np.maximum(gains, _START_GAIN / np.maximum(np.arange(count), 1))
        used, acceptance = follow(logs, gains, number)
        changes = np.log(used) - start
        first = 0 if number else min(_FAR, count // 2)
        moments = _KEPT * moments + _moments(changes, acceptance, first)
        gain = _newton_gain(*moments) / (number + 1)
        logs = start + _smoothed(changes + gain * (acceptance - target), width)
    return np.exp(logs)


def _moments(changes: Array, acceptance: Array, first: int) -> Array:
    """Returns the variance of changes and their covariance with the acceptance, among neighbours.

    Both are sums over the transitions from `first`.
    """
    deviations = changes - _smoothed(changes, _SLOPE_WIDTH)
    errors = acceptance - _smoothed(acceptance, _SLOPE_WIDTH)
    return np.array([np.sum(deviations[first:] ** 2), np.sum((deviations * errors)[first:])])


def _newton_gain(variance: float, covariance: float) -> float:
    """Returns the change for each unit of the acceptance's error, minus the inverse slope."""
    if not covariance < 0.0:
        return _LARGEST_GAIN
    return float(np.clip(-variance / covariance, _LEAST_GAIN, _LARGEST_GAIN))


def _smoothed(values: Array, width: int) -> Array:
    """Returns means over `width` neighbours on either side, fewer at the ends."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    index = np.arange(len(values))
    first, end = np.maximum(index - width, 0), np.minimum(index + width + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)
