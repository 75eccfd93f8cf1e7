"""What a model's objective gives on a batch, and how the parts of a batch are put together."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import tensorflow as tf

from tf_mcvae import distribute

Gradient = Literal["plain", "stl", "dreg"]


class Estimate(NamedTuple):
    """One evaluation of a model's objective on a batch.

    Attributes:
        loss: The loss to minimise, `[B]`; its value need not be minus a bound.
        bound: The bound on `log p(x)` in nats, `[B]`.
        metrics: Further metrics by name, means over the batch.
        adaptation: Statistics for step-size rules, or None; for a whole batch, a tuple of those of
            its parts.
    """

    loss: tf.Tensor
    bound: tf.Tensor
    metrics: Mapping[str, tf.Tensor]
    adaptation: Any = None


def joined(parts: Sequence[Estimate]) -> Estimate:
    """Joins the estimates of a batch's parts; metrics are of all replicas."""
    sizes = [tf.cast(tf.size(part.loss), part.loss.dtype) for part in parts]
    return Estimate(
        tf.concat([part.loss for part in parts], axis=0),
        tf.concat([part.bound for part in parts], axis=0),
        distribute.pooled_mean([dict(part.metrics) for part in parts], sizes),
        tuple(part.adaptation for part in parts),
    )


def added(parts: Sequence[list[tf.Tensor | None]]) -> list[tf.Tensor | None]:
    """Adds the gradients of a batch's parts; None stays None."""
    if len(parts) == 1:
        return parts[0]
    return [None if terms[0] is None else tf.add_n(terms) for terms in zip(*parts, strict=True)]
