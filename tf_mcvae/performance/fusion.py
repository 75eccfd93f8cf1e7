"""Chains of small operations as single loops, in graphs that XLA does not compile as a whole.

A graph runs each operation as a pass over memory of its own. XLA makes one loop of a chain, but its
convolutions are slow on CPUs. Within `fusing()`, therefore, XLA compiles each of the functions that
are marked here, and their derivatives, but not the graph around them. Exported graphs are not
fused, since TensorFlow Serving refuses what XLA is to compile.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

_fused_graph: contextvars.ContextVar[tf.Graph | None] = contextvars.ContextVar(
    "fused_graph", default=None
)


@contextlib.contextmanager
def fusing() -> Iterator[None]:
    """Fuses the graph that is being made, and the bodies of its loops and branches.

    It does nothing eagerly or on a machine with a GPU. A `tf.function` that is called within is not
    fused: TensorFlow keeps its trace and calls it again elsewhere, for example in exported graphs.
    """
    token = _fused_graph.set(tf.compat.v1.get_default_graph() if can_fuse() else None)
    try:
        yield
    finally:
        _fused_graph.reset(token)


def can_fuse() -> bool:
    """Returns whether a graph is being made for a CPU that XLA can compile for."""
    return tf.inside_function() and not tf.config.get_visible_devices("GPU") and _has_xla()


def is_fusing() -> bool:
    """Returns whether the graph that is being made is fused."""
    if _fused_graph.get() is None:
        return False
    graph = tf.compat.v1.get_default_graph()
    while getattr(graph, "is_control_flow_graph", False):
        graph = graph.outer_graph
    return graph is _fused_graph.get()


def fusing_graph(function: Callable[..., Any], input_signature: Any = None) -> Any:
    """Returns `tf.function(function, input_signature)`, within `fusing()`, without AutoGraph."""

    def within(*args: Any) -> Any:
        with fusing():
            return function(*args)

    return tf.function(within, input_signature, autograph=False)


@functools.cache
def _has_xla() -> bool:
    """Returns whether this TensorFlow can compile for the CPU; on some platforms it cannot."""
    try:
        with tf.init_scope():
            tf.function(tf.identity, jit_compile=True)(tf.zeros([1]))
    except (tf.errors.OpError, ValueError):
        return False
    return True


def fused(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Marks a function of tensors, whose gradients it does not change, to be one loop."""
    compiled = _compiled(function)
    return lambda *args: (compiled if is_fusing() else function)(*args)


def fused_elementwise(function: Callable[[tf.Tensor], tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Marks an elementwise function to be one loop over images, as are its derivatives.

    The outputs `[N, D]` of dense layers stay operations: calling a loop would cost more than it
    saves.

    Args:
        function: Maps a tensor to one of the same shape, each element on its own.

    Returns:
        The function. Its value is one loop, and so is each of its derivatives, of any order, times
        the upstream gradient.
    """
    loop = _with_derivatives(lambda x: [function(x)])

    def call(x: tf.Tensor) -> tf.Tensor:
        if not is_fusing() or x.shape.rank < 3:
            return function(x)
        # XLA divides loops among cores best if they run over a vector.
        outputs = tf.reshape(loop(tf.reshape(x, [-1]))[0], tf.shape(x))
        outputs.set_shape(x.shape)
        return outputs

    return call


def _with_derivatives(function: Callable[..., list[tf.Tensor]]) -> Callable[..., Any]:
    """Returns a function of tensors, compiled, whose derivatives are compiled too."""
    compiled = _compiled(function)

    @functools.cache
    def pullback(num_inputs: int) -> Callable[..., Any]:
        """Returns the vector-Jacobian products: of upstream gradients, for each input."""

        def products(*args: tf.Tensor) -> list[tf.Tensor]:
            inputs, upstream = args[:num_inputs], args[num_inputs:]
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = function(*inputs)
            gradients = tape.gradient(outputs, inputs, upstream, tf.UnconnectedGradients.ZERO)
            return list(gradients)

        return _with_derivatives(products)

    @tf.custom_gradient
    def call(*args: tf.Tensor) -> Any:
        def grad(*upstream: tf.Tensor) -> list[tf.Tensor]:
            return pullback(len(args))(*args, *upstream)

        return compiled(*args), grad

    return call


def _compiled(function: Callable[..., Any]) -> Any:
    return tf.function(function, jit_compile=True, autograph=False)
