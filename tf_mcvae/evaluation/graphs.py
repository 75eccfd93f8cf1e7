"""Graphs of evaluations, each compiled once and kept with its model.

A graph reads the model's weights when it runs, so that training between two evaluations needs no
new one. It depends on the settings that are Python values, and on the model's layers and their
options; where one of these has changed, another graph is made.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_mcvae.models import MonteCarloVAE
from tf_mcvae.performance.fusion import fusing_graph

# Number of graphs that a model keeps; the oldest is dropped for a further one.
_MOST_GRAPHS = 16


class _Graphs:
    """The graphs of a model, by what they depend on. A copy of the model starts without any."""

    def __init__(self) -> None:
        self.made: dict[Hashable, tuple[Callable[..., Any], Any]] = {}
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[type["_Graphs"], tuple[()]]:
        return _Graphs, ()


def graph_of(
    function: Callable[..., Any],
    model: MonteCarloVAE,
    *settings: Hashable,
    signature: Sequence[Any],
) -> Callable[..., Any]:
    """Returns `function(model, *settings, *tensors)` as a graph of the tensors.

    The graph is freed with the model.

    Args:
        function: A function of a module. A closure would be compiled anew at each call.
        model: The model, built.
        *settings: Python values.
        signature: The specs of the tensors.
    """
    # Set past Keras, which would track an attribute.
    graphs = model.__dict__.setdefault("_evaluation_graphs", _Graphs())
    variables = [variable.value for variable in model.weights]
    key = (function, settings, tuple(signature), _options(model), tuple(map(id, variables)))
    call = functools.partial(function, model, *settings)
    if tf.config.functions_run_eagerly():
        return call
    with graphs.lock:
        if key not in graphs.made:
            # Traced here and not in a call: TensorFlow would take the graphs of several models for
            # those of one function, and warn of its retracing.
            graph = fusing_graph(call, list(signature)).get_concrete_function()
            while len(graphs.made) >= _MOST_GRAPHS:
                graphs.made.pop(next(iter(graphs.made)))
            # Kept with the variables: Python gives the identity of a freed object to another.
            graphs.made[key] = graph, variables
        return graphs.made[key][0]


def _options(model: keras.Layer) -> tuple[Any, ...]:
    """Returns the layers of a model and the arguments of their constructors."""
    return tuple((layer, *_arguments(layer)) for layer in _layers(model))


def _layers(layer: keras.Layer) -> Iterator[keras.Layer]:
    yield layer
    for inner in getattr(layer, "layers", ()):
        yield from _layers(inner)


def _arguments(layer: keras.Layer) -> Iterator[Any]:
    """Yields the arguments of a layer's constructor, which a layer keeps under their names.

    Functions and plain values are compared, and only the types of others: a variable's value may
    change without a new graph.
    """
    for name in inspect.signature(type(layer).__init__).parameters:
        value = getattr(layer, name, None)
        if callable(value) and isinstance(value, Hashable):
            yield value
        else:
            is_plain = isinstance(value, bool | int | float | str | tuple | list | None)
            yield repr(value) if is_plain else type(value)
