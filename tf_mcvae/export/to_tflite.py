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

from tf_mcvae.export.arguments import check_model
from tf_mcvae.export.portable import (
    SIGNATURES,
    Arrays,
    check_answers,
    check_signatures,
    taking,
    traced,
)
from tf_mcvae.models import MonteCarloVAE


def export_tflite(
    model: MonteCarloVAE,
    path: str | os.PathLike[str],
    signatures: Sequence[str] = SIGNATURES,
    *,
    float16: bool = False,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes a trained model as one TFLite (LiteRT) file with several signatures.

    The signatures, their tensors and what they compute are those of `export_onnx`, which see.
    Weights that signatures share are stored once. The file has TFLite's own operations alone: it
    runs in any of its runtimes without the Flex delegate (TensorFlow's kernels).

    The number of rows B is 1 until the inputs are resized; the signature runners of Python do so
    on every call. B = 0 is not known to TFLite.

    Args:
        model: A built model.
        path: The file, such as `"digits.tflite"`.
        signatures: Some of `"encode"`, `"decode"` and `"reconstruct"`.
        float16: Whether weights are stored in half precision, in a file of half the size; inputs,
            outputs and most runtimes' arithmetic stay `float32`.
        overwrite: Whether an existing file is replaced.

    Returns:
        The path. The file appears when it is complete, after it has been run and compared with the
        model.

    Raises:
        TypeError: If `model` is none of this package, or `path` no path.
        ValueError: If the model is not built; a signature draws random numbers, or is unknown; the
            networks draw random numbers outside of training, run Python code, ask for XLA, or hold
            an operation that TFLite lacks; or the file exists or cannot be written.

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


def _converted(functions: dict[str, Any], float16: bool) -> bytes:
    """Returns the content of a file."""
    concrete = {name: function.get_concrete_function() for name, function in functions.items()}
    module = tf.Module()
    module.state = list({id(v): v for f in concrete.values() for v in f.graph.variables}.values())
    with tempfile.TemporaryDirectory() as folder:
        # Only from a file does the converter take several signatures.
        tf.saved_model.save(module, folder, concrete)
        _prepare(pathlib.Path(folder) / "saved_model.pb")
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, list(concrete))
        if float16:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except Exception as error:  # Of several kinds.
            raise ValueError(_refusal(str(error))) from error


def _refusal(error: str) -> str:
    """Returns what a user needs of the converter's message of many lines."""
    lacking = re.findall(r"^(?:TF Select|Custom) ops: (.*)$", error, re.MULTILINE)
    lacking = lacking or re.findall(r"error: .*('tf\.\w+' op .*)", error)
    return (
        "TFLite has no such operation, or not in this form: build the networks without it, and in "
        f"float32. Received: {', '.join(lacking) or error.splitlines()[0]}"
    )


def _runner(content: bytes) -> Any:
    """Returns what runs a signature in TensorFlow's own TFLite interpreter."""
    with warnings.catch_warnings():
        # That it moves to a package of its own. Here it is the one that need not be installed.
        warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated")
        interpreter = tf.lite.Interpreter(model_content=content)

    def run(name: str, feed: Arrays) -> Arrays:
        return interpreter.get_signature_runner(name)(**feed)

    return run


# The error function, which TFLite has only within its GELU.


@tf.function(input_signature=[tf.TensorSpec(None, tf.float32)], autograph=False)
def _erf(x: tf.Tensor) -> tf.Tensor:
    """Computes the error function, to 5e-7.

    Reference:
        Abramowitz and Stegun, Handbook of Mathematical Functions, 1964, formula 7.1.26.
    """
    t = 1.0 / (1.0 + 0.3275911 * tf.abs(x))
    polynomial = tf.zeros_like(x)
    for a in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        polynomial = t * (a + polynomial)
    return tf.sign(x) * (1.0 - polynomial * tf.exp(-x * x))


def _prepare(path: pathlib.Path) -> None:
    """Puts `_erf` into a SavedModel's graphs where the converter does not know what to do."""
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    erf = _erf.get_concrete_function().function_def
    for library in (graph.graph_def.library for graph in saved.meta_graphs):
        for function in library.function:
            # `x/2 (1 + erf(...))` becomes GELU: an erf to which something is added is left alone.
            added = {i.split(":")[0] for n in function.node_def if n.op == "AddV2" for i in n.input}
            for node in function.node_def:
                # Nobody differentiates the file, and loading it would warn of what is not there.
                node.attr.pop("_gradient_op_type", None)
                if _is_single_erf(node) and node.name not in added:
                    node.op = erf.signature.name
                    node.attr.clear()
        library.function.append(erf)
        output = library.function[-1].signature.output_arg[0]
        library.function[-1].ret["y"] = library.function[-1].ret.pop(output.name)
        output.name = "y"  # As that of the operation `Erf`.
    path.write_bytes(saved.SerializeToString())


def _is_single_erf(node: Any) -> bool:
    return node.op == "Erf" and node.attr["T"].type == tf.float32.as_datatype_enum
