"""Step-size rules, as pure functions of the old values and the statistics of a training step."""

import tensorflow as tf

STEP_SIZE_RANGE = (1e-3, 0.5)


def acceptance_update(
    step_size: tf.Tensor, acceptance: tf.Tensor, target_acceptance: float
) -> tf.Tensor:
    """Changes each transition's step size by 0.2 %, towards a target acceptance.

    Args:
        step_size: `[K]`, or `[K, D]`.
        acceptance: Mean acceptance of each transition, `[K]`.
        target_acceptance: The acceptance that the rule aims at.

    Returns:
        New step sizes: multiplied by 1.002 where the acceptance reaches the target and by 0.998
        elsewhere, within [0.001, 0.5].

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """
    factor = tf.where(acceptance >= target_acceptance, 1.002, 0.998)
    if step_size.shape.rank == 2:
        factor = factor[:, tf.newaxis]
    return tf.clip_by_value(step_size * tf.cast(factor, step_size.dtype), *STEP_SIZE_RANGE)


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
