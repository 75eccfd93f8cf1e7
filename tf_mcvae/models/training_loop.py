"""Keras' training loop: one step of training or evaluation, on one device or on several.

On several replicas, and on a CPU whose cores share a batch, a step gives what one device gives on
the whole batch: the gradients are those of the mean over the whole batch, its norm is that of their
sum, and what is averaged over a batch is averaged over the whole one. Each example's random numbers
belong to its number in the batch, however the batch is divided.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.distribute import replicas
from tf_mcvae.models.checked import CheckedModel
from tf_mcvae.performance.plan import ExecutionPlan, plan_execution

# The streams of random numbers that a model draws from its one seed.
TRAIN_STREAM, TEST_STREAM, CALL_STREAM = 0, 1, 2


class Estimate(NamedTuple):
    """One evaluation of a model's objective on a batch.

    Attributes:
        loss: What is minimised, `[B]`; its gradient is the estimator, its value may be no bound.
        bound: The bound on `log p(x)` in nats, `[B]`.
        metrics: Further scalars to show while training, by name; means over the batch.
        adaptation: Statistics that step-size rules need; None where nothing adapts. Of a batch in
            parts a tuple, those of each.
    """

    loss: tf.Tensor
    bound: tf.Tensor
    metrics: Mapping[str, tf.Tensor]
    adaptation: Any = None


class TrainingLoop(CheckedModel):
    """A model with the steps that `fit` and `evaluate` take, and the metrics that they show.

    Attributes:
        encoder: Network of the approximate posterior.
        decoder: Network of the likelihood.
        seed: Integer from which all random numbers are drawn.
    """

    encoder: keras.Model
    decoder: keras.Model
    seed: int
    _evaluating = False

    def _make_counters(self) -> None:
        # Counts training steps, and the batches of one evaluation: with the seed, all that the
        # random numbers depend on.
        self.step = self._counter("step")
        self.test_step_counter = self._counter("test_step")
        self._trackers = {
            name: keras.metrics.Mean(name=name) for name in ("loss", "bound", *self.metric_names())
        }
        self._grad_norm = keras.metrics.Mean(name="grad_norm")
        self._clipped = keras.metrics.Sum(name="clipped")
        self._skipped = keras.metrics.Sum(name="skipped")

    def _counter(self, name: str) -> Any:
        return self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name=name
        )

    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics that `estimate` reports beside loss and bound."""
        return ()

    # What a subclass defines.

    def estimate(self, x: tf.Tensor, seed: tf.Tensor, training: bool) -> Estimate:
        """Evaluates the objective on a batch."""
        raise NotImplementedError

    def adapt(self, parts: Sequence[Any]) -> None:
        """Moves adapted quantities after a training step, by what the batch's parts report."""

    # The steps.

    def _step_seed(self, stream: int, counter: Any) -> tf.Tensor:
        seed = random.fold_in(random.as_seed(self.seed), stream)
        return random.fold_in(seed, tf.convert_to_tensor(counter))

    def train_step(self, data: Any) -> dict[str, Any]:
        """Takes one optimizer step on a batch of `x`, `(x, y)` or `(x, y, sample_weight)`."""
        x, _, weight = keras.utils.unpack_x_y_sample_weight(data)
        share = replicas.share_of_batch(tf.shape(x)[0])
        seed = self._step_seed(TRAIN_STREAM, self.step)

        def differentiate(rows: Any, first: tf.Tensor) -> tuple[Estimate, list[Any]]:
            x, weight = rows
            seed_of_rows = random.at_row(seed, share.first + first)
            return self._differentiate(x, weight, seed_of_rows, share.total)

        parts = self.execution_plan(training=True).run(differentiate, (x, weight))
        estimate = _joined([estimate for estimate, _ in parts])
        gradients = _added([gradients for _, gradients in parts])
        gradients = replicas.all_sum_gradients(gradients)
        # What Keras multiplies the loss with in mixed float16; else 1.
        scale = self.optimizer.scale_loss(tf.ones([]))
        norm = tf.linalg.global_norm([tf.cast(g, tf.float32) for g in gradients if g is not None])
        self._update(gradients, norm / scale)
        self.adapt(estimate.adaptation)
        self.step.assign_add(1)
        return self._logs({**self._track(estimate, weight), **self._shown()})

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates a batch. Nothing is learned or adapted, and the same call draws the same."""
        x, _, weight = keras.utils.unpack_x_y_sample_weight(data)
        share = replicas.share_of_batch(tf.shape(x)[0])
        seed = self._step_seed(TEST_STREAM, self.test_step_counter)

        def evaluate(x: tf.Tensor, first: tf.Tensor) -> Estimate:
            seed_of_rows = random.at_row(seed, share.first + first)
            return self.estimate(x, seed_of_rows, training=False)._replace(adaptation=None)

        estimate = _joined(self.execution_plan(training=False).run(evaluate, x))
        self.test_step_counter.assign_add(1)
        return self._logs(self._track(estimate, weight))

    def predict_step(self, data: Any) -> tf.Tensor:
        """Returns reconstructions of a batch."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        plan = self.execution_plan(training=False)
        return tf.concat(plan.run(lambda x, _: self(x, training=False), x), axis=0)

    def execution_plan(self, training: bool) -> ExecutionPlan:
        """Returns how a step is executed from now on, which depends on what is trained now."""
        networks = (self.encoder, self.decoder)
        return plan_execution(
            training=training,
            jit_compile=self.jit_requested,
            is_compiled_by_keras=bool(self.jit_compile),
            is_distributed=self.is_distributed,
            members=(self, *networks, self.likelihood),
            trained=self.trainable_variables,
            has_state=any(network.non_trainable_variables for network in networks),
        )

    def _differentiate(
        self, x: tf.Tensor, weight: tf.Tensor | None, seed: tf.Tensor, total: tf.Tensor
    ) -> tuple[Estimate, list[Any]]:
        """Returns the estimate, and what it adds to the gradient of the whole batch's loss.

        That is averaged over the batch as Keras does: the sum of weighted values over their number.

        Args:
            x: A part of the batch.
            weight: Weights of its examples.
            seed: Seed tensor.
            total: The whole batch's number of examples.
        """
        with tf.GradientTape() as tape:
            estimate = self.estimate(x, seed, training=True)
            values = estimate.loss
            size = tf.cast(tf.size(values), total.dtype)
            if weight is not None:
                # A weight of shape [B, 1] would else be multiplied with each example's value.
                values *= tf.reshape(tf.cast(weight, values.dtype), tf.shape(values))
            # Every part adds its share of the losses of the weights, which are the same for all.
            loss = (tf.reduce_sum(values) + size * sum(self.losses)) / total
            objective = self.optimizer.scale_loss(loss)
        variables = [variable.value for variable in self.trainable_variables]
        return estimate, tape.gradient(objective, variables)

    # The update.

    def _update(self, gradients: list[Any], norm: tf.Tensor) -> None:
        """Applies the gradients unless their norm is too large, and counts what is done to them."""
        # A sum is read as that of all replicas.
        one = 1.0 / replicas.num_replicas()
        self._grad_norm.update_state(norm)
        if self._clip_norm() is not None:
            self._clipped.update_state(one * tf.cast(norm > self._clip_norm(), tf.float32))
        if self.skip_gradient_norm is None:
            self._apply(gradients)
            return
        is_small = norm < self.skip_gradient_norm  # False for NaN too.
        self._skipped.update_state(one * tf.cast(tf.logical_not(is_small), tf.float32))
        self._apply_if(is_small, gradients)

    def _apply(self, gradients: list[Any]) -> None:
        """Hands the gradients to the optimizer, of which Keras' own sums those of all replicas."""
        count = replicas.num_replicas()
        if count > 1:
            gradients = [g if g is None else g / count for g in self._clip(gradients)]
        self.optimizer.apply(gradients, self.trainable_variables)

    def _clip(self, gradients: list[Any]) -> list[Any]:
        """Clips as the optimizer does, which under a strategy clips before it sums."""
        scale = self.optimizer.scale_loss(tf.ones([]))
        given = [g / scale for g in gradients if g is not None]
        clipped = iter(self._inner_optimizer()._clip_gradients(given))
        return [g if g is None else next(clipped) * scale for g in gradients]

    def _apply_if(self, condition: tf.Tensor, gradients: list[Any]) -> None:
        """Applies the gradients, or leaves weights and optimizer as they are."""
        if not tf.distribute.has_strategy():

            def apply() -> tf.Tensor:
                self._apply(gradients)
                return tf.constant(True)

            tf.cond(condition, apply, lambda: tf.constant(False))
            return
        # Replicas must meet in an update, which they cannot in a branch: it is undone afterwards.
        variables = [*self.trainable_variables, *self.optimizer.variables]
        before = [tf.identity(variable.value) for variable in variables]
        self._apply(gradients)
        for variable, old in zip(variables, before, strict=True):
            variable.assign(tf.where(condition, variable.value, old))

    def _inner_optimizer(self) -> Any:
        # In mixed float16 Keras wraps the optimizer.
        return getattr(self.optimizer, "inner_optimizer", self.optimizer)

    def _clip_norm(self) -> float | None:
        """Returns the norm to which the optimizer clips, if it does."""
        return getattr(self._inner_optimizer(), "global_clipnorm", None)

    # The metrics.

    def _gradient_metrics(self) -> list[Any]:
        """The gradient's norm, and the numbers of clipped and skipped updates where any can be."""
        if not self.compiled:
            return [self._grad_norm]
        clipped = [self._clipped] if self._clip_norm() is not None else []
        skipped = [self._skipped] if self.skip_gradient_norm is not None else []
        return [self._grad_norm, *clipped, *skipped]

    def _shown(self) -> dict[str, Any]:
        """Returns what `_update` has counted."""
        shown = {metric.name: metric.result() for metric in self._gradient_metrics()}
        # Of a count each replica has its part.
        counts = {self._clipped.name, self._skipped.name}
        number = replicas.num_replicas()
        return {n: number * v if n in counts else v for n, v in shown.items()}

    def _track(self, estimate: Estimate, weight: tf.Tensor | None) -> dict[str, Any]:
        """Updates the metrics; each is averaged over examples, whatever the batches' sizes."""
        examples = {"loss": estimate.loss, "bound": estimate.bound}
        if tf.distribute.has_strategy():
            # Each replica tracks what all of them have, and so shows it after every step.
            examples, weight = replicas.weighted_mean(examples, weight)
        for name, values in examples.items():
            self._trackers[name].update_state(values, sample_weight=weight)
        for name, value in estimate.metrics.items():
            self._trackers[name].update_state(value)
        return {name: tracker.result() for name, tracker in self._trackers.items()}

    def _logs(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Returns a step's logs; on several workers only the loss.

        Keras averages each of them over the workers, in a message of its own, and along an axis.
        """
        if not tf.distribute.has_strategy() or replicas.num_workers() == 1:
            return logs
        return {"loss": tf.reshape(logs["loss"], [1])}

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        # What Keras shows at the end of an epoch, and of an evaluation.
        if not self.is_distributed:
            return super()._get_metrics_result_or_logs(logs)
        shown = self.get_metrics_result()
        return {name: shown[name] for name in (self._trackers if self._evaluating else shown)}

    @property
    def metrics(self) -> list[Any]:
        """The metrics that are shown."""
        # Without Keras' own loss tracker, which would be a second, empty `loss`.
        return [*self._trackers.values(), *self._gradient_metrics()]

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Returns the mean loss and bound on held-out data; as `keras.Model.evaluate`.

        The random numbers are the same at every call, so that epochs and checkpoints are compared
        on equal draws.
        """
        self.test_step_counter.assign(0)
        self._evaluating = True
        try:
            return super().evaluate(x, *args, **kwargs)
        finally:
            self._evaluating = False


def _joined(parts: Sequence[Estimate]) -> Estimate:
    """Returns the estimate of a batch from those of its parts, its metrics of all replicas."""
    sizes = [tf.cast(tf.size(part.loss), tf.float32) for part in parts]
    return Estimate(
        tf.concat([part.loss for part in parts], axis=0),
        tf.concat([part.bound for part in parts], axis=0),
        replicas.pooled_mean([dict(part.metrics) for part in parts], sizes),
        tuple(part.adaptation for part in parts),
    )


def _added(parts: Sequence[list[Any]]) -> list[Any]:
    """Adds the gradients of a batch's parts; None stays None."""
    if len(parts) == 1:
        return parts[0]
    return [None if terms[0] is None else tf.add_n(terms) for terms in zip(*parts, strict=True)]
