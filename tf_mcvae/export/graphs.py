"""Checks that a graph holds nothing that a server, or another runtime, cannot run."""

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

# Runs in the Python process that made the graph: it is in the file as a number, not as code.
_PYTHON_OPS = ("EagerPyFunc", "PyFunc", "PyFuncStateless")
# Marks what `jit_compile=True` was asked of. TensorFlow Serving has XLA switched off on CPUs.
_XLA_MARK = "_XlaMustCompile"
_RANDOM = re.compile(
    "Random|Rng|Multinomial|TruncatedNormal|StatefulUniform|StatefulStandardNormal"
)
_NO_PYTHON = (
    "A server has no Python, nor has another runtime: write with TensorFlow operations what calls "
    "`tf.py_function` or `tf.numpy_function`."
)
_NO_XLA = (
    "A server or another runtime compiles nothing with XLA: do without `jit_compile=True` in the "
    "networks."
)


def check_servable(model: Any, allow_xla: bool = False) -> None:
    """Checks that a graph runs in a server: no Python code in it, nothing that needs XLA.

    A SavedModel is written without complaint if it calls `tf.py_function` or `tf.numpy_function`,
    and cannot run outside the process that wrote it. Functions of `jit_compile=True` fail in
    TensorFlow Serving, which has XLA switched off on CPUs.

    Args:
        model: The folder of a SavedModel (the one that holds `saved_model.pb`), or a concrete
            function.
        allow_xla: Whether functions of `jit_compile=True` pass, for a server that was started with
            `--xla_cpu_compilation_enabled`.

    Raises:
        TypeError: If `model` is neither.
        ValueError: If there is no SavedModel in the folder, or an operation cannot be served; the
            message names it and the function that it is in.
    """
    bodies = [body for found in _graph_defs(model) for body in _bodies(*found)]
    for where, nodes, _ in bodies:
        for node in nodes:
            place = f"op {node.op!r} (node {node.name!r} in {where!r})"
            if node.op in _PYTHON_OPS:
                raise ValueError(f"{_NO_PYTHON} Received: {place}")
            if node.attr[_XLA_MARK].b and not allow_xla:
                raise ValueError(f"{_NO_XLA} Received: {_XLA_MARK!r} on {place}")
    # The call of a marked function is marked, as a rule, and tells more.
    for where, _, marks in bodies:
        if marks[_XLA_MARK].b and not allow_xla:
            raise ValueError(f"{_NO_XLA} Received: {_XLA_MARK!r} on function {where!r}")


def check_portable(function: Any) -> None:
    """Checks that nothing in a graph is bound to TensorFlow: Python code, XLA, random numbers.

    Args:
        function: A concrete function.

    Raises:
        ValueError: If there is such an operation; the message names it.
    """
    check_servable(function)
    for where, nodes, _ in (body for found in _graph_defs(function) for body in _bodies(*found)):
        for node in nodes:
            if _RANDOM.search(node.op):
                raise ValueError(
                    "Random numbers can be drawn in TensorFlow alone: outside of training let the "
                    "networks be functions of their inputs. "
                    f"Received: op {node.op!r} (node {node.name!r} in {where!r})"
                )


def _graph_defs(model: Any) -> list[tuple[str, Any]]:
    """Returns the graphs, with names, of a SavedModel's folder or of a concrete function."""
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


def _bodies(name: str, graph_def: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yields name, nodes and attributes of a graph and of all functions in it."""
    yield name, graph_def.node, tf.compat.v1.NodeDef().attr
    for function in graph_def.library.function:
        yield function.signature.name, function.node_def, function.attr
