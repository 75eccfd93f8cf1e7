"""Normalising flows: invertible maps `z = T(u)` with a known Jacobian, as Keras layers.

A flow turns the encoder's Gaussian into a more flexible posterior. For `u ~ q(u)`,

    log q(z) = log q(u) - log |det T'(u)|,        z = T(u).

All flows start at or near the identity, so training starts near the bound of the model without a
flow. Their range is the whole latent space, so the expected importance weight is the evidence.
"""

from tf_mcvae.flows.affine import IAF, RealNVP
from tf_mcvae.flows.base import Flow
from tf_mcvae.flows.block import BNAF
from tf_mcvae.flows.stack import FLOWS, FlowStack, get_flow

__all__ = ["BNAF", "FLOWS", "IAF", "Flow", "FlowStack", "RealNVP", "get_flow"]


def __dir__() -> list[str]:
    """Lists the public names, and not the modules that define them."""
    return __all__
