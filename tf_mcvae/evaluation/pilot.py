"""The pilot run of annealed importance sampling, which finds a step size for each transition.

The curvature of `log pi_b` is linear in the inverse temperature b, so that it is known along the
whole path once it is known at both ends: a few draws of the first state give

    h(b) = E|ds_b|^2 / E[-ds_b . dz],        s_b the score, d the deviation from a chain mean,

an average of the curvatures in all directions that the steepest ones dominate. Step sizes are
`exp(c_k) / sqrt(h(b_k))`, where `c_k` hardly changes from one temperature to the next. The runs
adapt it by stochastic approximation with falling gains (Robbins and Monro): within a run from
transition to transition, between runs by the acceptance at each temperature, both averaged over
neighbouring temperatures. Acceptance enters as a probability, which is less noisy than the outcome
of the test.

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
# Transitions, of neighbouring temperatures and of all runs, that decide about a step size.
_VISITS = 16
# The first step size, in units of `1 / sqrt(h)`: small, since acceptance falls steeply above.
_FIRST_STEP = 0.5
# Gains in the first and the last run: of a transition from the one before it, and of a run's
# transitions from those at the same temperatures in the run before. The very first transitions have
# the gain `_START_GAIN / k`, if it is larger.
_GAINS_WITHIN, _GAINS_BETWEEN, _START_GAIN = (0.25, 0.025), (1.4, 0.028), 2.0
# For a single run, there is one correction after it.
_GAIN_AFTER_ONE = 0.2


def tuned(curvature: Array, follow: FollowFn, target: float) -> Array:
    """Returns step sizes whose acceptance is near the target, `[T - 1]`.

    Args:
        curvature: `h` at the temperature of each transition, `[T - 1]`.
        follow: Makes a run, given its number.
        target: The acceptance.
    """
    count = len(curvature)
    num_runs = 1 + min(_MOST_RUNS, _TRANSITIONS // count)
    width = -(-_VISITS // num_runs) // 2
    with np.errstate(all="ignore"):
        start = np.log(_FIRST_STEP) - 0.5 * np.log(curvature)
    start = np.where(np.isfinite(start), start, np.log(0.1))
    logs = start
    within = np.geomspace(*_GAINS_WITHIN, num_runs)
    between = np.geomspace(*_GAINS_BETWEEN, num_runs) if num_runs > 1 else [_GAIN_AFTER_ONE]
    for number in range(num_runs):
        gains = np.full(count, within[number])
        if number == 0:
            gains = np.maximum(gains, _START_GAIN / np.maximum(np.arange(count), 1))
        used, acceptance = follow(logs, gains, number)
        changed = np.log(used) - start + between[number] * (acceptance - target)
        logs = start + _smoothed(changed, width)
    return np.exp(logs)


def _smoothed(values: Array, width: int) -> Array:
    """Returns means over `width` neighbours on either side, fewer at the ends."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    index = np.arange(len(values))
    first, end = np.maximum(index - width, 0), np.minimum(index + width + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)
