"""What runtimes other than TensorFlow's can run: the parts of a model that draw nothing."""

import contextlib
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_mcvae.export.arguments import cannot_be_written, check_path
from tf_mcvae.export.graphs import check_portable
from tf_mcvae.export.rows import Outputs
from tf_mcvae.files import replacing
from tf_mcvae.models import MonteCarloVAE

SIGNATURES = ("encode", "decode", "reconstruct")
ONLY_SERVED = (
    "posterior_sample",
    "posterior_samples",
    "generate",
    "log_likelihood",
    "anomaly_score",
)

# What a runtime gets, and what it answers, by name.
Arrays = Mapping[str, np.ndarray[Any, Any]]
Run = Callable[[str, Arrays], Arrays]


def check_signatures(signatures: Any) -> None:
    """Raises unless `signatures` are some of those that can be exported."""
    names = list(signatures) if isinstance(signatures, list | tuple) else []
    drawing = [name for name in names if name in ONLY_SERVED]
    if drawing:
        raise ValueError(
            "What draws random numbers, and the transitions with it, runs in TensorFlow alone: use "
            "`export_saved_model` for that; here `decode` takes latents, and `reconstruct` noise, "
            f"that you draw yourself. Received: signatures={drawing}"
        )
    if not names or set(names) - set(SIGNATURES) or len(set(names)) < len(names):
        raise ValueError(
            f"`signatures` must be some of {list(SIGNATURES)}, each once. "
            f"Received: signatures={signatures!r}"
        )


def traced(model: MonteCarloVAE, signatures: Sequence[str]) -> dict[str, Any]:
    """Returns `tf.function`s by the names of their signatures, after a check of each graph."""
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
        z = loc + scale * noise
        return decode(model.to_latents(z))

    named = {"encode": (encode, x), "decode": (decode, z), "reconstruct": (reconstruct, x, noise)}
    functions = {}
    for name in signatures:
        function, *specs = named[name]
        functions[name] = tf.function(function, input_signature=specs, autograph=False)
        check_portable(functions[name].get_concrete_function())
    return functions


def check_answers(model: MonteCarloVAE, signatures: Sequence[str], run: Run, rtol: float) -> None:
    """Raises unless a file, run in its own runtime, answers as the Keras model does.

    Of two rows, without noise. What fails here is a converter, or a model with a `reconstruct` of
    its own.

    Args:
        model: The model.
        signatures: What is in the file.
        run: Runs a signature of the file.
        rtol: Largest difference, as a share of the largest number of an output (of 1 at least).
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
        try:
            answers = run(name, feeds[name])
        except Exception as error:  # A runtime's own kind.
            raise ValueError(
                "The runtime cannot run what the converter has made, as may be where networks are "
                f"not in float32: {error}. "
                f"Received: signature {name!r} of a {type(model).__name__}"
            ) from error
        for key, value in expected[name].items():
            right = value.numpy()
            off = np.max(np.abs(answers[key] - right)) / max(1.0, np.max(np.abs(right)))
            if not off <= rtol:  # Nor where it is no number.
                raise ValueError(
                    f"The file does not answer as the model does: `{key}` is off by {off:.1e} of "
                    "its size. The converter may not know how to translate a layer; exporting with "
                    "a standard one in its place will tell. "
                    f"Received: signature {name!r} of a {type(model).__name__}"
                )


def _two_images(model: MonteCarloVAE) -> np.ndarray[Any, Any]:
    """Returns images that the likelihood knows, where it knows any of a few."""
    shape = (2, *model.event_shape)
    images = [np.linspace(0.0, 1.0, math.prod(shape)), *np.array([[0.5], [1.0], [0.0]])]
    images = [
        np.broadcast_to(x, math.prod(shape)).reshape(shape).astype(np.float32) for x in images
    ]
    known = [x for x in images if np.all(model.likelihood.in_support(x))]
    return [*known, images[0]][0]


@contextlib.contextmanager
def taking(path: Any, kind: str, overwrite: bool, parts: Sequence[str] = ()) -> Iterator[Any]:
    """Gives a temporary path for a file or folder, which gets its name when all has gone well.

    Args:
        path: The name.
        kind: "file" or "folder".
        overwrite: Whether what has that name may be replaced.
        parts: The files that may be in a folder which is replaced; with any other it is not.
    """
    check_path(path, kind)
    target = pathlib.Path(path)
    try:
        if target.exists() and not _may_be_replaced(target, kind, parts):
            raise ValueError(
                f"This is no {kind} that an export has written: choose another name. "
                f"Received: path={str(target)!r}"
            )
        if target.exists() and not overwrite:
            raise ValueError(
                f"This {kind} exists already: choose another name, or say `overwrite=True`. "
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
