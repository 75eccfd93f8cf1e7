"""How the steps of a model are executed: compiled by XLA, fused, divided among cores, or none.

All of this is decided in `plan_execution`, from what the members of a model say of themselves.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from tf_mcvae.performance import cores
from tf_mcvae.performance.fusion import can_fuse, fusing

JitCompile = bool | Literal["auto"]

# Dense networks with fewer weights are not divided among cores: calling the operations dominates
# their steps, and each part would call them again.
FEWEST_WEIGHTS_TO_DIVIDE = 1_000_000

# XLA compiles a dense network's step for one core. Up to so many weights it is still faster than a
# graph that is divided among all cores.
MOST_WEIGHTS_FOR_ONE_CORE = 100_000

# XLA takes some 10 seconds to compile a step that it then makes some 15 milliseconds faster.
FEWEST_STEPS_TO_COMPILE = 700


@dataclasses.dataclass(frozen=True)
class ExecutionPlan:
    """How one kind of step, training or evaluation, is executed.

    Attributes:
        compiled_by: Who has XLA compile the step: `"keras"` the whole of it, `"here"` the part that
            is run by `run`, `"none"` nobody.
        is_fused: Whether chains of small operations are loops of their own; see `fusion`.
        num_parts: Number of parts of a batch that are computed side by side; see `cores`.
    """

    compiled_by: Literal["keras", "here", "none"]
    is_fused: bool = False
    num_parts: int = 1

    def run(self, function: Callable[[Any, tf.Tensor], Any], rows: Any) -> list[Any]:
        """Calls a function of rows and the number of their first; see `cores.in_parts`."""
        if self.compiled_by == "here":
            function = tf.function(function, jit_compile=True, autograph=False)
        if not self.is_fused:
            return cores.in_parts(function, rows, self.num_parts)

        def fused(rows: Any, first: tf.Tensor) -> Any:
            with fusing():  # Each part is a graph of its own.
                return function(rows, first)

        return cores.in_parts(fused, rows, self.num_parts)


def plan_execution(
    *,
    training: bool,
    jit_compile: JitCompile,
    is_compiled_by_keras: bool,
    is_distributed: bool,
    members: Sequence[keras.Layer],
    trained: Sequence[keras.Variable],
    num_steps: int | None = None,
) -> ExecutionPlan:
    """Plans the step that is about to be traced, or executed eagerly.

    Args:
        training: Whether it is a training step.
        jit_compile: As `compile` was given it.
        is_compiled_by_keras: What Keras has made of it.
        is_distributed: Whether the model was made under a strategy.
        members: The model, then its networks and its likelihood; see `suits_xla`.
        trained: The variables that are trained.
        num_steps: The number of steps that training will have made; None if it is unknown.
    """
    num_weights = sum(math.prod(variable.shape) for variable in trained)
    if is_distributed:
        is_compiled_here = jit_compile is True
    else:
        is_open = jit_compile == "auto" and not is_compiled_by_keras and can_fuse()
        fits = cores.num_parts() == 1 or num_weights <= MOST_WEIGHTS_FOR_ONE_CORE
        is_worth_it = training and fits and not is_short(num_steps)
        is_compiled_here = is_open and is_worth_it and all(map(suits_xla, members))
    if is_compiled_here:
        return ExecutionPlan("here")
    if is_compiled_by_keras:
        return ExecutionPlan("keras")
    is_dense = all(len(variable.shape) <= 2 for variable in trained)
    is_light = is_dense and num_weights < FEWEST_WEIGHTS_TO_DIVIDE
    # Training may change other variables of networks (moving means), which parts would do at once.
    has_state = any(member.non_trainable_variables for member in members[1:])
    is_whole = is_light or (training and has_state) or not tf.inside_function()
    return ExecutionPlan("none", can_fuse(), 1 if is_whole else cores.num_parts())


def is_short(num_steps: int | None) -> bool:
    """Returns whether a training is too short for XLA's compilation to pay."""
    return num_steps is not None and num_steps < FEWEST_STEPS_TO_COMPILE


def jit_for_keras(jit_compile: JitCompile, is_distributed: bool) -> JitCompile:
    """Returns the `jit_compile` to give to Keras, which compiles a step as a whole or not at all.

    Under a strategy that would include the exchanges between replicas, which XLA cannot compile:
    there only what lies between them is compiled, by `ExecutionPlan.run`.
    """
    return False if is_distributed and jit_compile is True else jit_compile


def suits_xla(member: Any) -> bool:
    """Returns whether a model, a network or a likelihood is trained faster on a CPU by XLA.

    Its class says so by an attribute or a property `suits_xla`.
    """
    # An inherited one does not count: a subclass may use operations that XLA lacks.
    return "suits_xla" in vars(type(member)) and bool(member.suits_xla)
