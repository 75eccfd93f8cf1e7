"""The base class of likelihoods.

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

Draws invert the distribution function, which the distribution must have: `quantile`, or `cdf` for
integers. Otherwise, define `from_uniform`.
"""

from collections.abc import Callable, Sequence
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

_MOST_DOUBLINGS = 40  # Counts up to 10^12.
_DRAWS = "`from_uniform`, or a distribution with `quantile` (for integers with `cdf`)"


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
        is_in_bits: Whether reports also give bits per dimension, as is usual for levels of pixels.
    """

    parameters_per_channel: int = 1
    support: str = "finite values"
    is_binary: bool = False
    is_in_bits: bool = False

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

        The default inverts the distribution function: by `quantile`, or for integers by search.
        """
        if not self.takes_integers:
            return self.elementwise(parameters).quantile(uniform)
        # In float64, since the distribution functions of large counts cancel.
        distribution = self.elementwise(tf.cast(parameters, tf.float64))
        counts = _smallest_count(distribution, tf.cast(uniform, tf.float64))
        return tf.cast(counts, parameters.dtype)

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        """Returns whether the likelihood is defined at each element of `x`."""
        return tf.math.is_finite(x)

    def num_parameters(self, num_features: int) -> int:
        """Returns the length of the parameters' last axis, where that of `x` is `num_features`."""
        return num_features * self.parameters_per_channel

    def mends(self) -> list[supports.Mend]:
        """Returns the sentences that say how data with other values are mended."""
        return supports.mends(self.in_support)

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
            mend = supports.mend_of_values(self.mends(), x)
            raise ValueError(
                f"The {type(self).__name__} likelihood needs {self.support}. {mend}, or choose "
                "another likelihood. "
                f"Received: x of shape {x.shape} with values from {x.min()} to {x.max()}"
            )

    def check_methods(self, parameters_shape: Sequence[int]) -> None:
        """Runs the methods that models and evaluators need, on parameters that are 0.

        Args:
            parameters_shape: Shape of the decoder's output for one `x`.

        Raises:
            ValueError: If one of them fails, or draws are not in the support.
        """
        with tf.init_scope():
            parameters = tf.zeros([1, *parameters_shape], self.variable_dtype)
            event = (*parameters_shape[:-1], self._channels(parameters_shape))
            x = self._run("sample", _DRAWS, event, lambda: self.sample(parameters, 0, len(event)))
            self._run("log_prob", "`elementwise`", (), lambda: self.log_prob(parameters, x))
            self._run(
                "mean", "`mean`, or a distribution with one", event, lambda: self.mean(parameters)
            )
            if not np.all(self.in_support(x)):
                raise ValueError(
                    f"The {type(self).__name__} likelihood draws values that its `in_support` "
                    f"refuses: mend one of the two. Received: a draw from {np.min(x)} to "
                    f"{np.max(x)}"
                )

    def _run(
        self, method: str, mend: str, event: tuple[int, ...], run: Callable[[], tf.Tensor]
    ) -> tf.Tensor:
        """Returns what a method returns for one `x`, if it has the right shape."""
        cause: Exception | None = None
        try:
            result = run()
            if tuple(result.shape[1:]) == event:
                return result
            received = f"a result of shape {result.shape}, not {(1, *event)}"
        except (NotImplementedError, AttributeError, TypeError, tf.errors.OpError) as error:
            received, cause = f"{type(error).__name__}: {error}", error
        raise ValueError(
            f"`{method}` of the {type(self).__name__} likelihood fails, which models and "
            f"evaluations need: define {mend}. Received: {received}"
        ) from cause

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
        expected = [*x[1:-1], x[-1] and self.num_parameters(x[-1])] if event_ndims else []
        if not parameters[parameters.rank - event_ndims :].is_compatible_with(expected):
            raise ValueError(
                f"For x of shape {x} the {type(self).__name__} likelihood takes parameters whose "
                f"last axes are {expected}. Received: parameters of shape {parameters}"
            )


def _smallest_count(distribution: tfp.distributions.Distribution, uniform: tf.Tensor) -> tf.Tensor:
    """Returns the smallest of 0, 1, 2, ... at which the distribution function is not below u."""
    low = -tf.ones_like(uniform)

    def is_below(count: tf.Tensor) -> tf.Tensor:
        return distribution.cdf(count) < uniform

    def double(high: tf.Tensor, is_low: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        high = tf.where(is_low, 2.0 * high, high)
        return high, is_below(high)

    def halve(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        middle = tf.floor(0.5 * (low + high))
        is_low = is_below(middle)
        return tf.where(is_low, middle, low), tf.where(is_low, high, middle)

    high = tf.ones_like(uniform)
    high, _ = tf.while_loop(
        lambda _, is_low: tf.reduce_any(is_low),
        double,
        (high, is_below(high)),
        maximum_iterations=_MOST_DOUBLINGS,
    )
    _, high = tf.while_loop(
        lambda low, high: tf.reduce_any(high - low > 1.0),
        halve,
        (low, high),
        maximum_iterations=_MOST_DOUBLINGS + 1,
    )
    return high
