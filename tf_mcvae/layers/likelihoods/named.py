"""Likelihoods by their names."""

from collections.abc import Callable
from typing import Any

import keras

from tf_mcvae.layers.likelihoods.base import Likelihood
from tf_mcvae.layers.likelihoods.binary import Bernoulli, ContinuousBernoulli
from tf_mcvae.layers.likelihoods.categorical import Categorical, DiscretizedLogisticMixture
from tf_mcvae.layers.likelihoods.continuous import Beta, Gaussian, LogNormal, StudentT
from tf_mcvae.layers.likelihoods.counts import NegativeBinomial, Poisson, ZeroInflated


def _zero_inflated(counts: type[Likelihood]) -> Callable[..., Likelihood]:
    def make(dtype: str | keras.DTypePolicy | None = None, **settings: Any) -> Likelihood:
        return ZeroInflated(counts(dtype=dtype, **settings), dtype=dtype)

    return make


_NAMES: dict[str, Callable[..., Likelihood]] = {
    "bernoulli": Bernoulli,
    "beta": Beta,
    "categorical": Categorical,
    "continuous_bernoulli": ContinuousBernoulli,
    "discretized_logistic_mixture": DiscretizedLogisticMixture,
    "gaussian": Gaussian,
    "lognormal": LogNormal,
    "negative_binomial": NegativeBinomial,
    "poisson": Poisson,
    "student_t": StudentT,
    "zero_inflated_negative_binomial": _zero_inflated(NegativeBinomial),
    "zero_inflated_poisson": _zero_inflated(Poisson),
}


def get(
    identifier: str | dict[str, Any] | Likelihood, dtype: str | keras.DTypePolicy | None = None
) -> Likelihood:
    """Returns the likelihood of a name or configuration.

    Args:
        identifier: A name such as `"bernoulli"`, or the one under which a custom class is
            registered with Keras (`"my_package>Laplace"`); a dictionary of `class_name` and
            `config`, or the result of `keras.saving.serialize_keras_object`; or a `Likelihood`,
            which is returned unchanged.
        dtype: Data type or policy of the library's own, where the configuration has none.

    Raises:
        ValueError: If there is no likelihood of that name.
        TypeError: If `identifier` has another type.

    Example:
        >>> get({"class_name": "gaussian", "config": {"scale": 0.5}}).initial
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
