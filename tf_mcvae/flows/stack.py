"""Sequences of flows, and flows by name."""

from typing import Any, Literal

import keras
import tensorflow as tf

from tf_mcvae.checks import check_positive_integer
from tf_mcvae.flows.affine import IAF, RealNVP
from tf_mcvae.flows.base import Flow
from tf_mcvae.flows.block import BNAF
from tf_mcvae.layers.composite import Composite, clone_layer, pass_on_frozen, track_weights

FlowName = Literal["realnvp", "iaf", "bnaf"]
FLOWS: dict[str, type[Flow]] = {"realnvp": RealNVP, "iaf": IAF, "bnaf": BNAF}


@keras.saving.register_keras_serializable("tf_mcvae")
class FlowStack(Composite, Flow):
    """A sequence of flows, in which every second flow sees the dimensions in reverse order.

    With R the reversal, `T = ... T_3 (R T_2 R) T_1`. Two or more flows therefore transform every
    dimension, and a stack of identities is the identity.

    Args:
        flow: `"realnvp"`, `"iaf"` or `"bnaf"`, or a `Flow` layer. The layer is the first flow; the
            others are created from its configuration and have their own weights.
        num_flows: Number of flows.
        name, trainable, dtype: As in `keras.layers.Layer`.

    Raises:
        ValueError: If there is no flow of that name, or `num_flows` is not positive.

    Example:
        >>> stack = FlowStack(RealNVP(hidden_units=(16,)), num_flows=4)
        >>> z, log_det = stack(tf.ones([3, 7, 5]))
        >>> bool(tf.reduce_all(z == 1.0))  # Before training.
        True
    """

    def __init__(
        self,
        flow: FlowName | Flow = "realnvp",
        num_flows: int = 1,
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        check_positive_integer("num_flows", num_flows)
        first = get_flow(flow, dtype)
        self.flows = [first, *(clone_layer(first, name=None) for _ in range(num_flows - 1))]
        pass_on_frozen(self)

    def make_weights(self, latent_dim: int) -> None:
        """Creates the weights of all flows that are not built."""
        for flow in self.flows:
            if not flow.built:
                flow.build((None, latent_dim))
        track_weights(self)

    def forward_rows(self, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `T(u)`, `[N, D]`, and `log |det T'(u)|`, `[N]`, for `u [N, D]`."""
        log_det = tf.zeros_like(u[:, 0])
        for index, flow in enumerate(self.flows):
            u, term = flow.forward(_reverse_if(index % 2 == 1, u))
            u, log_det = _reverse_if(index % 2 == 1, u), log_det + term
        return u, log_det

    def inverse_rows(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the u with `T(u) = z`, `[N, D]`, for `z [N, D]`."""
        for index, flow in reversed(list(enumerate(self.flows))):
            z = _reverse_if(index % 2 == 1, flow.inverse(_reverse_if(index % 2 == 1, z)))
        return z

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        first = keras.saving.serialize_keras_object(self.flows[0])
        return {**super().get_config(), "flow": first, "num_flows": len(self.flows)}


def _reverse_if(condition: bool, states: tf.Tensor) -> tf.Tensor:
    """Returns `states` with the dimensions in reverse order if `condition` holds."""
    return tf.reverse(states, [-1]) if condition else states


def get_flow(identifier: FlowName | Flow, dtype: str | keras.DTypePolicy | None = None) -> Flow:
    """Returns a new flow of a name (`realnvp`, `iaf` or `bnaf`) and dtype, or the given flow.

    Raises:
        ValueError: If there is no flow of that name.
    """
    if isinstance(identifier, Flow):
        return identifier
    if isinstance(identifier, str) and identifier in FLOWS:
        return FLOWS[identifier](dtype=dtype)
    raise ValueError(
        f"`flow` must be one of {sorted(FLOWS)}, or a tf_mcvae Flow layer. "
        f"Received: flow={identifier!r}"
    )
