"""The settings of annealed importance sampling, of which library and commands make their own.

They live in this package because the command line needs them without importing TensorFlow;
`tf_mcvae.evaluation` exports them.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, Unpack

from tf_mcvae_commands.options import choice, integer, number, option

AIS = "annealed importance sampling"


class AISOverrides(TypedDict, total=False):
    """The fields of `AISSettings` as keyword arguments, each of which may be left out."""

    num_chains: int
    num_temperatures: int
    num_leapfrog_steps: int
    schedule: Literal["sigmoid", "linear"]
    step_size: float | None
    target_acceptance: float
    start: Literal["encoder", "prior"]


@dataclasses.dataclass(frozen=True)
class AISSettings:
    """The settings of annealed importance sampling with Hamiltonian Monte Carlo.

    The defaults are those of arXiv 1611.04273, which suit numbers to be cited; `PRESETS` has
    cheaper ones. Time grows with the product of chains, temperatures and leapfrog steps.

    Args:
        num_chains: Chains of each example.
        num_temperatures: T, at least 2; the chains make T - 1 transitions.
        num_leapfrog_steps: Leapfrog steps of a transition.
        schedule: Spacing of the inverse temperatures.
        step_size: One step size for all transitions. None tunes one for each in a pilot run.
        target_acceptance: Acceptance rate that the pilot run tunes to, between 0 and 1.
        start: `"encoder"` starts chains at draws from the encoder, in the base space of a flow;
            `"prior"` at draws from the prior, as a cross-check.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> PRESETS["standard"].updated(start="prior").num_temperatures
        300
    """

    num_chains: int = option(16, AIS, integer(1), "chains of each image", "chains")
    num_temperatures: int = option(
        1000, AIS, integer(2), "inverse temperatures, one more than transitions", "temperatures"
    )
    num_leapfrog_steps: int = option(
        10, AIS, integer(1), "leapfrog steps of each transition", "leapfrogs"
    )
    schedule: Literal["sigmoid", "linear"] = option(
        "sigmoid", AIS, choice("sigmoid", "linear"), "inverse temperatures: sigmoid or linear"
    )
    step_size: float | None = option(
        None, AIS, number(positive=True), "one step size for all transitions, which is not tuned"
    )
    target_acceptance: float = option(
        0.65, AIS, number(below=1.0, positive=True), "acceptance that step sizes are tuned to"
    )
    start: Literal["encoder", "prior"] = option(
        "encoder", AIS, choice("encoder", "prior"), "where chains start: encoder or prior"
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), field.metadata["kind"]
            if kind.accepts(value) or (value is None and field.default is None):
                continue
            wanted = kind.wanted + (", or None" if field.default is None else "")
            if field.name == "num_temperatures":
                wanted += "; `estimate_iwae` weighs draws of the encoder without annealing"
            raise ValueError(f"`{field.name}` must be {wanted}. Received: {field.name}={value!r}")

    def updated(self, **overrides: Unpack[AISOverrides]) -> "AISSettings":
        """Returns these settings with others in the place of some.

        Raises:
            TypeError: If there is no such setting.
            ValueError: If a value is out of range.
        """
        return dataclasses.replace(self, **_known(overrides))

    def summary(self) -> str:
        """Returns what decides about time and tightness in words."""
        return (
            f"{self.num_chains} chains, {self.num_temperatures} temperatures, "
            f"{self.num_leapfrog_steps} leapfrog steps"
        )


def _known(overrides: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in overrides.items():
        if name not in AIS_FIELDS:
            close = difflib.get_close_matches(name, AIS_FIELDS, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"they are {', '.join(AIS_FIELDS)}"
            raise TypeError(
                f"`AISSettings` has no field `{name}` ({hint}). Received: {name}={value!r}"
            )
    return dict(overrides)


AIS_FIELDS = {field.name: field for field in dataclasses.fields(AISSettings)}

PRESETS: Mapping[str, AISSettings] = {
    "quick": AISSettings(num_chains=8, num_temperatures=100, num_leapfrog_steps=3),
    "standard": AISSettings(num_temperatures=300, num_leapfrog_steps=5),
    "paper": AISSettings(),
    "reference_quick": AISSettings(
        num_chains=10,
        num_temperatures=4,
        num_leapfrog_steps=3,
        schedule="linear",
        step_size=0.05,
    ),
}

_USES = {
    "quick": "a first look",
    "standard": "to compare models",
    "paper": "to be cited",
    "reference_quick": "fixed step size, loose: for the published tables only",
}


def presets_help() -> str:
    """Returns the presets with their numbers and uses, for `--help`."""
    parts = [f"{name} ({PRESETS[name].summary()}; {use})" for name, use in _USES.items()]
    return f"{', '.join(parts)}; time grows with the product of the three numbers"
