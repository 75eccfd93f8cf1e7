"""The parser of both commands, and how their errors are answered in one sentence."""

import argparse
import dataclasses
import difflib
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from tf_mcvae_commands.cluster import LostWorkerError
from tf_mcvae_commands.options import BOOLEAN


class Parser(argparse.ArgumentParser):
    """A parser that accepts every spelling of a flag, and answers an error in one sentence.

    Its result holds only what is given on the command line.

    Args:
        usage: See `argparse.ArgumentParser`.
        description: Shown as it is written.
        prog: The command, as it was called.
    """

    def __init__(self, usage: str, description: str, prog: str) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, 8, width=96),
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        self._groups: dict[str, Any] = {}

    def group(self, title: str) -> Any:
        """Returns the group of flags under a title."""
        if title not in self._groups:
            self._groups[title] = self.add_argument_group(title)
        return self._groups[title]

    def add_settings(self, settings: type[Any], default: str | None = None) -> None:
        """Adds a flag for each field of a dataclass that is an `option`.

        Args:
            settings: The dataclass.
            default: What `--help` says of the defaults, if not the fields' own.
        """
        for field in dataclasses.fields(settings):
            if "group" in field.metadata:
                _add_setting(self.group(field.metadata["group"]), field, default)

    def add_debug(self, title: str) -> None:
        """Adds the flag that `answer_errors` looks for."""
        text = "show the traceback of an error"
        self.group(title).add_argument("--debug", action="store_true", help=text)

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """Returns the values of what is given, by the names of the settings."""
        given = vars(self.parse_args(words))
        given.pop("debug", None)
        return given

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses words in which hyphens and underscores of flags are the same."""
        # All the parsing methods come through here.
        spelling = {_plain(known): known for known in self._option_string_actions}
        words = []
        for word in sys.argv[1:] if args is None else args:
            flag, equals, value = word.partition("=")
            words.append(spelling.get(_plain(flag), flag) + equals + value)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises a ValueError, with the flag that may have been meant."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            word = unknown.split()[0]
            close = difflib.get_close_matches(word, self._option_string_actions, n=1)
            message = f"there is no flag {word}" if word[0] == "-" else f"{word} is not expected"
            message += f" (did you mean {close[0]}?)" if close else "; --help lists the flags"
        raise ValueError(message.removeprefix("argument "))


def _plain(flag: str) -> str:
    return flag.replace("_", "-") if flag.startswith("--") else flag


def flag_of(name: str) -> str:
    """Returns the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def _add_setting(group: Any, field: "dataclasses.Field[Any]", default: str | None) -> None:
    setting, flag = field.metadata, flag_of(field.name)
    flags = dict.fromkeys([flag, *(f"--{other}" for other in setting["names"])])
    text, shown = setting["help"], default or field.default
    if shown is not None and "default" not in text:
        text += f" (default: {shown})"
    is_switch = setting["kind"] is BOOLEAN
    extra: dict[str, Any] = {"nargs": "?", "const": True} if is_switch else {}
    metavar = "True|False" if is_switch else "VALUE"
    group.add_argument(
        *flags, dest=field.name, type=setting["kind"], help=text, metavar=metavar, **extra
    )
    if is_switch and field.default:
        group.add_argument(
            f"--no-{flag[2:]}",
            dest=field.name,
            action="store_false",
            help=f"the same as {flag} False",
        )


def called_as(module: str, *programs: str) -> str:
    """Returns how the user started this process, for usage lines and hints.

    Args:
        module: The module of the command.
        *programs: Console scripts and Python files that may have been called in its place.
    """
    name = pathlib.Path(sys.argv[0]).name.removesuffix(".exe")
    if name in programs:
        return f"python {name}" if name.endswith(".py") else name
    return f"python -m {module}"


def answer_errors(command: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    """Carries out a command, and answers a mistake in one sentence.

    Args:
        command: Takes the words after the program's name, and returns the exit code.
        argv: These words; by default those of the process.

    Returns:
        The command's exit code; 2 after a mistake; that of EX_TEMPFAIL, which ends the process,
        after the loss of another worker.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return command(words)
    except LostWorkerError as error:
        _leave(error)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if "--debug" in words:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _leave(error: LostWorkerError) -> NoReturn:
    print(
        f"error: another worker is gone ({error}). Start all workers again by the same commands to "
        "continue from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    # TensorFlow would wait for the lost worker once more.
    os._exit(os.EX_TEMPFAIL)
