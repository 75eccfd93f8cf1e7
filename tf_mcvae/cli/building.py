"""The model and the optimizer of a run, from its settings."""

import inspect
from typing import Any

import keras

from tf_mcvae.datasets import DataSpec
from tf_mcvae.layers import likelihoods
from tf_mcvae.layers.momentum import MomentumRefresh
from tf_mcvae.layers.networks import Decoder, Encoder
from tf_mcvae.layers.step_size import StepSize, StepSizeRule
from tf_mcvae.models import (
    AMCVAE,
    CMCDVAE,
    DAISVAE,
    HVAE,
    IWAE,
    LDVIVAE,
    LMCVAE,
    MCDVAE,
    UHAVAE,
    VAE,
    FlowVAE,
    MonteCarloVAE,
)
from tf_mcvae_commands.groups import GRADIENT, GROUP_MODELS, HAMILTONIAN, TRANSITIONS
from tf_mcvae_commands.options import schedule_call
from tf_mcvae_commands.training_settings import RunConfig

_MODELS: dict[str, type[Any]] = {
    "VAE": VAE,
    "IWAE": IWAE,
    "L-MCVAE": LMCVAE,
    "A-MCVAE": AMCVAE,
    "UHA": UHAVAE,
    "DAIS": DAISVAE,
    "LDVI": LDVIVAE,
    "MCD": MCDVAE,
    "CMCD": CMCDVAE,
    "HVAE": HVAE,
    "FlowVAE": FlowVAE,
}


def build_model(config: RunConfig, spec: DataSpec, steps_per_epoch: int) -> MonteCarloVAE:
    """Returns a new model, built and compiled, for completed settings."""
    options = {"scale": config.sigma} if config.likelihood == "gaussian" else {}
    likelihood = likelihoods.get({"class_name": config.likelihood, "config": options})
    networks: dict[str, Any] = {
        "architecture": config.architecture,
        "activation": config.activation,
    }
    arguments: dict[str, Any] = {
        "likelihood": likelihood,
        "num_samples": config.num_samples,
        "seed": config.seed,
        **_own_arguments(config),
    }
    encoder = Encoder(config.latent_dim, **networks)
    *sides, channels = spec.image_shape
    decoder = Decoder((*sides, likelihood.num_parameters(channels)), **networks)
    model: MonteCarloVAE = _MODELS[config.model](encoder, decoder, **arguments)
    model.build((None, *spec.image_shape))
    optimizer = keras.optimizers.Adam(
        learning_rate(config, steps_per_epoch), global_clipnorm=config.gradient_clip or None
    )
    jit_compile = "auto" if config.jit is None else config.jit
    model.compile(
        optimizer, jit_compile=jit_compile, skip_gradient_norm=config.gradient_skip or None
    )
    return model


def _own_arguments(config: RunConfig) -> dict[str, Any]:
    """Returns the arguments that only some models' constructors take."""
    arguments: dict[str, Any] = {}
    if config.gradient is not None and config.model in GROUP_MODELS[GRADIENT]:
        arguments["gradient"] = config.gradient
    if config.model in GROUP_MODELS[TRANSITIONS]:
        arguments |= _transition_arguments(config)
    if config.model in GROUP_MODELS[HAMILTONIAN]:
        arguments["num_leapfrog_steps"] = config.num_leapfrog_steps
        arguments["momentum"] = MomentumRefresh(
            config.momentum_persistence,
            learn_persistence=config.learn_momentum,
            learn_mass=config.learn_momentum,
        )
    if config.model == "FlowVAE":
        arguments |= {"flow": config.flow_type, "num_flows": config.num_flows}
    if config.model == "HVAE":
        del arguments["schedule"]
        arguments["tempering"] = config.tempering
    if config.model == "L-MCVAE":
        arguments |= {
            "skip_threshold": config.skip_threshold,
            "learned_drift": config.learned_drift,
            "learned_reverse": config.learned_reverse,
        }
    if config.model == "A-MCVAE":
        arguments |= {
            "acceptance": "barker" if config.barker else "metropolis",
            "alpha_annealing": config.alpha_annealing,
        }
    return arguments


def _transition_arguments(config: RunConfig) -> dict[str, Any]:
    """Returns the arguments of all models with transitions."""
    return {
        "num_transitions": config.num_transitions,
        "step_size": _step_size(config),
        "schedule": config.schedule,
        "cloned_decoder": config.cloned_decoder,
        "recompute": config.recompute,
    }


def _step_size(config: RunConfig) -> StepSize:
    """Returns the step sizes, which follow the acceptance where there is one."""
    step_size: Any = config.step_size
    if config.model == "HVAE":  # As published.
        return StepSize(step_size, "learned", per_dimension=True, limits=(0.0, 0.5))
    if config.learnable_transitions or not _MODELS[config.model].has_acceptance:
        return StepSize(step_size, "learned", config.target_acceptance)
    rule: StepSizeRule = "published_acceptance" if config.published_acceptance else "acceptance"
    rule = "variance" if config.variance_sensitive_step else rule
    return StepSize(step_size, rule, config.target_acceptance)


def learning_rate(config: RunConfig, steps_per_epoch: int) -> Any:
    """Returns the learning rate of completed settings: a number, or a Keras schedule.

    Raises:
        ValueError: If there is no such schedule in Keras, or its arguments do not fit.
    """
    rate: Any = config.learning_rate
    if config.lr_schedule == "constant":
        return rate
    if config.lr_schedule == "reference":
        # A value holds up to its boundary, the last step of the epoch before.
        return keras.optimizers.schedules.PiecewiseConstantDecay(
            [epoch * steps_per_epoch - 1 for epoch in (10, 20, 30)],
            [rate * 0.25**i for i in range(4)],
        )
    return _keras_schedule(str(config.lr_schedule), rate)


def _keras_schedule(text: str, rate: float) -> Any:
    name, arguments = schedule_call(text)
    kinds = _schedules()
    if name not in kinds:
        raise ValueError(
            f"Keras has no learning-rate schedule {name}; it has {', '.join(sorted(kinds))}. "
            f"Received: --lr-schedule {text!r}"
        )
    if "initial_learning_rate" in inspect.signature(kinds[name]).parameters:
        arguments = {"initial_learning_rate": rate, **arguments}
    try:
        schedule = kinds[name](**arguments)
        float(schedule(0))  # Some mistakes in the arguments raise only here.
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"These arguments do not fit {name}{inspect.signature(kinds[name])}: {error}. "
            f"Received: --lr-schedule {text!r}"
        ) from error
    return schedule


def _schedules() -> dict[str, Any]:
    found = keras.optimizers.schedules
    return {
        name: kind
        for name, kind in vars(found).items()
        if inspect.isclass(kind) and kind is not found.LearningRateSchedule
    }
