"""What a training run is: its settings (`RunConfig`) and its folder (`RunFolder`).

This module imports nothing heavy, so that a mistake on the command line is answered at once.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Self

# Values from the command line.


def parse_bool(text: str) -> bool:
    """Reads True/False, yes/no, t/f, y/n, 1/0 in any case."""
    value = text.lower()
    if value in ("true", "yes", "t", "y", "1"):
        return True
    if value in ("false", "no", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"must be True or False. Received: {text!r}")


def integer(minimum: int | None = None) -> Callable[[str], int]:
    """Returns a parser of integers of at least `minimum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or (minimum is not None and value < minimum):
            least = "" if minimum is None else f" of at least {minimum}"
            raise argparse.ArgumentTypeError(f"must be an integer{least}. Received: {text!r}")
        return value

    return parse


def number(
    minimum: float = 0.0, below: float = math.inf, positive: bool = False
) -> Callable[[str], float]:
    """Returns a parser of finite numbers in `[minimum, below)`, or `(minimum, below)`."""
    least = f"above {minimum:g}" if positive else f"of at least {minimum:g}"
    most = "" if below == math.inf else f" and below {below:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not minimum <= value < below or (positive and value == minimum):
            raise argparse.ArgumentTypeError(f"must be a number {least}{most}. Received: {text!r}")
        return value

    return parse


def parse_limit(text: str) -> int | float:
    """Reads a limit of batches: an integer is a count, what has a point is a fraction in (0, 1]."""
    try:
        value: int | float = float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError:
        value = 0
    if not (0.0 < value <= 1.0 if isinstance(value, float) else value >= 1):
        raise argparse.ArgumentTypeError(
            "must be a fraction such as 0.1 or 1.0 (all), or a count of batches such as 20. "
            f"Received: {text!r}"
        )
    return value


def choice(*names: str, **aliases: str) -> Callable[[str], str]:
    """Returns a parser of one of `names` or `aliases`, whatever the case, hyphens and underscores."""

    def plain(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    known = {plain(name): name for name in names} | {plain(a): name for a, name in aliases.items()}

    def parse(text: str) -> str:
        if plain(text) not in known:
            listed = ", ".join([*names, *aliases])
            raise argparse.ArgumentTypeError(f"must be one of {listed}. Received: {text!r}")
        return known[plain(text)]

    return parse


def parse_model(text: str) -> str:
    """Reads the name of a model."""
    if text == "VAE_with_flows":
        raise argparse.ArgumentTypeError(
            f"normalising flows are not in this version; take another model. Received: {text!r}"
        )
    return choice("VAE", "IWAE", "L-MCVAE", "A-MCVAE")(text)


def option(
    default: Any, group: str, parse: Callable[[str], Any], text: str, *names: str
) -> Any:
    """Describes a setting: its default, the group of `--help`, how it is read, and further names."""
    return dataclasses.field(
        default=default, metadata={"group": group, "parse": parse, "help": text, "names": names}
    )


DATA = "data"
MODEL = "model"
TRANSITIONS = "transitions (L-MCVAE and A-MCVAE)"
L_MCVAE = "L-MCVAE only"
A_MCVAE = "A-MCVAE only"
TRAINING = "training"
SCORING = "scoring, on the test split after training"
OUTPUT = "output"

# The models that a group of settings is for, where it is not for all.
GROUP_MODELS = {
    TRANSITIONS: ("L-MCVAE", "A-MCVAE"),
    L_MCVAE: ("L-MCVAE",),
    A_MCVAE: ("A-MCVAE",),
}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The settings of a run; the defaults are those of the main job, which needs no flags.

    A field's flag is its name with hyphens; the metadata hold the names of the reference
    implementation beside it. None stands for what suits the data set or the model.
    """

    dataset: str = option(
        "digits", DATA, str,
        "digits, mnist, fashionmnist, binarized_mnist, omniglot, cifar or celeba; or a .npy or .npz "
        "file or a folder of images",
    )
    data_dir: str | None = option(
        None, DATA, str, "folder of prepared TFDS data (default: TFDS_DATA_DIR, or TFDS's own)"
    )
    image_size: int | None = option(
        None, DATA, integer(1), "side to which images are resized (default: that of the data set)"
    )
    binarize: bool | None = option(
        None, DATA, parse_bool,
        "draw each pixel anew at every read with its grey value as probability "
        "(default: for a Bernoulli likelihood)",
    )
    batch_size: int = option(32, DATA, integer(1), "examples in a training batch", "batch_size")
    validation_batch_size: int = option(
        50, DATA, integer(1), "examples in a batch of validation and scoring", "val_batch_size"
    )
    limit_train_batches: int | float = option(
        1.0, DATA, parse_limit,
        "batches of an epoch: with a point a fraction in (0, 1], without one a count "
        "(so 1.0 is all, and 1 is one)",
        "limit_train_batches",
    )
    limit_validation_batches: int | float = option(
        1.0, DATA, parse_limit, "the same for validation", "limit_val_batches"
    )

    model: str = option("L-MCVAE", MODEL, parse_model, "VAE, IWAE, L-MCVAE or A-MCVAE")
    latent_dim: int = option(16, MODEL, integer(1), "latent dimension D", "hidden_dim")
    num_samples: int | None = option(
        None, MODEL, integer(1),
        "importance samples or chains S (default: 1; IWAE 10, A-MCVAE 5)",
        "num_samples",
    )
    architecture: str = option(
        "conv", MODEL, choice("conv", "dense", fc="dense"), "conv or dense (fc)", "net_type"
    )
    activation: str = option(
        "gelu", MODEL, str,
        "relu, leakyrelu, tanh, logsigmoid, logsoftmax, softplus, gelu or a Keras activation",
        "act_func",
    )
    likelihood: str | None = option(
        None, MODEL, choice("bernoulli", "gaussian"),
        "bernoulli or gaussian (default: by data set)", "specific_likelihood",
    )
    sigma: float = option(
        1.0, MODEL, number(positive=True), "standard deviation of the gaussian likelihood"
    )

    num_transitions: int = option(5, TRANSITIONS, integer(1), "number of transitions K", "K")
    step_size: float = option(
        0.01, TRANSITIONS, number(), "first step size of every transition", "step_size"
    )
    learnable_transitions: bool = option(
        False, TRANSITIONS, parse_bool, "train the step sizes with the networks",
        "learnable_transitions",
    )
    variance_sensitive_step: bool = option(
        False, TRANSITIONS, parse_bool,
        "adapt a step size per dimension to the scores' spread; otherwise, and unless they are "
        "trained, the step sizes follow the acceptance",
        "variance_sensitive_step",
    )
    target_acceptance: float = option(
        0.95, TRANSITIONS, number(0.0, 1.0, positive=True), "acceptance that the step sizes aim at",
        "acceptance_rate_target",
    )
    schedule: str = option(
        "linear", TRANSITIONS, choice("linear", "sigmoidal", "all_learnable"),
        "inverse temperatures: linear, sigmoidal or all_learnable", "annealing_scheme",
    )
    cloned_decoder: bool = option(
        False, TRANSITIONS, parse_bool,
        "run the transitions on a separately trained copy of the decoder", "use_cloned_decoder",
    )
    skip_threshold: float = option(
        0.0, L_MCVAE, number(0.0, 1.0),
        "undo moves of at most this Metropolis-Hastings probability (above 0 the bound is biased)",
        "ula_skip_threshold",
    )
    barker: bool = option(
        False, A_MCVAE, parse_bool, "accept by Barker's rule instead of Metropolis-Hastings",
        "use_barker",
    )
    alpha_annealing: bool = option(
        False, A_MCVAE, parse_bool, "warm the score-function term up over ten epochs",
        "use_alpha_annealing",
    )

    epochs: int = option(25, TRAINING, integer(1), "number of epochs", "max_epochs")
    learning_rate: float = option(
        1e-3, TRAINING, number(positive=True), "learning rate of Adam", "learning_rate"
    )
    lr_schedule: str = option(
        "constant", TRAINING, choice("constant", "reference"),
        "constant, or reference: times 0.25 at epochs 10, 20 and 30", "lr_schedule",
    )
    gradient_clip: float = option(
        0.0, TRAINING, number(), "clip the global norm of the gradient to this; 0: off",
        "grad_clip_val",
    )
    seed: int = option(0, TRAINING, integer(), "seed of everything that is random")
    jit: bool = option(False, TRAINING, parse_bool, "compile the training step with XLA")

    score: bool = option(True, SCORING, parse_bool, "estimate the log-likelihood")
    score_examples: int = option(
        300, SCORING, integer(0), "score the first so many test examples; 0: all"
    )
    iwae_samples: int = option(500, SCORING, integer(1), "k of the IWAE-k estimate")
    ais_temperatures: int = option(
        100, SCORING, integer(2), "temperatures of annealed importance sampling"
    )
    ais_chains: int = option(4, SCORING, integer(1), "its chains for each example")
    ais_leapfrogs: int = option(3, SCORING, integer(1), "its leapfrog steps at each temperature")

    name: str | None = option(
        None, OUTPUT, str, "name of the run's folder (default: data set, model, date and time)"
    )
    output_dir: str = option("saved_models", OUTPUT, str, "folder of the runs' folders")
    export: bool = option(True, OUTPUT, parse_bool, "write a SavedModel for TF Serving")

    @classmethod
    def from_saved(cls, values: Any, path: pathlib.Path) -> Self:
        """Returns the settings that `config.json` holds."""
        try:
            return cls(**values["settings"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"These are not the settings of a run of this version ({error}). "
                f"Received: {str(path)!r}"
            ) from error


SETTINGS = {field.name: field for field in dataclasses.fields(RunConfig)}


# Files and folders.


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path to write a file or a folder to, which takes the place of `path` after.

    Whoever reads `path` finds the old content or the new one, never a half. What a failed attempt
    leaves behind is removed.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            _remove(path)  # A folder cannot be replaced in one step.
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: pathlib.Path, values: Any) -> None:
    """Writes JSON; numbers that are not finite, which JSON does not know, become null."""
    with replacing(path) as temporary:
        text = json.dumps(_finite(values), indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


class RunFolder:
    """The folder of a run, `saved_models/<name>/`, which holds everything that the run writes.

    A folder with `config.json` is a run; one with `metrics.json` too is finished.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.json"
        self.history = self.path / "history.csv"
        self.checkpoint = self.path / "checkpoint.keras"
        self.model = self.path / "model.keras"
        self.serving = self.path / "serving"

    @classmethod
    def find(cls, name: str, output_dir: str) -> Self:
        """Returns an interrupted run: by name, by path, or with `""` the latest.

        Raises:
            ValueError: If there is none, or it is finished.
        """
        runs = sorted(pathlib.Path(output_dir).glob("*/config.json"), key=os.path.getmtime)
        open_runs = [run.parent for run in runs if not cls(run.parent).metrics.exists()]
        candidates = [pathlib.Path(output_dir) / name, pathlib.Path(name)] if name else open_runs[-1:]
        for folder in map(cls, candidates):
            if folder.metrics.exists():
                raise ValueError(f"This run is finished. Received: --resume {str(folder.path)!r}")
            if folder.config.exists():
                return folder
        known = ", ".join(path.name for path in open_runs) or "none"
        raise ValueError(
            f"There is no such run to resume. Interrupted runs in {output_dir!r}: {known}. "
            f"Received: --resume {name!r}"
        )

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Makes the folder, and removes it if nothing was written before an error.

        Raises:
            ValueError: If there is something in it already.
            OSError: If it cannot be made or written to.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if any(self.path.iterdir()):
            way = "choose another --name, or remove that folder"
            if self.config.exists() and not self.metrics.exists():
                way = f"go on with it by `--resume {self.path.name}`, {way}"
            raise ValueError(f"There is a run of this name: {way}. Received: {str(self.path)!r}")
        tempfile.TemporaryFile(dir=self.path).close()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self.path.rmdir()  # Only an empty folder can be removed so.

    def load_config(self) -> RunConfig:
        """Returns the settings of the run."""
        try:
            values = json.loads(self.config.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(
                f"The settings of the run cannot be read ({error}). Received: {str(self.config)!r}"
            ) from error
        return RunConfig.from_saved(values, self.config)

    def written(self) -> list[str]:
        """Returns the names of what the folder holds."""
        return sorted(f"{path.name}/" if path.is_dir() else path.name for path in self.path.iterdir())
