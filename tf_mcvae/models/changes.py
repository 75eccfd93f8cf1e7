"""What may change in a model that is built: the constructor's arguments that its steps read."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import keras
import numpy as np

Check = Callable[[str, Any], Any]


class CheckedChanges:
    """Mixin that checks what is assigned to constructor arguments, so that none is ignored.

    A model keeps its layers, and has weights for its shapes, once it is built: assigning others is
    refused. What only its steps read may change; the compiled steps are then made again.

    Attributes:
        changeable: The arguments that may change, by name, with the function that checks a value:
            it is called with the name and the value, and raises if the value is not allowed. A
            subclass adds its own arguments to those of its base.
    """

    changeable: ClassVar[Mapping[str, Check]] = {}
    _arguments: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Adds the constructor's arguments, except those that Keras looks after."""
        super().__init_subclass__(**kwargs)
        own = set(inspect.signature(cls.__init__).parameters)
        cls._arguments = cls._arguments | own - {
            "self",
            "args",
            "kwargs",
            "name",
            "trainable",
            "dtype",
        }

    def __setattr__(self, name: str, value: Any) -> None:
        """Checks the value; refuses it if the model is built and cannot take it up."""
        if name in self.changeable:
            self.changeable[name](name, value)
        if not getattr(self, "built", False):
            super().__setattr__(name, value)
            return
        current = vars(self).get(name)
        is_fixed = name in self._arguments or isinstance(current, keras.Layer)
        if is_fixed and name not in self.changeable and not _is_same(current, value):
            raise ValueError(
                f"`{name}` cannot change once the {type(self).__name__} is built, since its layers "
                f"and the shapes of its weights are fixed. Make another model with `{name}`, for "
                "example from `get_config()`, and give it the weights that fit. "
                f"Received: {name}={value!r}"
            )
        super().__setattr__(name, value)
        if name in self.changeable and not _is_same(current, value):
            self._make_steps_again()

    def _make_steps_again(self) -> None:
        """Replaces compiled steps, which hold the values that they were traced with."""
        for step in ("train", "test"):
            if getattr(self, f"{step}_function", None) is not None:
                getattr(self, f"make_{step}_function")(force=True)


def check_boolean(name: str, value: Any) -> None:
    """Raises unless `value` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r}")


def _is_same(current: Any, value: Any) -> bool:
    if isinstance(current, bool | int | float | str):
        return type(current) is type(value) and bool(current == value)
    return current is value
