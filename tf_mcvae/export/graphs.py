"""Checks that a server, or another runtime, can run every operation of a graph."""

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.types.experimental import ConcreteFunction

# These run in the Python process that made the graph. A file refers to their code by a number.
_PYTHON_OPS = ("EagerPyFunc", "PyFunc", "PyFuncStateless")
# The attribute that `jit_compile=True` sets. TensorFlow Serving disables XLA on CPUs.
_XLA_MARK = "_XlaMustCompile"
_RANDOM = re.compile(
    "Random|Rng|Multinomial|TruncatedNormal|StatefulUniform|StatefulStandardNormal"
)
_NO_PYTHON = (
    "A server or another runtime has no Python: use TensorFlow operations in place of "
    "`tf.py_function` and `tf.numpy_function`."
)
_NO_XLA = (
    "A server or another runtime does not compile with XLA: remove `jit_compile=True` from the "
    "networks."
)


def check_servable(
    model: str | os.PathLike[str] | ConcreteFunction, allow_xla: bool = False
) -> None:
    """Checks that a graph runs in a server: it contains no Python code and does not need XLA.

    TensorFlow writes a SavedModel that calls `tf.py_function` or `tf.numpy_function` without an
    error, but the model only runs in the process that wrote it. Functions with `jit_compile=True`
    fail in TensorFlow Serving, which disables XLA on CPUs.

    Args:
        model: The folder of a SavedModel (with the file `saved_model.pb`), or a concrete function.
        allow_xla: Whether to accept functions with `jit_compile=True`, for a server that is started
            with `--xla_cpu_compilation_enabled`.

    Raises:
        TypeError: If `model` is neither a folder nor a concrete function.
        ValueError: If there is no SavedModel in the folder, or an operation cannot be served. The
            message names the operation and its function.
    """
    bodies = [body for found in _graph_defs(model) for body in _bodies(*found)]
    for where, nodes, _ in bodies:
        for node in nodes:
            place = f"op {node.op!r} (node {node.name!r} in {where!r})"
            if node.op in _PYTHON_OPS:
                raise ValueError(f"{_NO_PYTHON} Received: {place}")
            if node.attr[_XLA_MARK].b and not allow_xla:
                raise ValueError(f"{_NO_XLA} Received: {_XLA_MARK!r} on {place}")
    # The call of a marked function is usually marked too, and its message above tells more.
    for where, _, marks in bodies:
        if marks[_XLA_MARK].b and not allow_xla:
            raise ValueError(f"{_NO_XLA} Received: {_XLA_MARK!r} on function {where!r}")


def check_portable(function: ConcreteFunction) -> None:
    """Checks that a graph contains no Python code, XLA or random numbers, which need TensorFlow.

    Args:
        function: A concrete function.

    Raises:
        ValueError: If there is such an operation. The message names it.
    """
    check_servable(function)
    for where, nodes, _ in (body for found in _graph_defs(function) for body in _bodies(*found)):
        for node in nodes:
            if _RANDOM.search(node.op):
                raise ValueError(
                    "Random numbers can only be drawn in TensorFlow: outside of training, the "
                    "networks must be functions of their inputs. "
                    f"Received: op {node.op!r} (node {node.name!r} in {where!r})"
                )


def _graph_defs(
    model: str | os.PathLike[str] | ConcreteFunction,
) -> list[tuple[str, tf.compat.v1.GraphDef]]:
    """Returns the names and graphs of a SavedModel's folder or of a concrete function."""
    if hasattr(model, "graph") and hasattr(model.graph, "as_graph_def"):
        return [(model.graph.name, model.graph.as_graph_def())]
    if not isinstance(model, str | os.PathLike):
        raise TypeError(
            "`model` must be the folder of a SavedModel, or a concrete function. "
            f"Received: {type(model).__name__}"
        )
    try:
        content = (pathlib.Path(model) / "saved_model.pb").read_bytes()
        meta_graphs = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    except OSError as error:
        raise ValueError(
            f"The folder must hold a SavedModel's 'saved_model.pb': {error}. "
            f"Received: {str(model)!r}"
        ) from error
    return [("the main graph", meta_graph.graph_def) for meta_graph in meta_graphs]


def _bodies(name: str, graph_def: tf.compat.v1.GraphDef) -> Iterator[tuple[str, Any, Any]]:
    """Yields the name, nodes and attributes of a graph and of all its functions."""
    yield name, graph_def.node, tf.compat.v1.NodeDef().attr
    for function in graph_def.library.function:
        yield function.signature.name, function.node_def, function.attr
