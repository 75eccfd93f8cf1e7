"""The models' training loop: Keras' entry points, the steps, and the metrics.

Several replicas, or cores of a CPU that share a batch, give the results of one device on the whole
batch: losses, gradients, gradient norms and metrics are those of the whole batch, and the random
numbers of an example depend only on its number in the batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_mcvae import distribute, random
from tf_mcvae.checks import plain_errors
from tf_mcvae.models.batch import Batch
from tf_mcvae.models.inputs import check_not_empty
from tf_mcvae.models.updates import Updates
from tf_mcvae.performance.plan import ExecutionPlan, JitCompile, jit_for_keras, plan_execution

# Before Keras 3.15, `train_on_batch` returned means over all batches since the last epoch.
_KEEPS_METRICS = tuple(map(int, keras.__version__.split(".")[:2])) < (3, 15)

# The streams of random numbers that a model draws from its one seed.
TRAIN_STREAM, TEST_STREAM, CALL_STREAM = 0, 1, 2


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


class TrainedModel(keras.Model):
    """A model with an `estimate` of its objective, trained and evaluated as Keras does.

    Examples are checked before Keras reads them, since Keras trains on integers, NaN and empty data
    without an error. The model is built from their shape: a model that its first step builds would
    lose the optimizer's state when it is saved and loaded.

    A subclass defines `estimate`, `check_inputs`, `members`, and if they apply `metric_names` and
    `adapt`.

    Attributes:
        seed: Integer from which all random numbers are drawn.
        event_shape: Shape of one example, once the model is built.
        is_distributed: Whether the model was made inside `strategy.scope()`.
        jit_requested: The argument `jit_compile` of `compile`, which Keras does not keep as given.
    """

    seed: int
    event_shape: tuple[int, ...]
    jit_requested: JitCompile = "auto"
    _evaluating = False

    def __init__(
        self, *, name: str | None, trainable: bool, dtype: str | keras.DTypePolicy | None
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        self.is_distributed = distribute.is_distributed()
        # Random numbers depend only on the seed and these counts, of training steps and of the
        # batches of one evaluation.
        self.step = self.add_counter("step")
        self.test_step_counter = self.add_counter("test_step")
        self._trackers: dict[str, keras.metrics.Mean] = {}
        self._updates = Updates(self)

    def add_counter(self, name: str) -> keras.Variable:
        """Adds an integer weight that is saved with the model, and not trained."""
        return self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name=name
        )

    # Defined by subclasses.

    def estimate(self, batch: Batch, seed: random.Seed, training: bool) -> Estimate:
        """Evaluates the objective on a batch."""
        raise NotImplementedError

    def check_inputs(self, x: Any) -> Any:
        """Checks examples, builds the model from their shape, and returns the data to read."""
        raise NotImplementedError

    def members(self) -> Sequence[keras.Layer]:
        """Returns the layers that decide how a step is executed; see `performance.plan`."""
        raise NotImplementedError

    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics that `estimate` reports in addition to loss and bound."""
        return ()

    def adapt(self, parts: Sequence[Any]) -> None:
        """Updates adapted quantities after a training step, from `Estimate.adaptation`."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Keeps the shape of an example, and makes the metrics."""
        if not self._trackers:
            names = ("loss", "bound", *self.metric_names())
            self._trackers = {name: distribute.WholeBatchMean(name=name) for name in names}
        self.event_shape = tuple(int(size) for size in input_shape[1:] if size is not None)
        self.built = True

    def require_built(self) -> None:
        """Raises if the model is not built."""
        if not self.built:
            raise ValueError(
                "The model has no shapes yet: call `model.build((None, *image_shape))`, or `fit`. "
                "Received: an unbuilt model"
            )

    # Keras' entry points.

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "adam",
        skip_gradient_norm: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Sets the optimizer and how training runs; as `keras.Model.compile`.

        Args:
            optimizer: A Keras optimizer or its name; its `global_clipnorm` clips the gradient.
            skip_gradient_norm: Skips an update unless the global norm of its gradient, before
                clipping, is below this; weights, step sizes and optimizer then do not change.
                None applies every update.
            **kwargs: Further arguments of `keras.Model.compile`. With `jit_compile="auto"`, the
                default, XLA also compiles training on a CPU where that is faster: for models with
                transitions, with this package's dense networks, activations and likelihoods. Your
                own classes are included if their class body sets `suits_xla = True`.

        Raises:
            ValueError: If a loss or metrics are given, or the norm is not positive.
        """
        if skip_gradient_norm is not None and not skip_gradient_norm > 0:
            raise ValueError(
                "`skip_gradient_norm` must be above 0, or None to apply every update. "
                f"Received: skip_gradient_norm={skip_gradient_norm!r}"
            )
        names = ("loss", "loss_weights", "metrics", "weighted_metrics")
        given = [name for name in names if kwargs.get(name) is not None]
        if given:
            raise ValueError(
                "The model has a loss and metrics of its own: give `compile` an optimizer, without "
                f"{' and '.join(given)}. Received: {given[0]}={kwargs[given[0]]!r}"
            )
        self.jit_requested = kwargs.get("jit_compile", "auto")
        kwargs["jit_compile"] = jit_for_keras(self.jit_requested, self.is_distributed)
        with distribute.scope_of(self):
            super().compile(optimizer, **kwargs)
        self.skip_gradient_norm = skip_gradient_norm
        distribute.check_compiled(self)

    def get_compile_config(self) -> Any:
        """Returns the arguments of `compile`."""
        config = super().get_compile_config()
        if config:
            config["skip_gradient_norm"] = self.skip_gradient_norm
            config["jit_compile"] = self.jit_requested
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as before saving."""
        with distribute.scope_of(self):
            self.compile(**keras.saving.deserialize_keras_object(config))
            if self.built:
                self.optimizer.build(self.trainable_variables)

    def make_train_function(self, force: bool = False) -> Any:
        """Makes the function of a training step as Keras does, after building the optimizer.

        TensorFlow traces a step twice if it makes variables, such as those of an optimizer.
        """
        if not self.optimizer.built:
            with distribute.scope_of(self):
                self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains the model; as `keras.Model.fit`."""
        x = self.check_inputs(x)
        if isinstance(x, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # Keras warns that it cannot shuffle one.
        if kwargs.get("validation_data") is not None:
            held_out, *rest = keras.utils.unpack_x_y_sample_weight(kwargs["validation_data"])
            kwargs["validation_data"] = (self.check_inputs(held_out), *rest)
        with plain_errors():
            history = super().fit(x, *args, **kwargs)
        if history.epoch:
            check_not_empty(history.history.get("loss"))
        return history

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Returns the mean loss, bound and other metrics; as `keras.Model.evaluate`.

        Every call draws the same random numbers, so that epochs and checkpoints are comparable.
        """
        if not kwargs.get("_use_cached_eval_dataset"):  # `fit` has checked it.
            x = self.check_inputs(x)
        self.test_step_counter.assign(0)
        self._evaluating = True
        try:
            with plain_errors():
                results = super().evaluate(x, *args, **kwargs)
        finally:
            self._evaluating = False
        check_not_empty(results)
        return results

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns reconstructions of all examples as an array; as `keras.Model.predict`."""
        x = self.check_inputs(x)
        with plain_errors():
            return super().predict(x, *args, **kwargs)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Takes one optimizer step; as `keras.Model.train_on_batch` of Keras 3.15."""
        result = super().train_on_batch(self._check_batch(x), *args, **kwargs)
        return keras.tree.map_structure(float, result)  # Before Keras 3.14, arrays.

    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluates a batch; as `keras.Model.test_on_batch` of Keras 3.15."""
        result = super().test_on_batch(self._check_batch(x), *args, **kwargs)
        return keras.tree.map_structure(float, result)  # Before Keras 3.14, arrays.

    def _check_batch(self, x: Any) -> Any:
        """Checks a batch, and resets metrics that Keras would average with earlier batches."""
        if _KEEPS_METRICS:
            self.reset_metrics()
        return self.check_inputs(x)

    def predict_on_batch(self, x: Any) -> Any:
        """Returns reconstructions of a batch; as `keras.Model.predict_on_batch`."""
        return super().predict_on_batch(self.check_inputs(x))

    # The steps.

    def execution_plan(self, training: bool) -> ExecutionPlan:
        """Returns the plan for a step with the variables that are trainable now."""
        return plan_execution(
            training=training,
            jit_compile=self.jit_requested,
            is_compiled_by_keras=bool(self.jit_compile),
            is_distributed=self.is_distributed,
            members=(self, *self.members()),
            trained=self.trainable_variables,
        )

    def step_seed(self, stream: int, counter: keras.Variable) -> tf.Tensor:
        """Returns the seed of a step."""
        seed = random.fold_in(random.as_seed(self.seed), stream)
        return random.fold_in(seed, tf.convert_to_tensor(counter))

    def train_step(self, data: Any) -> dict[str, Any]:
        """Takes one optimizer step on a batch of `x`, `(x, y)` or `(x, y, sample_weight)`."""
        batch = Batch.of(data)
        share = distribute.share_of_batch(tf.shape(batch.x)[0])
        seed = self.step_seed(TRAIN_STREAM, self.step)
        # Step sizes, and moving statistics of networks.
        adapted = self.non_trainable_weights
        before = [tf.identity(weight.value) for weight in adapted]

        def differentiate(part: Batch, first: tf.Tensor) -> tuple[Estimate, list[Any]]:
            seed_of_rows = random.at_row(seed, share.first + first)
            return self._differentiate(part, seed_of_rows, share.total)

        parts = self.execution_plan(training=True).run(differentiate, batch)
        estimate = _joined([estimate for estimate, _ in parts])
        gradients = _added([gradients for _, gradients in parts])
        is_applied = self._updates.apply(distribute.all_sum_gradients(gradients))
        self.adapt(estimate.adaptation)
        distribute.restore_unless(is_applied, adapted, before)
        self.step.assign_add(1)
        updates = {metric.name: metric.result() for metric in self._updates.metrics}
        return distribute.logs_of_step({**self._track(estimate, batch.weight), **updates})

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates a batch. Nothing is learned or adapted."""
        batch = Batch.of(data)
        share = distribute.share_of_batch(tf.shape(batch.x)[0])
        seed = self.step_seed(TEST_STREAM, self.test_step_counter)

        def evaluate(part: Batch, first: tf.Tensor) -> Estimate:
            seed_of_rows = random.at_row(seed, share.first + first)
            return self.estimate(part, seed_of_rows, training=False)._replace(adaptation=None)

        estimate = _joined(self.execution_plan(training=False).run(evaluate, batch))
        self.test_step_counter.assign_add(1)
        return distribute.logs_of_step(self._track(estimate, batch.weight))

    def predict_step(self, data: Any) -> tf.Tensor:
        """Returns reconstructions of a batch."""
        plan = self.execution_plan(training=False)
        parts = plan.run(lambda part, _: self(part.x, training=False), Batch.of(data))
        return tf.concat(parts, axis=0)

    def _differentiate(
        self, batch: Batch, seed: random.Seed, total: tf.Tensor
    ) -> tuple[Estimate, list[tf.Tensor | None]]:
        """Returns the estimate, and its part of the gradient of the whole batch's loss.

        As in Keras, that loss is the sum of the weighted values, divided by their number.

        Args:
            batch: A part of the batch.
            seed: A seed for its rows.
            total: Number of examples in the whole batch.
        """
        with tf.GradientTape() as tape:
            estimate = self.estimate(batch, seed, training=True)
            values = estimate.loss
            size = tf.cast(tf.size(values), total.dtype)
            if batch.weight is not None:
                # Weights of shape [B, 1] would broadcast to [B, B].
                values *= tf.reshape(tf.cast(batch.weight, values.dtype), tf.shape(values))
            # `self.losses`, penalties on weights, are the same for all parts: each adds its share.
            loss = (tf.reduce_sum(values) + size * sum(self.losses)) / total
            objective = self.optimizer.scale_loss(loss)
        variables = [variable.value for variable in self.trainable_variables]
        return estimate, tape.gradient(objective, variables)

    # The metrics.

    def _track(self, estimate: Estimate, weight: tf.Tensor | None) -> dict[str, Any]:
        """Updates the metrics.

        Loss and bound are averaged over examples, the others over batches.
        """
        examples = {"loss": estimate.loss, "bound": estimate.bound}
        examples, weight = distribute.whole_batch(examples, weight)
        for name, values in examples.items():
            self._trackers[name].update_state(values, sample_weight=weight)
        for name, value in estimate.metrics.items():
            self._trackers[name].update_state(value)
        return {name: tracker.result() for name, tracker in self._trackers.items()}

    @property
    def metrics(self) -> list[keras.Metric]:
        """The metrics to show; in an evaluation, without those of updates."""
        # Keras' own loss tracker would be a second, empty `loss`.
        updates = [] if self._evaluating else self._updates.metrics
        return [*self._trackers.values(), *updates]

    # Private methods of Keras, where it has no public ones.

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        # Keras would read a batch under a strategy, which a shuffled data set counts as an epoch.
        if not self.is_distributed:
            super()._maybe_symbolic_build(*args, **kwargs)

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        # What Keras shows after an epoch or an evaluation. On several workers, the logs of a step
        # have only the loss.
        if not self.is_distributed:
            return super()._get_metrics_result_or_logs(logs)
        return self.get_metrics_result()


def _joined(parts: Sequence[Estimate]) -> Estimate:
    """Joins the estimates of a batch's parts; metrics are of all replicas."""
    sizes = [tf.cast(tf.size(part.loss), tf.float32) for part in parts]
    return Estimate(
        tf.concat([part.loss for part in parts], axis=0),
        tf.concat([part.bound for part in parts], axis=0),
        distribute.pooled_mean([dict(part.metrics) for part in parts], sizes),
        tuple(part.adaptation for part in parts),
    )


def _added(parts: Sequence[list[tf.Tensor | None]]) -> list[tf.Tensor | None]:
    """Adds the gradients of a batch's parts; None stays None."""
    if len(parts) == 1:
        return parts[0]
    return [None if terms[0] is None else tf.add_n(terms) for terms in zip(*parts, strict=True)]
