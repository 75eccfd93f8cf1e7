"""Writing a model as a TFLite (LiteRT) file."""

import os
import pathlib
import re
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.types.experimental import PolymorphicFunction

from tf_mcvae.export.arguments import check_model
from tf_mcvae.export.portable import (
    SIGNATURES,
    Arrays,
    Run,
    Signature,
    check_answers,
    check_signatures,
    taking,
    traced,
)
from tf_mcvae.models import MonteCarloVAE


def export_tflite(
    model: MonteCarloVAE,
    path: str | os.PathLike[str],
    signatures: Sequence[Signature] = SIGNATURES,
    *,
    float16: bool = False,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes a trained model as one TFLite (LiteRT) file with several signatures.

    The signatures and their tensors are documented in `export_onnx`. Weights that signatures share
    are stored once. The file contains only TFLite's own operations, so it runs in any TFLite
    runtime without the Flex delegate (TensorFlow's kernels).

    The number of rows B is 1 until the inputs are resized, which Python's signature runners do at
    every call. TFLite does not support B = 0.

    Args:
        model: A built model.
        path: The file, such as `"digits.tflite"`.
        signatures: One or more of `"encode"`, `"decode"` and `"reconstruct"`.
        float16: Whether to store weights in half precision, which halves the file size. Inputs,
            outputs and the arithmetic of most runtimes stay in `float32`.
        overwrite: Whether to replace an existing file.

    Returns:
        The path. The file is complete when it appears, and has been run and compared with the
        model.

    Raises:
        TypeError: If `model` is not a tf_mcvae model, or `path` is not a path.
        ValueError: If the model is not built; a signature draws random numbers or is unknown; the
            networks draw random numbers outside of training, run Python code, require XLA, or
            contain an operation that TFLite lacks; or the file exists or cannot be written.

    Example:
        >>> import tempfile, tf_mcvae
        >>> from tf_mcvae.export import export_tflite
        >>> model = tf_mcvae.VAE(
        ...     tf_mcvae.Encoder(2, architecture="dense"),
        ...     tf_mcvae.Decoder((8, 8, 1), architecture="dense"),
        ... )
        >>> model.build((None, 8, 8, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_tflite(model, f"{folder}/digits.tflite", ["decode"])
        ...     path.name
        'digits.tflite'
    """
    check_model(model)
    check_signatures(signatures)
    with taking(path, "file", overwrite) as temporary:
        content = _converted(traced(model, signatures), float16)
        check_answers(model, signatures, _runner(content), rtol=0.05 if float16 else 1e-3)
        temporary.write_bytes(content)
    return pathlib.Path(path)


def _converted(functions: dict[str, PolymorphicFunction], float16: bool) -> bytes:
    """Returns the content of the file."""
    concrete = {name: function.get_concrete_function() for name, function in functions.items()}
    module = tf.Module()
    module.state = list({id(v): v for f in concrete.values() for v in f.graph.variables}.values())
    with tempfile.TemporaryDirectory() as folder:
        # The converter accepts several signatures only from a SavedModel.
        tf.saved_model.save(module, folder, concrete)
        _prepare(pathlib.Path(folder) / "saved_model.pb")
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, list(concrete))
        if float16:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except Exception as error:  # The converter raises errors of several classes.
            raise ValueError(_refusal(str(error))) from error


def _refusal(error: str) -> str:
    """Returns a short form of the converter's message, which has many lines."""
    lacking = re.findall(r"^(?:TF Select|Custom) ops: (.*)$", error, re.MULTILINE)
    lacking = lacking or re.findall(r"error: .*('tf\.\w+' op .*)", error)
    return (
        "TFLite has no such operation, or not for these inputs: build the networks without it, in "
        f"float32. Received: {', '.join(lacking) or error.splitlines()[0]}"
    )


def _runner(content: bytes) -> Run:
    """Returns a function that runs a signature in TensorFlow's TFLite interpreter."""
    with warnings.catch_warnings():
        # TensorFlow recommends the package ai-edge-litert, which this would otherwise depend on.
        warnings.filterwarnings("ignore", "(?s).*use the LiteRT interpreter")
        interpreter = tf.lite.Interpreter(model_content=content)

    def run(name: str, feed: Arrays) -> Arrays:
        return interpreter.get_signature_runner(name)(**feed)

    return run


@tf.function(input_signature=[tf.TensorSpec(None, tf.float32)], autograph=False)
def _erf(x: tf.Tensor) -> tf.Tensor:
    """Computes the error function, with an absolute error below 5e-7.

    TFLite implements it only as a part of its GELU.

    Reference:
        Abramowitz and Stegun, Handbook of Mathematical Functions, 1964, formula 7.1.26.
    """
    t = 1.0 / (1.0 + 0.3275911 * tf.abs(x))
    polynomial = tf.zeros_like(x)
    for a in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        polynomial = t * (a + polynomial)
    return tf.sign(x) * (1.0 - polynomial * tf.exp(-x * x))


def _prepare(path: pathlib.Path) -> None:
    """Replaces the operations `Erf` of a SavedModel that the converter cannot translate."""
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    erf = _erf.get_concrete_function().function_def
    for library in (graph.graph_def.library for graph in saved.meta_graphs):
        for function in library.function:
            # The converter turns `x/2 (1 + erf(...))` into GELU, so an erf in a sum is kept.
            added = {i.split(":")[0] for n in function.node_def if n.op == "AddV2" for i in n.input}
            for node in function.node_def:
                # The file is never differentiated, and missing gradients would cause warnings.
                node.attr.pop("_gradient_op_type", None)
                if _is_single_erf(node) and node.name not in added:
                    node.op = erf.signature.name
                    node.attr.clear()
        library.function.append(erf)
        output = library.function[-1].signature.output_arg[0]
        library.function[-1].ret["y"] = library.function[-1].ret.pop(output.name)
        output.name = "y"  # The name of the output of the operation `Erf`.
    path.write_bytes(saved.SerializeToString())


def _is_single_erf(node: Any) -> bool:
    return node.op == "Erf" and node.attr["T"].type == tf.float32.as_datatype_enum
