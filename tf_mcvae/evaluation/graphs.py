"""Graphs of evaluations, each compiled once and kept with its model.

A graph reads the model's weights when it runs, so that training between two evaluations needs no
new one. It depends on the settings that are Python values, and on the options of the model and the
attributes of its layers; where one of these has changed, another graph is made.
"""

import functools
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tf_mcvae.models import MonteCarloVAE
from tf_mcvae.models.advice import all_layers
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
    state = list(_state(model))
    key = (function, settings, tuple(signature), *map(_identity, state))
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
            # Kept with the state: Python gives the identity of a freed object to another.
            graphs.made[key] = graph, state
        return graphs.made[key][0]


def _state(model: MonteCarloVAE) -> Iterator[Any]:
    """Yields what a graph of the model depends on: options, attributes of layers, variables."""
    yield from (getattr(model, name) for name in model.changeable)
    for layer in all_layers(model):
        yield layer
        if layer is not model:  # Training sets attributes of a model that no graph depends on.
            yield from (value for name, value in vars(layer).items() if not name.startswith("_"))
    yield from (variable.value for variable in model.weights)


def _identity(value: Any) -> Hashable:
    """Returns what is equal for two values if a graph cannot tell them apart."""
    if isinstance(value, bool | int | float | str | None):
        return type(value), value
    return repr(value) if isinstance(value, list | tuple | dict) else id(value)
