"""Monte Carlo variational auto-encoders in TensorFlow and Keras 3."""

from tf_mcvae import datasets, evaluation, kernels, layers, objectives, random
from tf_mcvae.evaluation import (
    bidirectional_gap,
    estimate_bound,
    estimate_elbo,
    estimate_iwae,
    estimate_log_likelihood,
    latent_statistics,
)
from tf_mcvae.export import export_onnx, export_saved_model, export_tflite
from tf_mcvae.flows import BNAF, IAF, Flow, FlowStack, RealNVP
from tf_mcvae.integrations.encoder_features import EncoderFeatures
from tf_mcvae.kernels import AnnealedPath
from tf_mcvae.layers import (
    Bernoulli,
    Decoder,
    DriftNetwork,
    Encoder,
    Gaussian,
    LearnedDrift,
    LearnedReverse,
    LearnedSchedule,
    Likelihood,
    LinearSchedule,
    SigmoidalSchedule,
    StepSize,
)
from tf_mcvae.models import AMCVAE, IWAE, LMCVAE, VAE, FlowVAE, MonteCarloVAE, load_model
from tf_mcvae.performance import parallelize_over_batch

__version__ = "0.1.0"

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
    "DriftNetwork",
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
    "bidirectional_gap",
    "datasets",
    "estimate_bound",
    "estimate_elbo",
    "estimate_iwae",
    "estimate_log_likelihood",
    "evaluation",
    "export_onnx",
    "export_saved_model",
    "export_tflite",
    "kernels",
    "latent_statistics",
    "layers",
    "load_model",
    "objectives",
    "parallelize_over_batch",
    "random",
]


def __dir__() -> list[str]:
    """Lists the public names, and not the modules that importing them loads."""
    return [*__all__, "__version__"]
