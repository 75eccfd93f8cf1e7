"""The methods of `bound_comparison.py`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tf_mcvae
from tf_mcvae import LearnedSchedule, MomentumRefresh, StepSize


def langevin() -> dict[str, Any]:
    """Returns settings of the methods with Langevin transitions."""
    return {
        "schedule": LearnedSchedule("linear"),
        "step_size": StepSize(0.01, "learned", per_dimension=True),
    }


def coupled() -> dict[str, Any]:
    """Returns settings of an A-MCVAE whose gradient works for one chain."""
    return {**langevin(), "gradient": "coupled"}


def hamiltonian() -> dict[str, Any]:
    """Returns settings of the methods with Hamiltonian transitions."""
    # The step sizes are of the transitions, the mass of the dimensions.
    momentum = MomentumRefresh(0.9, learn_persistence=True, learn_mass=True)
    step_size = StepSize(0.1, "learned")
    return {"schedule": LearnedSchedule("linear"), "step_size": step_size, "momentum": momentum}


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
    "A-MCVAE, coupled": Method(tf_mcvae.AMCVAE, coupled, "#8C4A1F"),
    "MCD": Method(tf_mcvae.MCDVAE, langevin, "#56B4E9"),
    "CMCD": Method(tf_mcvae.CMCDVAE, langevin, "#0072B2"),
    "HVAE": Method(tf_mcvae.HVAE, lambda: {"tempering": "free"}, "#999999"),
    "UHA": Method(tf_mcvae.UHAVAE, hamiltonian, "#009E73"),
    "UHA, S = 2": Method(tf_mcvae.UHAVAE, hamiltonian, "#7FBF3F", num_samples=2),
    "DAIS": Method(tf_mcvae.DAISVAE, hamiltonian, "#CC79A7"),
    "LDVI": Method(tf_mcvae.LDVIVAE, hamiltonian, "#6A3D9A"),
}
MARKERS = "osDX^v<>Pd*"
