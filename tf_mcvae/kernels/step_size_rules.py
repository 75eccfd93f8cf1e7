"""Step-size rules, as pure functions of the old values and the statistics of a training step."""

import math

import tensorflow as tf

Limits = tuple[float, float]

ACCEPTANCE_LIMITS: Limits = (1e-8, 100.0)
PUBLISHED_LIMITS: Limits = (1e-3, 0.5)

_LARGEST_CHANGE = math.log(2.0)
# The gain after many updates: step sizes follow networks that continue to train.
_SMALLEST_GAIN = 0.02


def acceptance_update(
    step_size: tf.Tensor,
    acceptance: tf.Tensor,
    target_acceptance: float,
    num_updates: tf.Tensor,
    limits: Limits = ACCEPTANCE_LIMITS,
) -> tf.Tensor:
    """Changes the logarithms of step sizes by Robbins and Monro's rule, towards a target a*.

        log e <- log e + g_n (acceptance - a*) / (a* (1 - a*)),    g_n = max(n^-0.6, g_min),

    where no change exceeds `log 2`, and `g_min = min(0.02, log(2) min(a*, 1 - a*))`. With that gain
    no change reaches `log 2`, so that the mean acceptance settles at a*, even where the acceptance
    of an update is 0 or 1.

    Args:
        step_size: `[K]`, or `[K, D]`.
        acceptance: Mean acceptance of each transition, `[K]`.
        target_acceptance: `a*`.
        num_updates: Number of each transition's earlier updates, `n - 1`, `[K]`.
        limits: The smallest and the largest step size.

    Returns:
        New step sizes; those of one transition keep their ratios within the limits.

    Reference:
        Robbins and Monro, A Stochastic Approximation Method, 1951; Andrieu and Thoms, A tutorial on
        adaptive MCMC, 2008; with the factor `1 / (a* (1 - a*))` of Garthwaite, Fan and Sisson,
        arXiv 1006.3690.
    """
    rest = 1.0 - target_acceptance
    smallest_gain = min(_SMALLEST_GAIN, _LARGEST_CHANGE * min(target_acceptance, rest))
    gain = tf.maximum(tf.cast(num_updates + 1, step_size.dtype) ** -0.6, smallest_gain)
    change = gain * (acceptance - target_acceptance) / (target_acceptance * rest)
    factor = tf.exp(tf.clip_by_value(change, -_LARGEST_CHANGE, _LARGEST_CHANGE))
    return _scaled(step_size, factor, limits)


def published_acceptance_update(
    step_size: tf.Tensor,
    acceptance: tf.Tensor,
    target_acceptance: float,
    limits: Limits = PUBLISHED_LIMITS,
) -> tf.Tensor:
    """Changes each transition's step size by 0.2 %, towards a target acceptance.

    Args:
        step_size: `[K]`, or `[K, D]`.
        acceptance: Mean acceptance of each transition, `[K]`.
        target_acceptance: The acceptance that the rule aims at.
        limits: The smallest and the largest step size.

    Returns:
        New step sizes: multiplied by 1.002 where the acceptance reaches the target and by 0.998
        elsewhere, within the limits.

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """
    factor = tf.where(acceptance >= target_acceptance, 1.002, 0.998)
    return _scaled(step_size, tf.cast(factor, step_size.dtype), limits)


def _scaled(step_size: tf.Tensor, factor: tf.Tensor, limits: Limits) -> tf.Tensor:
    """Multiplies the step sizes of each transition by its factor, `[K]`."""
    if step_size.shape.rank == 2:
        factor = factor[:, tf.newaxis]
    return tf.clip_by_value(step_size * factor, *limits)


def variance_update(
    step_size: tf.Tensor,
    scale: tf.Tensor,
    acceptance: tf.Tensor,
    score_std: tf.Tensor,
    target_acceptance: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Changes each dimension's step size towards the inverse spread of the score.

    Args:
        step_size: `[K, D]`.
        scale: The rule's own factor `gamma`, `[K]`.
        acceptance: Mean acceptance of each transition, `[K]`.
        score_std: Standard deviation of the score over the batch, `[K, D]`.
        target_acceptance: The acceptance that the rule aims at.

    Returns:
        `0.9 step_size + 0.1 gamma / (score_std + 1)`, and the new `gamma`, multiplied by 0.99
        where the acceptance is below the target and by 1.02 elsewhere.

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """
    new_step_size = 0.9 * step_size + 0.1 * scale[:, tf.newaxis] / (score_std + 1.0)
    factor = tf.where(acceptance < target_acceptance, 0.99, 1.02)
    return new_step_size, scale * tf.cast(factor, scale.dtype)
