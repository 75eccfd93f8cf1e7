"""Normalising flows: invertible maps `z = T(u)` of known Jacobian, as Keras layers.

A flow turns the encoder's Gaussian into a posterior that need not be one: for `u ~ q(u)`,

    log q(z) = log q(u) - log |det T'(u)|,        z = T(u).

All flows here begin at the identity or near it, so that training starts at the bound of the model
without flow, and reach all of the latent space, so that importance weights average to the evidence.
"""

from tf_mcvae.flows.affine import IAF, RealNVP
from tf_mcvae.flows.base import Flow
from tf_mcvae.flows.block import BNAF
from tf_mcvae.flows.stack import FLOWS, FlowStack, get_flow

__all__ = ["BNAF", "FLOWS", "IAF", "Flow", "FlowStack", "RealNVP", "get_flow"]
