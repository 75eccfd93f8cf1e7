"""Warnings of networks and data that run without an error, but not as their user expects."""

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.layers.likelihoods import Likelihood
from tf_mcvae.layers.networks import Decoder

# Layers and operations that leave the values of their input as they are.
_KEEPS_VALUES = re.compile(
    "(Reshape|Flatten|Permute|Transpose|Squeeze|ExpandDims|Identity|(Spatial)?Dropout|Cropping|"
    "UpSampling|ActivityRegularization)([123]D)?"
)


def warn_of_grey(likelihood: Likelihood) -> None:
    """Warns of values between 0 and 1 under a likelihood of the values 0 and 1."""
    warnings.warn(
        f"The {type(likelihood).__name__} likelihood is a density over the values 0 and 1 alone: "
        "with values between them the model trains, but its bound is not one on a log-likelihood, "
        "and its numbers are comparable only with those of the same data. Binarize the data, for "
        "instance by `datasets.load(..., binarize='dynamic')`, or use `likelihood='gaussian'`. "
        "Received: grey values",
        stacklevel=2,
    )


def check_decoder(decoder: keras.Layer, latent_dim: int, likelihood: Likelihood) -> None:
    """Warns of a decoder whose output cannot be logits, where the likelihood needs them.

    Args:
        decoder: A built decoder.
        latent_dim: D.
        likelihood: The likelihood.
    """
    # The decoders of this package end in a linear layer.
    if not likelihood.is_binary or type(decoder) is Decoder:
        return
    end = _end_of(decoder)
    if end is None or _limits(end) is None:
        # Its structure does not tell.
        found = "its outputs are never negative" if _is_never_negative(decoder, latent_dim) else ""
    else:
        found = f"it ends in {_name_of(end)}" if _limits(end) else ""
    if found:
        warnings.warn(
            f"The {type(likelihood).__name__} likelihood takes logits, any real numbers, and "
            "applies the sigmoid itself: the decoder must end in a layer without an activation. "
            f"Remove the last one. Received: a decoder {decoder.name!r}; {found}",
            stacklevel=2,
        )


def check_transitions(decoder: keras.Layer) -> None:
    """Warns of layers in a decoder that act in training only, for models with transitions."""
    for layer in all_layers(decoder):
        name = f"{type(layer).__name__} {layer.name!r}"
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            effect = (
                "its moving statistics are never updated (those of a new layer, mean 0 and "
                "variance 1, normalise nothing). Use LayerNormalization or GroupNormalization"
            )
        elif isinstance(layer, keras.layers.SpectralNormalization):
            effect = "it never normalises its weights. Use a kernel constraint"
        elif _draws(layer):
            effect = (
                "it drops and adds nothing. Remove it; `kernel_regularizer` regularises a decoder"
            )
        else:
            continue
        warnings.warn(
            "In a model with transitions the decoder runs in inference mode, since all transitions "
            f"need the same density: {name} has no effect in training, as {effect}. "
            f"Received: a decoder {decoder.name!r} with {name}",
            stacklevel=2,
        )


def all_layers(network: keras.Layer) -> Iterator[keras.Layer]:
    """Yields a layer and all layers within it."""
    # Keras has no public method that also finds those in layers that are not models.
    yield from network._flatten_layers()


def _draws(layer: keras.Layer) -> bool:
    """Returns whether a layer has a source of random numbers, as dropout above a rate of 0 has."""
    values = list(vars(layer).values())
    has_source = any(isinstance(value, keras.random.SeedGenerator) for value in values)
    # Recurrent cells have one whether they drop or not.
    rates = [getattr(layer, name, None) for name in ("rate", "stddev", "dropout")]
    rates.append(getattr(layer, "recurrent_dropout", None))
    known = [rate for rate in rates if isinstance(rate, int | float)]
    return has_source and (not known or any(rate > 0 for rate in known))


def _end_of(network: Any) -> Any:
    """Returns the last layer or operation that changes values, or None if that is not known."""
    if isinstance(network, keras.Sequential):
        operations = network.layers
    elif isinstance(network, keras.Model):
        operations = getattr(network, "operations", [])  # Those of a functional model.
    else:
        return network
    for operation in reversed(list(operations)):
        is_linear = getattr(operation, "activation", None) is keras.activations.linear
        if isinstance(operation, keras.layers.Activation) and is_linear:
            continue
        if not _KEEPS_VALUES.fullmatch(type(operation).__name__):
            return _end_of(operation)
    return None


def _limits(end: Any) -> bool | None:
    """Returns whether a last layer of Keras limits its output; None if that is not known."""
    if not type(end).__module__.startswith("keras."):
        return None
    if hasattr(end, "activation"):
        return _is_limited(end.activation)
    if isinstance(end, keras.layers.Wrapper):
        return _limits(end.layer)
    if getattr(end, "weights", []):
        # Convolutions and dense layers without one have an attribute too.
        return None
    return _is_limited(end)


def _is_limited(activation: Callable[[Any], Any]) -> bool | None:
    """Returns whether a function stops growing, or falling, where logits may still be ordinary."""
    try:
        with keras.StatelessScope():
            low, less, more, most = np.asarray(activation(tf.constant([[-50.0, -25, 25, 50]])))[0]
    except Exception:  # It takes other shapes, or several tensors.
        return None
    return bool((abs(low - less) < 1e-3 and low > -5) or (abs(most - more) < 1e-3 and most < 5))


def _name_of(end: Any) -> str:
    activation = getattr(end, "activation", None)
    name = getattr(activation, "__name__", type(activation).__name__)
    return type(end).__name__ + (f" with activation {name!r}" if activation is not None else "")


def _is_never_negative(decoder: keras.Layer, latent_dim: int) -> bool:
    """Returns whether no output is negative for latents near the prior and far from it."""
    z = random.normal([1, 64, latent_dim], random.as_seed(0))[0]
    z *= tf.where(tf.range(64) < 32, 1.0, 30.0)[:, tf.newaxis]
    with keras.StatelessScope():  # No losses are added.
        output = np.asarray(tf.cast(decoder(z, training=False), tf.float32))
    return bool(np.min(output) >= 0 and np.ptp(output) > 1e-3)
