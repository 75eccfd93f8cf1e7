"""Flows one after the other."""

from typing import Any, Self

import keras
import tensorflow as tf

from tf_mcvae.checks import check_positive_integer
from tf_mcvae.flows.affine import IAF, RealNVP
from tf_mcvae.flows.base import Flow
from tf_mcvae.flows.block import BNAF


@keras.saving.register_keras_serializable("tf_mcvae")
class FlowStack(Flow):
    """Flows one after the other, every second one on the dimensions in reverse order.

    With R the reversal, `T = ... T_3 (R T_2 R) T_1`, so that with two or more flows every dimension
    is transformed, and flows without effect make a stack without effect.

    Args:
        flow: `"realnvp"`, `"iaf"`, `"bnaf"`, or the first of the flows, a `Flow` layer; the others
            are made from its configuration, with weights of their own.
        num_flows: How many.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If there is no flow of that name, or the number is not positive.

    Example:
        >>> stack = FlowStack(RealNVP(hidden_units=(16,)), num_flows=4)
        >>> z, log_det = stack(tf.ones([3, 7, 5]))
        >>> bool(tf.reduce_all(z == 1.0))  # Before training.
        True
    """

    def __init__(self, flow: Any = "realnvp", num_flows: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive_integer("num_flows", num_flows)
        first = get_flow(flow)
        config = {key: value for key, value in first.get_config().items() if key != "name"}
        copies = [type(first).from_config(config) for _ in range(num_flows - 1)]
        self.flows = [first, *copies]

    def make_weights(self, latent_dim: int) -> None:
        """Makes the weights of all flows that have none."""
        for flow in self.flows:
            if not flow.built:
                flow.build((None, latent_dim))

    def forward_rows(self, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `T(u)`, `[N, D]`, and `log |det T'(u)|`, `[N]`, for `u [N, D]`."""
        log_det = tf.zeros_like(u[:, 0])
        for number, flow in enumerate(self.flows):
            u, term = flow.forward(_reverse_if(number % 2, u))
            u, log_det = _reverse_if(number % 2, u), log_det + term
        return u, log_det

    def inverse_rows(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the u with `T(u) = z`, `[N, D]`, for `z [N, D]`."""
        for number, flow in reversed(list(enumerate(self.flows))):
            z = _reverse_if(number % 2, flow.inverse(_reverse_if(number % 2, z)))
        return z

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        first = keras.saving.serialize_keras_object(self.flows[0])
        return {**super().get_config(), "flow": first, "num_flows": len(self.flows)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Makes a stack from `get_config`'s result."""
        return cls(**{**config, "flow": keras.saving.deserialize_keras_object(config["flow"])})


def _reverse_if(condition: Any, states: tf.Tensor) -> tf.Tensor:
    """Returns rows with their dimensions in reverse order, or as they are."""
    return tf.reverse(states, [-1]) if condition else states


FLOWS: dict[str, type[Flow]] = {"realnvp": RealNVP, "iaf": IAF, "bnaf": BNAF}


def get_flow(identifier: Any) -> Flow:
    """Returns a flow of a name (`realnvp`, `iaf`, `bnaf`), or the one given.

    Raises:
        ValueError: If there is no flow of that name.
    """
    if isinstance(identifier, Flow):
        return identifier
    if isinstance(identifier, str) and identifier in FLOWS:
        return FLOWS[identifier]()
    raise ValueError(
        f"`flow` must be one of {sorted(FLOWS)}, or a tf_mcvae Flow layer. "
        f"Received: flow={identifier!r}"
    )
