"""Rows of a request: their checks, and their computation in chunks of bounded memory."""

from collections.abc import Callable

import tensorflow as tf
from tensorflow.types.experimental import ConcreteFunction

from tf_mcvae import random
from tf_mcvae.layers.likelihoods import Likelihood

Outputs = dict[str, tf.Tensor]


def require(condition: tf.Tensor, message: str, *received: tf.Tensor) -> tf.Operation:
    """Returns an operation that fails a request with INVALID_ARGUMENT unless `condition` holds."""
    return tf.debugging.Assert(condition, [f"{message}. Received:", *received], summarize=8)


def checked(x: tf.Tensor, spec: tf.TensorSpec, likelihood: Likelihood) -> tf.Tensor:
    """Returns an input after checks of its shape and values. A server only checks the dtype."""
    x = tf.ensure_shape(x, spec.shape)
    if not spec.dtype.is_floating:
        return x
    possible, message = tf.math.is_finite(x), f"`{spec.name}` must be finite"
    if spec.name == "x":
        possible &= likelihood.in_support(x)
        message += f"; the {type(likelihood).__name__} likelihood needs {likelihood.support}"
    wrong = tf.boolean_mask(x, ~possible)
    with tf.control_dependencies([require(tf.reduce_all(possible), message, wrong)]):
        return tf.identity(x)


def with_equal_rows(inputs: list[tf.Tensor], names: list[str]) -> list[tf.Tensor]:
    """Returns the inputs after a check that all have as many rows as the first.

    A single seed would otherwise be broadcast, and all rows would get equal draws.
    """
    counts = [tf.shape(x)[0] for x in inputs]
    checks = [
        require(count == counts[0], f"Each row of `{names[0]}` needs a `{name}`", count)
        for count, name in zip(counts[1:], names[1:], strict=True)
    ]
    with tf.control_dependencies(checks):
        return [tf.identity(x) for x in inputs]


def finite(outputs: Outputs) -> Outputs:
    """Returns outputs in `float32`, after a check that they are finite."""
    # Networks in half precision have float32 outputs too.
    numbers = {name: tf.cast(y, tf.float32) for name, y in outputs.items()}
    message = "The model has no finite answer to this request: the input is too far from its data"
    checks = [require(tf.reduce_all(tf.math.is_finite(y)), message) for y in numbers.values()]
    with tf.control_dependencies(checks):
        return {name: tf.identity(y) for name, y in numbers.items()}


def common_count(num_samples: tf.Tensor, most: int) -> tf.Tensor:
    """Returns the number of samples, after a check that it is the same in all rows.

    Args:
        num_samples: `[B]`.
        most: The largest allowed number.

    Returns:
        A scalar, 1 if there are no rows.
    """
    count = tf.maximum(tf.reduce_max(num_samples), 1)
    message = f"`num_samples` must be one number from 1 to {most}, the same in all rows"
    right = tf.reduce_all(num_samples == count) & (count <= most)
    with tf.control_dependencies([require(right, message, num_samples)]):
        return tf.identity(count)


def numbered_seeds(seed: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """Returns a seed for each pair of a row's seed and a number. Number 0 keeps the row's seed.

    Args:
        seed: `[N, 2]`.
        number: `[N]`.
    """
    folded = random.fold_in(random.per_row(seed), number).seeds
    return tf.where(number[:, tf.newaxis] == 0, seed, folded)


def in_chunks(
    function: ConcreteFunction,
    num_rows: tf.Tensor,
    chunk_size: int,
    take: Callable[[tf.Tensor], list[tf.Tensor]],
) -> Outputs:
    """Runs a function on chunks of rows, so that memory does not grow with their number.

    Args:
        function: Concrete function from tensors `[n, ...]` to tensors `[n, ...]` by name.
        num_rows: Scalar, may be 0.
        chunk_size: Largest number of rows in a chunk.
        take: Returns the inputs of the rows with the given indices, `[n]`.

    Returns:
        The outputs of all rows.
    """
    count = tf.maximum((num_rows + chunk_size - 1) // chunk_size, 1)
    specs = function.structured_outputs
    names = sorted(specs)
    arrays = [
        tf.TensorArray(specs[n].dtype, count, element_shape=specs[n].shape, infer_shape=False)
        for n in names
    ]

    def body(
        index: tf.Tensor, arrays: list[tf.TensorArray]
    ) -> tuple[tf.Tensor, list[tf.TensorArray]]:
        first = index * chunk_size
        rows = tf.range(first, tf.minimum(first + chunk_size, num_rows))
        outputs = function(*_at_least_one_row(take(rows)))
        return index + 1, [
            array.write(index, outputs[name][: tf.size(rows)])
            for name, array in zip(names, arrays, strict=True)
        ]

    _, arrays = tf.while_loop(
        lambda index, _: index < count, body, (tf.constant(0), arrays), parallel_iterations=1
    )
    return {name: array.concat() for name, array in zip(names, arrays, strict=True)}


def _at_least_one_row(inputs: list[tf.Tensor]) -> list[tf.Tensor]:
    """Adds a row of zeros to inputs without rows, on which oneDNN convolutions fail."""
    extra = tf.cast(tf.equal(tf.shape(inputs[0])[0], 0), tf.int32)
    return [tf.pad(x, [[0, extra], *[[0, 0]] * (x.shape.rank - 1)]) for x in inputs]
