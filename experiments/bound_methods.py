"""The methods of `bound_comparison.py`, and how it starts them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import tf_mcvae
from tf_mcvae import MomentumRefresh, StepSize


def langevin() -> dict[str, Any]:
    """Returns settings of the methods with Langevin transitions."""
    return {"schedule": "all_learnable", "step_size": StepSize(0.01, "learned", per_dimension=True)}


def hamiltonian() -> dict[str, Any]:
    """Returns settings of the methods with Hamiltonian transitions."""
    # The step sizes are of the transitions, the mass of the dimensions.
    momentum = MomentumRefresh(0.9, learn_persistence=True, learn_mass=True)
    step_size = StepSize(0.1, "learned")
    return {"schedule": "all_learnable", "step_size": step_size, "momentum": momentum}


class Method(NamedTuple):
    """A method of the comparison.

    Attributes:
        model_class: Class of the model.
        settings: Makes the constructor's arguments, with new layers at each call.
        color: Color of the line.
        num_samples: S; 0 spends the budget on samples, without transitions.
        training_samples: S in training; None for that of the evaluation.
    """

    model_class: Any
    settings: Callable[[], dict[str, Any]]
    color: str
    num_samples: int = 1
    training_samples: int | None = None

    def sizes(self, budget: int) -> dict[str, int]:
        """Returns S and K for a budget that the method can spend."""
        if not self.num_samples:
            return {"num_samples": budget}
        num_transitions = budget // self.num_samples - 1
        return {"num_samples": self.num_samples, "num_transitions": num_transitions}

    def can_spend(self, budget: int) -> bool:
        """Returns whether the budget is a multiple of S with one transition or more."""
        return not self.num_samples or (
            budget % self.num_samples == 0 and budget >= 2 * self.num_samples
        )


METHODS = {
    "IWAE": Method(tf_mcvae.IWAE, lambda: {"gradient": "dreg"}, "#000000", num_samples=0),
    "L-MCVAE": Method(tf_mcvae.LMCVAE, langevin, "#E69F00"),
    "A-MCVAE": Method(tf_mcvae.AMCVAE, langevin, "#D55E00", training_samples=2),
    "MCD": Method(tf_mcvae.MCDVAE, langevin, "#56B4E9"),
    "CMCD": Method(tf_mcvae.CMCDVAE, langevin, "#0072B2"),
    "HVAE": Method(tf_mcvae.HVAE, dict, "#999999"),
    "UHA": Method(tf_mcvae.UHAVAE, hamiltonian, "#009E73"),
    "UHA, S = 2": Method(tf_mcvae.UHAVAE, hamiltonian, "#7FBF3F", num_samples=2),
    "DAIS": Method(tf_mcvae.DAISVAE, hamiltonian, "#CC79A7"),
    "LDVI": Method(tf_mcvae.LDVIVAE, hamiltonian, "#6A3D9A"),
}
MARKERS = "osD^v<>Pd*"


def start_linear(model: Any) -> None:
    """Starts a schedule whose inverse temperatures are all learned at the linear one.

    The layer's own start halves the inverse temperature at each transition back from the last one,
    so that, of many transitions, all but some ten would target the encoder's distribution.
    """
    if isinstance(getattr(model, "schedule", None), tf_mcvae.LearnedSchedule):
        logits = model.schedule.logits
        logits.assign(np.log(np.arange(1.0, 1.0 + logits.shape[0])))  # b_k / b_{k+1} = k / (k + 1).
