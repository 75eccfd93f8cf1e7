"""Export for serving: a SavedModel with named signatures that needs nothing but TensorFlow."""

import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tf_mcvae import random
from tf_mcvae.bounds import iwae
from tf_mcvae.checks import check_positive_integer
from tf_mcvae.models import MonteCarloVAE

# Runs in the Python process that made the graph: it is in the file as a number, not as code.
_PYTHON_OPS = ("EagerPyFunc", "PyFunc", "PyFuncStateless")
# Marks what `jit_compile=True` was asked of. TensorFlow Serving has XLA switched off on CPUs.
_XLA_MARK = "_XlaMustCompile"
_NO_PYTHON = (
    "A server has no Python: write with TensorFlow operations what calls `tf.py_function` or "
    "`tf.numpy_function`."
)
_NO_XLA = "A server compiles nothing with XLA: do without `jit_compile=True` in the networks."

Outputs = dict[str, tf.Tensor]


def export_saved_model(
    model: MonteCarloVAE,
    path: str | os.PathLike[str],
    version: int | None = None,
    num_samples: int = 64,
) -> pathlib.Path:
    """Writes a trained model as a SavedModel for TensorFlow Serving, to `<path>/<version>/`.

    The file runs in any TensorFlow runtime, without Python, Keras or this package. It holds each
    weight that the signatures use once, and no optimizer state. B is any number of rows, 0 too, D
    the latent dimension, `...` the shape of one image:

    | Signature          | Inputs       | Outputs                                                 |
    |--------------------|--------------|---------------------------------------------------------|
    | `serving_default`  | `x`          | the same as `encode`                                    |
    | `encode`           | `x`          | `loc`, `scale`: of the encoder's posterior, `[B, D]`    |
    | `posterior_sample` | `x`, `seed`  | `z`: one draw, after all transitions, `[B, D]`          |
    | `decode`           | `z`          | `image`: mean of x given z, `[B, ...]`                  |
    | `reconstruct`      | `x`          | `image`: the same at `loc`, `[B, ...]`                  |
    | `generate`         | `seed`       | `z`: drawn from the prior, `[B, D]`;                    |
    |                    |              | `image`: mean of x given z, `[B, ...]`                  |
    | `log_likelihood`   | `x`, `seed`  | `log_likelihood`, `standard_error`: in nats, `[B]`      |

    | Tensor                             | Shape      | Dtype   | Unit                          |
    |------------------------------------|------------|---------|-------------------------------|
    | `x`, `image`                       | `[B, ...]` | float32 | as in training, mostly 0 to 1 |
    | `z`, `loc`, `scale`                | `[B, D]`   | float32 | none (the prior's scale is 1) |
    | `seed`                             | `[B, 2]`   | int32   | none (any two integers a row) |
    | `log_likelihood`, `standard_error` | `[B]`      | float32 | nats                          |

    Equal requests get equal answers: what a row gets depends on its own input and seed alone, up to
    rounding, whatever a server batches beside it. (Rounding may tip one of A-MCVAE's accept/reject
    choices, about one in a million.) A request is answered with the error `INVALID_ARGUMENT` if a
    shape is wrong, there are not as many seeds as rows, or a value is not finite or not one that
    the likelihood knows; such a row fails all that a server has batched with it.

    `log_likelihood` is, from S = `num_samples` log weights of the model, transitions included,

        log (1/S sum_s w_s),    with the standard error    std_s(w_s) / (sqrt(S) mean_s(w_s))

    (delta method). It estimates `log p(x)` from below: as `E[w] = p(x)`, it is a lower bound in
    expectation, by about half its squared standard error where that is small. Where the standard
    error is near 1 or above, few weights dominate, and neither number is to be relied on. With a
    `skip_threshold` above 0 an L-MCVAE has no such guarantee.

    Args:
        model: A built model.
        path: The model's folder; it is made where it does not exist.
        version: Number of this version, at least 1. By default the next after the highest there.
        num_samples: S of `log_likelihood`, at least 2. A request holds S decoded images for each
            row in memory.

    Returns:
        The path of the version, `<path>/<version>`. It appears there when it is complete: a server
        that watches the folder, or a crash, never finds half of it.

    Raises:
        TypeError: If `model` is none of this package, or `path` is no path.
        ValueError: If the model is not built, the version exists, the folder cannot be written, or
            the networks run Python code or ask for XLA (see `check_servable`).

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
    if not isinstance(model, MonteCarloVAE):
        raise TypeError(f"`model` must be a tf_mcvae model. Received: {type(model).__name__}")
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`path` must be the path of a folder. Received: path={path!r}")
    check_positive_integer("num_samples", num_samples)
    if num_samples < 2:
        raise ValueError(
            "`num_samples` must be at least 2, or there is no standard error. "
            f"Received: num_samples={num_samples}"
        )
    model.require_built()
    target = _target(pathlib.Path(path), version)
    functions = _Signatures(model, num_samples).trace()
    for function in functions.values():
        check_servable(function)
    _write(functions, target)
    return target


def check_servable(model: Any) -> None:
    """Checks that a graph runs in a server: no Python code in it, nothing that needs XLA.

    A SavedModel is written without complaint if it calls `tf.py_function` or `tf.numpy_function`,
    and cannot run outside the process that wrote it. Functions of `jit_compile=True` fail in
    TensorFlow Serving, which has XLA switched off on CPUs.

    Args:
        model: The folder of a SavedModel (the one that holds `saved_model.pb`), or a concrete
            function.

    Raises:
        TypeError: If `model` is neither.
        ValueError: If there is no SavedModel in the folder, or an operation cannot be served; the
            message names it and the function that it is in.
    """
    for name, graph_def in _graph_defs(model):
        for where, nodes, marks in _bodies(name, graph_def):
            if marks[_XLA_MARK].b:
                raise ValueError(f"{_NO_XLA} Received: {_XLA_MARK!r} on function {where!r}")
            for node in nodes:
                place = f"op {node.op!r} (node {node.name!r} in {where!r})"
                if node.op in _PYTHON_OPS:
                    raise ValueError(f"{_NO_PYTHON} Received: {place}")
                if node.attr[_XLA_MARK].b:
                    raise ValueError(f"{_NO_XLA} Received: {_XLA_MARK!r} on {place}")


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


class _Signatures:
    """The functions that are exported. They take and give named tensors."""

    def __init__(self, model: MonteCarloVAE, num_samples: int) -> None:
        self.model = model
        self.num_samples = num_samples

    def trace(self) -> dict[str, Any]:
        """Returns the concrete functions by the names of their signatures."""
        x = tf.TensorSpec([None, *self.model.event_shape], tf.float32, "x")
        z = tf.TensorSpec([None, self.model.latent_dim], tf.float32, "z")
        seed = tf.TensorSpec([None, 2], tf.int32, "seed")
        encode = self._trace(self.encode, x)
        return {
            "serving_default": encode,
            "encode": encode,
            "posterior_sample": self._trace(self.posterior_sample, x, seed),
            "decode": self._trace(self.decode, z),
            "reconstruct": self._trace(self.reconstruct, x),
            "generate": self._trace(self.generate, seed),
            "log_likelihood": self._trace(self.log_likelihood, x, seed),
        }

    def encode(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns location and scale of `q(z|x)`."""
        loc, scale = self.model.encode(x)
        return {"loc": loc, "scale": scale}

    def posterior_sample(self, x: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Draws one latent for each image."""
        return {"z": self.model.posterior_sample(x, 1, seed)[0]}

    def decode(self, z: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the mean image of each latent."""
        return {"image": self.model.decode(z)}

    def reconstruct(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the mean image at each image's location."""
        return {"image": self.model.reconstruct(x)}

    def generate(self, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Draws a latent from the prior for each seed, and decodes it."""
        z = random.normal([1, tf.shape(seed)[0], self.model.latent_dim], seed)[0]
        return {"image": self.model.decode(z), "z": z}

    def log_likelihood(self, x: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Estimates `log p(x)` of each image."""
        log_weights = self.model.log_weights(x, seed, self.num_samples)
        return {"log_likelihood": iwae(log_weights), "standard_error": _standard_error(log_weights)}

    def _trace(self, function: Callable[..., Outputs], *specs: tf.TensorSpec) -> Any:
        """Returns a signature's concrete function, which checks its inputs as it runs."""

        def served(*inputs: tf.Tensor) -> Outputs:
            checked = [self._checked(x, spec) for x, spec in zip(inputs, specs, strict=True)]
            num_rows = tf.shape(checked[0])[0]
            outputs = function(*(_at_least_one_row(x, num_rows) for x in checked))
            # Networks in half precision answer in float32 too.
            return {name: tf.cast(y[:num_rows], tf.float32) for name, y in outputs.items()}

        served.__name__ = function.__name__
        return tf.function(served).get_concrete_function(*specs)

    def _checked(self, x: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
        """Returns an input after checks: a server itself looks at no more than the dtype."""
        x = tf.ensure_shape(x, spec.shape)
        if spec.dtype.is_integer:
            return x
        possible, message = tf.math.is_finite(x), f"`{spec.name}` must be finite"
        if spec.name == "x":
            likelihood = self.model.likelihood
            possible &= likelihood.in_support(x)
            message += f"; the {type(likelihood).__name__} likelihood needs {likelihood.support}"
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(possible), [message])]):
            return tf.identity(x)


def _at_least_one_row(x: tf.Tensor, num_rows: tf.Tensor) -> tf.Tensor:
    """Returns `x` after a check that it has the rows of the inputs beside it.

    An empty batch gets a row of zeros: TensorFlow's oneDNN convolutions fail on none.
    """
    # One seed for many rows would be broadcast, to equal draws for all.
    same = tf.equal(tf.shape(x)[0], num_rows)
    with tf.control_dependencies([tf.debugging.Assert(same, ["Each row of `x` needs a `seed`"])]):
        extra = tf.cast(tf.equal(num_rows, 0), tf.int32)
    return tf.pad(x, [[0, extra], *[[0, 0]] * (x.shape.rank - 1)])


def _standard_error(log_weights: tf.Tensor) -> tf.Tensor:
    """Returns the delta-method standard error of `iwae(log_weights)`, `[B]`, for `[S, B]`."""
    num_samples = log_weights.shape[0]
    relative = num_samples * tf.nn.softmax(log_weights, axis=0)
    variance = tf.reduce_sum(tf.square(relative - 1.0), axis=0) / (num_samples - 1)
    return tf.sqrt(variance / num_samples)


def _target(base: pathlib.Path, version: int | None) -> pathlib.Path:
    """Returns the version's path, which must be free."""
    if version is not None:
        check_positive_integer("version", version)
    try:
        names = [child.name for child in base.iterdir()] if base.exists() else []
    except OSError as error:
        raise ValueError(_cannot_be_written(base, error)) from error
    # As TensorFlow Serving reads names: `007` is version 7.
    taken = {int(name) for name in names if name.isdecimal()}
    if version in taken:
        raise ValueError(
            "This version exists already, and a server may have it open: leave `version` out to "
            f"take the next, {max(taken) + 1}. Received: version={version} in {str(base)!r}"
        )
    return base / str(max(taken, default=0) + 1 if version is None else version)


def _write(functions: dict[str, Any], target: pathlib.Path) -> None:
    """Saves the functions under a hidden name beside the target, and renames when complete."""
    module = tf.Module()
    # The tf.Variables themselves: tracking the Keras objects around them would store each twice.
    variables = {id(v): v for function in functions.values() for v in function.graph.variables}
    module.state = list(variables.values())
    # Nobody differentiates a served function, and gradients of gradients are large.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            # In a folder of its own, since the temporary one is closed to a server's user.
            complete = pathlib.Path(folder) / "model"
            tf.saved_model.save(module, str(complete), functions, options)
            complete.rename(target)
    except (OSError, tf.errors.OpError) as error:
        raise ValueError(_cannot_be_written(target, error)) from error


def _cannot_be_written(path: pathlib.Path, error: Exception) -> str:
    return f"The model could not be written here: {error}. Received: {str(path)!r}"
