"""Writing a model as ONNX files."""

import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
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

# Old enough for common runtimes. GELU needs erf, which opset 9 introduced.
_OPSET = 17
_PACKAGES = ("tf2onnx", "onnx", "onnxruntime")


def export_onnx(
    model: MonteCarloVAE,
    path: str | os.PathLike[str],
    signatures: Sequence[Signature] = SIGNATURES,
    *,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes a trained model as ONNX files, one for each signature: `<path>/encode.onnx` etc.

    Only signatures that draw no random numbers can be exported. All tensors are `float32`. B is any
    number of rows, including 0, D the latent dimension, and `...` the shape of one image:

    | Signature     | Inputs                         | Outputs                               |
    |---------------|--------------------------------|---------------------------------------|
    | `encode`      | `x [B, ...]`                   | `loc`, `scale`, both `[B, D]`         |
    | `decode`      | `z [B, D]`                     | `image [B, ...]`: mean of x given z   |
    | `reconstruct` | `x [B, ...]`, `noise [B, D]`   | `image [B, ...]`                      |

    `encode` and `decode` are those of `export_saved_model`. `reconstruct` returns the mean of x
    given

        z = loc(x) + scale(x) * noise,        in a `FlowVAE` z = T(loc(x) + scale(x) * noise).

    With noise of 0 it equals the `reconstruct` of `export_saved_model`, and with standard normal
    noise it is a reconstruction from a draw of the encoder's posterior. It does not run the
    transitions of models that have them. The `loc` and `scale` of a `FlowVAE` are before the flow,
    and its `decode` takes latents after the flow.

    The files contain only operations of the ONNX standard (opset 17, IR version 8). Before the
    folder is put in place, the files are checked by `onnx.checker`, run in ONNX Runtime, and
    compared with the model. Unlike served models they do not check their inputs: NaN gives NaN.

    Args:
        model: A built model.
        path: The folder.
        signatures: One or more of `"encode"`, `"decode"` and `"reconstruct"`.
        overwrite: Whether to replace a folder that an earlier export has written.

    Returns:
        The folder. It never holds incomplete content.

    Raises:
        ImportError: If a package that ONNX export needs is missing: `pip install -e '.[onnx]'`.
        TypeError: If `model` is not a tf_mcvae model, or `path` is not a path.
        ValueError: If the model is not built; a signature draws random numbers or is unknown; the
            networks draw random numbers outside of training, run Python code, require XLA, or
            contain an operation that ONNX lacks; or the folder exists or cannot be written.

    Example:
        >>> import tempfile, tf_mcvae, onnxruntime
        >>> from tf_mcvae.export import export_onnx
        >>> model = tf_mcvae.VAE(
        ...     tf_mcvae.Encoder(2, architecture="dense"),
        ...     tf_mcvae.Decoder((8, 8, 1), architecture="dense"),
        ... )
        >>> model.build((None, 8, 8, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_onnx(model, f"{folder}/onnx", ["decode"]) / "decode.onnx"
        ...     session = onnxruntime.InferenceSession(path)
        >>> session.run(["image"], {"z": [[0.5, 1.0], [0.0, 0.0]]})[0].shape
        (2, 8, 8, 1)
    """
    check_onnx_packages()
    check_model(model)
    check_signatures(signatures)
    names = [f"{name}.onnx" for name in SIGNATURES]
    with taking(path, "folder", overwrite, names) as temporary:
        functions = traced(model, signatures)
        protos = {name: _converted(name, function) for name, function in functions.items()}
        contents = {name: proto.SerializeToString() for name, proto in protos.items()}
        check_answers(model, signatures, _runner(contents), rtol=1e-3)
        temporary.mkdir()
        for name, content in contents.items():
            (temporary / f"{name}.onnx").write_bytes(content)
    return pathlib.Path(path)


def check_onnx_packages() -> None:
    """Raises unless the packages that ONNX export needs are installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            "Writing and checking ONNX files needs more packages: `pip install -e '.[onnx]'` in a "
            f"copy of this repository, or `pip install {' '.join(missing)}`. "
            f"Received: no module named {', '.join(map(repr, missing))}"
        )


def _converted(name: str, function: PolymorphicFunction) -> Any:
    """Returns a function as a valid `onnx.ModelProto`."""
    import onnx
    import tf2onnx

    try:
        proto, _ = tf2onnx.convert.from_function(
            function,
            function.input_signature,
            opset=_OPSET,
            custom_op_handlers={"Erfc": (_write_erfc, [])},
        )
    except Exception as error:  # tf2onnx has no error class of its own.
        raise ValueError(f"tf2onnx failed: {error}. Received: signature {name!r}") from error
    # tf2onnx leaves operations that it cannot translate in the graph, under TensorFlow's names.
    unknown = sorted({n.op_type for n in proto.graph.node if not _is_standard(n)})
    if unknown:
        raise ValueError(
            "ONNX has no such operation, or tf2onnx cannot translate it: build the networks "
            f"without it. Received: {', '.join(unknown)} in signature {name!r}"
        )
    for tensor in (*proto.graph.input, *proto.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "B"
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(
            "tf2onnx has made an invalid file, which can happen if networks are not in float32: "
            f"{error}. Received: signature {name!r}"
        ) from error
    return proto


def _write_erfc(graph: Any, node: Any, *_: Any) -> None:
    """Writes `erfc(x)`, which Keras' GELU uses and tf2onnx lacks, as `1 - erf(x)`."""
    shapes, dtypes = node.output_shapes, node.output_dtypes
    graph.remove_node(node.name)
    one = graph.make_const(f"{node.name}_one", np.array(1.0, np.float32))
    erf = graph.make_node("Erf", node.input)
    outputs = {"name": node.name, "outputs": node.output, "shapes": shapes, "dtypes": dtypes}
    graph.make_node("Sub", [one.output[0], erf.output[0]], **outputs)


def _is_standard(node: Any) -> bool:
    import onnx

    return node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type, _OPSET)


def _runner(contents: dict[str, bytes]) -> Run:
    """Returns a function that runs a signature in ONNX Runtime."""
    import onnxruntime

    def run(name: str, feed: Arrays) -> Arrays:
        session = onnxruntime.InferenceSession(contents[name])
        keys = [output.name for output in session.get_outputs()]
        return dict(zip(keys, session.run(keys, dict(feed)), strict=True))

    return run
