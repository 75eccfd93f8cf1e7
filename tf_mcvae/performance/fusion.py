"""Chains of small operations as single loops, in graphs that XLA does not compile as a whole.

A graph runs each operation as a pass over memory of its own. XLA makes one loop of a chain, but its
convolutions are slow on CPUs. So within `fusing()` the functions that are marked here, and their
derivatives, are compiled by XLA each, and the graph around them is not. They are not in graphs
that are exported, since TensorFlow Serving refuses what XLA is to compile.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

_is_fusing = contextvars.ContextVar("is_fusing", default=False)


@contextlib.contextmanager
def fusing() -> Iterator[None]:
    """Fuses in the graph that is being made; not on a machine with a GPU, nor eagerly."""
    token = _is_fusing.set(can_fuse())
    try:
        yield
    finally:
        _is_fusing.reset(token)


def can_fuse() -> bool:
    """Returns whether a graph is being made for a CPU that XLA can compile for."""
    return tf.inside_function() and not tf.config.get_visible_devices("GPU") and _has_xla()


def is_fusing() -> bool:
    """Returns whether the graph that is being made is fused."""
    return _is_fusing.get()


def fusing_graph(function: Callable[..., Any], input_signature: Any = None) -> Any:
    """Returns `tf.function(function, input_signature)`, within `fusing()`, without AutoGraph."""

    def within(*args: Any) -> Any:
        with fusing():
            return function(*args)

    return tf.function(within, input_signature, autograph=False)


@functools.cache
def _has_xla() -> bool:
    """Returns whether this TensorFlow can compile for the CPU, which not all platforms' can."""
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

    A dense layer's numbers `[N, D]` are too few for what calling a loop costs.

    Args:
        function: Maps a tensor to one of the same shape, each element for itself.

    Returns:
        The function; its value and the derivatives of each order, times what flows back, are a loop
        each.
    """
    loop = _with_derivatives(lambda x: [function(x)])

    def call(x: tf.Tensor) -> tf.Tensor:
        if not is_fusing() or x.shape.rank < 3:
            return function(x)
        # Of a vector XLA's loops are divided among cores best.
        outputs = tf.reshape(loop(tf.reshape(x, [-1]))[0], tf.shape(x))
        outputs.set_shape(x.shape)
        return outputs

    return call


def _with_derivatives(function: Callable[..., list[tf.Tensor]]) -> Callable[..., Any]:
    """Returns a function of tensors, compiled, whose derivatives are compiled too."""
    compiled = _compiled(function)

    @functools.cache
    def pullback(num_inputs: int) -> Callable[..., Any]:
        """Returns the products of what flows back and the derivatives by each of the inputs."""

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
