"""Options: the description of a setting, and how its value is read from the command line."""

import argparse
import ast
import contextlib
import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, Literal


class Kind:
    """The values that a setting may have: reads one from text, and checks one.

    Attributes:
        wanted: The values in words, after "must be".
    """

    wanted: str

    def accepts(self, value: Any) -> bool:
        """Returns whether `value` is one of them."""
        raise NotImplementedError

    def read(self, text: str) -> Any:
        """Returns the value that `text` stands for; raises ValueError if there is none."""
        raise NotImplementedError

    def __call__(self, text: str) -> Any:
        """Reads a value from the command line, as `argparse` asks for it."""
        with contextlib.suppress(ValueError):
            value = self.read(text)
            if self.accepts(value):
                return value
        raise argparse.ArgumentTypeError(f"must be {self.wanted}. Received: {text!r}")


class Integer(Kind):
    """Integers of at least `minimum`."""

    def __init__(self, minimum: int) -> None:
        self.minimum = minimum
        kind = "an integer" if minimum < 1 else "a positive integer"
        self.wanted = kind if minimum == 1 else f"{kind}, at least {minimum}"

    def accepts(self, value: Any) -> bool:
        """See the base class; NumPy's integers are accepted, booleans are not."""
        is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return is_integer and value >= self.minimum

    def read(self, text: str) -> int:
        """See the base class."""
        return int(text)


class Number(Kind):
    """Finite numbers in `[minimum, below)`, or with `positive` in `(minimum, below)`."""

    def __init__(
        self, minimum: float = 0.0, below: float = math.inf, positive: bool = False
    ) -> None:
        self.minimum, self.below, self.positive = minimum, below, positive
        least = f"above {minimum:g}" if positive else f"of at least {minimum:g}"
        self.wanted = f"a finite number {least}"
        if below < math.inf:
            between = f"a number between {minimum:g} and {below:g}"
            self.wanted = between if positive else f"a number {least} and below {below:g}"

    def accepts(self, value: Any) -> bool:
        """See the base class."""
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return False
        value = float(value)
        return self.minimum <= value < self.below and not (self.positive and value == self.minimum)

    def read(self, text: str) -> float:
        """See the base class."""
        return float(text)


class Choice(Kind):
    """One of some names; in text, case, hyphens and underscores do not matter.

    Args:
        *names: The values.
        **aliases: Further words for them on the command line.
    """

    def __init__(self, *names: str, **aliases: str) -> None:
        self.names = names
        self._read = {_plain(name): name for name in names}
        self._read |= {_plain(alias): name for alias, name in aliases.items()}
        *others, last = map(repr, [*names, *aliases])
        self.wanted = f"{', '.join(others)} or {last}"

    def accepts(self, value: Any) -> bool:
        """See the base class."""
        return value in self.names

    def read(self, text: str) -> str | None:
        """See the base class."""
        return self._read.get(_plain(text))


def _plain(text: str) -> str:
    return text.lower().replace("-", "").replace("_", "")


def parse_bool(text: str) -> bool:
    """Reads True/False, yes/no, t/f, y/n, 1/0 in any case."""
    value = text.lower()
    if value in ("true", "yes", "t", "y", "1"):
        return True
    if value in ("false", "no", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"must be True or False. Received: {text!r}")


def parse_limit(text: str) -> int | float:
    """Reads a limit of batches: an integer is a count, a number with a point a fraction in (0, 1].

    So `"1"` is one batch, and `"1.0"` is all of them.
    """
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


def schedule_call(text: str) -> tuple[str, dict[str, Any]]:
    """Reads a learning-rate schedule written as a call of a Keras class.

    Args:
        text: Such as `"CosineDecay(decay_steps=5000, alpha=0.1)"`.

    Returns:
        The name of the class and its keyword arguments.

    Raises:
        ValueError: If `text` is not a call with keyword arguments whose values are literals.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("Not a call with keyword arguments only")
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


def option(
    default: Any,
    group: str,
    kind: Callable[[str], Any],
    text: str,
    *names: str,
    may_vary: Literal["never", "resume", "machine"] = "never",
) -> Any:
    """Describes a setting: a dataclass field that is a flag of a command.

    Args:
        default: Its default. None stands for a value that depends on the data or the model.
        group: The title under which `--help` lists it.
        kind: Reads its value from text; a `Kind` can check a value too.
        text: Its help.
        *names: Further names of the flag.
        may_vary: `"machine"` if it may differ from worker to worker of a run, and be given anew
            when the run is resumed; `"resume"` if only the latter.
    """
    metadata = {"group": group, "kind": kind, "help": text, "names": names, "may_vary": may_vary}
    return dataclasses.field(default=default, metadata=metadata)


def cores_option(group: str) -> Any:
    """Describes the setting `cores`, which both commands have."""
    return option(
        None,
        group,
        Integer(1),
        "cores that share each batch, without a GPU and --strategy; 1: TensorFlow divides each "
        "operation among all instead (default: all, 16 at most)",
        may_vary="machine",
    )
