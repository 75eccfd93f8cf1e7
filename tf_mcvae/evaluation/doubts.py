"""Reasons to doubt an estimate, each with its remedy."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_mcvae.evaluation.uncertainty import Array, Moments

# A transition with a lower mean acceptance hardly moves; and the share of such transitions that
# draws no warning.
_LOW_ACCEPTANCE, _FEW_TRANSITIONS = 0.6, 0.25
# The weights of an example are doubtful if their effective sample size is below both this number
# and this share of the draws; and the share of such examples that draws no warning.
_FEW_DRAWS, _SHARE_OF_DRAWS, _FEW_EXAMPLES = 10.0, 0.25, 0.05
# Fewest examples for errors over examples: 1.96 of them cover 92 % by Student's t. Simulated
# examples must be more, because the error of the upper bound over draws comes from them too.
LEAST_EXAMPLES, LEAST_SIMULATED = 10, 20
# Fewest degrees of freedom of an error over draws, which then covers 94 %.
_LEAST_FREEDOM = 30
# Fewest draws of an example that show how uneven its weights are.
_LEAST_DRAWS = 8
# A bias of this share of the Monte Carlo error takes half a per cent off the coverage of 68 %. It
# is not larger, because results that miss the large weights are too low and seem unbiased.
_SMALL_BIAS = 0.15
# Above this bias in nats, too few draws are left to show all of it.
_LARGE_BIAS = 0.25


def not_finite(values: Array, variables: Sequence[Any]) -> tuple[str, ...]:
    """Warns of estimates `[N]` that are not finite, and says why if weights of the model are."""
    count = int(np.sum(~np.isfinite(values)))
    if not count:
        return ()
    broken = [weight.path for weight in variables if not np.all(np.isfinite(np.asarray(weight)))]
    cause = (
        "the examples may be too far from the training data, or a scale may have vanished; "
        "`np.flatnonzero(~np.isfinite(result.per_example))` finds them"
    )
    if broken:
        cause = (
            f"{len(broken)} of the model's {len(variables)} weights hold NaN or infinity "
            f"({broken[0]}), so its training diverged: train anew with a smaller learning rate or "
            "step size, or load an earlier checkpoint"
        )
    return (
        f"{count} of {len(values)} estimates are not finite, so that their mean is not: {cause}",
    )


def few_examples(count: int, least: int = LEAST_EXAMPLES) -> tuple[str, ...]:
    """Warns of errors that are estimated from fewer than `least` examples."""
    if count >= least:
        return ()
    return (
        f"{count} examples are few: the errors are uncertain themselves, and `±` covers less than "
        f"it says. `interval()` has Student's t for that; take at least {least} examples",
    )


def of_draws(
    moments: Moments, bias: float, error: float, judge_weights: bool, is_annealed: bool
) -> tuple[str, ...]:
    """Warns if there are too few draws for the estimate or for its Monte Carlo error.

    Args:
        moments: Moments of the log weights.
        bias: Bias of the mean estimate, in nats.
        error: Its Monte Carlo error.
        judge_weights: Whether the estimate depends on large weights, as that of `log p(x)` does.
        is_annealed: Whether more temperatures would help.
    """
    draws = few_draws(len(moments.mean_log), moments.num_draws)
    if not judge_weights or moments.num_draws == 1:
        return draws
    remedy = "chains or temperatures" if is_annealed else "draws, or anneal"
    weights = few_weights(moments, "low" if bias < 0.0 else "high")
    missed = missed_weights(moments.num_draws, bias)
    return (*draws, *biased(bias, error, remedy), *weights, *missed)


def missed_weights(num_draws: int, bias: float) -> tuple[str, ...]:
    """Warns if an example has too few draws to show how uneven its weights are."""
    if num_draws >= _LEAST_DRAWS:
        return ()
    return (
        f"{num_draws} draws of each example often miss its large weights, and then the bias of "
        f"{bias:.2g} nats and the Monte Carlo error are understated: take at least {_LEAST_DRAWS}",
    )


def few_draws(num_examples: int, num_draws: int) -> tuple[str, ...]:
    """Warns of a Monte Carlo error that is not known, or uncertain itself."""
    if num_draws == 1:
        return (
            "one draw of each example does not show how far off the estimate is: take at least "
            f"{_LEAST_DRAWS}",
        )
    if num_examples * (num_draws - 1) >= _LEAST_FREEDOM:
        return ()
    return (
        f"{num_draws} draws of {num_examples} examples are few: the Monte Carlo error is uncertain "
        "itself, so take more of either",
    )


def biased(bias: float, error: float, remedy: str) -> tuple[str, ...]:
    """Warns of a bias that the Monte Carlo error does not cover."""
    if not abs(bias) > _SMALL_BIAS * error:  # False if either is NaN.
        return ()
    direction, rest = "low" if bias < 0.0 else "high", ""
    if abs(bias) > _LARGE_BIAS:
        rest = " or more"
    return (
        f"the estimate is too {direction} by about {abs(bias):.2g} nats{rest}, in addition to "
        f"the Monte Carlo error of {error:.2g}: take more {remedy}",
    )


def low_acceptance(acceptance: Array | None) -> tuple[str, ...]:
    """Warns if many transitions `[T]` accept few of their proposals."""
    if acceptance is None or np.mean(acceptance < _LOW_ACCEPTANCE) <= _FEW_TRANSITIONS:
        return ()
    share = np.mean(acceptance < _LOW_ACCEPTANCE)
    return (
        f"{share:.0%} of the transitions accept less than {_LOW_ACCEPTANCE:g} of their proposals: "
        "take more temperatures, smaller steps, or a higher target acceptance",
    )


def few_weights(moments: Moments, direction: str) -> tuple[str, ...]:
    """Warns if few weights dominate the estimates, which are then too low or too high."""
    least = min(_FEW_DRAWS, _SHARE_OF_DRAWS * moments.num_draws)
    share = np.mean(moments.effective_sample_size < least)
    if share <= _FEW_EXAMPLES:
        return ()
    return (
        f"{share:.0%} of the examples have weights worth less than {least:g} draws, so that few of "
        f"them make the estimate, which is then too {direction}: take more temperatures or draws",
    )


def of_comparison(
    differences: Array, error: float, biases: tuple[float, float], gap: float
) -> tuple[str, ...]:
    """Warns if the difference of two estimates `[N]` may be due to their errors."""
    difference, off = float(np.mean(differences)), abs(biases[0] - biases[1])
    found = [*few_examples(len(differences))]
    if count := int(np.sum(~np.isfinite(differences))):
        found.insert(
            0,
            f"{count} of {len(differences)} differences are not finite, so that their mean is not: "
            "the warnings of the estimates say why",
        )
    if gap >= abs(difference) > 0.0:
        found.append(
            f"the estimates may be off by {gap:.3f} nats, more than they differ: estimate with "
            "more temperatures, until the gap is a fraction of the difference"
        )
    if off > _SMALL_BIAS * error:
        found.append(
            f"the first estimate is too low by about {-biases[0]:.2g} nats and the second by "
            f"{-biases[1]:.2g}, which the error of the difference does not cover: take more draws "
            "or temperatures for both"
        )
    return tuple(found)
