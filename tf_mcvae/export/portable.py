"""Signatures that runtimes other than TensorFlow can run: those that draw no random numbers."""

import contextlib
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from tensorflow.types.experimental import PolymorphicFunction

from tf_mcvae.export.arguments import cannot_be_written, check_path
from tf_mcvae.export.graphs import check_portable
from tf_mcvae.export.rows import Outputs
from tf_mcvae.files import replacing
from tf_mcvae.models import MonteCarloVAE

Signature = Literal["encode", "decode", "reconstruct"]
SIGNATURES: tuple[Signature, ...] = ("encode", "decode", "reconstruct")
ONLY_SERVED = (
    "posterior_sample",
    "posterior_samples",
    "generate",
    "log_likelihood",
    "anomaly_score",
)

# Inputs and outputs of a signature, by name.
Arrays = Mapping[str, np.ndarray[Any, Any]]
Run = Callable[[str, Arrays], Arrays]


def check_signatures(signatures: Sequence[Signature]) -> None:
    """Raises unless `signatures` are different signatures that other runtimes can run."""
    names: list[str] = list(signatures) if isinstance(signatures, list | tuple) else []
    drawing = [name for name in names if name in ONLY_SERVED]
    if drawing:
        raise ValueError(
            "A signature that draws random numbers runs in TensorFlow only: use "
            "`export_saved_model` for it. Here `decode` takes latents, and `reconstruct` takes "
            f"noise, that you draw yourself. Received: signatures={drawing}"
        )
    if not names or set(names) - set(SIGNATURES) or len(set(names)) < len(names):
        raise ValueError(
            f"`signatures` must be some of {list(SIGNATURES)}, each once. "
            f"Received: signatures={signatures!r}"
        )


def traced(model: MonteCarloVAE, signatures: Sequence[Signature]) -> dict[str, PolymorphicFunction]:
    """Returns a `tf.function` for each signature, by name, after a check of its graph."""
    x = tf.TensorSpec([None, *model.event_shape], tf.float32, "x")
    z = tf.TensorSpec([None, model.latent_dim], tf.float32, "z")
    noise = tf.TensorSpec([None, model.latent_dim], tf.float32, "noise")

    def encode(x: tf.Tensor) -> Outputs:
        loc, scale = model.encode(x)
        return {"loc": loc, "scale": scale}

    def decode(z: tf.Tensor) -> Outputs:
        return {"image": model.decode(z)}

    def reconstruct(x: tf.Tensor, noise: tf.Tensor) -> Outputs:
        loc, scale = model.encode(x)
        return decode(model.to_latents(loc + scale * tf.cast(noise, loc.dtype)))

    named = {"encode": (encode, x), "decode": (decode, z), "reconstruct": (reconstruct, x, noise)}
    functions: dict[str, PolymorphicFunction] = {}
    for name in signatures:
        function, *specs = named[name]
        functions[name] = tf.function(function, input_signature=specs, autograph=False)
        check_portable(functions[name].get_concrete_function())
    return functions


def check_answers(
    model: MonteCarloVAE, signatures: Sequence[Signature], run: Run, rtol: float
) -> None:
    """Raises unless a file, run in its own runtime, gives the outputs of the Keras model.

    The comparison is made on two rows, without noise. It fails if a converter makes a mistake, or
    if the model overrides `reconstruct`.

    Args:
        model: The model.
        signatures: The signatures in the file.
        run: Runs a signature of the file.
        rtol: Largest difference, relative to the largest value of an output (at least 1).
    """
    x, z = _two_images(model), np.linspace(-1.0, 1.0, 2 * model.latent_dim).astype(np.float32)
    z = z.reshape(2, -1)
    feeds = {"encode": {"x": x}, "decode": {"z": z}}
    feeds["reconstruct"] = {"x": x, "noise": np.zeros_like(z)}
    loc, scale = model.encode(x)
    expected = {
        "encode": {"loc": loc, "scale": scale},
        "decode": {"image": model.decode(z)},
        "reconstruct": {"image": model.reconstruct(x)},
    }
    for name in signatures:
        received = f"Received: signature {name!r} of a {type(model).__name__}"
        try:
            answers = run(name, feeds[name])
        except Exception as error:  # Each runtime has its own kinds of errors.
            raise ValueError(
                "The runtime cannot run the converted file, which can happen if networks are not "
                f"in float32: {error}. {received}"
            ) from error
        for key, value in expected[name].items():
            right = value.numpy()
            off = np.max(np.abs(answers[key] - right)) / max(1.0, np.max(np.abs(right)))
            if not off <= rtol:  # Also true if it is NaN.
                raise ValueError(
                    f"The file does not answer as the model does: `{key}` is off by {off:.1e} of "
                    "its size. The converter may translate one of the layers wrongly: replace "
                    f"layers by standard ones to find out which. {received}"
                )


def _two_images(model: MonteCarloVAE) -> np.ndarray[Any, Any]:
    """Returns two images in the likelihood's support, if one of a few candidates is in it."""
    shape = (2, *model.event_shape)
    images = [np.linspace(0.0, 1.0, math.prod(shape)), *np.array([[0.5], [1.0], [0.0]])]
    images = [
        np.broadcast_to(x, math.prod(shape)).reshape(shape).astype(np.float32) for x in images
    ]
    known = [x for x in images if np.all(model.likelihood.in_support(x))]
    return [*known, images[0]][0]


@contextlib.contextmanager
def taking(
    path: str | os.PathLike[str],
    kind: Literal["file", "folder"],
    overwrite: bool,
    parts: Sequence[str] = (),
) -> Iterator[pathlib.Path]:
    """Yields a temporary path for a file or folder, which is renamed to `path` on success.

    Args:
        path: The final path.
        kind: "file" or "folder".
        overwrite: Whether an existing file or folder may be replaced.
        parts: Names of the files of a folder. A folder with any other file is not replaced.
    """
    check_path(path, kind)
    target = pathlib.Path(path)
    try:
        if target.exists() and not _may_be_replaced(target, kind, parts):
            raise ValueError(
                f"This path exists and is not a {kind} that an export has written: choose another "
                f"path. Received: path={str(target)!r}"
            )
        if target.exists() and not overwrite:
            raise ValueError(
                f"This {kind} exists already: choose another path, or pass `overwrite=True`. "
                f"Received: path={str(target)!r}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            yield temporary
    except OSError as error:
        raise ValueError(cannot_be_written(target, error)) from error


def _may_be_replaced(target: pathlib.Path, kind: str, parts: Sequence[str]) -> bool:
    if kind == "file":
        return target.is_file()
    return target.is_dir() and {file.name for file in target.iterdir()} <= set(parts)
