"""Transition kernels with the contract of `tfp.mcmc.TransitionKernel`."""

from tf_mcvae.kernels.hamiltonian import HamiltonianMonteCarlo, UncalibratedHamiltonian
from tf_mcvae.kernels.langevin import MetropolisAdjustedLangevin, UnadjustedLangevin
from tf_mcvae.kernels.metropolis import AnnealedKernel, MetropolisHastings, TransitionResults

__all__ = [
    "AnnealedKernel",
    "HamiltonianMonteCarlo",
    "MetropolisAdjustedLangevin",
    "MetropolisHastings",
    "TransitionResults",
    "UnadjustedLangevin",
    "UncalibratedHamiltonian",
]
