"""Transition kernels with the contract of `tfp.mcmc.TransitionKernel`, and the path they follow."""

from tf_mcvae.kernels.hamiltonian import HamiltonianMonteCarlo, UncalibratedHamiltonian
from tf_mcvae.kernels.langevin import (
    Drift,
    MetropolisAdjustedLangevin,
    Place,
    UnadjustedLangevin,
    score_drift,
)
from tf_mcvae.kernels.metropolis import MetropolisHastings
from tf_mcvae.kernels.path import AnnealedPath, Endpoints
from tf_mcvae.kernels.transition import AnnealedKernel, Proposal, TransitionResults

__all__ = [
    "AnnealedKernel",
    "AnnealedPath",
    "Drift",
    "Endpoints",
    "HamiltonianMonteCarlo",
    "MetropolisAdjustedLangevin",
    "MetropolisHastings",
    "Place",
    "Proposal",
    "TransitionResults",
    "UnadjustedLangevin",
    "UncalibratedHamiltonian",
    "score_drift",
]
