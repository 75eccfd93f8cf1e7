"""Options: the description of a setting, and how its value is read from the command line."""

import argparse
import ast
import contextlib
import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Kind:
    """The values that a setting may have.

    Called with text, as `argparse` does, it returns the value that the text stands for.

    Attributes:
        wanted: The values in words, after "must be".
        read: Converts text; what it returns, or a ValueError, need not be such a value.
        accepts: Whether an object is such a value.
    """

    wanted: str
    read: Callable[[str], Any]
    accepts: Callable[[Any], bool]

    def __call__(self, text: str) -> Any:
        """Returns the value of a text from the command line."""
        with contextlib.suppress(ValueError):
            value = self.read(text)
            if self.accepts(value):
                return value
        raise argparse.ArgumentTypeError(f"must be {self.wanted}. Received: {text!r}")


def integer(minimum: int) -> Kind:
    """Returns the integers of at least `minimum`, NumPy's among them, but not booleans."""
    wanted = "a positive integer" if minimum > 0 else "an integer"
    wanted += "" if minimum == 1 else f", at least {minimum}"
    return Kind(wanted, int, lambda value: _is_a(numbers.Integral, value) and value >= minimum)


def number(minimum: float = 0.0, below: float = math.inf, positive: bool = False) -> Kind:
    """Returns the finite numbers of at least `minimum` (`positive`: above it) and below `below`."""
    least = f"above {minimum:g}" if positive else f"of at least {minimum:g}"
    wanted = f"a finite number {least}"
    if below < math.inf:
        between = f"between {minimum:g} and {below:g}"
        wanted = f"a number {between if positive else f'{least} and below {below:g}'}"

    def accepts(value: Any) -> bool:
        is_inside = _is_a(numbers.Real, value) and minimum <= value < below
        return is_inside and not (positive and value == minimum)

    return Kind(wanted, float, accepts)


def _is_a(kind: type[Any], value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def choice(*names: str, **aliases: str) -> Kind:
    """Returns `names`; in text, also `aliases`, whatever the case, hyphens and underscores."""

    def plain(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    known = {plain(name): name for name in names} | {plain(a): name for a, name in aliases.items()}
    *others, last = map(repr, [*names, *aliases])
    wanted = f"{', '.join(others)} or {last}"
    return Kind(wanted, lambda text: known.get(plain(text)), lambda value: value in names)


_BOOLEANS = dict.fromkeys(("true", "yes", "t", "y", "1"), True)
_BOOLEANS |= dict.fromkeys(("false", "no", "f", "n", "0"), False)
BOOLEAN = Kind(
    "True or False",
    lambda text: _BOOLEANS.get(text.lower()),
    lambda value: isinstance(value, bool),
)

# A limit of batches: a number with a point is a fraction, one without is a count.
LIMIT = Kind(
    "a fraction such as 0.1 or 1.0 (all), or a count of batches such as 20",
    lambda text: float(text) if "." in text or "e" in text.lower() else int(text),
    lambda value: 0.0 < value <= 1.0 if isinstance(value, float) else value >= 1,
)


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
        integer(1),
        "cores that share each batch, without a GPU and --strategy; 1: TensorFlow divides each "
        "operation among all instead (default: all, 16 at most)",
        may_vary="machine",
    )
