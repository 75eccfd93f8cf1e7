"""Keras' entry points with checks of what is handed to them."""

from typing import Any

import keras
import tensorflow as tf

from tf_mcvae.distribute.replicas import check_distributed_compile, scope
from tf_mcvae.layers.likelihoods import Likelihood
from tf_mcvae.models.inputs import check_dataset, check_images, check_not_empty, plain_errors
from tf_mcvae.performance.plan import JitCompile, jit_for_keras


class CheckedModel(keras.Model):
    """A model that checks examples before Keras has them, and builds itself from their shape.

    Keras trains without complaint on integers, on NaN and on nothing at all. And a model that is
    only built by its first step would lose its optimizer's state when it is saved and loaded.

    Attributes:
        likelihood: Says which values are possible.
        event_shape: Shape of one example, once the model is built.
        is_distributed: Whether it was made inside `strategy.scope()`.
        jit_requested: `jit_compile` as `compile` was given it; Keras keeps what it makes of "auto".
    """

    likelihood: Likelihood
    event_shape: tuple[Any, ...]
    jit_requested: JitCompile = "auto"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.is_distributed = tf.distribute.has_strategy()

    def compile(
        self, optimizer: Any = "adam", skip_gradient_norm: float | None = None, **kwargs: Any
    ) -> None:
        """Sets the optimizer and how training runs; as `keras.Model.compile`.

        Args:
            optimizer: A Keras optimizer or its name; its `global_clipnorm` clips the gradient.
            skip_gradient_norm: An update whose gradient has not a global norm below this (before
                any clipping) is left out: weights and optimizer stay as they are. None: off.
            **kwargs: Further arguments of `keras.Model.compile`. With `jit_compile="auto"`, the
                default, XLA also compiles training on a CPU where that is faster: of models with
                transitions, with this package's dense networks, activations and likelihoods.

        Raises:
            ValueError: If a loss or metrics are given, which would have no effect, or the norm is
                not positive.
        """
        if skip_gradient_norm is not None and not skip_gradient_norm > 0:
            raise ValueError(
                "`skip_gradient_norm` must be above 0, or None for off. "
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
        with self._scope():
            super().compile(optimizer, **kwargs)
        self.skip_gradient_norm = skip_gradient_norm
        if self.is_distributed:
            check_distributed_compile(self)

    def get_compile_config(self) -> Any:
        """Returns the arguments of `compile`."""
        config = super().get_compile_config()
        if config:
            config["skip_gradient_norm"] = self.skip_gradient_norm
            config["jit_compile"] = self.jit_requested
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as before saving."""
        with self._scope():
            self.compile(**keras.saving.deserialize_keras_object(config))
            if self.built:
                self.optimizer.build(self.trainable_variables)

    def _scope(self) -> Any:
        """Returns the scope of the strategy that the model was made in."""
        return scope(self.distribute_strategy if self.is_distributed else None)

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        # Under a strategy Keras would read a batch, which a shuffled data set counts as an epoch.
        if not self.is_distributed:
            super()._maybe_symbolic_build(*args, **kwargs)

    def make_train_function(self, force: bool = False) -> Any:
        """Makes the function of a training step; as Keras does, with the optimizer's variables.

        A step that made them would be traced a second time without, for as long again.
        """
        if not self.optimizer.built:
            with self._scope():
                self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trains the model; as `keras.Model.fit`."""
        x = self.check_inputs(x)
        if isinstance(x, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # Keras would warn that it does not shuffle one.
        if kwargs.get("validation_data") is not None:
            held_out, *rest = keras.utils.unpack_x_y_sample_weight(kwargs["validation_data"])
            kwargs["validation_data"] = (self.check_inputs(held_out), *rest)
        with plain_errors():
            history = super().fit(x, *args, **kwargs)
        if history.epoch:
            check_not_empty(history.history.get("loss"))
        return history

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Returns the metrics on held-out data; as `keras.Model.evaluate`."""
        if not kwargs.get("_use_cached_eval_dataset"):  # Within `fit`, which has checked it.
            x = self.check_inputs(x)
        with plain_errors():
            results = super().evaluate(x, *args, **kwargs)
        check_not_empty(results)
        return results

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns reconstructions of all examples as an array; as `keras.Model.predict`."""
        x = self.check_inputs(x)
        with plain_errors():
            return super().predict(x, *args, **kwargs)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Takes one optimizer step; as `keras.Model.train_on_batch`."""
        return super().train_on_batch(self.check_inputs(x), *args, **kwargs)

    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluates a batch; as `keras.Model.test_on_batch`."""
        return super().test_on_batch(self.check_inputs(x), *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """Returns reconstructions of a batch; as `keras.Model.predict_on_batch`."""
        return super().predict_on_batch(self.check_inputs(x))

    def require_built(self) -> None:
        """Raises unless the model has its shapes."""
        if not self.built:
            raise ValueError(
                "The model has no shapes yet: call `model.build((None, *image_shape))`, or `fit`. "
                "Received: an unbuilt model"
            )

    def check_inputs(self, x: Any) -> Any:
        """Checks examples, and builds the model from their shape if need be.

        Args:
            x: Array, or `tf.data.Dataset` of batches, whose values are checked when they are read.

        Returns:
            What to read in place of `x`.

        Raises:
            TypeError: If the examples are integers, or neither an array nor a data set.
            ValueError: If there are none, they do not fit the model, or a value is not a number or
                not one that the likelihood knows.
        """
        if x is None or isinstance(x, list | tuple | dict):
            raise TypeError(
                "Examples must be an array, a `tf.data.Dataset` or a `keras.utils.PyDataset`. "
                f"Received: {type(x).__name__}"
            )
        known = self.event_shape if self.built else None
        if isinstance(x, tf.data.Dataset):
            x, event_shape = check_dataset(x, self.likelihood, known)
        elif hasattr(x, "shape"):
            check_images(x, self.likelihood, known)
            event_shape = tuple(x.shape[1:])
        elif isinstance(x, keras.utils.PyDataset):
            self.check_inputs(keras.utils.unpack_x_y_sample_weight(x[0])[0])
            return x
        else:  # A generator: its batches are not seen before Keras asks for them.
            self.require_built()
            return x
        if not self.built:
            with self._scope():
                self.build((None, *event_shape))
        return x
