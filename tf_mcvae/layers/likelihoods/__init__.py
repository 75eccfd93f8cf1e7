"""Likelihoods: distributions of x given z, parameterised by a decoder's output."""

from tf_mcvae.layers.likelihoods.base import Likelihood
from tf_mcvae.layers.likelihoods.binary import Bernoulli, ContinuousBernoulli
from tf_mcvae.layers.likelihoods.categorical import Categorical, DiscretizedLogisticMixture
from tf_mcvae.layers.likelihoods.composite import Composite
from tf_mcvae.layers.likelihoods.continuous import Beta, Gaussian, LogNormal, StudentT
from tf_mcvae.layers.likelihoods.counts import NegativeBinomial, Poisson, ZeroInflated
from tf_mcvae.layers.likelihoods.named import get

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "Composite",
    "ContinuousBernoulli",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "Likelihood",
    "LogNormal",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "ZeroInflated",
    "get",
]
