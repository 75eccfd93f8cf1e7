"""Likelihoods: from a decoder's output to the distribution of x given z.

To add one, subclass `Likelihood`, define `elementwise`, and say in `support` what values it takes:

    @keras.saving.register_keras_serializable("my_package")
    class Laplace(Likelihood):
        def elementwise(self, parameters):
            return tfd.Laplace(parameters, 1.0)
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae import random

tfd = tfp.distributions


def _wide(parameters: Any) -> Any:
    """Returns `parameters` in `float32`, or as they are where they are wider."""
    parameters = tf.convert_to_tensor(parameters)
    return tf.cast(parameters, tf.float32) if parameters.dtype.size < 4 else parameters


class Likelihood(keras.layers.Layer):
    """Base of the likelihoods `p(x|z)`, whose elements are independent given z.

    Parameters have the axes `[..., *event]`, mostly `[S, B, H, W, C]`, as the decoder makes them.
    All is computed in `float32` or wider, whatever the precision of the networks.

    Calling the layer on parameters gives `mean(parameters)`.

    Attributes:
        parameters_per_channel: P, how many parameters stand behind one channel of `x`: the last
            axis of the parameters is P times as long as that of `x`.
        support: What `x` may be, in words that complete "the likelihood needs".
    """

    parameters_per_channel: int = 1
    support: str = "finite values"

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        # Likelihoods are used through their methods, which build nothing.
        self.built = type(self).build is Likelihood.build

    # What a subclass defines.

    def elementwise(self, parameters: Any) -> Any:
        """Returns the distribution of every element of `x`: batch shape that of `x`, no event."""
        raise NotImplementedError

    def elementwise_log_prob(self, parameters: Any, x: Any) -> Any:
        """Returns the log density of every element of `x`."""
        return self.elementwise(parameters).log_prob(x)

    def from_uniform(self, parameters: Any, uniform: Any) -> Any:
        """Turns numbers uniform on (0, 1), of the shape of `x`, into draws of `x`.

        By default the inverse of the distribution function, for distributions that have one.
        """
        return self.elementwise(parameters).quantile(uniform)

    def in_support(self, x: Any) -> Any:
        """Returns for each element of `x` whether the likelihood is defined there."""
        return tf.math.is_finite(x)

    # What models use.

    def distribution(self, parameters: Any, event_ndims: int = 3) -> Any:
        """Returns `p(x|z)` as a `tfd.Independent`.

        Args:
            parameters: The decoder's output, `[..., *event]`.
            event_ndims: Number of axes of one `x`: 3 for images `[H, W, C]`.
        """
        return tfd.Independent(self.elementwise(_wide(parameters)), event_ndims)

    def log_prob(self, parameters: Any, x: Any) -> Any:
        """Computes `log p(x|z)`, with all normalising constants.

        Args:
            parameters: The decoder's output, `[B, *event]` or `[S, B, *event]`.
            x: `[B, *event]`.

        Returns:
            `[B]` or `[S, B]`, in nats: the sum over the axes of `x` but its first.

        Raises:
            ValueError: If the event axes of `parameters` and `x` do not fit together.
        """
        parameters, x = _wide(parameters), tf.convert_to_tensor(x)
        event_ndims = x.shape.rank - 1
        self._check_shapes(parameters.shape, x.shape, event_ndims)
        elements = self.elementwise_log_prob(parameters, tf.cast(x, parameters.dtype))
        return tf.reduce_sum(elements, axis=list(range(-event_ndims, 0)))

    def mean(self, parameters: Any) -> Any:
        """Returns the mean of `p(x|z)`, `[..., *event]`."""
        return self.elementwise(_wide(parameters)).mean()

    def sample(self, parameters: Any, seed: Any, event_ndims: int = 3) -> Any:
        """Draws `x ~ p(x|z)`, the same numbers for a seed in eager, graph and XLA execution.

        Args:
            parameters: The decoder's output, `[..., *event]`.
            seed: Integer, or a seed of `tf_mcvae.random`; one with a seed for each row needs
                parameters `[B, *event]` or `[S, B, *event]`.
            event_ndims: Number of axes of one `x`: 3 for images `[H, W, C]`.

        Returns:
            One draw for each set of parameters, `[..., *event]`.

        Raises:
            ValueError: If there is a seed for each row, but other axes than `[B]` or `[S, B]`.
        """
        parameters, seed = _wide(parameters), random.as_seed(seed)
        shape = [*random.shape_of(parameters)[:-1], self._channels(parameters.shape)]
        leading = len(shape) - event_ndims
        if isinstance(seed, random.RowSeed) and leading not in (1, 2):
            raise ValueError(
                "With a seed for each row, `parameters` must be [B, *event] or [S, B, *event]. "
                f"Received: parameters of shape {parameters.shape} and event_ndims={event_ndims}"
            )
        # `random` has the batch on axis 1.
        uniform = random.uniform([1, *shape] if leading == 1 else shape, seed)
        uniform = tf.reshape(uniform, shape) + 2.0**-24  # From [0, 1) to (0, 1).
        return self.from_uniform(parameters, tf.cast(uniform, parameters.dtype))

    def check_support(self, x: Any) -> None:
        """Raises a `ValueError` unless the likelihood is defined for all of the array `x`."""
        x = np.asarray(x)
        if not np.all(self.in_support(tf.cast(x, tf.float32))):
            raise ValueError(
                f"The {type(self).__name__} likelihood needs {self.support}. Rescale the data, or "
                "choose another likelihood. "
                f"Received: x of shape {x.shape} with values from {x.min()} to {x.max()}"
            )

    def call(self, parameters: Any) -> Any:
        """Returns `mean(parameters)`."""
        return self.mean(parameters)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Returns the shape of `x`."""
        return (*input_shape[:-1], self._channels(input_shape))

    def _channels(self, shape: Any) -> int:
        return int(shape[-1]) // self.parameters_per_channel

    def _check_shapes(self, parameters: Any, x: Any, event_ndims: int) -> None:
        # A last axis of unknown length stays unknown.
        expected = [*x[1:-1], x[-1] and x[-1] * self.parameters_per_channel] if event_ndims else []
        if not parameters[parameters.rank - event_ndims :].is_compatible_with(expected):
            raise ValueError(
                f"For x of shape {x} the {type(self).__name__} likelihood takes parameters whose "
                f"last axes are {expected}. Received: parameters of shape {parameters}"
            )


@keras.saving.register_keras_serializable("tf_mcvae")
class Bernoulli(Likelihood):
    """Bernoulli pixels, the parameters being logits: `log p(x|z) = Σ x l - log(1 + exp(l))`.

    `x` between 0 and 1 is taken too, with the same formula (which then is no normalised density).

    Example:
        >>> Bernoulli().log_prob(tf.zeros([1, 2]), tf.constant([[0.0, 1.0]])).numpy().round(4)
        array([-1.3863], dtype=float32)
    """

    support = "values in [0, 1]"
    suits_xla = True

    def elementwise(self, parameters: Any) -> Any:
        """Returns `tfd.Bernoulli`."""
        return tfd.Bernoulli(logits=parameters, dtype=parameters.dtype)

    def elementwise_log_prob(self, parameters: Any, x: Any) -> Any:
        """Returns `x l - softplus(l)`: one softplus, where TFP's cross entropy branches."""
        return x * parameters - tf.nn.softplus(parameters)

    def from_uniform(self, parameters: Any, uniform: Any) -> Any:
        """Returns one where the uniform number is below the probability, else zero."""
        return tf.cast(uniform < tf.sigmoid(parameters), parameters.dtype)

    def in_support(self, x: Any) -> Any:
        """Returns whether `0 <= x <= 1`."""
        return (x >= 0.0) & (x <= 1.0)


@keras.saving.register_keras_serializable("tf_mcvae")
class Gaussian(Likelihood):
    """Gaussian pixels around the decoder's output, all of one scale.

    Args:
        scale: Standard deviation; the one to start from, where it is learned.
        learned: Whether the scale is trained with the networks, through its logarithm.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If `scale` is not a positive finite number.

    Example:
        >>> float(Gaussian(scale=0.5, learned=True).scale)
        0.5

    Reference:
        Learned scale: Rybkin et al., 2021, arXiv 2006.13202.
    """

    suits_xla = True

    def __init__(self, scale: float = 1.0, learned: bool = False, **kwargs: Any) -> None:
        number = isinstance(scale, int | float | np.number)
        if not number or not 0.0 < scale < math.inf:
            raise ValueError(f"`scale` must be a positive number. Received: scale={scale!r}")
        super().__init__(**kwargs)
        self.initial_scale, self.learned = float(scale), bool(learned)
        if learned:
            # Not cast down within a model of mixed precision.
            self.log_scale = self.add_weight(
                initializer=keras.initializers.Constant(math.log(scale)),
                autocast=False,
                name="log_scale",
            )

    @property
    def scale(self) -> Any:
        """The standard deviation, a scalar tensor."""
        if self.learned:
            return tf.exp(tf.convert_to_tensor(self.log_scale))
        return tf.constant(self.initial_scale, self.variable_dtype)

    def elementwise(self, parameters: Any) -> Any:
        """Returns `tfd.Normal`."""
        return tfd.Normal(parameters, tf.cast(self.scale, parameters.dtype))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "scale": self.initial_scale, "learned": self.learned}


_NAMES: dict[str, type[Likelihood]] = {"bernoulli": Bernoulli, "gaussian": Gaussian}


def get(identifier: str | dict[str, Any] | Likelihood) -> Likelihood:
    """Returns a likelihood.

    Args:
        identifier: `"bernoulli"`, `"gaussian"`, or the name under which Keras knows a class of
            yours (`"my_package>Laplace"`); a dictionary of `class_name` and `config`; what
            `keras.saving.serialize_keras_object` gave; or a `Likelihood`, which is returned as is.

    Raises:
        ValueError: If there is no likelihood of that name.
        TypeError: If `identifier` is none of these.

    Example:
        >>> get({"class_name": "gaussian", "config": {"scale": 0.5}}).initial_scale
        0.5
    """
    if isinstance(identifier, str):
        return get({"class_name": identifier, "config": {}})
    if isinstance(identifier, dict) and "registered_name" in identifier:
        identifier = keras.saving.deserialize_keras_object(identifier)
    if isinstance(identifier, dict) and "class_name" in identifier:
        name = identifier["class_name"]
        cls = _NAMES.get(name.lower()) or keras.saving.get_registered_object(name)
        if cls is None:
            raise ValueError(
                f"There is no such likelihood. Choose one of {sorted(_NAMES)}, or register a class "
                "with `keras.saving.register_keras_serializable`. "
                f"Received: likelihood={identifier['class_name']!r}"
            )
        identifier = cls(**identifier.get("config", {}))
    if not isinstance(identifier, Likelihood):
        raise TypeError(
            "A likelihood must be a name, a configuration or a `Likelihood`. "
            f"Received: likelihood={identifier!r} (of type {type(identifier).__name__})"
        )
    return identifier
