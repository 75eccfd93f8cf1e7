"""The public names of the package, importing which registers all its classes with Keras."""

from tf_mcvae import annealing, bounds, datasets, evaluation, importance, kernels, likelihoods
from tf_mcvae.annealing import AnnealedPath, LearnedSchedule, LinearSchedule, SigmoidalSchedule
from tf_mcvae.cores import parallelize_over_batch
from tf_mcvae.evaluation import (
    bidirectional_gap,
    estimate_bound,
    estimate_elbo,
    estimate_iwae,
    estimate_log_likelihood,
    latent_statistics,
)
from tf_mcvae.export import export_onnx, export_saved_model, export_tflite
from tf_mcvae.features import EncoderFeatures
from tf_mcvae.flows import BNAF, IAF, Flow, FlowStack, RealNVP
from tf_mcvae.likelihoods import Bernoulli, Gaussian, Likelihood
from tf_mcvae.models import AMCVAE, IWAE, LMCVAE, VAE, FlowVAE, MonteCarloVAE, StepSize, load_model
from tf_mcvae.networks import Decoder, Encoder
from tf_mcvae.transition_networks import LearnedDrift, LearnedReverse

__all__ = [
    "AMCVAE",
    "BNAF",
    "IAF",
    "IWAE",
    "LMCVAE",
    "VAE",
    "AnnealedPath",
    "Bernoulli",
    "Decoder",
    "Encoder",
    "EncoderFeatures",
    "Flow",
    "FlowStack",
    "FlowVAE",
    "Gaussian",
    "LearnedDrift",
    "LearnedReverse",
    "LearnedSchedule",
    "Likelihood",
    "LinearSchedule",
    "MonteCarloVAE",
    "RealNVP",
    "SigmoidalSchedule",
    "StepSize",
    "annealing",
    "bidirectional_gap",
    "bounds",
    "datasets",
    "estimate_bound",
    "estimate_elbo",
    "estimate_iwae",
    "estimate_log_likelihood",
    "evaluation",
    "export_onnx",
    "export_saved_model",
    "export_tflite",
    "importance",
    "kernels",
    "latent_statistics",
    "likelihoods",
    "load_model",
    "parallelize_over_batch",
]
