"""The update of a training step: gradients are clipped, skipped or applied, and counted."""

from typing import Any

import keras
import tensorflow as tf

from tf_mcvae.distribute import replicas


class Updates:
    """Applies gradients to a model, and counts what is done to them.

    Args:
        model: A model with an optimizer, once it is compiled.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._norm = keras.metrics.Mean(name="grad_norm")
        self._clipped = keras.metrics.Sum(name="clipped")
        self._skipped = keras.metrics.Sum(name="skipped")

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The gradient's norm, and the numbers of clipped and skipped updates where any can be."""
        if not self._model.compiled:
            return [self._norm]
        clipped = [self._clipped] if self._clip_norm() is not None else []
        skipped = [self._skipped] if self._model.skip_gradient_norm is not None else []
        return [self._norm, *clipped, *skipped]

    def results(self) -> dict[str, tf.Tensor]:
        """Returns what has been counted, by name."""
        counts = (self._clipped, self._skipped)
        return {
            metric.name: replicas.whole_count(metric.result())
            if metric in counts
            else metric.result()
            for metric in self.metrics
        }

    def apply(self, gradients: list[tf.Tensor | None]) -> None:
        """Applies gradients, unless their norm is too large."""
        # What Keras multiplies the loss with in mixed float16; 1 in other policies.
        scale = self._model.optimizer.scale_loss(tf.ones([]))
        norm = tf.linalg.global_norm([tf.cast(g, tf.float32) for g in gradients if g is not None])
        norm /= scale
        self._norm.update_state(norm)
        clip_norm, skip_norm = self._clip_norm(), self._model.skip_gradient_norm
        if clip_norm is not None:
            self._clipped.update_state(replicas.share_of_count(norm > clip_norm))
        if skip_norm is None:
            self._apply(gradients)
            return
        is_small = norm < skip_norm  # False for NaN too.
        self._skipped.update_state(replicas.share_of_count(tf.logical_not(is_small)))
        self._apply_if(is_small, gradients)
