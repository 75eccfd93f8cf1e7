"""Likelihoods: distributions of x given z, parameterised by a decoder's output.

To add one, subclass `Likelihood`, define `elementwise`, and name the allowed values in `support`:

    @keras.saving.register_keras_serializable("my_package")
    class Laplace(Likelihood):
        def elementwise(self, parameters):
            return tfd.Laplace(parameters, 1.0)

One whose density is not defined everywhere also defines `in_support`. If that holds for integers
alone, as for counts, models take arrays of integers:

    @keras.saving.register_keras_serializable("my_package")
    class Poisson(Likelihood):
        support = "the integers 0, 1, 2, ..."

        def elementwise(self, parameters):
            return tfd.Poisson(log_rate=parameters)

        def in_support(self, x):
            return (x >= 0) & (x == tf.floor(x))
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae import random
from tf_mcvae.checks import ExplicitArguments
from tf_mcvae.layers import supports
from tf_mcvae.precision import density_dtype, wide

tfd = tfp.distributions


class Likelihood(ExplicitArguments, keras.layers.Layer):
    """Base class of likelihoods `p(x|z)` whose elements are independent given z.

    Parameters are the decoder's output and have the axes `[..., *event]`, usually
    `[S, B, H, W, C]`. All computations are in `float32` or wider, whatever the precision of the
    networks; see `precision`.

    Calling the layer on parameters returns `mean(parameters)`.

    Args:
        name, trainable, dtype: As in `keras.layers.Layer`.

    Attributes:
        parameters_per_channel: P, the number of parameters of each channel of `x`. The last axis
            of the parameters is P times as long as that of `x`.
        support: The allowed values of `x`, in words that complete "the likelihood needs".
        is_binary: Whether the parameters are logits of the values 0 and 1, and the density is not
            normalised between them. Models then warn of other values, and of decoders whose output
            is not logits.
    """

    parameters_per_channel: int = 1
    support: str = "finite values"
    is_binary: bool = False

    def __init__(
        self,
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=density_dtype(dtype))
        # Models call the methods of a likelihood, and methods do not build the layer.
        self.built = type(self).build is Likelihood.build

    # Methods that a subclass defines.

    def elementwise(self, parameters: tf.Tensor) -> tfp.distributions.Distribution:
        """Returns the distribution of the elements of `x`: scalars, batched as `x`."""
        raise NotImplementedError

    def elementwise_log_prob(self, parameters: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Returns the log density of every element of `x`."""
        return self.elementwise(parameters).log_prob(x)

    def from_uniform(self, parameters: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """Turns numbers uniform on (0, 1), in the shape of `x`, into draws of `x`.

        The default is the quantile function, for distributions that implement it.
        """
        return self.elementwise(parameters).quantile(uniform)

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        """Returns whether the likelihood is defined at each element of `x`."""
        return tf.math.is_finite(x)

    # Methods that models call.

    @property
    def takes_integers(self) -> bool:
        """Whether arrays of integers are taken: those in the support, if it is of integers alone.

        A subclass may set it.
        """
        return supports.is_on_integers(self.in_support)

    def distribution(
        self, parameters: tf.Tensor, event_ndims: int = 3
    ) -> tfp.distributions.Distribution:
        """Returns `p(x|z)` as a `tfd.Independent`.

        Args:
            parameters: The decoder's output, `[..., *event]`.
            event_ndims: Number of axes of one `x`: 3 for images `[H, W, C]`.
        """
        return tfd.Independent(self.elementwise(wide(parameters)), event_ndims)

    def log_prob(self, parameters: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Computes `log p(x|z)`, with all normalising constants.

        Args:
            parameters: The decoder's output, `[B, *event]` or `[S, B, *event]`.
            x: `[B, *event]`.

        Returns:
            `[B]` or `[S, B]`, in nats: the sum over all axes of `x` but the first.

        Raises:
            ValueError: If the event axes of `parameters` and `x` do not match.
        """
        parameters, x = wide(parameters), tf.convert_to_tensor(x)
        event_ndims = x.shape.rank - 1
        self._check_shapes(parameters.shape, x.shape, event_ndims)
        elements = self.elementwise_log_prob(parameters, tf.cast(x, parameters.dtype))
        return tf.reduce_sum(elements, axis=list(range(-event_ndims, 0)))

    def mean(self, parameters: tf.Tensor) -> tf.Tensor:
        """Returns the mean of `p(x|z)`, `[..., *event]`."""
        return self.elementwise(wide(parameters)).mean()

    def sample(
        self, parameters: tf.Tensor, seed: random.SeedLike, event_ndims: int = 3
    ) -> tf.Tensor:
        """Draws `x ~ p(x|z)`. A seed gives the same numbers in eager, graph and XLA execution.

        Args:
            parameters: The decoder's output, `[..., *event]`.
            seed: Integer, or a seed of `tf_mcvae.random`; one with a seed for each row needs
                parameters `[B, *event]` or `[S, B, *event]`.
            event_ndims: Number of axes of one `x`: 3 for images `[H, W, C]`.

        Returns:
            One draw for each set of parameters, `[..., *event]`.

        Raises:
            ValueError: If there is a seed for each row, but the parameters have other axes than
                `[B, *event]` or `[S, B, *event]`.
        """
        parameters, seed = wide(parameters), random.as_seed(seed)
        shape = [*random.shape_of(parameters)[:-1], self._channels(parameters.shape)]
        leading = len(shape) - event_ndims
        if isinstance(seed, random.RowSeed) and leading not in (1, 2):
            raise ValueError(
                "With a seed for each row, `parameters` must be [B, *event] or [S, B, *event]. "
                f"Received: parameters of shape {parameters.shape} and event_ndims={event_ndims}"
            )
        # `random` expects the batch on axis 1.
        uniform = random.uniform([1, *shape] if leading == 1 else shape, seed)
        uniform = tf.cast(tf.reshape(uniform, shape), parameters.dtype)
        return self.from_uniform(parameters, uniform)

    def check_support(self, x: np.ndarray[Any, Any] | tf.Tensor) -> None:
        """Raises a `ValueError` unless the likelihood is defined at every element of `x`."""
        x = np.asarray(x)
        if not np.all(self.in_support(tf.cast(x, tf.float32))):
            mend = supports.mend_of_values(self.in_support, x)
            raise ValueError(
                f"The {type(self).__name__} likelihood needs {self.support}. {mend}, or choose "
                "another likelihood. "
                f"Received: x of shape {x.shape} with values from {x.min()} to {x.max()}"
            )

    def call(self, parameters: tf.Tensor) -> tf.Tensor:
        """Returns `mean(parameters)`."""
        return self.mean(parameters)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Returns the shape of `x`."""
        return (*input_shape[:-1], self._channels(input_shape))

    def _channels(self, shape: Sequence[Any]) -> int:
        return int(shape[-1]) // self.parameters_per_channel

    def _check_shapes(
        self, parameters: tf.TensorShape, x: tf.TensorShape, event_ndims: int
    ) -> None:
        # A last axis of unknown length stays unknown.
        expected = [*x[1:-1], x[-1] and x[-1] * self.parameters_per_channel] if event_ndims else []
        if not parameters[parameters.rank - event_ndims :].is_compatible_with(expected):
            raise ValueError(
                f"For x of shape {x} the {type(self).__name__} likelihood takes parameters whose "
                f"last axes are {expected}. Received: parameters of shape {parameters}"
            )


@keras.saving.register_keras_serializable("tf_mcvae")
class Bernoulli(Likelihood):
    """Bernoulli pixels with logits l as parameters: `log p(x|z) = Σ x l - log(1 + exp(l))`.

    Values of `x` between 0 and 1 are allowed and use the same formula, which is then not a
    normalised density.

    Example:
        >>> Bernoulli().log_prob(tf.zeros([1, 2]), tf.constant([[0.0, 1.0]])).numpy().round(4)
        array([-1.3863], dtype=float32)
    """

    support = "values in [0, 1]"
    is_binary = True
    suits_xla = True

    def elementwise(self, parameters: tf.Tensor) -> tfp.distributions.Distribution:
        """Returns `tfd.Bernoulli`."""
        return tfd.Bernoulli(logits=parameters, dtype=parameters.dtype)

    def elementwise_log_prob(self, parameters: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Returns `x l - softplus(l)`: one softplus, where TFP's cross entropy branches."""
        return x * parameters - tf.nn.softplus(parameters)

    def from_uniform(self, parameters: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """Returns 1 where the uniform number is below the probability, and 0 otherwise."""
        return tf.cast(uniform < tf.sigmoid(parameters), parameters.dtype)

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        """Returns whether `0 <= x <= 1`."""
        return (x >= 0.0) & (x <= 1.0)


@keras.saving.register_keras_serializable("tf_mcvae")
class Gaussian(Likelihood):
    """Gaussian pixels: the decoder's output is their location, and all share one scale.

    Args:
        scale: Standard deviation, or its initial value if it is learned.
        learned: Whether the scale is trained with the networks, through its logarithm.
        name, trainable, dtype: As in `keras.layers.Layer`.

    Raises:
        ValueError: If `scale` is not a positive finite number.

    Example:
        >>> float(Gaussian(scale=0.5, learned=True).scale)
        0.5

    Reference:
        Learned scale: Rybkin et al., 2021, arXiv 2006.13202.
    """

    suits_xla = True

    def __init__(
        self,
        scale: float = 1.0,
        learned: bool = False,
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        number = isinstance(scale, int | float | np.number)
        if not number or not 0.0 < scale < math.inf:
            raise ValueError(f"`scale` must be a positive number. Received: scale={scale!r}")
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        self.initial_scale, self.learned = float(scale), bool(learned)
        if learned:
            # A model of mixed precision must not cast the weight to half precision.
            self.log_scale = self.add_weight(
                initializer=keras.initializers.Constant(math.log(scale)),
                autocast=False,
                name="log_scale",
            )

    @property
    def scale(self) -> tf.Tensor:
        """The standard deviation, a scalar tensor."""
        if self.learned:
            return tf.exp(tf.convert_to_tensor(self.log_scale))
        return tf.constant(self.initial_scale, self.variable_dtype)

    def elementwise(self, parameters: tf.Tensor) -> tfp.distributions.Distribution:
        """Returns `tfd.Normal`."""
        return tfd.Normal(parameters, tf.cast(self.scale, parameters.dtype))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "scale": self.initial_scale, "learned": self.learned}


_NAMES: dict[str, type[Likelihood]] = {"bernoulli": Bernoulli, "gaussian": Gaussian}


def get(
    identifier: str | dict[str, Any] | Likelihood, dtype: str | keras.DTypePolicy | None = None
) -> Likelihood:
    """Returns the likelihood of a name or configuration.

    Args:
        identifier: `"bernoulli"`, `"gaussian"`, or the name under which a custom class is
            registered with Keras (`"my_package>Laplace"`); a dictionary of `class_name` and
            `config`, or the result of `keras.saving.serialize_keras_object`; or a `Likelihood`,
            which is returned unchanged.
        dtype: Data type or policy of `"bernoulli"` and `"gaussian"`, where the configuration has
            none.

    Raises:
        ValueError: If there is no likelihood of that name.
        TypeError: If `identifier` has another type.

    Example:
        >>> get({"class_name": "gaussian", "config": {"scale": 0.5}}).initial_scale
        0.5
    """
    if isinstance(identifier, str):
        return get({"class_name": identifier, "config": {}}, dtype)
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
        # A class of the user need not have the argument.
        options = {"dtype": dtype} if cls in _NAMES.values() else {}
        identifier = cls(**{**options, **identifier.get("config", {})})
    if not isinstance(identifier, Likelihood):
        raise TypeError(
            "A likelihood must be a name, a configuration or a `Likelihood`. "
            f"Received: likelihood={identifier!r} (of type {type(identifier).__name__})"
        )
    return identifier
