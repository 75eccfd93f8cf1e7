"""Sums over transitions whose gradient is computed term by term, in memory that does not grow."""

from collections.abc import Callable, Sequence

import tensorflow as tf


def sum_over_transitions(
    term_fn: Callable[..., tf.Tensor], num_transitions: int, inputs: Sequence[tf.Tensor]
) -> tf.Tensor:
    """Returns `sum_k term_fn(k, *inputs)`, k = 0, ..., K - 1.

    The backward pass computes each term again and keeps nothing of the others, so that memory does
    not grow with K.

    Args:
        term_fn: Maps the number k, a scalar tensor, and the inputs to a term, `[S, B]`. It must not
            depend on anything else that has a gradient, variables included.
        num_transitions: K.
        inputs: Tensors.
    """
    like = term_fn(tf.constant(0), *inputs)

    @tf.custom_gradient
    def total(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
        _, value = _accumulated(
            lambda index, value: value + term_fn(index, *inputs),
            num_transitions,
            tf.zeros_like(like),
        )

        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            def added(index: tf.Tensor, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
                # Tensors of the graph that this is called in, which the tape can watch.
                here = [tf.identity(value) for value in inputs]
                with tf.GradientTape() as tape:
                    tape.watch(here)
                    term = term_fn(index, *here)
                new = tape.gradient(
                    term, here, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO
                )
                return [old + part for old, part in zip(gradients, new, strict=True)]

            zeros = [tf.zeros_like(value) for value in inputs]
            return _accumulated(added, num_transitions, zeros)[1]

        return value, gradient

    return total(*inputs)


def _accumulated(
    body: Callable[..., tf.Tensor | list[tf.Tensor]],
    num_transitions: int,
    start: tf.Tensor | list[tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor | list[tf.Tensor]]:
    return tf.while_loop(
        lambda index, _: index < num_transitions,
        lambda index, value: (index + 1, body(index, value)),
        (tf.constant(0), start),
        maximum_iterations=num_transitions,
    )
