"""How a model's steps are compiled: the arguments of `compile`, and the plan of execution."""

from collections.abc import Sequence
from typing import Any

import keras

from tf_mcvae import distribute
from tf_mcvae.performance.plan import (
    ExecutionPlan,
    JitCompile,
    is_short,
    jit_for_keras,
    plan_execution,
)


class CompiledModel(keras.Model):
    """A Keras model whose steps follow an `ExecutionPlan`.

    A subclass defines `members`.

    Attributes:
        is_distributed: Whether the model was made inside `strategy.scope()`.
        jit_requested: The argument `jit_compile` of `compile`, which Keras does not keep as given.
    """

    jit_requested: JitCompile = "auto"
    _num_steps: int | None = None

    def __init__(
        self, *, name: str | None, trainable: bool, dtype: str | keras.DTypePolicy | None
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        self.is_distributed = distribute.is_distributed()

    def members(self) -> Sequence[keras.Layer]:
        """Returns the layers that decide how a step is executed; see `performance.plan`."""
        raise NotImplementedError

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

    def expect_steps(self, count: int | None) -> None:
        """Plans for the number of steps that training will have made; see `execution_plan`."""
        before, self._num_steps = self._num_steps, count
        if self.train_function is not None and is_short(before) and not is_short(count):
            self.make_train_function(force=True)

    def execution_plan(self, training: bool) -> ExecutionPlan:
        """Returns the plan for a step with the variables that are trainable now."""
        return plan_execution(
            training=training,
            jit_compile=self.jit_requested,
            is_compiled_by_keras=bool(self.jit_compile),
            is_distributed=self.is_distributed,
            members=(self, *self.members()),
            trained=self.trainable_variables,
            num_steps=self._num_steps,
        )
