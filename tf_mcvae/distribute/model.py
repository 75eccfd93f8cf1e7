"""Keras models that were made under a strategy."""

import contextlib
from typing import Any

import keras
import tensorflow as tf

from tf_mcvae.distribute.replicas import inner_optimizer, scope


def is_distributed() -> bool:
    """Returns whether a strategy is in force."""
    return bool(tf.distribute.has_strategy())


def scope_of(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """Returns the context of the strategy that a model was made under, if `is_distributed`."""
    return scope(model.distribute_strategy if model.is_distributed else None)


def check_compiled(model: keras.Model) -> None:
    """Checks the compile options of a distributed model.

    Raises:
        ValueError: If the optimizer was made outside the scope or accumulates gradients, or several
            steps are taken at a time, which Keras cannot do under a strategy.
    """
    if not model.is_distributed:
        return
    optimizer = inner_optimizer(model.optimizer)
    if not isinstance(optimizer.variables[0].value, tf.distribute.DistributedValues):
        raise ValueError(
            "The model was made inside `strategy.scope()`, and so must be its optimizer, unless "
            f"you give its name. Received: an optimizer made outside, {optimizer!r}"
        )
    if optimizer.gradient_accumulation_steps:
        raise ValueError(
            "Keras cannot accumulate gradients under a strategy: use a larger batch size, or "
            "train on one device. Received: gradient_accumulation_steps="
            f"{optimizer.gradient_accumulation_steps}"
        )
    if model.steps_per_execution > 1:
        raise ValueError(
            "Keras cannot take several steps at a time under a strategy: leave "
            "`steps_per_execution` out, or train on one device. "
            f"Received: steps_per_execution={model.steps_per_execution}"
        )
