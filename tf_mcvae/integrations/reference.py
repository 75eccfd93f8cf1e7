"""Conversion of models that the reference implementation has trained to models of this library.

The reference stores images with the channels first and kernels as `[out, in, ...]`; this library
stores images with the channels last and kernels as `[..., in, out]`. Otherwise the networks are the
same, so a converted model gives the same numbers.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_mcvae.layers.activations import ACTIVATIONS
from tf_mcvae.layers.likelihoods import Gaussian, Likelihood
from tf_mcvae.layers.networks import Decoder, Encoder
from tf_mcvae.layers.step_size import LIMITS, StepSize, StepSizeRule
from tf_mcvae.layers.transition_networks import LearnedDrift, LearnedReverse, TransitionNetwork
from tf_mcvae.models import AMCVAE, IWAE, LMCVAE, VAE, MonteCarloVAE

Array = np.ndarray[Any, Any]

_MODELS: dict[str, type[MonteCarloVAE]] = {
    "vae": VAE,
    "iwae": IWAE,
    "lmcvae": LMCVAE,
    "amcvae": AMCVAE,
}
# The reference's image shape and default likelihood for each of its data sets.
_DATASETS = {
    "mnist": ((28, 28, 1), "bernoulli"),
    "fashionmnist": ((28, 28, 1), "bernoulli"),
    "omniglot": ((28, 28, 1), "gaussian"),
    "cifar": ((32, 32, 3), "gaussian"),
    "celeba": ((64, 64, 3), "gaussian"),
}


def load_checkpoint(
    path: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    image_shape: Sequence[int] | None = None,
) -> MonteCarloVAE:
    """Loads a checkpoint of the reference's trainer.

    PyTorch reads it with `weights_only=True`, which refuses files that would run code.

    Args:
        path: A `.ckpt` file.
        settings: The reference's flags that the model was trained with. They complement, and
            override, those in the file.
        image_shape: `(H, W, C)`. The default is the shape of the reference's data set.

    Returns:
        A built model; see `from_state_dict`.

    Raises:
        ImportError: If PyTorch is not installed.
        ValueError: If PyTorch cannot read the file, or the file does not fit the settings.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "Reading a .ckpt file needs PyTorch: `pip install torch`. Or save the arrays of its "
            "state dict with `numpy.savez` where PyTorch is installed, and use `from_state_dict`. "
            f"Received: {os.fspath(path)!r}"
        ) from error
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # The class of the error depends on the content of the file.
        raise ValueError(
            "This is not a checkpoint that PyTorch can read with weights only "
            f"({type(error).__name__}). Received: {os.fspath(path)!r}"
        ) from error
    if not isinstance(saved, dict):
        raise ValueError(
            "A checkpoint is a dictionary with the key 'state_dict', or a state dict itself. "
            f"Received: {type(saved).__name__} in {os.fspath(path)!r}"
        )
    weights = saved.get("state_dict", saved)
    arrays = {name: value.numpy() for name, value in weights.items() if torch.is_tensor(value)}
    found = saved.get("hyper_parameters", {})
    return from_state_dict(arrays, {**found, **(settings or {})}, image_shape)


def from_state_dict(
    state_dict: Mapping[str, Any],
    settings: Mapping[str, Any],
    image_shape: Sequence[int] | None = None,
) -> MonteCarloVAE:
    """Creates a model of this library from the weights of a model of the reference.

    The weights determine widths, latent dimension, number of transitions, schedule, cloned decoder,
    learned drifts and reverse kernels. The settings provide the rest: `model`, `act_func`,
    `num_samples`, `dataset`, `specific_likelihood`, `sigma`, `learnable_transitions`,
    `variance_sensitive_step`, `acceptance_rate_target`, `use_barker`, `use_alpha_annealing`,
    `ula_skip_threshold`. Settings that are left out have the reference's defaults. The state of the
    optimizer is not converted, nor is the scale of the variance rule, which the reference does not
    save.

    Args:
        state_dict: Arrays by their names in the reference (`encoder_net.net.1.weight`, ...).
        settings: The reference's flags.
        image_shape: `(H, W, C)`. The default is the shape of the reference's `dataset`.

    Returns:
        A built model with the same outputs for the same draws. Compile it to continue training.

    Raises:
        ValueError: If weights are missing or have the wrong shapes, or a setting is unknown.

    Example:
        >>> import numpy as np
        >>> from tf_mcvae.integrations.reference import from_state_dict
        >>> shapes = {
        ...     "encoder_net.net.1.weight": (4, 36), "encoder_net.net.1.bias": (4,),
        ...     "encoder_net.net.3.weight": (6, 4), "encoder_net.net.3.bias": (6,),
        ...     "decoder_net.net.0.weight": (4, 3), "decoder_net.net.0.bias": (4,),
        ...     "decoder_net.net.2.weight": (36, 4), "decoder_net.net.2.bias": (36,),
        ... }
        >>> arrays = {name: np.ones(shape, "float32") for name, shape in shapes.items()}
        >>> from_state_dict(arrays, {"model": "VAE"}, image_shape=(6, 6, 1)).latent_dim
        3
    """
    arrays = {name: np.asarray(value, np.float32) for name, value in state_dict.items()}
    shape, likelihood = _image_shape_and_likelihood(settings, image_shape)
    encoder, decoder = _networks(arrays, settings, shape)
    arguments = {
        "likelihood": likelihood,
        "num_samples": int(settings.get("num_samples", 1)),
        **_transition_arguments(arrays, settings),
    }
    model = _model_class(settings)(encoder, decoder, **arguments)
    model.build((None, *shape))
    _set(encoder, network_weights(arrays, "encoder_net", shape))
    _set(decoder, network_weights(arrays, "decoder_net", shape))
    if isinstance(model, LMCVAE | AMCVAE):
        _set_transitions(model, arrays, shape)
    return model


# Settings.


def _model_class(settings: Mapping[str, Any]) -> type[MonteCarloVAE]:
    name = settings.get("model", settings.get("cls"))
    plain = re.sub("[-_]", "", str(name)).lower()
    if plain not in _MODELS:
        raise ValueError(
            "The settings' `model` must be VAE, IWAE, L-MCVAE or A-MCVAE (the reference's flows "
            f"come from a package that no longer exists). Received: model={name!r}"
        )
    return _MODELS[plain]


def _image_shape_and_likelihood(
    settings: Mapping[str, Any], image_shape: Sequence[int] | None
) -> tuple[tuple[int, int, int], str | Likelihood]:
    dataset = str(settings.get("dataset", "mnist")).lower()
    if dataset not in _DATASETS:
        raise ValueError(
            f"The settings' `dataset` must be one of the reference's, {sorted(_DATASETS)}. "
            f"Received: dataset={dataset!r}"
        )
    known, usual = _DATASETS[dataset]
    shape = tuple(int(size) for size in image_shape or known)
    if len(shape) != 3:
        raise ValueError(f"`image_shape` must be (H, W, C). Received: image_shape={image_shape!r}")
    name = settings.get("specific_likelihood") or usual
    return shape, Gaussian(float(settings.get("sigma", 1.0))) if name == "gaussian" else name


def _activation(settings: Mapping[str, Any]) -> str:
    """Returns the name of the activation, which the reference saves as a class."""
    given = settings.get("act_func", "gelu")
    name = given if isinstance(given, str) else getattr(given, "__name__", str(given))
    plain = re.sub("[^a-z]", "", name.split(".")[-1].lower())
    if plain not in ACTIVATIONS:
        raise ValueError(
            f"The settings' `act_func` must be one of {sorted(ACTIVATIONS)}. "
            f"Received: act_func={given!r}"
        )
    return plain


def _transition_arguments(
    arrays: Mapping[str, Array], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the further constructor arguments of the models with transitions."""
    model_class = _model_class(settings)
    if model_class not in (LMCVAE, AMCVAE):
        return {}
    steps = _numbered(arrays, "transitions.{}.log_stepsize")
    if not steps:
        raise ValueError(
            "A Monte Carlo model has weights `transitions.<k>.log_stepsize`. "
            f"Received: names {sorted(arrays)}"
        )
    by_variance = settings.get("variance_sensitive_step")
    rule: StepSizeRule = "variance" if by_variance else "published_acceptance"
    rule = "learned" if settings.get("learnable_transitions") else rule
    step_sizes, limits = np.exp(np.stack(steps)), None
    if rule == "published_acceptance":
        # Step sizes may be beyond the limits, by rounding or before any training.
        low, high = LIMITS[rule]
        limits = (min(low, float(step_sizes.min())), max(high, float(step_sizes.max())))
    target = float(settings.get("acceptance_rate_target", 0.95))
    schedules = {"tempering_logalpha": "sigmoidal", "tempering_beta_logits": "all_learnable"}
    found = [schedule for name, schedule in schedules.items() if name in arrays]
    return {
        "num_transitions": len(steps),
        "step_size": StepSize(step_sizes, rule, target, limits=limits),
        "schedule": found[0] if found else "linear",
        "cloned_decoder": any(name.startswith("cloned_decoder.") for name in arrays),
        **(_l_arguments if model_class is LMCVAE else _a_arguments)(arrays, settings),
    }


def _l_arguments(arrays: Mapping[str, Array], settings: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "skip_threshold": float(settings.get("ula_skip_threshold", 0.0)),
    }
    drift = [weights for weights, _ in _layers(arrays, "transitions.0.add_nn")]
    if drift:
        hidden = [len(kernel) for kernel in drift[:-1]]
        arguments["learned_drift"] = LearnedDrift(hidden, features="x")
    reverse = [weights for weights, _ in _layers(arrays, "reverse_kernels.0")]
    if reverse:
        arguments["learned_reverse"] = LearnedReverse([len(kernel) for kernel in reverse[:-1]])
    return arguments


def _a_arguments(arrays: Mapping[str, Array], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "acceptance": "barker" if settings.get("use_barker") else "metropolis",
        "alpha_annealing": bool(settings.get("use_alpha_annealing")),
    }


# Weights.


def _networks(
    arrays: Mapping[str, Array], settings: Mapping[str, Any], shape: tuple[int, int, int]
) -> tuple[Encoder, Decoder]:
    """Returns networks with the reference's widths, but not its weights."""
    layers = {prefix: _layers(arrays, prefix) for prefix in ("encoder_net", "decoder_net")}
    for prefix, found in layers.items():
        if not found:
            raise ValueError(
                f"The state dict has no `{prefix}.*` weights. Received: names {sorted(arrays)}"
            )
    conv = any(kernel.ndim == 4 for kernel, _ in layers["encoder_net"])
    options: dict[str, Any] = {"activation": _activation(settings)}
    options["architecture"] = "conv" if conv else "dense"

    def hidden(prefix: str) -> list[int]:
        return [len(kernel) for kernel, _ in layers[prefix][:-1]] if not conv else [1]

    latent_dim = len(layers["encoder_net"][-1][0]) // 2
    encoder = Encoder(latent_dim, hidden_units=hidden("encoder_net"), **options)
    return encoder, Decoder(shape, hidden_units=hidden("decoder_net"), **options)


def _numbered(arrays: Mapping[str, Array], pattern: str) -> list[Array]:
    """Returns `arrays[pattern.format(k)]` for k = 0, 1, ... up to the last that exists."""
    found: list[Array] = []
    while (name := pattern.format(len(found))) in arrays:
        found.append(arrays[name])
    return found


def _layers(arrays: Mapping[str, Array], prefix: str) -> list[tuple[Array, Array]]:
    """Returns the kernels and biases of a network, from input to output."""
    names = [
        name.removesuffix(".weight")
        for name in arrays
        if name.startswith(f"{prefix}.") and name.endswith(".weight")
    ]
    missing = [f"{name}.bias" for name in names if f"{name}.bias" not in arrays]
    if missing:
        raise ValueError(
            "Each layer of the reference has a weight and a bias, but these are missing: "
            f"{', '.join(missing)}. Received: names {sorted(arrays)}"
        )
    return [(arrays[f"{name}.weight"], arrays[f"{name}.bias"]) for name in names]


def network_weights(
    arrays: Mapping[str, Array], prefix: str, image_shape: Sequence[int]
) -> list[Array]:
    """Returns a network's arrays in the order and layout of `Encoder.weights`, `Decoder.weights`.

    Args:
        arrays: Arrays of the reference by name: a state dict, or gradients with the same names.
        prefix: `"encoder_net"`, `"decoder_net"` or `"cloned_decoder"`.
        image_shape: `(H, W, C)`.

    Returns:
        A kernel and a bias for each layer.
    """
    height, width, channels = image_shape
    layers = _layers(arrays, prefix)
    # The reference flattens images with the channels first.
    at_input, position = prefix == "encoder_net", 0 if prefix == "encoder_net" else -1
    image = (channels, height, width)
    if any(kernel.ndim == 4 for kernel, _ in layers):
        position, image = -1 - position, (-1, height // 8, width // 8)
    kernel, bias = layers[position]
    kernel = _channels_last(kernel, 1 if at_input else 0, image)
    layers[position] = (kernel, bias if at_input else _channels_last(bias, 0, image))
    return [array for kernel, bias in layers for array in (_transposed(kernel), bias)]


def _channels_last(array: Array, axis: int, image: tuple[int, int, int]) -> Array:
    """Reorders an axis from a flat `[C, H, W]` to a flat `[H, W, C]`."""
    channels, height, width = image
    number, rest = divmod(array.shape[axis], height * width)
    if rest or channels not in (-1, number):
        raise ValueError(
            f"The weights do not fit the image shape, {height}x{width} positions of "
            f"{'some' if channels == -1 else channels} channels. "
            f"Received: weights of shape {array.shape}"
        )
    flat = np.moveaxis(array, axis, 0)
    images = flat.reshape(*image, *flat.shape[1:])
    return np.moveaxis(np.moveaxis(images, 0, 2).reshape(flat.shape), 0, axis)


def _transposed(kernel: Array) -> Array:
    return kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T


def transition_network_weights(
    arrays: Mapping[str, Array], pattern: str, image_shape: Sequence[int] | None = None
) -> list[Array]:
    """Returns the arrays of the networks of K transitions, stacked as in `TransitionNetwork`.

    Args:
        arrays: Arrays of the reference by name.
        pattern: `"transitions.{}.add_nn"` or `"reverse_kernels.{}"`.
        image_shape: `(H, W, C)` of the image at the end of the first layer's input. None if the
            input contains no image.

    Returns:
        All kernels, then all biases, as in `TransitionNetwork.kernels` and `.biases`.
    """
    networks: list[list[tuple[Array, Array]]] = []
    while found := _layers(arrays, pattern.format(len(networks))):
        if image_shape is not None:
            height, width, channels = image_shape
            latent = found[0][0].shape[1] - height * width * channels
            states, image = np.split(found[0][0], [latent], axis=1)
            image = _channels_last(image, 1, (channels, height, width))
            found[0] = (np.concatenate([states, image], axis=1), found[0][1])
        networks.append(found)
    layers = list(zip(*networks, strict=True))
    kernels = [np.stack([kernel.T for kernel, _ in layer]) for layer in layers]
    return kernels + [np.stack([bias for _, bias in layer]) for layer in layers]


def _set_transitions(
    model: LMCVAE | AMCVAE, arrays: Mapping[str, Array], shape: tuple[int, int, int]
) -> None:
    if model.cloned_decoder:
        _set(model.transition_decoder, network_weights(arrays, "cloned_decoder", shape))
    if "tempering_logalpha" in arrays:
        model.schedule.log_steepness.assign(arrays["tempering_logalpha"])
    if "tempering_beta_logits" in arrays:
        model.schedule.logits.assign(arrays["tempering_beta_logits"])
    if isinstance(model, LMCVAE) and model.drift is not None:
        stacked = transition_network_weights(arrays, "transitions.{}.add_nn", shape)
        _set_network(model.drift, stacked)
    if isinstance(model, LMCVAE) and model.reverse_kernel is not None:
        _set_network(model.reverse_kernel, transition_network_weights(arrays, "reverse_kernels.{}"))


def _set_network(network: TransitionNetwork, arrays: list[Array]) -> None:
    for weight, array in zip([*network.kernels, *network.biases], arrays, strict=True):
        weight.assign(array)


def _set(network: keras.Layer, arrays: list[Array]) -> None:
    shapes = [tuple(weight.shape) for weight in network.weights]
    if shapes != [array.shape for array in arrays]:
        raise ValueError(
            f"The weights do not fit the networks of these settings, {shapes}. "
            f"Received: shapes {[array.shape for array in arrays]}"
        )
    network.set_weights(arrays)
