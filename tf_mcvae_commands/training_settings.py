"""The settings of a training run, which are the flags of the training command."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any, Self

from tf_mcvae_commands.ais import AIS_FIELDS, PRESETS, AISSettings
from tf_mcvae_commands.groups import (
    A_MCVAE,
    DATA,
    FLOW,
    GRADIENT,
    H_VAE,
    HAMILTONIAN,
    L_MCVAE,
    MODEL,
    OUTPUT,
    SCORING,
    TRAINING,
    TRANSITIONS,
)
from tf_mcvae_commands.options import (
    BOOLEAN,
    LIMIT,
    Kind,
    choice,
    cores_option,
    integer,
    number,
    option,
    parse_lr_schedule,
)

_machine_option = functools.partial(option, may_vary="machine")
_resume_option = functools.partial(option, may_vary="resume")


def _ais_option(name: str, *names: str) -> Any:
    """Describes a setting of annealed importance sampling, whose default is that of a preset."""
    field = AIS_FIELDS[name].metadata
    default, text = getattr(_PRESET, name), f"annealed importance sampling: {field['help']}"
    return option(default, SCORING, field["kind"], text, *names, may_vary="resume")


_PRESET = PRESETS["quick"]


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The settings of a run; without any flag it is an L-MCVAE on the digits.

    A field's flag is its name with hyphens; its metadata hold further names, those of the
    reference implementation. None stands for a value that depends on the data set or the model.
    """

    dataset: str = option(
        "digits",
        DATA,
        str,
        "digits, mnist, fashionmnist, binarized_mnist, omniglot, cifar or celeba; or a .npy or "
        ".npz file, or a folder of images or TFRecords",
    )
    data_dir: str | None = _machine_option(
        None, DATA, str, "folder of prepared TFDS data (default: TFDS_DATA_DIR, or TFDS's own)"
    )
    image_size: int | None = option(
        None, DATA, integer(1), "side to which images are resized (default: that of the data set)"
    )
    binarize: bool | None = option(
        None,
        DATA,
        BOOLEAN,
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
        LIMIT,
        "batches of an epoch: with a point a fraction in (0, 1], without one a count "
        "(so 1.0 is all, and 1 is one)",
    )
    limit_validation_batches: int | float = option(
        1.0, DATA, LIMIT, "the same for validation", "limit_val_batches"
    )

    model: str = option(
        "L-MCVAE",
        MODEL,
        choice(
            *("VAE", "IWAE", "L-MCVAE", "A-MCVAE", "UHA", "DAIS", "LDVI", "MCD", "CMCD", "HVAE"),
            "FlowVAE",
            VAE_with_flows="FlowVAE",
            **{f"{name}VAE": name for name in ("UHA", "DAIS", "LDVI", "MCD", "CMCD")},
        ),
        "VAE, IWAE, L-MCVAE, A-MCVAE, UHA, DAIS, LDVI, MCD, CMCD, HVAE or FlowVAE (VAE_with_flows)",
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
        choice("bernoulli", "continuous_bernoulli", "discretized_logistic_mixture", "gaussian"),
        "bernoulli, continuous_bernoulli, gaussian, or discretized_logistic_mixture for 8-bit "
        "pixels (default: by data set)",
        "specific_likelihood",
    )
    sigma: float = option(
        1.0, MODEL, number(positive=True), "standard deviation of the gaussian likelihood"
    )
    gradient: str | None = option(
        None,
        GRADIENT,
        choice("plain", "stl", "dreg", "leave_one_out", "coupled"),
        "the encoder's, through its draws: plain, stl or dreg; of A-MCVAE's choices: leave_one_out "
        "or coupled (default: plain; A-MCVAE leave_one_out)",
    )
    num_transitions: int = option(5, TRANSITIONS, integer(1), "number of transitions K", "K")
    step_size: float | None = option(
        None,
        TRANSITIONS,
        number(),
        "first step size of every transition (default: 0.01; 0.1 for UHA, DAIS, LDVI and HVAE)",
    )
    learnable_transitions: bool = option(
        False,
        TRANSITIONS,
        BOOLEAN,
        "train the step sizes with the networks, as DAIS and HVAE always do",
    )
    variance_sensitive_step: bool = option(
        False,
        TRANSITIONS,
        BOOLEAN,
        "adapt a step size per dimension to the scores' spread (default: step sizes follow the "
        "acceptance, unless they are trained)",
    )
    published_acceptance: bool = option(
        False,
        TRANSITIONS,
        BOOLEAN,
        "adapt step sizes to the acceptance by the published rule: by 0.2 % an update, between "
        "0.001 and 0.5 (default: by Robbins and Monro's rule, which is faster)",
    )
    target_acceptance: float = option(
        0.9,
        TRANSITIONS,
        number(0.0, 1.0, positive=True),
        "acceptance rate that step sizes are adapted to",
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
        BOOLEAN,
        "run the transitions on a separately trained copy of the decoder",
        "use_cloned_decoder",
    )
    recompute: bool = option(
        False,
        TRANSITIONS,
        BOOLEAN,
        "compute the decoder's activations again in the backward pass: less memory, longer steps",
    )
    num_leapfrog_steps: int = option(
        1, HAMILTONIAN, integer(1), "leapfrog steps of each transition"
    )
    momentum_persistence: float = option(
        0.9, HAMILTONIAN, number(0.0, 1.0), "share of the momentum that a transition keeps, below 1"
    )
    learn_momentum: bool = option(
        False, HAMILTONIAN, BOOLEAN, "train the persistence and the mass of the momentum"
    )
    tempering: str = option(
        "quadratic", H_VAE, choice("quadratic", "free", "none"), "quadratic, free or none"
    )
    skip_threshold: float = option(
        0.0,
        L_MCVAE,
        number(0.0, 1.0),
        "undo transitions of at most this Metropolis-Hastings probability (above 0 the bound is "
        "biased)",
        "ula_skip_threshold",
    )
    learned_drift: bool = option(
        False,
        L_MCVAE,
        BOOLEAN,
        "follow a learned drift in place of the score",
        "use_score_matching",
        "use_transforms",
    )
    learned_reverse: bool = option(
        False,
        L_MCVAE,
        BOOLEAN,
        "weigh transitions by a learned reverse kernel",
        "use_reverse_kernel",
    )
    barker: bool = option(
        False,
        A_MCVAE,
        BOOLEAN,
        "accept by Barker's rule instead of Metropolis-Hastings",
        "use_barker",
    )
    alpha_annealing: bool = option(
        False,
        A_MCVAE,
        BOOLEAN,
        "raise the weight of the score-function term to 1 over ten epochs",
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
        "(default: reference for L-MCVAE and A-MCVAE on images of 16 pixels and more, otherwise "
        "constant)",
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
        BOOLEAN,
        "compile training steps with XLA (default: on GPUs; on CPUs for dense networks with "
        "transitions)",
    )
    gpus: int | None = _machine_option(
        None,
        TRAINING,
        integer(0),
        "GPUs that TensorFlow sees, of which it uses the first, or with --strategy all; 0: none "
        "(default: all)",
    )
    cores: int | None = cores_option(TRAINING)
    strategy: str = _machine_option(
        "none",
        TRAINING,
        choice("none", "mirrored", "multiworker"),
        "none: one device; mirrored: all GPUs of this machine; multiworker: all of the processes "
        "that the environment variable TF_CONFIG names, each of which is given the same flags, "
        "including --name, and continues the run if it is started again; a batch is divided among "
        "the devices",
    )

    score: bool = _resume_option(True, SCORING, BOOLEAN, "estimate the log-likelihood")
    score_examples: int | None = _resume_option(
        None,
        SCORING,
        integer(0),
        "number of test examples to score, the first ones; 0: all (default: 25,000 pixels, which "
        "is all of digits and 31 images of 28x28)",
    )
    iwae_samples: int = _resume_option(500, SCORING, integer(1), "k of the IWAE-k estimate")
    ais_temperatures: int = _ais_option("num_temperatures")
    ais_chains: int = _ais_option("num_chains")
    ais_leapfrogs: int = _ais_option("num_leapfrog_steps", "n_leapfrogs")

    name: str | None = option(
        None, OUTPUT, str, "name of the run's folder (default: data set, model, date and time)"
    )
    output_dir: str = _machine_option("saved_models", OUTPUT, str, "folder of the runs' folders")
    export: bool = _resume_option(True, OUTPUT, BOOLEAN, "write a SavedModel for TF Serving")
    export_onnx: bool = _resume_option(
        False, OUTPUT, BOOLEAN, "write ONNX files too, to onnx/ (needs the extra [onnx])"
    )
    export_tflite: bool = _resume_option(
        False, OUTPUT, BOOLEAN, "write a TFLite file too, to model.tflite"
    )
    logdir: str | None = _machine_option(
        None,
        OUTPUT,
        str,
        "write curves and images for TensorBoard to a folder of the run's name in this one "
        "(default: none)",
    )
    nll_every: int = option(
        10,
        OUTPUT,
        integer(0),
        "with --logdir, epochs between quick, loose estimates of the negative log-likelihood of "
        "validation images (3 HMC transitions, 10 chains, 100 images); 0: none",
    )

    @property
    def annealing(self) -> AISSettings:
        """The settings of annealed importance sampling for the scores after training."""
        return _PRESET.updated(
            num_temperatures=self.ais_temperatures,
            num_chains=self.ais_chains,
            num_leapfrog_steps=self.ais_leapfrogs,
        )

    @classmethod
    def from_saved(cls, values: Any, path: pathlib.Path) -> Self:
        """Returns the settings that `config.json` holds."""
        try:
            # Runs of 0.1.0, without this setting, adapt by the published rule.
            settings = {"published_acceptance": True, **values["settings"]}
            writer = values.get("versions", {})
            version = str(writer.get("tf_mcvae", "of an unknown version"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"The file does not hold the settings of a run. Received: {str(path)!r}"
            ) from error
        try:
            _check_known(settings)
            return cls(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The run was written by tf_mcvae {version}, and this version cannot continue it "
                f"({error}): install that version. Received: {str(path)!r}"
            ) from error


def _check_known(settings: Mapping[str, Any]) -> None:
    """Raises unless this version has all of the settings and their values."""
    unknown = ", ".join(sorted(settings.keys() - SETTINGS.keys()))
    if unknown:
        raise ValueError(f"it has no setting {unknown}")
    for name, value in settings.items():
        default, kind = SETTINGS[name].default, SETTINGS[name].metadata["kind"]
        if value != default and isinstance(kind, Kind) and not kind.accepts(value):
            raise ValueError(f"{name} must be {kind.wanted}, and is {value!r}")


SETTINGS = {field.name: field for field in dataclasses.fields(RunConfig)}

# Settings that may differ from worker to worker, and those that may change when a run is resumed.
OF_THE_MACHINE = {n for n, field in SETTINGS.items() if field.metadata["may_vary"] == "machine"}
FREE_ON_RESUME = {n for n, field in SETTINGS.items() if field.metadata["may_vary"] != "never"}
