"""Losses that layers report: regularisers of weights and of activities, and `add_loss`."""

import contextlib
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from tf_mcvae.kernels.path import AnnealedPath
from tf_mcvae.models.generative import LogProbFn, Recomputed


def clear_penalties(model: keras.Model) -> None:
    """Forgets what the layers of a model have reported in earlier calls."""
    # Private, as Keras has no public method. Keras itself clears a layer when it is called, but not
    # when one of its methods is, as those of a likelihood are.
    model._clear_losses()


@contextlib.contextmanager
def keeping_penalties(model: keras.Model) -> Iterator[None]:
    """Undoes what calls within change of the losses that the layers of a model have reported."""
    # Private, as above. A layer that is called forgets the losses of its call before.
    layers = model._flatten_layers(include_self=False)
    kept = [(layer, list(layer._losses)) for layer in layers]
    yield
    for layer, losses in kept:
        layer._losses[:] = losses


def add_penalties(losses: tf.Tensor, model: keras.Model) -> tf.Tensor:
    """Adds the penalties of a model since `clear_penalties` to each of the losses, `[B]`."""
    for penalty in model.losses:
        losses += tf.reduce_sum(tf.cast(penalty, losses.dtype))
    return losses


class ChainPath(AnnealedPath):
    """A path for the loop over transitions, within which networks cannot report losses.

    The body of a loop is a graph of its own: a loss from within cannot be added to one outside. The
    losses of its calls are discarded, and `report` calls the target once more, after the loop.

    Args:
        path: A path.
        recomputed: The target, if the backward pass is to compute its activations again; see
            `AnnealedPath`.
    """

    def __init__(self, path: AnnealedPath, recomputed: Recomputed | None = None) -> None:
        inputs = () if recomputed is None else recomputed.inputs
        super().__init__(path.base_log_prob_fn, self._target_log_prob, inputs)
        self._path = path
        self._recomputed = recomputed
        self._has_losses = False

    def _target_log_prob(self, state: tf.Tensor, *inputs: tf.Tensor) -> tf.Tensor:
        target: LogProbFn = self._path.target_log_prob_fn
        values: list[tuple[keras.Variable, tf.Tensor]] = []
        if self._recomputed is not None:
            target, values = self._recomputed.bind(*inputs)
        with _collecting(values) as losses:
            log_prob = target(state)
        self._has_losses = self._has_losses or bool(losses)
        return log_prob

    def report(self, state: tf.Tensor) -> None:
        """Lets the networks report their losses at a state `[S, B, D]`, if they have any."""
        if self._has_losses:
            self._path.target_log_prob_fn(state)


@contextlib.contextmanager
def refusing_losses(name: str) -> Iterator[None]:
    """Raises if a layer that is called within reports a loss.

    Args:
        name: The argument by which the layer was given.

    Raises:
        ValueError: If there is a loss.
    """
    with _collecting() as losses:
        yield
    if losses:
        raise ValueError(
            f"`{name}` is called in a loop, from which the losses of its calls (an activity "
            "regulariser, `add_loss`) cannot be trained: use regularisers of its weights. "
            f"Received: a layer that reports {len(losses)} losses in a call"
        )


@contextlib.contextmanager
def _collecting(
    values: Sequence[tuple[keras.Variable, tf.Tensor]] = (),
) -> Iterator[list[tf.Tensor]]:
    """Collects the losses of the calls within, apart from those that layers keep.

    Args:
        values: Variables, and the values that they have within.
    """
    scope = keras.StatelessScope(values, collect_losses=True, initialize_variables=False)
    with scope:
        yield scope.losses
