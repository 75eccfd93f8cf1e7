"""The models: `keras.Model` subclasses, one file for each method."""

from tf_mcvae.models.amcvae import AMCVAE
from tf_mcvae.models.base import MonteCarloVAE
from tf_mcvae.models.cmcdvae import CMCDVAE
from tf_mcvae.models.daisvae import DAISVAE
from tf_mcvae.models.flow_vae import FlowVAE
from tf_mcvae.models.hvae import HVAE
from tf_mcvae.models.iwae import IWAE
from tf_mcvae.models.ldvivae import LDVIVAE
from tf_mcvae.models.lmcvae import LMCVAE
from tf_mcvae.models.mcdvae import MCDVAE
from tf_mcvae.models.saving import load_model
from tf_mcvae.models.uhavae import UHAVAE
from tf_mcvae.models.vae import VAE

__all__ = [
    "AMCVAE",
    "CMCDVAE",
    "DAISVAE",
    "HVAE",
    "IWAE",
    "LDVIVAE",
    "LMCVAE",
    "MCDVAE",
    "UHAVAE",
    "VAE",
    "FlowVAE",
    "MonteCarloVAE",
    "load_model",
]
