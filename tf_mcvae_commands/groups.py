"""The groups of the training command's flags, and the models that they are for."""

DATA = "data"
MODEL = "model"
GRADIENT = "all models but VAE and FlowVAE"
TRANSITIONS = "transitions (all models but VAE, IWAE and FlowVAE)"
HAMILTONIAN = "UHA, DAIS and LDVI only"
H_VAE = "HVAE only"
L_MCVAE = "L-MCVAE only"
A_MCVAE = "A-MCVAE only"
FLOW = "FlowVAE only"
TRAINING = "training"
SCORING = "scoring, on the test split after training"
OUTPUT = "output"

# The models that a group of settings is for, where it is not for all.
_WITH_TRANSITIONS = ("L-MCVAE", "A-MCVAE", "UHA", "DAIS", "LDVI", "MCD", "CMCD", "HVAE")
GROUP_MODELS = {
    GRADIENT: ("IWAE", *_WITH_TRANSITIONS),
    TRANSITIONS: _WITH_TRANSITIONS,
    HAMILTONIAN: ("UHA", "DAIS", "LDVI"),
    H_VAE: ("HVAE",),
    L_MCVAE: ("L-MCVAE",),
    A_MCVAE: ("A-MCVAE",),
    FLOW: ("FlowVAE",),
}
