"""What may change in a model: the constructor's arguments that its steps read."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import keras
import numpy as np

Check = Callable[[str, Any], Any]


class CheckedChanges:
    """Mixin that checks what is assigned to constructor arguments, so that none is ignored.

    What a model's layers are made from is fixed by the constructor, and its layers are once it is
    built: assigning others is refused. What only its steps read may change; the compiled steps are
    then made again. Other attributes, such as those of a user's subclass, are free.

    Attributes:
        fixed: The arguments that cannot change. The constructor assigns each of them once.
        changeable: The arguments that may change, by name, with the function that checks a value:
            it is called with the name and the value, and raises if the value is not allowed.

    A subclass adds its own arguments to those of its base.
    """

    fixed: ClassVar[frozenset[str]] = frozenset()
    changeable: ClassVar[Mapping[str, Check]] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Checks the value; refuses it if the model cannot take it up."""
        if name in self.changeable:
            self.changeable[name](name, value)
        is_first, current = name not in vars(self), vars(self).get(name)
        is_same = not is_first and _is_same(current, value)
        is_built = getattr(self, "built", False)
        is_fixed = name in self.fixed or (is_built and isinstance(current, keras.Layer))
        if is_fixed and not is_first and not is_same:
            raise ValueError(
                f"`{name}` cannot change once the {type(self).__name__} is made, since it decides "
                f"its layers or the shapes of its weights. Make another model with `{name}`, for "
                "example from `get_config()`, and give it the weights that fit. "
                f"Received: {name}={value!r}"
            )
        super().__setattr__(name, value)
        if is_built and name in self.changeable and not is_same:
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


def check_choice(*values: str) -> Check:
    """Returns a check that a value is one of these strings."""
    *others, last = map(repr, values)
    wanted = f"{', '.join(others)} or {last}" if others else last

    def check(name: str, value: Any) -> None:
        if value not in values:
            raise ValueError(f"`{name}` must be {wanted}. Received: {name}={value!r}")

    return check


def _is_same(current: Any, value: Any) -> bool:
    if isinstance(current, bool | int | float | str):
        return type(current) is type(value) and bool(current == value)
    return current is value
