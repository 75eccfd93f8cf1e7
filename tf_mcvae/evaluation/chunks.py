"""Evaluation in chunks of examples: bounded memory, progress and checkpoints."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae import distribute, random
from tf_mcvae.checks import plain_errors
from tf_mcvae.files import replacing
from tf_mcvae.models import MonteCarloVAE
from tf_mcvae.models.inputs import check_not_empty
from tf_mcvae.performance import cores

Array = np.ndarray[Any, Any]

# Takes examples `[n, ...]` and the number of the first one; returns columns `[R, n]` of results and
# sums `[T]` over the examples.
ScoreFn = Callable[[Any, int], tuple[Array, Array]]


def batches(model: MonteCarloVAE, data: Any, size: int) -> Iterator[tf.Tensor]:
    """Yields batches of at most `size` examples of an array or a dataset, without labels."""
    if not isinstance(data, tf.data.Dataset) and not hasattr(data, "shape"):
        raise TypeError(
            "`data` must be an array [N, ...] or a `tf.data.Dataset` of batches. "
            f"Received: data of type {type(data).__name__}"
        )
    data = model.check_inputs(data)
    if not isinstance(data, tf.data.Dataset):
        for first in range(0, len(data), size):
            yield tf.cast(data[first : first + size], model.density_dtype)
        return
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "The data set never ends; take a number of batches of it with `.take(n)`. "
            "Received: a data set of infinite cardinality"
        )
    number = 0
    with plain_errors():
        for number, batch in enumerate(data.unbatch().batch(size), 1):  # noqa: B007
            yield tf.cast(keras.utils.unpack_x_y_sample_weight(batch)[0], model.density_dtype)
    check_not_empty(number)


def images_spec(model: MonteCarloVAE, data: Any) -> tf.TensorSpec:
    """Returns the signature of any number of images, and builds the model if it is not built.

    It gives a function one graph for all chunks. Another graph would round differently, and a
    continued evaluation would not give exactly the number of an uninterrupted one.
    """
    if not model.built:
        model.check_inputs(data)
    return tf.TensorSpec([None, *model.event_shape], model.density_dtype)


# The signature of a seed for the rows of a chunk.
SEED_SPEC = random.NumberedRows.Spec(tf.TensorSpec([2], tf.int32), tf.TensorSpec([], tf.int32))


def score_in_chunks(
    score: ScoreFn,
    model: MonteCarloVAE,
    data: Any,
    draws_per_example: int,
    chunk_size: int,
    progress: "Progress | None" = None,
) -> tuple[Array, Array]:
    """Scores all examples in chunks of at most `chunk_size` draws.

    The workers of a strategy that is in force take turns with the chunks, and all of them get all
    results.

    Args:
        score: Scores a chunk.
        model: Checks the data.
        data: Images `[N, ...]`, or a dataset of batches.
        draws_per_example: Number of draws (chains, samples) of an example in memory at a time.
        chunk_size: Largest number of draws in memory at a time.
        progress: Results of earlier chunks, to which those of each chunk are added.

    Returns:
        Columns `[R, N]` and sums `[T]` over all examples.
    """
    progress = progress or Progress()
    size = max(1, chunk_size // draws_per_example)
    rows: list[int] = []
    for first, x in _own_chunks(model, data, size):
        done = min(max(progress.num_done - len(rows), 0), len(x))
        progress.pass_over(x[:done])
        if done < len(x):
            progress.add(x[done:], *score_in_parts(score, x[done:], first + done))
        rows.extend(range(first, first + len(x)))
    progress.finish()
    return of_all_workers(rows, progress.columns, progress.sums)


def score_in_parts(score: ScoreFn, rows: Any, first: int) -> tuple[Array, Array]:
    """Scores a chunk, in parallel parts where cores share batches.

    Args:
        score: Scores a part.
        rows: A structure of tensors `[n, ...]`.
        first: Number of the first example.

    Returns:
        Columns `[R, n]` and sums `[T]`.
    """
    size = len(tf.nest.flatten(rows)[0])
    count = distribute.num_threads(min(cores.num_parts(), size))
    if count == 1:
        return score(rows, first)

    def score_part(part: tuple[int, Any]) -> tuple[Array, Array]:
        start, rows = part
        return score(rows, first + start)

    with ThreadPoolExecutor(count) as threads:
        results = threads.map(score_part, cores.divided(rows, size, count))
    columns, sums = zip(*results, strict=True)
    return np.concatenate(columns, axis=-1), np.sum(sums, axis=0)


def _own_chunks(model: MonteCarloVAE, data: Any, size: int) -> Iterator[tuple[int, tf.Tensor]]:
    """Yields the chunks of this worker, each with the number of its first example."""
    first, count, index = 0, distribute.num_workers(), distribute.worker_index()
    if hasattr(data, "shape"):
        size = even_size(len(data), size)
    for number, x in enumerate(batches(model, data, size)):
        if number % count == index:
            yield first, x
        first += len(x)


def even_size(num_examples: int, size: int) -> int:
    """Returns a chunk size of at most `size` that gives all workers about the same number."""
    count = distribute.num_workers()
    turns = max(1, -(-num_examples // (size * count)))
    return size if count == 1 else max(1, -(-num_examples // (turns * count)))


def of_all_workers(rows: list[int], columns: Array, sums: Array) -> tuple[Array, Array]:
    """Returns the results of all workers.

    Args:
        rows: The numbers of this worker's n examples.
        columns: Their results, `[R, n]`.
        sums: Sums `[T]` over them.
    """
    if distribute.num_workers() == 1:
        return columns, sums
    table = _gather(np.concatenate([[rows], columns]).T)
    table = table[np.argsort(table[:, 0])]
    return table[:, 1:].T, np.sum(_gather(sums[np.newaxis]), axis=0)


def _gather(table: Array) -> Array:
    """Gathers rows from all workers; the table of a worker without rows has no width."""
    width = int(np.max(distribute.gather(np.array([[table.shape[1]]]))))
    if width == 0:
        return table
    missing = ((0, 0), (0, width - table.shape[1]))
    return distribute.gather(np.pad(table, missing))


class Progress:
    """Results of the examples that have been scored, in memory and optionally in a file.

    Args:
        path: A `.npz` file, written after each chunk; the results in an existing file are
            continued. None disables checkpointing.
        fingerprint: Identifies everything that the results depend on in addition to the data.
        num_examples: Number of examples, for a progress bar. None shows no bar.

    Raises:
        ValueError: If the file is not a checkpoint, or one of other settings.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        fingerprint: str = "",
        num_examples: int | None = None,
    ) -> None:
        self.path = None if path is None else pathlib.Path(path)
        self.fingerprint = fingerprint
        self.columns: Array = np.zeros([0, 0])
        self.sums: Array = np.zeros([0])
        self.constants: dict[str, Array] = {}
        self.num_done = self._num_seen = 0
        self._seen, self._digest = hashlib.sha256(), ""
        if self.path is not None and self.path.exists():
            self._load(self.path)
        self._bar = None
        if num_examples is not None:
            self._bar = keras.utils.Progbar(num_examples, unit_name="example")

    def _load(self, path: pathlib.Path) -> None:
        try:
            with np.load(path) as saved:
                arrays = {name: saved[name] for name in saved.files}
            fingerprint, self._digest = str(arrays.pop("fingerprint")), str(arrays.pop("digest"))
            self.columns, self.sums = arrays.pop("columns"), arrays.pop("sums")
        except Exception as error:  # The type depends on the kind of file.
            raise ValueError(
                "This is not a file of an interrupted evaluation; give `checkpoint` another name. "
                f"Received: checkpoint={str(path)!r}"
            ) from error
        if fingerprint != self.fingerprint:
            raise ValueError(
                "The file holds the evaluation of another model or other settings: remove it, or "
                f"give `checkpoint` another name. Received: checkpoint={str(path)!r}"
            )
        self.constants = arrays
        self.num_done = self.columns.shape[-1]

    def pass_over(self, x: tf.Tensor) -> None:
        """Skips examples that are scored already, after checking that they are the same ones."""
        if not len(x):
            return
        self._see(x)
        if self._num_seen == self.num_done and self._seen.hexdigest() != self._digest:
            raise ValueError(
                "The first examples are not those that were scored before the interruption: give "
                f"the same data, or remove the file. Received: checkpoint={str(self.path)!r}"
            )

    def add(self, x: tf.Tensor, columns: Array, sums: Array) -> None:
        """Adds the results of the next examples, and writes the checkpoint."""
        self._see(x)
        self.columns = np.concatenate([self.columns, columns], -1) if self.num_done else columns
        self.sums = self.sums + sums if self.num_done else sums
        self.num_done = self.columns.shape[-1]
        if self.path is not None:
            self._write(self.path)

    def _write(self, path: pathlib.Path) -> None:
        arrays: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "digest": self._seen.hexdigest(),
            "columns": self.columns,
            "sums": self.sums,
            **self.constants,
        }
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    def finish(self) -> None:
        """Raises if the checkpoint holds more examples than the data."""
        if self._num_seen < self.num_done:
            raise ValueError(
                f"The file holds {self.num_done} examples: give the same data, or remove it. "
                f"Received: {self._num_seen} examples and checkpoint={str(self.path)!r}"
            )

    def _see(self, x: tf.Tensor) -> None:
        self._seen.update(np.ascontiguousarray(x).tobytes())
        self._num_seen += len(x)
        if self._bar is not None:
            self._bar.update(self._num_seen)


def start_progress(
    checkpoint: str | os.PathLike[str] | None,
    model: MonteCarloVAE,
    data: Any,
    settings: dict[str, Any],
    verbose: int,
) -> Progress:
    """Returns the progress of an evaluation, from its checkpoint if there is one.

    Each of several workers has a file of its own, and none shows a bar.
    """
    count, index = distribute.num_workers(), distribute.worker_index()
    if count > 1:
        settings, verbose = {**settings, "worker": [index, count]}, 0
    if count > 1 and checkpoint is not None:
        path = pathlib.Path(checkpoint)
        checkpoint = path.with_name(f"{path.stem}-{index + 1}-of-{count}{path.suffix}")
    fingerprint = "" if checkpoint is None else _fingerprint(model, settings)
    num_examples = _count(model, data) if verbose else None
    return Progress(checkpoint, fingerprint, num_examples)


def _fingerprint(model: MonteCarloVAE, settings: dict[str, Any]) -> str:
    parts = hashlib.sha256(_json([type(model).__name__, settings]).encode())
    for weight in model.weights:
        if weight.name not in ("step", "test_step", "epoch"):  # Counters do not affect the results.
            parts.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return parts.hexdigest()


def _json(values: Any) -> str:
    return json.dumps(values, sort_keys=True, default=int)  # NumPy's integers.


def _count(model: MonteCarloVAE, data: Any) -> int:
    if not isinstance(data, tf.data.Dataset):
        return len(data)
    return sum(len(x) for x in batches(model, data, 1000))
