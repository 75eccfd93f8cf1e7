"""The settings of an evaluation, which are the flags of the evaluation command."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from tf_mcvae_commands.ais import AIS, AIS_FIELDS, PRESETS, AISSettings, presets_help
from tf_mcvae_commands.options import BOOLEAN, choice, cores_option, integer, option

DATA = "data (default: those of the run)"
ESTIMATES = "estimates"
OUTPUT = "output"


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The settings of an evaluation. None stands for a value that depends on the run or the model.

    A field's flag is its name with hyphens, except `annealing`: its fields are flags of their own,
    which take precedence over the preset.
    """

    data: str | None = option(
        None, DATA, str, "digits, mnist, ..., a file or a folder, as in train_keras.py --dataset"
    )
    binarize: bool | None = option(
        None,
        DATA,
        BOOLEAN,
        "draw each pixel once with its grey value as probability (default: as the run; of a .keras "
        "file, for a Bernoulli likelihood)",
    )
    data_dir: str | None = option(
        None, DATA, str, "folder of prepared TFDS data (default: as in train_keras.py)"
    )
    image_size: int | None = option(
        None, DATA, integer(1), "side to which images are resized (default: that of the data)"
    )
    split: str = option(
        "test", DATA, choice("test", "validation", "train"), "test, validation or train"
    )
    examples: int = option(
        500,
        DATA,
        integer(0),
        "number of images to evaluate, the first ones, of train in its shuffled order; 0: all",
    )

    elbo_samples: int = option(100, ESTIMATES, integer(1), "draws of each image for the ELBO")
    iwae_samples: int = option(
        5000, ESTIMATES, integer(0), "k of IWAE-k, draws of each image; 0 leaves it out"
    )
    ais: bool = option(True, ESTIMATES, BOOLEAN, f"estimate by {AIS}")
    gap: int = option(
        0,
        ESTIMATES,
        integer(0),
        "bound the error of AIS from both sides, on this number of images that the model draws "
        "itself; takes as long as AIS of twice as many images, and 50 are usually enough; 0: off",
    )
    seed: int = option(0, ESTIMATES, integer(0), "seed of the draws")
    chunk_size: int | None = option(
        None,
        ESTIMATES,
        integer(1),
        "largest number of draws or chains (images times those of each) in memory at a time; with "
        "smaller chunks, progress is shown and kept by --checkpoint more often (default: 5000 "
        "draws, 1600 chains)",
    )

    cores: int | None = cores_option(ESTIMATES)
    strategy: str = option(
        "none",
        ESTIMATES,
        choice("none", "multiworker"),
        "none, or multiworker: the processes that TF_CONFIG names share the images; each is given "
        "the same command",
    )

    preset: str = option("standard", AIS, choice(*PRESETS), presets_help())
    annealing: AISSettings = PRESETS["standard"]

    json: str | None = option(
        None, OUTPUT, str, "write all results, including each image's values, to this file"
    )
    checkpoint: str | None = option(
        None, OUTPUT, str, "folder that keeps results; the same command continues from there"
    )
    progress: bool | None = option(
        None, OUTPUT, BOOLEAN, "show bars with the time left (default: on a terminal)"
    )

    @classmethod
    def from_flags(cls, given: Mapping[str, Any]) -> Self:
        """Returns the settings for the values of flags, including those of `AISSettings`."""
        own = {name: value for name, value in given.items() if name not in AIS_FIELDS}
        overrides: Any = {name: value for name, value in given.items() if name in AIS_FIELDS}
        preset = PRESETS[own.get("preset", cls.preset)]
        return cls(**own, annealing=preset.updated(**overrides))

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings by the names of their flags."""
        values = dataclasses.asdict(self)
        annealing = values.pop("annealing")
        return {**values, **annealing}
