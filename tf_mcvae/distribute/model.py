"""What differs for a Keras model that was made under a strategy."""

from typing import Any

import keras
import tensorflow as tf

from tf_mcvae.distribute.replicas import inner_optimizer, scope


def is_distributed() -> bool:
    """Returns whether a strategy is in force, for which models made now are meant."""
    return bool(tf.distribute.has_strategy())


def scope_of(model: keras.Model) -> Any:
    """Returns the context of the strategy that a model was made under (`model.is_distributed`)."""
    return scope(model.distribute_strategy if model.is_distributed else None)


def check_compiled(model: keras.Model) -> None:
    """Raises if a distributed model was compiled with what Keras cannot do under a strategy.

    Args:
        model: A compiled model; any passes that was made outside a strategy.

    Raises:
        ValueError: If its optimizer was made outside the scope, or accumulates gradients, or
            several steps are taken at a time.
    """
    if not model.is_distributed:
        return
    optimizer = inner_optimizer(model.optimizer)
    if not isinstance(optimizer.variables[0].value, tf.distribute.DistributedValues):
        raise ValueError(
            "The model was made inside `strategy.scope()`, so must be its optimizer; or give its "
            f"name. Received: an optimizer made outside, {optimizer!r}"
        )
    if optimizer.gradient_accumulation_steps:
        raise ValueError(
            "Keras cannot accumulate gradients under a strategy: give a larger batch size, or "
            "train on one device. Received: gradient_accumulation_steps="
            f"{optimizer.gradient_accumulation_steps}"
        )
    if model.steps_per_execution > 1:
        raise ValueError(
            "Keras cannot take several steps at a time under a strategy: leave "
            "`steps_per_execution` out, or train on one device. "
            f"Received: steps_per_execution={model.steps_per_execution}"
        )
