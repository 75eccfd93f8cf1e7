"""Writing a model as a version of a served SavedModel."""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.types.experimental import ConcreteFunction

from tf_mcvae.checks import check_positive_integer
from tf_mcvae.export.arguments import cannot_be_written, check_model, check_path
from tf_mcvae.export.card import CARD, README, model_card, write_card
from tf_mcvae.export.graphs import check_servable
from tf_mcvae.export.signatures import Images, Options, Signatures
from tf_mcvae.export.warm_up import Requests, write_requests
from tf_mcvae.files import optional, replacing
from tf_mcvae.models import MonteCarloVAE

WARM_UP = "assets.extra/tf_serving_warmup_requests"


def export_saved_model(
    model: MonteCarloVAE,
    path: str | os.PathLike[str],
    version: int | None = None,
    num_samples: int = 64,
    *,
    calibration: Images | None = None,
    pixel_range: tuple[float, float] = (0.0, 1.0),
    chunk_size: int = 1024,
    jit_compile: bool = False,
    card: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes a trained model as a SavedModel for TensorFlow Serving, to `<path>/<version>/`.

    The SavedModel runs in any TensorFlow runtime, without Python, Keras or this package. It holds
    each weight that the signatures use once, and no optimizer state. B is any number of rows,
    including 0, D the latent dimension, and `...` the shape of one image:

    | Signature          | Inputs              | Outputs                                          |
    |--------------------|---------------------|--------------------------------------------------|
    | `serving_default`  | `x`                 | the same as `encode`                             |
    | `encode`           | `x`                 | `loc`, `scale`: of the encoder's posterior       |
    | `posterior_sample` | `x`, `seed`         | `z`: one draw, after all transitions, `[B, D]`   |
    | `posterior_samples`| `x`, `seed`,        | `z`: S draws, `[B, S, D]`; the first is that of  |
    |                    | `num_samples`       | `posterior_sample`                               |
    | `decode`           | `z`                 | `image`: mean of x given z                       |
    | `reconstruct`      | `x`                 | `image`: the same at `loc`                       |
    | `generate`         | `seed`              | `z`: drawn from the prior; `image`: its mean     |
    | `log_likelihood`   | `x`, `seed`         | `log_likelihood`, `standard_error`               |
    | `anomaly_score`    | `x`, `seed`         | `anomaly_score`, `standard_error`, `p_value`     |

    | Tensor                             | Shape      | Dtype   | Unit                           |
    |------------------------------------|------------|---------|--------------------------------|
    | `x`, `image`                       | `[B, ...]` | float32 | as in training, usually 0 to 1 |
    | `z`, `loc`, `scale`                | `[B, D]`   | float32 | none (the prior's scale is 1)  |
    | `seed`                             | `[B, 2]`   | int32   | none (any two integers a row)  |
    | `num_samples`                      | `[B]`      | int32   | S, the same in all rows        |
    | `log_likelihood`, `anomaly_score`, | `[B]`      | float32 | nats                           |
    | `standard_error`                   |            |         |                                |
    | `p_value`                          | `[B]`      | float32 | share, 0 to 1                  |

    Each signature that takes images has a second form for bytes, such as `encode_uint8`, where `x`
    is `uint8` with values from 0 to 255.

    Equal requests get equal answers: up to rounding, the answer to a row depends only on its own
    input and seed, and not on the rows that a server batches with it. (Rounding may change one in
    about a million accept/reject decisions of an A-MCVAE.) The answer is the error
    `INVALID_ARGUMENT` if a shape is wrong, the number of seeds is not that of the rows, a value is
    not finite or not in the likelihood's support, the rows of `num_samples` differ, or the answer
    would not be finite. Such a row fails all rows that a server has batched with it.

    With S = `num_samples` log weights of the model, transitions included, `log_likelihood` is

        log (1/S sum_s w_s),

    and `standard_error` is its root mean squared error by the jackknife over the draws, widened by
    Student's t. At the default S, the true value lies within 1 and 1.96 of it in about 65 % and
    92 % of all rows, and in fewer where few weights dominate (docs/evaluation.md). Since
    `E[w] = p(x)`, the estimate is in expectation a lower bound on `log p(x)`, whose gap is about
    half the squared standard error if that is small. If the standard error is near 1 or above, few
    weights dominate and both numbers are unreliable. An L-MCVAE with a `skip_threshold` above 0 has
    no such guarantee.

    `anomaly_score` is minus that estimate. With `calibration`, N ordinary images that the model was
    not trained on, `p_value` is `(1 + number of their scores that are at least as high) / (N + 1)`.
    At most a share a of ordinary images has a p-value of a or less.

    The version also holds requests with which a server warms up (`assets.extra/`), and
    `model_card.json` and `README.md`, which describe the signatures. Copies of the card of the
    latest version are in `path` itself.

    Args:
        model: A built model.
        path: The model's folder, which is created if it does not exist.
        version: Version number, at least 1. The default is one more than the highest existing one.
        num_samples: S of `log_likelihood` and `anomaly_score`, at least 2.
        calibration: Ordinary images `[N, ...]`, such as a validation split. None leaves `p_value`
            out.
        pixel_range: The model's pixel values for 0 and 255 of `uint8` images.
        chunk_size: Most images that are in memory at a time, counting each draw as one. Larger
            requests are computed in chunks.
        jit_compile: Whether XLA compiles the networks, once for each batch size. A server runs such
            a model only if it is started with `--xla_cpu_compilation_enabled`, so export it to a
            separate folder, in addition to one without XLA.
        card: Further sections of the card, such as `{"data": ..., "metrics": ...}`: nested
            dictionaries of text and numbers.

    Returns:
        The path of the version, `<path>/<version>`. It is renamed into place when it is complete,
        so neither a server that watches the folder nor a crash leaves an incomplete version.

    Raises:
        TypeError: If `model` is not a tf_mcvae model, `path` is not a path, or `calibration` is not
            an array.
        ValueError: If the model is not built, the version exists, the folder cannot be written,
            images do not fit the model, an option is out of range, or the networks run Python code
            or require XLA (see `check_servable`).

    Example:
        >>> import tempfile, tensorflow as tf, tf_mcvae
        >>> from tf_mcvae.export import export_saved_model
        >>> model = tf_mcvae.VAE(
        ...     tf_mcvae.Encoder(2, architecture="dense"),
        ...     tf_mcvae.Decoder((8, 8, 1), architecture="dense"),
        ... )
        >>> model.build((None, 8, 8, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     served = tf.saved_model.load(str(export_saved_model(model, folder)))
        >>> served.signatures["generate"](seed=tf.constant([[1, 2], [3, 4]]))["image"].shape
        TensorShape([2, 8, 8, 1])
    """
    check_model(model)
    check_path(path, "folder")
    options = Options(num_samples, chunk_size, pixel_range, jit_compile)
    _check_options(options)
    _check_sections(card or {})
    if calibration is not None:
        calibration = _checked_calibration(model, calibration)
    target = _target(pathlib.Path(path), version)
    functions = Signatures(model, options, calibration).trace()
    for function in functions.values():
        check_servable(function, allow_xla=jit_compile)
    count = 0 if calibration is None else len(calibration)
    number = int(target.name)
    described = model_card(model, functions, options, count, number, card or {})
    _write(functions, described, _warm_up(model, functions), target)
    return target


def _check_options(options: Options) -> None:
    check_positive_integer("num_samples", options.num_samples)
    check_positive_integer("chunk_size", options.chunk_size)
    if options.num_samples < 2:
        raise ValueError(
            "`num_samples` must be at least 2 for a standard error. "
            f"Received: num_samples={options.num_samples}"
        )
    bounds = np.asarray(options.pixel_range)
    numbers = bounds.shape == (2,) and bounds.dtype.kind in "iuf" and np.all(np.isfinite(bounds))
    if not numbers or bounds[0] >= bounds[1]:
        raise ValueError(
            "`pixel_range` must be two numbers, the lower first. "
            f"Received: pixel_range={options.pixel_range!r}"
        )


def _check_sections(card: Mapping[str, Any]) -> None:
    taken = {"model", "serving", "signatures"} & set(card if isinstance(card, Mapping) else ())
    if not isinstance(card, Mapping) or taken:
        raise ValueError(
            "`card` must be a dictionary of sections other than 'model', 'serving' and "
            f"'signatures'. Received: {sorted(taken) or card!r}"
        )


def _checked_calibration(model: MonteCarloVAE, images: Images) -> Images:
    if not hasattr(images, "shape"):
        raise TypeError(
            f"`calibration` must be an array of images [N, ...]. Received: {type(images).__name__}"
        )
    return model.check_batch(images)


def _target(base: pathlib.Path, version: int | None) -> pathlib.Path:
    """Returns the version's path, after a check that the version does not exist."""
    if version is not None:
        check_positive_integer("version", version)
    try:
        names = [child.name for child in base.iterdir()] if base.exists() else []
    except OSError as error:
        raise ValueError(cannot_be_written(base, error)) from error
    # TensorFlow Serving reads the folder `007` as version 7.
    taken = {int(name) for name in names if name.isdecimal()}
    if version in taken:
        raise ValueError(
            "This version exists already, and a server may be using it: leave `version` out to "
            f"take the next, {max(taken) + 1}. Received: version={version} in {str(base)!r}"
        )
    return base / str(max(taken, default=0) + 1 if version is None else version)


def _warm_up(model: MonteCarloVAE, functions: Mapping[str, ConcreteFunction]) -> Requests:
    """Returns a request of one row for each signature whose inputs can be made up."""
    levels = [np.full(model.event_shape, level, np.float32) for level in (0.5, 0.0, 1.0)]
    known = [x for x in levels if np.all(model.likelihood.in_support(x))]
    rows = {
        "z": np.zeros([1, model.latent_dim], np.float32),
        "seed": np.zeros([1, 2], np.int32),
        "num_samples": np.ones([1], np.int32),
    }
    requests: list[tuple[str, dict[str, np.ndarray[Any, Any]]]] = []
    for name, function in functions.items():
        specs = tf.nest.flatten(function.structured_input_signature)
        row = {**rows, **({"x": known[0][np.newaxis]} if known else {})}
        if name.endswith("_uint8"):
            row["x"] = np.zeros([1, *model.event_shape], np.uint8)
        if all(spec.name in row for spec in specs):
            requests.append((name, {spec.name: row[spec.name] for spec in specs}))
    return requests


def _write(
    functions: dict[str, ConcreteFunction],
    card: dict[str, Any],
    warm_up: Requests,
    target: pathlib.Path,
) -> None:
    """Saves the functions in a hidden folder next to the target, then renames the folder."""
    module = tf.Module()
    # Only tf.Variables: tracking the Keras variables too would store each weight twice.
    variables = {id(v): v for function in functions.values() for v in function.graph.variables}
    module.state = list(variables.values())
    # A served function is never differentiated, and functions of higher gradients are large.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            # In a subfolder, since only the current user may read the temporary folder.
            complete = pathlib.Path(folder) / "model"
            tf.saved_model.save(module, str(complete), functions, options)
            write_requests(complete / WARM_UP, warm_up)
            with optional("The model card"):
                write_card(complete, card)
            complete.rename(target)
        for name in (CARD, README):
            with optional("A copy of the model card"), replacing(target.parent / name) as temporary:
                shutil.copyfile(target / name, temporary)
    except (OSError, tf.errors.OpError) as error:
        raise ValueError(cannot_be_written(target, error)) from error
