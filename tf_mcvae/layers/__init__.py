"""The parts of a model: networks, likelihoods, schedules and step sizes."""

from tf_mcvae.layers.likelihoods import Bernoulli, Gaussian, Likelihood
from tf_mcvae.layers.momentum import MomentumRefresh, Tempering
from tf_mcvae.layers.networks import Decoder, Encoder
from tf_mcvae.layers.priors import Prior, StandardNormal
from tf_mcvae.layers.schedules import LearnedSchedule, LinearSchedule, Schedule, SigmoidalSchedule
from tf_mcvae.layers.step_size import StepSize
from tf_mcvae.layers.transition_networks import DriftNetwork, LearnedDrift, LearnedReverse

__all__ = [
    "Bernoulli",
    "Decoder",
    "DriftNetwork",
    "Encoder",
    "Gaussian",
    "LearnedDrift",
    "LearnedReverse",
    "LearnedSchedule",
    "Likelihood",
    "LinearSchedule",
    "MomentumRefresh",
    "Prior",
    "Schedule",
    "SigmoidalSchedule",
    "StandardNormal",
    "StepSize",
    "Tempering",
]


def __dir__() -> list[str]:
    """Lists the public names, and not the modules that define them."""
    return __all__
