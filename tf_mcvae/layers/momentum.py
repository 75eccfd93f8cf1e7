"""The momentum of Hamiltonian transitions, as layers: its refreshment, mass and temperatures."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae.checks import ExplicitArguments
from tf_mcvae.precision import density_dtype

TemperingScheme = Literal["quadratic", "free", "none"]


@keras.saving.register_keras_serializable("tf_mcvae")
class MomentumRefresh(ExplicitArguments, keras.layers.Layer):
    """How Hamiltonian transitions refresh their momentum, and its mass.

    The momentum before a transition is `v = r u + sqrt(1 - r^2) M^1/2 xi`, with the momentum `u`
    after the previous one, the persistence `r`, the diagonal mass `M`, and `xi ~ N(0, I)`.

    Args:
        persistence: `r` in [0, 1); 0 refreshes the momentum fully. If it is learned, its first
            value, above 0.
        mass: The diagonal of `M`: a number, or one for each of D dimensions; above 0.
        learn_persistence: Whether `r` is trained, through its logit.
        learn_mass: Whether the mass is trained, one of each dimension, through its logarithm.
        name: Name of the layer.
        trainable: Whether the weights are trained.
        dtype: Data type or policy, as in Keras.

    Raises:
        ValueError: If the persistence or a mass is out of its range.

    Reference:
        Geffner and Domke, MCMC Variational Inference via Uncorrected Hamiltonian Annealing, arXiv
        2107.04150.
    """

    def __init__(
        self,
        persistence: float = 0.9,
        mass: float | Sequence[float] | np.ndarray[Any, Any] = 1.0,
        *,
        learn_persistence: bool = False,
        learn_mass: bool = False,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        if not (0.0 < persistence < 1.0 or (persistence == 0.0 and not learn_persistence)):
            raise ValueError(
                "`persistence` must be at least 0 and below 1, and above 0 if it is learned. "
                f"Received: persistence={persistence!r}"
            )
        self.initial_mass: np.ndarray[Any, Any] = np.asarray(mass, np.float64)
        is_positive = np.all(np.isfinite(self.initial_mass)) and np.all(self.initial_mass > 0)
        if self.initial_mass.ndim > 1 or not is_positive:
            raise ValueError(
                "`mass` must be a finite number above 0, or D of them, one for each dimension. "
                f"Received: mass={mass!r}"
            )
        self.initial_persistence = float(persistence)
        self.learn_persistence, self.learn_mass = learn_persistence, learn_mass

    def build(self, latent_dim: int) -> None:
        """Makes the weights for D dimensions."""
        try:
            masses = np.broadcast_to(self.initial_mass, [latent_dim])
        except ValueError as error:
            raise ValueError(
                f"`mass` must be a number, or one for each of {latent_dim} dimensions. "
                f"Received: shape {self.initial_mass.shape}"
            ) from error
        if self.learn_persistence:
            self.logit = _add_weight(self, "persistence_logit", _logit(self.initial_persistence))
        if self.learn_mass:
            self.log_mass = _add_weight(self, "log_mass", np.log(masses))
        self.built = True

    def persistence(self) -> tf.Tensor | float:
        """Returns `r`: a number if it is fixed, a scalar tensor if it is learned."""
        if not self.learn_persistence:
            return self.initial_persistence
        return tf.sigmoid(tf.convert_to_tensor(self.logit))

    def mass(self) -> tf.Tensor:
        """Returns the diagonal of `M`, a scalar or `[D]`."""
        if self.learn_mass:
            return tf.exp(tf.convert_to_tensor(self.log_mass))
        return tf.constant(self.initial_mass, density_dtype(self.dtype_policy))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "persistence": self.initial_persistence,
            "mass": self.initial_mass.tolist(),
            "learn_persistence": self.learn_persistence,
            "learn_mass": self.learn_mass,
        }


@keras.saving.register_keras_serializable("tf_mcvae")
class Tempering(ExplicitArguments, keras.layers.Layer):
    """Temperatures of the momentum in a Hamiltonian VAE: `T_0 >= ... >= T_K = 1`.

    The first momentum is drawn from `N(0, T_0 I)`; after leapfrog k it is multiplied by
    `sqrt(T_k / T_{k-1})`, which slows the particle down. The schemes are

    - `"quadratic"`: `sqrt(T_k) = sqrt(T_0) + (1 - sqrt(T_0)) k^2 / K^2`, with `T_0` trained;
    - `"free"`: each factor is trained, in (0, 1);
    - `"none"`: all temperatures are 1.

    Args:
        scheme: One of the schemes above.
        initial_temperature: `T_0`, at first; above 1.
        name: Name of the layer.
        trainable: Whether the weights are trained.
        dtype: Data type or policy, as in Keras.

    Raises:
        ValueError: If the scheme is unknown or the temperature is not above 1.

    Reference:
        Caterini et al., Hamiltonian Variational Auto-Encoder, arXiv 1805.11328.
    """

    def __init__(
        self,
        scheme: TemperingScheme = "quadratic",
        initial_temperature: float = 2.0,
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        if scheme not in get_args(TemperingScheme):
            raise ValueError(
                f"`scheme` must be one of {get_args(TemperingScheme)}. Received: scheme={scheme!r}"
            )
        if not 1.0 < initial_temperature < np.inf:
            raise ValueError(
                "`initial_temperature` must be a finite number above 1; the scheme 'none' has none."
                f" Received: initial_temperature={initial_temperature!r}"
            )
        self.scheme = scheme
        self.initial_temperature = float(initial_temperature)

    def build(self, num_transitions: int) -> None:
        """Makes the weights for K leapfrogs."""
        self.num_transitions = num_transitions
        if self.scheme == "quadratic":
            excess = np.log(self.initial_temperature - 1.0)
            self.log_excess = _add_weight(self, "log_excess", excess)
        if self.scheme == "free":
            factor = self.initial_temperature ** (-0.5 / num_transitions)
            logits = np.full([num_transitions], _logit(factor))
            self.logits = _add_weight(self, "factor_logits", logits)
        self.built = True

    def temperatures(self) -> tf.Tensor:
        """Returns `T_0, ..., T_K`, `[K + 1]`."""
        count = self.num_transitions
        if self.scheme == "none":
            return tf.ones([count + 1], density_dtype(self.dtype_policy))
        if self.scheme == "quadratic":
            first = tf.sqrt(1.0 + tf.exp(tf.convert_to_tensor(self.log_excess)))
            grid = tf.constant((np.arange(count + 1) / count) ** 2, first.dtype)
            return tf.square(first + (1.0 - first) * grid)
        factors = tf.sigmoid(tf.convert_to_tensor(self.logits))
        products = tf.math.cumprod(factors, reverse=True)  # sqrt(T_K / T_k), k < K.
        return tf.concat([1.0 / tf.square(products), tf.ones([1], products.dtype)], axis=0)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = {"scheme": self.scheme, "initial_temperature": self.initial_temperature}
        return {**super().get_config(), **config}


def _logit(probability: float) -> float:
    return float(np.log(probability) - np.log1p(-probability))


def _add_weight(layer: keras.layers.Layer, name: str, values: Any) -> keras.Variable:
    """Adds a trained weight with these first values, in the dtype of densities."""
    return layer.add_weight(
        shape=np.shape(values),
        initializer=lambda shape, dtype=None: tf.constant(values, dtype, shape),
        dtype=density_dtype(layer.dtype_policy),
        autocast=False,
        name=name,
    )
