"""Layers that hold layers: what their configurations and TensorFlow's checkpoints keep of them.

Keras writes the flag `trainable` of a layer, but not those of the layers that a subclass holds, so
that a part which was frozen would be trained again after loading, with another optimizer's state.
"""

from collections.abc import Iterator
from typing import Any, Self

import keras
import tensorflow as tf


class Composite:
    """Mixin for Keras layers that hold layers: frozen parts stay frozen, custom objects are found.

    It must come before the Keras class among the bases. If the layer or one within it is frozen,
    `get_config` adds `frozen`, the paths of the frozen ones, of which `from_config` makes use.
    """

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration, with the paths of frozen layers if there are any."""
        config = super().get_config()  # type: ignore[misc]
        frozen = frozen_layers(self)
        is_trained = self.trainable  # type: ignore[attr-defined]
        return {**config, "frozen": frozen} if frozen or not is_trained else config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        """Makes a layer from the result of `get_config`.

        Args:
            config: Arguments of the constructor; layers among them may be serialised.
            custom_objects: Classes and functions that are not registered with Keras, by name.
        """
        arguments = {
            name: keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)
            if isinstance(value, dict) and "class_name" in value
            else value
            for name, value in config.items()
        }
        frozen = arguments.pop("frozen", None)
        layer = cls(**arguments)
        if frozen is not None:
            freeze_layers(layer, frozen)
        return layer


def frozen_layers(layer: Any) -> list[str]:
    """Returns the paths of the frozen layers within `layer`: `"2.0"` is in its third the first."""
    return [path for path, part in _within(layer) if not part.trainable]


def freeze_layers(layer: Any, paths: list[str]) -> None:
    """Freezes the layers of these paths within `layer`, and no other."""
    for path, part in _within(layer):  # Outer ones first, since they pass their flag on.
        if path in paths or not part.trainable:
            part.trainable = path not in paths


def clone_layer(layer: Any, **changes: Any) -> Any:
    """Returns a layer of the same configuration, but for `changes`, with new weights.

    What is frozen within `layer` is frozen in the copy.
    """
    copy = type(layer).from_config({**layer.get_config(), **changes})
    frozen = frozen_layers(layer)
    if frozen and layer.built and not copy.built:  # A layer may make its parts when it is built.
        copy.build_from_config(layer.get_build_config())
    freeze_layers(copy, frozen)
    return copy


def pass_on_frozen(layer: Any) -> None:
    """Freezes the parts of layers that were created with `trainable=False`.

    Keras passes the flag on when it is set, not when it is an argument of the constructor.
    """
    for part in (layer, *(part for _, part in _within(layer))):
        inner = _parts(part)
        if inner and not part.trainable and all(one.trainable for one in inner):
            part.trainable = True  # TensorFlow drops the assignment of a value that is there.
            part.trainable = False


def track_weights(layer: Any) -> None:
    """Has `tf.train.Checkpoint` keep all weights within `layer`, once they are made.

    TensorFlow follows attributes, but not the lists in which networks hold layers and weights.
    """
    # A layer would take variables that it is given itself for its own, and save them twice.
    holder = tf.Module()
    holder.weights = layer.variables
    layer.checkpointed = holder


def is_restored(layer: Any) -> bool:
    """Returns whether a `tf.train.Checkpoint` was restored to the layer, built or not."""
    return getattr(layer, "_update_uid", -1) >= 0  # TensorFlow has no public name for it.


def finish_build(layer: Any) -> None:
    """Does what concerns all parts of a layer, once they are built; it may be called again."""
    pass_on_frozen(layer)
    # Keras makes weights that are trained, also for a layer that was frozen before it was built.
    for part in (layer, *(part for _, part in _within(layer))):
        if not part.trainable:
            inner = {id(weight) for one in _parts(part) for weight in one.weights}
            for weight in part.weights:
                if id(weight) not in inner:
                    weight.trainable = False
    track_weights(layer)


def _within(layer: Any, path: str = "") -> Iterator[tuple[str, keras.Layer]]:
    for index, part in enumerate(_parts(layer)):
        yield f"{path}{index}", part
        yield from _within(part, f"{path}{index}.")


def _parts(layer: Any) -> list[keras.Layer]:
    """Returns the layers that `layer` holds, in the order in which it got them."""
    # Private for layers that are not models. The list of a `Sequential` differs once it is built.
    return layer.layers if isinstance(layer, keras.Model) else layer._layers
