"""The likelihood of tables whose columns differ."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae.checks import check_positive_integer
from tf_mcvae.layers import composite, supports
from tf_mcvae.layers.likelihoods.base import Likelihood
from tf_mcvae.layers.likelihoods.named import get
from tf_mcvae.precision import wide

tfd = tfp.distributions

_WRONG_FEATURES: supports.Mend = (
    lambda low, high: low <= high,
    "Correct the features that have other values",
)


@keras.saving.register_keras_serializable("tf_mcvae")
class Composite(composite.Composite, Likelihood):
    """Features that have different likelihoods, independent given z.

        log p(x|z) = sum_i log p_i(x_i|z)

    The last axis of x is divided into groups of features that lie side by side, `x_i`, and that of
    the parameters into those of the groups, in the same order. Integers are taken in all groups.

    Args:
        groups: Pairs of a likelihood and the number of its features. `("categorical", 3)` is one
            column of three categories as a one-hot vector.
        name, trainable, dtype: As in `keras.layers.Layer`.

    Attributes:
        groups: Pairs of a `Likelihood` and a number.

    Raises:
        TypeError: If `groups` are not pairs of a likelihood and a number.
        ValueError: If there is no group, or a number is not positive.

    Example:
        >>> table = Composite([("gaussian", 2), ("poisson", 1), ("categorical", 3)])
        >>> table.num_parameters(6)
        6
        >>> x = tf.constant([[0.0, 0.0, 1.0, 0.0, 1.0, 0.0]])
        >>> table.log_prob(tf.zeros([1, 6]), x).numpy().round(4)  # -log(2 pi) - 1 - log 3
        array([-3.9365], dtype=float32)
    """

    def __init__(
        self,
        groups: Sequence[tuple[Any, int]],
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        _check_groups(groups)
        self.groups = [(get(group, self.variable_dtype), int(count)) for group, count in groups]
        # Keras tracks the layers of a list.
        self.members = [member for member, _ in self.groups]
        self.built = all(member.built for member in self.members)

    @property
    def num_features(self) -> int:
        """The number of features of all groups."""
        return sum(count for _, count in self.groups)

    @property
    def support(self) -> str:  # type: ignore[override]
        """The allowed values of `x`, in words."""
        return "; ".join(f"{group.support} in {name}" for group, name, _ in self._named(None))

    @property
    def takes_integers(self) -> bool:
        """Integers are taken, since it was said of each feature what it is."""
        return True

    def num_parameters(self, num_features: int) -> int:
        """Returns the length of the last axis of the parameters."""
        if num_features != self.num_features:
            raise ValueError(
                f"The groups of this Composite likelihood have {self.num_features} features in "
                f"all. Received: x with {num_features} features"
            )
        return sum(member.num_parameters(count) for member, count in self.groups)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Builds the likelihoods of the groups."""
        for member, count in self.groups:
            if not member.built:
                member.build((*input_shape[:-1], member.num_parameters(count)))
        self.built = True

    def distribution(
        self, parameters: tf.Tensor, event_ndims: int = 3
    ) -> tfp.distributions.Distribution:
        """Returns `p(x|z)`, whose last axis is a `tfd.Blockwise`."""
        blocks = [
            member.distribution(part, 1)
            for member, part in zip(self.members, self._parameters(wide(parameters)), strict=True)
        ]
        rows = tfd.Blockwise(blocks, dtype_override=wide(parameters).dtype)
        return tfd.Independent(rows, event_ndims - 1)

    def elementwise_log_prob(self, parameters: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Returns the terms of all groups."""
        parts = self._split(parameters, x)
        return tf.concat([m.elementwise_log_prob(part, values) for m, part, values in parts], -1)

    def from_uniform(self, parameters: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """Turns numbers uniform on (0, 1) into draws of all groups."""
        parts = self._split(parameters, uniform)
        return tf.concat([m.from_uniform(part, numbers) for m, part, numbers in parts], -1)

    def mean(self, parameters: tf.Tensor) -> tf.Tensor:
        """Returns the means of all groups."""
        parts = self._parameters(wide(parameters))
        means = [member.mean(part) for member, part in zip(self.members, parts, strict=True)]
        return tf.concat(means, axis=-1)

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        """Returns whether the likelihood of its group is defined at each element of `x`."""
        parts = [group.in_support(values) for group, _, values in self._named(x)]
        return tf.concat(parts, axis=-1)

    def mends(self) -> list[supports.Mend]:
        """Returns what is to be said of values outside the support."""
        return [supports.NOT_FINITE, _WRONG_FEATURES]

    def check_support(self, x: np.ndarray[Any, Any] | tf.Tensor) -> None:
        """Raises a `ValueError` that names the features, unless all values are in the support."""
        for group, name, values in self._named(np.asarray(x)):
            try:
                group.check_support(values)
            except ValueError as error:
                raise ValueError(f"In {name}: {error}") from None

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        groups = [[keras.saving.serialize_keras_object(g), count] for g, count in self.groups]
        return {**super().get_config(), "groups": groups}

    def _channels(self, shape: Sequence[Any]) -> int:
        return self.num_features

    def _parameters(self, parameters: tf.Tensor) -> list[tf.Tensor]:
        sizes = [member.num_parameters(count) for member, count in self.groups]
        return tf.split(parameters, sizes, axis=-1)

    def _split(
        self, parameters: tf.Tensor, x: tf.Tensor
    ) -> Iterator[tuple[Likelihood, tf.Tensor, tf.Tensor]]:
        """Yields of each group the likelihood, its parameters and its elements of `x`."""
        values = tf.split(x, [count for _, count in self.groups], axis=-1)
        return zip(self.members, self._parameters(parameters), values, strict=True)

    def _named(self, x: Any) -> Iterator[tuple[Likelihood, str, Any]]:
        """Yields of each group the likelihood, a name of its features, and their values."""
        first = 0
        for member, count in self.groups:
            last = first + count - 1
            name = f"feature {first}" if count == 1 else f"features {first} to {last}"
            yield member, name, None if x is None else x[..., first : last + 1]
            first += count


def _check_groups(groups: Any) -> None:
    """Raises unless `groups` is a sequence of pairs whose second entry is a positive number."""
    is_sequence = isinstance(groups, list | tuple) and len(groups) > 0
    if not is_sequence or not all(isinstance(g, list | tuple) and len(g) == 2 for g in groups):
        raise TypeError(
            "`groups` must be pairs of a likelihood and the number of its features, such as "
            f"`[('gaussian', 2), ('poisson', 1)]`. Received: groups={groups!r}"
        )
    for _, count in groups:
        check_positive_integer("groups", count)
