"""The models' training loop: Keras' entry points, the steps, and the metrics.

Several replicas, or cores of a CPU that share a batch, give the results of one device on the whole
batch: losses, gradients, gradient norms and metrics are those of the whole batch, and the random
numbers of an example depend only on its number in the batch.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_mcvae import distribute, random
from tf_mcvae.checks import plain_errors
from tf_mcvae.layers.likelihoods import Likelihood
from tf_mcvae.models import advice
from tf_mcvae.models.batch import Array, Batch
from tf_mcvae.models.callbacks import all_callbacks
from tf_mcvae.models.coming_steps import steps_at_end
from tf_mcvae.models.compilation import CompiledModel
from tf_mcvae.models.divergence import warn_of_loss
from tf_mcvae.models.estimate import Estimate, added, joined
from tf_mcvae.models.input_check import InputCheck
from tf_mcvae.models.inputs import check_inputs, check_not_empty
from tf_mcvae.models.penalties import add_penalties, clear_penalties
from tf_mcvae.models.updates import Updates
from tf_mcvae.models.weights import weighted_arguments, weighted_data
from tf_mcvae.precision import density_dtype
from tf_mcvae.tracing import as_written

# Before Keras 3.15, `train_on_batch` returned means over all batches since the last epoch.
_KEEPS_METRICS = tuple(map(int, keras.__version__.split(".")[:2])) < (3, 15)

# The streams of random numbers that a model draws from its one seed.
TRAIN_STREAM, TEST_STREAM, CALL_STREAM = 0, 1, 2


class TrainedModel(CompiledModel):
    """A model with an `estimate` of its objective, trained and evaluated as Keras does.

    Examples are checked before Keras reads them, since Keras trains on integers, NaN and empty data
    without an error. The model is built from their shape: a model that its first step builds would
    lose the optimizer's state when it is saved and loaded.

    A subclass defines `estimate`, `members`, and if they apply `metric_names` and `adapt`.

    Attributes:
        seed: Integer from which all random numbers are drawn, but not the networks' initial
            weights, which `keras.utils.set_random_seed` seeds.
        event_shape: Shape of one example, once the model is built.
        likelihood: Knows which values are possible.
        decoder: Maps latents to the likelihood's parameters.
        latent_dim: D, once the model is built.
        has_transitions: Whether the decoder runs in inference mode in training, since all
            transitions need the same density.
    """

    seed: int
    event_shape: tuple[int, ...]
    likelihood: Likelihood
    decoder: keras.Layer
    latent_dim: int
    has_transitions = False
    _warned_of_grey = False
    _warned_of_decoder = False
    _evaluating = False
    _has_bad_loss = False

    def __init__(
        self, *, name: str | None, trainable: bool, dtype: str | keras.DTypePolicy | None
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        # Random numbers depend only on the seed and these counts, of training steps and of the
        # batches of one evaluation.
        self.step = self.add_counter("step")
        self.test_step_counter = self.add_counter("test_step")
        self._trackers: dict[str, keras.metrics.Mean] = {}
        self._updates = Updates(self)

    @property
    def density_dtype(self) -> str:
        """The dtype of log-densities, states, weights and bounds, `"float32"` or `"float64"`."""
        return density_dtype(self.dtype_policy)

    def add_counter(self, name: str) -> keras.Variable:
        """Adds an integer weight that is saved with the model, and not trained."""
        return self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name=name
        )

    # Defined by subclasses.

    def estimate(self, batch: Batch, seed: random.Seed, training: bool) -> Estimate:
        """Evaluates the objective on a batch."""
        raise NotImplementedError

    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics that `estimate` reports in addition to loss and bound."""
        return ()

    def adapt(self, parts: Sequence[Any]) -> None:
        """Updates adapted quantities after a training step, from `Estimate.adaptation`."""

    def own_callbacks(self) -> list[keras.callbacks.Callback]:
        """Callbacks of the model itself in each `fit`."""
        return []

    def causes_of_divergence(self) -> list[str]:
        """What may be too large where training diverges, as parts of a sentence."""
        rate = float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))
        return [f"a learning rate of {rate:g}", "log variances that grow without limit"]

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

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains the model; as `keras.Model.fit`.

        Training whose weights are no longer finite is stopped, with a `RuntimeWarning` that names
        the likely causes; see `StopOnDivergence`. Callbacks that monitor `bound` or `val_bound`
        take larger values as better.
        """
        x = self.check_inputs(x)
        arguments = weighted_arguments(super().fit, x, args, kwargs)
        if isinstance(x, tf.data.Dataset):
            arguments.setdefault("shuffle", False)  # Keras warns that it cannot shuffle one.
        if arguments.get("validation_data") is not None:
            held_out, *rest = keras.utils.unpack_x_y_sample_weight(arguments["validation_data"])
            arguments["validation_data"] = weighted_data(self.check_inputs(held_out), *rest)
        self.expect_steps(steps_at_end(arguments, int(self.step.numpy())))
        given = arguments.pop("callbacks", None)
        with plain_errors(), all_callbacks(given, self, x) as callbacks:
            history = super().fit(**arguments, callbacks=callbacks)
        if history.epoch:
            check_not_empty(history.history.get("loss"))
        return history

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Returns the mean loss, bound and other metrics; as `keras.Model.evaluate`.

        Every call draws the same random numbers, so that epochs and checkpoints are comparable.
        """
        arguments = {"x": x, **kwargs}
        if not kwargs.get("_use_cached_eval_dataset"):  # `fit` has checked it.
            x = self.check_inputs(x)
            arguments = weighted_arguments(super().evaluate, x, args, kwargs)
        self.test_step_counter.assign(0)
        self._evaluating = True
        try:
            with plain_errors():
                results = super().evaluate(**arguments)
        finally:
            self._evaluating = False
        check_not_empty(results)
        if not kwargs.get("_use_cached_eval_dataset"):  # `fit` warns itself.
            warn_of_loss(self, results)
        return results

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns reconstructions of all examples as an array; as `keras.Model.predict`."""
        x = self.check_inputs(x)
        with plain_errors():
            return super().predict(x, *args, **kwargs)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Takes one optimizer step; as `keras.Model.train_on_batch` of Keras 3.15."""
        method = super().train_on_batch
        result = method(**weighted_arguments(method, self._check_batch(x), args, kwargs))
        return self._as_floats(result)

    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluates a batch; as `keras.Model.test_on_batch` of Keras 3.15."""
        method = super().test_on_batch
        result = method(**weighted_arguments(method, self._check_batch(x), args, kwargs))
        return self._as_floats(result)

    def _as_floats(self, result: Any) -> Any:
        """Returns metrics as floats, with one warning for as long as losses are not finite."""
        result = keras.tree.map_structure(float, result)  # Before Keras 3.14, arrays.
        self._has_bad_loss = warn_of_loss(self, result, is_known=self._has_bad_loss)
        return result

    def _check_batch(self, x: Any) -> Any:
        """Checks a batch, and resets metrics that Keras would average with earlier batches."""
        if _KEEPS_METRICS:
            self.reset_metrics()
        return self.check_batch(x)

    def predict_on_batch(self, x: Any) -> Any:
        """Returns reconstructions of a batch; as `keras.Model.predict_on_batch`."""
        return super().predict_on_batch(self.check_batch(x))

    # The examples.

    def check_inputs(self, x: Any) -> Any:
        """Checks examples as `inputs.check_inputs` does, and builds the model if it is not built.

        Args:
            x: Array, `tf.data.Dataset`, `keras.utils.PyDataset`, generator, or another iterable of
                batches.

        Returns:
            The data to read instead of `x`.
        """
        check = self._input_check()
        checked = check_inputs(x, check)
        self._build_for(check.event_shape)
        return checked

    def check_batch(self, x: Any) -> Array:
        """Checks a batch of examples as `check_inputs` does, and returns the one to use."""
        if isinstance(x, list | tuple):
            x = tf.convert_to_tensor(x)
        if not hasattr(x, "shape"):
            raise TypeError(
                f"A batch of examples must be an array [B, ...]. Received: {type(x).__name__}"
            )
        check = self._input_check()
        checked = check.array(x)
        self._build_for(check.event_shape)
        return checked

    def _input_check(self) -> InputCheck:
        known = self.event_shape if self.built else None
        return InputCheck(self.likelihood, known, None if self._warned_of_grey else self._grey)

    def _build_for(self, event_shape: tuple[int, ...] | None) -> None:
        if event_shape is None:  # Replicas have the data.
            self.require_built()
        elif not self.built:
            with distribute.scope_of(self):
                self.build((None, *event_shape))

    def _grey(self) -> None:
        if not self._warned_of_grey:
            self._warned_of_grey = True
            advice.warn_of_grey(self.likelihood)

    def make_train_function(self, force: bool = False) -> Any:
        """Makes the function of a training step; before the first, warns of unsuitable decoders."""
        if not self._warned_of_decoder:
            self._warned_of_decoder = True
            advice.check_decoder(self.decoder, self.latent_dim, self.likelihood)
            if self.has_transitions:
                advice.check_transitions(self.decoder)
        return super().make_train_function(force)

    # The steps.

    def step_seed(self, stream: int, counter: keras.Variable) -> tf.Tensor:
        """Returns the seed of a step."""
        seed = random.fold_in(random.as_seed(self.seed), stream)
        return random.fold_in(seed, tf.convert_to_tensor(counter))

    @as_written
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
        estimate = joined([estimate for estimate, _ in parts])
        gradients = added([gradients for _, gradients in parts])
        is_applied = self._updates.apply(distribute.all_sum_gradients(gradients))
        self.adapt(estimate.adaptation)
        distribute.restore_unless(is_applied, adapted, before)
        self.step.assign_add(1)
        updates = {metric.name: metric.result() for metric in self._updates.metrics}
        return distribute.logs_of_step({**self._track(estimate, batch.weight), **updates})

    @as_written
    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates a batch. Nothing is learned or adapted."""
        batch = Batch.of(data)
        share = distribute.share_of_batch(tf.shape(batch.x)[0])
        seed = self.step_seed(TEST_STREAM, self.test_step_counter)

        def evaluate(part: Batch, first: tf.Tensor) -> Estimate:
            seed_of_rows = random.at_row(seed, share.first + first)
            return self._objective(part, seed_of_rows, training=False)._replace(adaptation=None)

        estimate = joined(self.execution_plan(training=False).run(evaluate, batch))
        self.test_step_counter.assign_add(1)
        return distribute.logs_of_step(self._track(estimate, batch.weight))

    @as_written
    def predict_step(self, data: Any) -> tf.Tensor:
        """Returns reconstructions of a batch."""
        plan = self.execution_plan(training=False)
        parts = plan.run(lambda part, _: self(part.x, training=False), Batch.of(data))
        return tf.concat(parts, axis=0)

    def _objective(self, batch: Batch, seed: random.Seed, training: bool) -> Estimate:
        """Returns the estimate, its loss weighted and with the penalties that layers report.

        As in Keras, the loss of a batch is the mean of these values, `[B]`: the sum of the weighted
        losses divided by their number, plus the penalties. Those of activities are means over the
        examples, so that a part of a batch adds its share.
        """
        clear_penalties(self)
        estimate = self.estimate(batch, seed, training)
        loss = estimate.loss
        if batch.weight is not None:
            loss *= tf.cast(batch.weight, loss.dtype)
        loss = add_penalties(loss, self)
        clear_penalties(self)  # They are tensors of this graph.
        return estimate._replace(loss=loss)

    def _differentiate(
        self, batch: Batch, seed: random.Seed, total: tf.Tensor
    ) -> tuple[Estimate, list[tf.Tensor | None]]:
        """Returns the estimate, and its part of the gradient of the whole batch's loss.

        Args:
            batch: A part of the batch.
            seed: A seed for its rows.
            total: Number of examples in the whole batch.
        """
        with tf.GradientTape() as tape:
            estimate = self._objective(batch, seed, training=True)
            total = tf.cast(total, estimate.loss.dtype)
            objective = self.optimizer.scale_loss(tf.reduce_sum(estimate.loss) / total)
        variables = [variable.value for variable in self.trainable_variables]
        return estimate, tape.gradient(objective, variables)

    # The metrics.

    def mean_loss(self) -> float:
        """Returns the mean loss of the epoch so far."""
        return float(self._trackers["loss"].result())

    def _track(self, estimate: Estimate, weight: tf.Tensor | None) -> dict[str, Any]:
        """Updates the metrics.

        Loss and bound are averaged over examples, the bound with their weights; the others are
        averaged over batches.
        """
        examples = {"loss": (estimate.loss, None), "bound": (estimate.bound, weight)}
        for name, (values, weights) in distribute.whole_batch(examples).items():
            self._trackers[name].update_state(values, sample_weight=weights)
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
