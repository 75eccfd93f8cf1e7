"""Writing a model as ONNX files."""

import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

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

# Old enough for the runtimes that are about; erf, of which GELU is made, came with 9.
_OPSET = 17
_PACKAGES = ("tf2onnx", "onnx", "onnxruntime")


def export_onnx(
    model: MonteCarloVAE,
    path: str | os.PathLike[str],
    signatures: Sequence[str] = SIGNATURES,
    *,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes a trained model as ONNX files, `<path>/encode.onnx` and so on, one a signature.

    They hold what draws no random numbers. All tensors are `float32`; B is any number of rows, 0
    too, D the latent dimension, `...` the shape of one image:

    | Signature     | Inputs                         | Outputs                               |
    |---------------|--------------------------------|---------------------------------------|
    | `encode`      | `x [B, ...]`                   | `loc`, `scale`, both `[B, D]`         |
    | `decode`      | `z [B, D]`                     | `image [B, ...]`: mean of x given z   |
    | `reconstruct` | `x [B, ...]`, `noise [B, D]`   | `image [B, ...]`                      |

    `encode` and `decode` are those of `export_saved_model`. `reconstruct` gives the mean of x given

        z = loc(x) + scale(x) * noise,        in a `FlowVAE` z = T(loc(x) + scale(x) * noise);

    with noise of 0 that is the `reconstruct` of `export_saved_model`, with standard normal noise a
    reconstruction from a draw of the encoder's posterior. The transitions of an `LMCVAE` or
    `AMCVAE` do not come into it. As everywhere, `loc` and `scale` of a `FlowVAE` are before the
    flow, and `decode` takes what is after it.

    The files have operations of the ONNX standard alone (opset 17, IR version 8). Before they get
    their names they are checked by `onnx.checker`, opened in ONNX Runtime, and compared with the
    model. They make no checks of their inputs as served models do: NaN gives NaN.

    Args:
        model: A built model.
        path: The folder.
        signatures: Some of `"encode"`, `"decode"` and `"reconstruct"`.
        overwrite: Whether a folder that an export has written is replaced.

    Returns:
        The folder. It appears when it is complete.

    Raises:
        ImportError: If a package is missing that this takes: `pip install -e '.[onnx]'`.
        TypeError: If `model` is none of this package, or `path` no path.
        ValueError: If the model is not built; a signature draws random numbers, or is unknown; the
            networks draw random numbers outside of training, run Python code, ask for XLA, or hold
            an operation that ONNX lacks; or the folder exists or cannot be written.

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
    """Raises unless the packages are there that ONNX files take."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            "Writing and checking ONNX files takes further packages: `pip install -e '.[onnx]'` in "
            f"a copy of this repository, or `pip install {' '.join(missing)}`. "
            f"Received: no module named {', '.join(map(repr, missing))}"
        )


def _converted(name: str, function: Any) -> Any:
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
    except Exception as error:  # Of any kind: what no one thought of.
        raise ValueError(f"tf2onnx failed: {error}. Received: signature {name!r}") from error
    # What it cannot translate tf2onnx leaves in the graph, under TensorFlow's name.
    unknown = sorted({n.op_type for n in proto.graph.node if not _is_standard(n)})
    if unknown:
        raise ValueError(
            "ONNX has no such operation, or tf2onnx does not know how to write it: build the "
            f"networks without it. Received: {', '.join(unknown)} in signature {name!r}"
        )
    for tensor in (*proto.graph.input, *proto.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "B"
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(
            "tf2onnx has made an invalid file, as may be where networks are not in float32: "
            f"{error}. Received: signature {name!r}"
        ) from error
    return proto


def _write_erfc(graph: Any, node: Any, *_: Any) -> None:
    """Writes `1 - erf(x)` for `erfc(x)`, of which Keras's GELU is made and which tf2onnx lacks."""
    shapes, dtypes = node.output_shapes, node.output_dtypes
    graph.remove_node(node.name)
    one = graph.make_const(f"{node.name}_one", np.array(1.0, np.float32))
    erf = graph.make_node("Erf", node.input)
    outputs = {"name": node.name, "outputs": node.output, "shapes": shapes, "dtypes": dtypes}
    graph.make_node("Sub", [one.output[0], erf.output[0]], **outputs)


def _is_standard(node: Any) -> bool:
    import onnx

    return node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type, _OPSET)


def _runner(contents: dict[str, bytes]) -> Any:
    """Returns what runs a signature in ONNX Runtime."""
    import onnxruntime

    def run(name: str, feed: Arrays) -> Arrays:
        session = onnxruntime.InferenceSession(contents[name])
        keys = [output.name for output in session.get_outputs()]
        return dict(zip(keys, session.run(keys, dict(feed)), strict=True))

    return run
