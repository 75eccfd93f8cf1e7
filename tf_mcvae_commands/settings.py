"""The settings of a training run: `RunConfig`, and how its values are read from text.

This module imports nothing heavy, so that a mistake on the command line is answered at once.
"""

import argparse
import ast
import dataclasses
import math
import pathlib
from collections.abc import Callable
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


def integer(minimum: int) -> Callable[[str], int]:
    """Returns a parser of integers of at least `minimum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(
                f"must be an integer of at least {minimum}. Received: {text!r}"
            )
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
    """Returns a parser of `names` or `aliases`; case, hyphens and underscores do not matter."""

    def plain(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    known = {plain(name): name for name in names} | {plain(a): name for a, name in aliases.items()}

    def parse(text: str) -> str:
        if plain(text) not in known:
            listed = ", ".join([*names, *aliases])
            raise argparse.ArgumentTypeError(f"must be one of {listed}. Received: {text!r}")
        return known[plain(text)]

    return parse


def schedule_call(text: str) -> tuple[str, dict[str, Any]]:
    """Reads a learning-rate schedule written as a call of a Keras class.

    Args:
        text: Such as `"CosineDecay(decay_steps=5000, alpha=0.1)"`.

    Returns:
        The name of the class and its keyword arguments.

    Raises:
        ValueError: If it is not a call by keywords whose values are numbers, lists, text or such.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("It is no call by keywords")
        # The argument of a `**` has no name.
        values = {word.arg or "**": ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            "must be constant, reference, or a Keras schedule with its arguments by name and "
            "written out, such as 'CosineDecay(decay_steps=5000, alpha=0.1)'. "
            f"Received: {text!r}"
        ) from error
    return call.func.id, values


def parse_lr_schedule(text: str) -> str:
    """Reads the name of a learning-rate schedule, or checks the form of a Keras schedule."""
    if text.lower() in ("constant", "reference"):
        return text.lower()
    try:
        schedule_call(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text.strip()


def option(default: Any, group: str, parse: Callable[[str], Any], text: str, *names: str) -> Any:
    """Describes a setting: default, group and text of `--help`, how it is read, further names."""
    return dataclasses.field(
        default=default, metadata={"group": group, "parse": parse, "help": text, "names": names}
    )


def cores_option(group: str) -> Any:
    """Describes the setting `cores`, which both commands have."""
    return option(
        None,
        group,
        integer(1),
        "cores that share each batch, without a GPU and --strategy; 1: TensorFlow divides each "
        "operation among all instead (default: all, 16 at most)",
    )


DATA = "data"
MODEL = "model"
TRANSITIONS = "transitions (L-MCVAE and A-MCVAE)"
L_MCVAE = "L-MCVAE only"
A_MCVAE = "A-MCVAE only"
FLOW = "FlowVAE only"
TRAINING = "training"
SCORING = "scoring, on the test split after training"
OUTPUT = "output"

# The models that a group of settings is for, where it is not for all.
GROUP_MODELS = {
    TRANSITIONS: ("L-MCVAE", "A-MCVAE"),
    L_MCVAE: ("L-MCVAE",),
    A_MCVAE: ("A-MCVAE",),
    FLOW: ("FlowVAE",),
}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The settings of a run; the defaults are those of the main job, which needs no flags.

    A field's flag is its name with hyphens; the metadata hold the names of the reference
    implementation beside it. None stands for what suits the data set or the model.
    """

    dataset: str = option(
        "digits",
        DATA,
        str,
        "digits, mnist, fashionmnist, binarized_mnist, omniglot, cifar or celeba; or a .npy or "
        ".npz file, or a folder of images or TFRecords",
    )
    data_dir: str | None = option(
        None, DATA, str, "folder of prepared TFDS data (default: TFDS_DATA_DIR, or TFDS's own)"
    )
    image_size: int | None = option(
        None, DATA, integer(1), "side to which images are resized (default: that of the data set)"
    )
    binarize: bool | None = option(
        None,
        DATA,
        parse_bool,
        "draw each pixel anew at every read with its grey value as probability "
        "(default: for a Bernoulli likelihood)",
    )
    batch_size: int = option(50, DATA, integer(1), "examples in a training batch")
    validation_batch_size: int = option(
        50, DATA, integer(1), "examples in a batch of validation and scoring", "val_batch_size"
    )
    limit_train_batches: int | float = option(
        1.0,
        DATA,
        parse_limit,
        "batches of an epoch: with a point a fraction in (0, 1], without one a count "
        "(so 1.0 is all, and 1 is one)",
    )
    limit_validation_batches: int | float = option(
        1.0, DATA, parse_limit, "the same for validation", "limit_val_batches"
    )

    model: str = option(
        "L-MCVAE",
        MODEL,
        choice("VAE", "IWAE", "L-MCVAE", "A-MCVAE", "FlowVAE", VAE_with_flows="FlowVAE"),
        "VAE, IWAE, L-MCVAE, A-MCVAE or FlowVAE (VAE_with_flows)",
    )
    latent_dim: int = option(16, MODEL, integer(1), "latent dimension D", "hidden_dim")
    num_samples: int | None = option(
        None, MODEL, integer(1), "importance samples or chains S (default: 1; IWAE 10, A-MCVAE 5)"
    )
    architecture: str | None = option(
        None,
        MODEL,
        choice("conv", "dense", fc="dense"),
        "conv or dense (fc) networks (default: dense for images of less than 16 pixels)",
        "net_type",
    )
    activation: str = option(
        "gelu",
        MODEL,
        str,
        "relu, leakyrelu, tanh, logsigmoid, logsoftmax, softplus, gelu or a Keras activation",
        "act_func",
    )
    likelihood: str | None = option(
        None,
        MODEL,
        choice("bernoulli", "gaussian"),
        "bernoulli or gaussian (default: by data set)",
        "specific_likelihood",
    )
    sigma: float = option(
        1.0, MODEL, number(positive=True), "standard deviation of the gaussian likelihood"
    )

    num_transitions: int = option(5, TRANSITIONS, integer(1), "number of transitions K", "K")
    step_size: float = option(0.01, TRANSITIONS, number(), "first step size of every transition")
    learnable_transitions: bool = option(
        False, TRANSITIONS, parse_bool, "train the step sizes with the networks"
    )
    variance_sensitive_step: bool = option(
        False,
        TRANSITIONS,
        parse_bool,
        "adapt a step size per dimension to the scores' spread; otherwise, and unless they are "
        "trained, the step sizes follow the acceptance",
    )
    target_acceptance: float = option(
        0.9,
        TRANSITIONS,
        number(0.0, 1.0, positive=True),
        "acceptance that the step sizes aim at",
        "acceptance_rate_target",
    )
    schedule: str = option(
        "linear",
        TRANSITIONS,
        choice("linear", "sigmoidal", "all_learnable"),
        "inverse temperatures: linear, sigmoidal or all_learnable",
        "annealing_scheme",
    )
    cloned_decoder: bool = option(
        False,
        TRANSITIONS,
        parse_bool,
        "run the transitions on a separately trained copy of the decoder",
        "use_cloned_decoder",
    )
    recompute: bool = option(
        False,
        TRANSITIONS,
        parse_bool,
        "compute the decoder's activations again in the backward pass: less memory, longer steps",
    )
    skip_threshold: float = option(
        0.0,
        L_MCVAE,
        number(0.0, 1.0),
        "undo moves of at most this Metropolis-Hastings probability (above 0 the bound is biased)",
        "ula_skip_threshold",
    )
    learned_drift: bool = option(
        False,
        L_MCVAE,
        parse_bool,
        "move along a drift that is learned in place of the score",
        "use_score_matching",
        "use_transforms",
    )
    learned_reverse: bool = option(
        False,
        L_MCVAE,
        parse_bool,
        "weigh the moves with a learned kernel backwards",
        "use_reverse_kernel",
    )
    barker: bool = option(
        False,
        A_MCVAE,
        parse_bool,
        "accept by Barker's rule instead of Metropolis-Hastings",
        "use_barker",
    )
    alpha_annealing: bool = option(
        False,
        A_MCVAE,
        parse_bool,
        "warm the score-function term up over ten epochs",
        "use_alpha_annealing",
    )
    num_flows: int = option(1, FLOW, integer(1), "number of flow layers")
    flow_type: str = option(
        "realnvp", FLOW, choice("realnvp", "iaf", "bnaf"), "realnvp, iaf or bnaf"
    )

    epochs: int = option(150, TRAINING, integer(1), "number of epochs", "max_epochs")
    learning_rate: float | None = option(
        None,
        TRAINING,
        number(positive=True),
        "learning rate of Adam (default: 0.001; 0.003 for images of less than 16 pixels)",
    )
    lr_schedule: str | None = option(
        None,
        TRAINING,
        parse_lr_schedule,
        "constant; reference: times 0.25 at epochs 10, 20 and 30; or a class of "
        "keras.optimizers.schedules with its arguments, as 'CosineDecay(decay_steps=5000)', whose "
        "initial_learning_rate is --learning-rate unless it is given, and whose steps are updates "
        "(default: reference for L-MCVAE and A-MCVAE on images of 16 pixels and more, constant for "
        "the other models and for smaller images, which have a learning rate of their own too)",
    )
    gradient_clip: float = option(
        0.0,
        TRAINING,
        number(),
        "clip the global norm of the gradient to this; 0: off",
        "grad_clip_val",
    )
    gradient_skip: float = option(
        0.0,
        TRAINING,
        number(),
        "skip an update where the global norm of the gradient is not below this; 0: off",
        "grad_skip_val",
    )
    seed: int = option(0, TRAINING, integer(0), "seed of everything that is random")
    jit: bool | None = option(
        None,
        TRAINING,
        parse_bool,
        "compile training steps with XLA (default: on GPUs, and on CPUs dense networks with moves)",
    )
    gpus: int | None = option(
        None,
        TRAINING,
        integer(0),
        "GPUs that TensorFlow sees, of which it uses the first, or with --strategy all; 0: none "
        "(default: all)",
    )
    cores: int | None = cores_option(TRAINING)
    strategy: str = option(
        "none",
        TRAINING,
        choice("none", "mirrored", "multiworker"),
        "none: one device; mirrored: all GPUs of this machine; multiworker: all of the processes "
        "that the environment variable TF_CONFIG names, which each are given the same flags, "
        "--name among them, and go on with the run if they are started again; a batch is divided "
        "among the devices",
    )

    score: bool = option(True, SCORING, parse_bool, "estimate the log-likelihood")
    score_examples: int | None = option(
        None,
        SCORING,
        integer(0),
        "score the first so many test examples; 0: all (default: 25,000 pixels, which is all of "
        "digits and 31 images of 28x28)",
    )
    iwae_samples: int = option(500, SCORING, integer(1), "k of the IWAE-k estimate")
    ais_temperatures: int = option(
        100, SCORING, integer(2), "temperatures of annealed importance sampling"
    )
    ais_chains: int = option(8, SCORING, integer(1), "its chains for each example")
    ais_leapfrogs: int = option(
        3, SCORING, integer(1), "its leapfrog steps at each temperature", "n_leapfrogs"
    )

    name: str | None = option(
        None, OUTPUT, str, "name of the run's folder (default: data set, model, date and time)"
    )
    output_dir: str = option("saved_models", OUTPUT, str, "folder of the runs' folders")
    export: bool = option(True, OUTPUT, parse_bool, "write a SavedModel for TF Serving")
    export_onnx: bool = option(
        False, OUTPUT, parse_bool, "write ONNX files too, to onnx/ (takes the extra [onnx])"
    )
    export_tflite: bool = option(
        False, OUTPUT, parse_bool, "write a TFLite file too, to model.tflite"
    )
    logdir: str | None = option(
        None,
        OUTPUT,
        str,
        "write curves and images for TensorBoard to this folder, in one of the run's name "
        "(default: no such files)",
    )
    nll_every: int = option(
        10,
        OUTPUT,
        integer(0),
        "with --logdir, epochs between quick, loose estimates of the negative log-likelihood of "
        "validation images (3 HMC moves, 10 chains, 100 images); 0: none",
    )

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

# What may change when a run is resumed.
_OF_THE_MACHINE = {"cores", "data_dir", "gpus", "strategy"}
_EXPORTS = {"export", "export_onnx", "export_tflite"}
FREE_ON_RESUME = (
    _OF_THE_MACHINE
    | _EXPORTS
    | {name for name, field in SETTINGS.items() if field.metadata["group"] == SCORING}
)
