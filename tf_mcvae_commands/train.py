"""The command line: flags to a `RunConfig`, a run from it, and errors in one sentence.

Flags have readable names with hyphens, and beside them those of the reference implementation.
"""

import argparse
import dataclasses
import datetime
import difflib
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from tf_mcvae_commands.cluster import LostWorkerError, this_worker
from tf_mcvae_commands.run_folder import RunFolder
from tf_mcvae_commands.settings import (
    FREE_ON_RESUME,
    GROUP_MODELS,
    OUTPUT,
    SETTINGS,
    RunConfig,
    parse_bool,
)

_DESCRIPTION = """\
Trains a Monte Carlo variational auto-encoder, scores it on test images and exports it.
Without any flag: an L-MCVAE on the digits that come with scikit-learn, in a few minutes on a CPU.

Everything is written to a folder of the run's name in --output-dir: config.json, history.csv,
model.keras, metrics.json and serving/. A run that was interrupted goes on with --resume.
Booleans are written True or False (also yes/no, t/f, y/n, 1/0); hyphens and underscores in the
names of flags are the same."""


class Parser(argparse.ArgumentParser):
    """A parser that takes every spelling of a flag, and answers an error in one sentence.

    What is not given on the command line is not in its result.

    Args:
        usage: See `argparse.ArgumentParser`, as for the following.
        description: Shown as it is written.
        **kwargs: Further ones.
    """

    def __init__(self, usage: str, description: str, **kwargs: Any) -> None:
        super().__init__(
            usage=usage,
            description=description,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, 8, width=96),
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            **kwargs,
        )

    def add_settings(self, settings: type[Any]) -> dict[str, Any]:
        """Adds a flag for each field of a dataclass of `option`s; returns the groups by title."""
        groups: dict[str, Any] = {}
        for field in dataclasses.fields(settings):
            title = field.metadata["group"]
            groups[title] = groups.get(title) or self.add_argument_group(title)
            _add_setting(groups[title], field)
        return groups

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


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the training command."""
    parser = Parser("%(prog)s [--flag VALUE ...]", _DESCRIPTION)
    output = parser.add_settings(RunConfig)[OUTPUT]
    output.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="NAME",
        help="go on with an interrupted run, by its name or path (default: the latest one)",
    )
    add_debug(output)
    return parser


def add_debug(group: Any) -> None:
    """Adds the flag that `answer_errors` looks for."""
    group.add_argument(
        "--debug", action="store_true", help="show where in the program an error arose"
    )


def _add_setting(group: Any, field: "dataclasses.Field[Any]") -> None:
    given, name = field.metadata, field.name.replace("_", "-")
    flags = dict.fromkeys([f"--{name}", *(f"--{other}" for other in given["names"])])
    text = given["help"]
    if field.default is not None and "default" not in text:
        text += f" (default: {field.default})"
    is_switch = given["parse"] is parse_bool
    extra: dict[str, Any] = {"nargs": "?", "const": True} if is_switch else {}
    metavar = "True|False" if is_switch else "VALUE"
    group.add_argument(
        *flags, dest=field.name, type=given["parse"], help=text, metavar=metavar, **extra
    )
    if is_switch and field.default:
        group.add_argument(
            f"--no-{name}",
            dest=field.name,
            action="store_false",
            help=f"the same as --{name} False",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The words after the program's name; by default those of the process.

    Returns:
        The exit code: 0, 2 after an error in what was asked for, 130 after an interruption.
    """
    return answer_errors(_main, argv)


def answer_errors(command: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    """Carries out a command, and answers what is wrong with it in one sentence.

    Args:
        command: Takes the words after the program's name, and returns the exit code.
        argv: These words; by default those of the process.

    Returns:
        The command's exit code, or 2 after an error.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return command(words)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if "--debug" in words:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _main(words: list[str]) -> int:
    parser = make_parser()
    given = vars(parser.parse_args(words))
    given.pop("debug", None)
    resumed = given.pop("resume", None)
    if resumed is not None:
        folder = RunFolder.find(resumed, given.pop("output_dir", RunConfig.output_dir))
        config = _resumed_config(folder, given)
        return _carry_out(config, folder, parser.prog)
    config = RunConfig(**given)
    _note_idle_flags(config, given)
    folder = RunFolder(pathlib.Path(config.output_dir) / (config.name or default_name(config)))
    worker = this_worker(config.strategy)
    if config.strategy == "multiworker":
        if config.name is None:
            raise ValueError(
                "--strategy multiworker needs --name, the same for all workers. Received: no name"
            )
        if folder.metrics.exists():
            print(f"{folder.path} is finished")
            return 0
    # A cluster's manager starts a lost worker by the same command, which then goes on.
    goes_on = config.strategy == "multiworker" and folder.config.exists()
    if goes_on or not worker.is_chief:
        return _carry_out(config, folder, parser.prog)
    with folder.claimed():
        return _carry_out(config, folder, parser.prog)


def default_name(config: RunConfig) -> str:
    """Returns `<data set>-<model>-<date and time>`."""
    source = pathlib.Path(config.dataset).stem
    return f"{source}-{config.model}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _resumed_config(folder: RunFolder, given: dict[str, Any]) -> RunConfig:
    """Returns the settings of a run, with what may change when it goes on."""
    fixed = sorted(set(given) - FREE_ON_RESUME)
    if fixed:
        raise ValueError(
            "A run is resumed with the settings that it was started with; only those of scoring, "
            "--export..., --gpus, --strategy and --data-dir can be given. "
            f"Received: --{', --'.join(name.replace('_', '-') for name in fixed)}"
        )
    return dataclasses.replace(folder.load_config(), **given)


def _note_idle_flags(config: RunConfig, given: dict[str, Any]) -> None:
    """Says which of the flags that were given do nothing for this model."""
    for name in given:
        models = GROUP_MODELS.get(SETTINGS[name].metadata["group"], (config.model,))
        if config.model not in models and given[name] != SETTINGS[name].default:
            flag = name.replace("_", "-")
            print(f"note: --{flag} changes nothing for {config.model}", file=sys.stderr)
    if "nll_every" in given and config.logdir is None:
        print("note: --nll-every changes nothing without --logdir", file=sys.stderr)


def _carry_out(config: RunConfig, folder: RunFolder, prog: str) -> int:
    try:
        # Only here, so that mistakes on the command line need not wait for TensorFlow.
        from tf_mcvae.cli import training

        training.run(config, folder)
    except KeyboardInterrupt:
        if not folder.config.exists():
            print("\nInterrupted before training began; nothing is kept", file=sys.stderr)
            return 130
        program = f"python {prog}" if prog.endswith(".py") else prog
        path = shlex.quote(str(folder.path))
        print(f"\nInterrupted. Go on with: {program} --resume {path}", file=sys.stderr)
        return 130
    except LostWorkerError as error:
        return leave(error)
    return 0


def leave(error: LostWorkerError) -> NoReturn:
    """Ends the process after the loss of another worker, with the exit code of EX_TEMPFAIL."""
    print(
        f"error: another worker is gone ({error}). Start all of them again by the same commands, "
        "to go on from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    # TensorFlow would wait for the lost worker once more.
    os._exit(os.EX_TEMPFAIL)


if __name__ == "__main__":
    sys.exit(main())
