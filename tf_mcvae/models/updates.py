"""The update of a training step: gradients are applied or skipped, and counted."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_mcvae import distribute


class Updates:
    """Applies gradients to a model, and counts clipped and skipped updates.

    Args:
        model: A Keras model with a `skip_gradient_norm`, once it is compiled.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._norm = distribute.WholeBatchMean(name="grad_norm")
        self._clipped = distribute.WholeBatchSum(name="clipped")
        self._skipped = distribute.WholeBatchSum(name="skipped")

    @property
    def metrics(self) -> list[keras.Metric]:
        """The gradient's norm, and the numbers of clipped and skipped updates if any can be."""
        if not self._model.compiled:
            return [self._norm]
        clipped = [self._clipped] if self._clip_norm() is not None else []
        skipped = [self._skipped] if self._model.skip_gradient_norm is not None else []
        return [self._norm, *clipped, *skipped]

    def apply(self, gradients: list[tf.Tensor | None]) -> tf.Tensor:
        """Applies the gradients of the whole batch, unless their norm is too large.

        Returns:
            Whether an update was made whose gradients are finite.
        """
        optimizer, variables = self._model.optimizer, self._model.trainable_variables
        gradients = _of_one_dtype(gradients)
        # The factor of the loss in mixed float16; 1 with other policies.
        scale = optimizer.scale_loss(tf.ones([]))
        norm = tf.linalg.global_norm([tf.cast(g, tf.float32) for g in gradients if g is not None])
        norm /= scale
        # A gradient in float16 overflows where the factor is too large; it then has no norm.
        overflows = self._scales_loss() & ~tf.math.is_finite(norm)
        self._norm.update_state(
            tf.where(overflows, 0.0, norm), sample_weight=tf.cast(~overflows, tf.float32)
        )
        clip_norm, skip_norm = self._clip_norm(), self._model.skip_gradient_norm
        if clip_norm is not None:
            is_clipped = (norm > clip_norm) & ~overflows
            self._clipped.update_state(tf.cast(is_clipped, tf.float32))

        def apply() -> None:
            distribute.apply_gradients(optimizer, gradients, variables)

        if skip_norm is None:
            apply()
            return tf.math.is_finite(norm)
        is_small = norm < skip_norm  # False for NaN too.
        self._skipped.update_state(tf.cast(tf.logical_not(is_small), tf.float32))
        # The optimizer skips an update that overflows itself, and lowers its factor.
        distribute.update_if(is_small | overflows, apply, [*variables, *optimizer.variables])
        return is_small

    def _scales_loss(self) -> bool:
        """Returns whether the optimizer multiplies the loss by a factor, as in mixed float16."""
        return isinstance(self._model.optimizer, keras.optimizers.LossScaleOptimizer)

    def _clip_norm(self) -> float | None:
        """Returns the global norm to which the optimizer clips, or None."""
        return getattr(distribute.inner_optimizer(self._model.optimizer), "global_clipnorm", None)


def places_of_optimized(model: keras.Model) -> dict[str, list[int]]:
    """Returns where the variables that the optimizer was built for are among `model.weights`.

    Returns nothing if they are the trainable ones. They differ if layers were frozen or thawed
    since `compile`; the optimizer's state is that of these variables.
    """
    # Keras has no public name for them.
    optimized = {id(variable) for variable in getattr(model.optimizer, "_trainable_variables", ())}
    if not model.optimizer.built or optimized == {id(v) for v in model.trainable_variables}:
        return {}
    return {"optimized": [i for i, w in enumerate(model.weights) if id(w) in optimized]}


def build_optimizer(model: keras.Model, optimized: Sequence[int] | None = None) -> None:
    """Builds the optimizer for the trainable variables, or for those at these places."""
    if optimized is None:
        model.optimizer.build(model.trainable_variables)
    else:
        model.optimizer.build([model.weights[place] for place in optimized])


def _of_one_dtype(gradients: list[tf.Tensor | None]) -> list[tf.Tensor | None]:
    """Casts gradients to the widest dtype among them; None stays None.

    Keras clips gradients of one dtype only, and casts each to that of its variable later.
    """
    dtypes = {gradient.dtype for gradient in gradients if gradient is not None}
    if len(dtypes) <= 1:
        return gradients
    widest = max(dtypes, key=lambda dtype: dtype.size)
    return [None if gradient is None else tf.cast(gradient, widest) for gradient in gradients]
