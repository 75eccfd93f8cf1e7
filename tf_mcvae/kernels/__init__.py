"""Transition kernels with the contract of `tfp.mcmc.TransitionKernel`."""

from tf_mcvae.kernels.hamiltonian import HamiltonianMonteCarlo, UncalibratedHamiltonian
from tf_mcvae.kernels.langevin import MetropolisAdjustedLangevin, UnadjustedLangevin
from tf_mcvae.kernels.metropolis import AnnealedKernel, MetropolisHastings, TransitionResults
from tf_mcvae.kernels.path import AnnealedPath, Endpoints

__all__ = [
    "AnnealedKernel",
    "AnnealedPath",
    "Endpoints",
    "HamiltonianMonteCarlo",
    "MetropolisAdjustedLangevin",
    "MetropolisHastings",
    "TransitionResults",
    "UnadjustedLangevin",
    "UncalibratedHamiltonian",
]
