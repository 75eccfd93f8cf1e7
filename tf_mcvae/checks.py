"""Checks of arguments and optional packages, and readable errors, for all rooms."""

import contextlib
import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, Self

import numpy as np
import tensorflow as tf

from tf_mcvae import random

_ASSERTION = re.compile(r"assertion failed: \[(.+?Received: .*?)\]\s*$", re.MULTILINE)
# What Python raised within a `tf.data` pipeline: the errors of `models.inputs`.
_RAISED = re.compile(r"(TypeError|ValueError): (Batch \d.*Received: .*)$", re.MULTILINE)


def check_positive_integer(name: str, value: Any) -> None:
    """Raises unless `value` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")


def check_seeds(seed: random.Seed, num_rows: int | None) -> None:
    """Raises if `seed` is a seed for each row, and the number of rows differs from `num_rows`."""
    if isinstance(seed, random.SeedPerRow):
        shape = seed.seeds.shape
        if not shape[:1].is_compatible_with([num_rows]):
            raise ValueError(
                f"There must be a seed for each of the {num_rows} rows, or one for all. "
                f"Received: seeds of shape {shape}"
            )


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns `" Did you mean 'x'?"` for the known name closest to `name`, or `""`."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


class ExplicitArguments:
    """Mixin for Keras layers and models whose constructors suggest a name for an unknown argument.

    It must come before the Keras class among the bases. Constructors with `**kwargs` are not
    checked.

    Raises:
        TypeError: If the constructor has no argument of a given name.

    Example:
        >>> import keras
        >>> class Scale(ExplicitArguments, keras.layers.Layer):
        ...     def __init__(self, factor=1.0, *, name=None):
        ...         super().__init__(name=name)
        >>> Scale(facter=2.0)
        Traceback (most recent call last):
        TypeError: Scale has no argument 'facter'. Did you mean 'factor'? Received: facter=2.0
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Compares the names of the arguments with those of `__init__`."""
        parameters = inspect.signature(cls.__init__).parameters
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            known = [name for name in parameters if name != "self"]
            for name in kwargs:
                if name not in known:
                    raise TypeError(
                        f"{cls.__name__} has no argument {name!r}.{suggest(name, known)} "
                        f"Received: {name}={kwargs[name]!r}"
                    )
        return super().__new__(cls, *args, **kwargs)


def require(package: str, extra: str) -> ModuleType:
    """Returns an optional package.

    Args:
        package: Its name in an `import` statement.
        extra: The extra of this package, in `setup.py`, that installs it.

    Raises:
        ImportError: If it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"This needs the package {package!r}: pip install 'tf_mcvae[{extra}]'. "
            f"Received: {error}"
        ) from error


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turns this package's errors that are raised while data are read into what they were.

    TensorFlow raises `tf.errors.InvalidArgumentError` for assertions in graphs and for errors of
    generators, with details of the operation around the message.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        raised = _RAISED.search(str(error))
        if raised is not None:
            kind = TypeError if raised[1] == "TypeError" else ValueError
            raise kind(raised[2]) from error
        sentence = _ASSERTION.search(str(error))
        if sentence is None:
            raise
        # TensorFlow escapes quotation marks.
        raise ValueError(re.sub(r"\\(.)", r"\1", sentence[1])) from error
