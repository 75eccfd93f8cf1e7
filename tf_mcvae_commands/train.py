"""The training command: flags to a `RunConfig`, and a run from it."""

import dataclasses
import datetime
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tf_mcvae_commands.cluster import this_worker
from tf_mcvae_commands.groups import GROUP_MODELS, OUTPUT
from tf_mcvae_commands.parser import Parser, answer_errors, called_as, flag_of
from tf_mcvae_commands.quiet import quiet_start
from tf_mcvae_commands.run_folder import RunFolder
from tf_mcvae_commands.training_settings import FREE_ON_RESUME, SETTINGS, RunConfig

_DESCRIPTION = """\
Trains a Monte Carlo variational auto-encoder, scores it on test images and exports it.
Without any flag: an L-MCVAE on the digits that come with the package, in a few minutes on a CPU.

Everything is written to a folder of the run's name in --output-dir: config.json, history.csv,
model.keras, metrics.json and serving/. A run that was interrupted continues with --resume.
Booleans are written True or False (also yes/no, t/f, y/n, 1/0); hyphens and underscores in the
names of flags are the same."""


def make_parser() -> Parser:
    """Returns the parser of the training command."""
    prog = called_as("tf_mcvae_commands.train", "tf-mcvae-train", "train_keras.py")
    parser = Parser("%(prog)s [--flag VALUE ...]", _DESCRIPTION, prog)
    parser.add_settings(RunConfig)
    parser.group(OUTPUT).add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="NAME",
        help="continue an interrupted run, by its name or path (default: the latest one)",
    )
    parser.add_debug(OUTPUT)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the training command.

    Args:
        argv: The words after the program's name; by default those of the process.

    Returns:
        The exit code: 0, 2 after a mistake in the command, 130 after an interruption.
    """
    return answer_errors(_main, argv)


def _main(words: list[str]) -> int:
    parser = make_parser()
    given = parser.parse(words)
    resumed = given.pop("resume", None)
    if resumed is not None:
        folder = RunFolder.find(resumed, given.pop("output_dir", RunConfig.output_dir))
        return _carry_out(_resumed_config(folder, given), folder, parser.prog)
    config = RunConfig(**given)
    _note_idle_flags(config, given)
    folder = RunFolder(pathlib.Path(config.output_dir) / (config.name or default_name(config)))
    worker, continues = this_worker(config.strategy), False
    if config.strategy == "multiworker":
        if config.name is None:
            raise ValueError(
                "--strategy multiworker needs --name, the same for all workers. Received: no name"
            )
        if folder.metrics.exists():
            print(f"{folder.path} is finished")
            return 0
        # A cluster's manager starts a lost worker by the same command, which then continues.
        continues = folder.config.exists()
    if continues or not worker.is_chief:
        return _carry_out(config, folder, parser.prog)
    with folder.claimed():
        return _carry_out(config, folder, parser.prog)


def default_name(config: RunConfig) -> str:
    """Returns `<data set>-<model>-<date and time>`."""
    source = pathlib.Path(config.dataset).stem
    return f"{source}-{config.model}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _resumed_config(folder: RunFolder, given: Mapping[str, Any]) -> RunConfig:
    """Returns the settings of a run, with those changed that may change when it is resumed."""
    fixed = sorted(given.keys() - FREE_ON_RESUME)
    if fixed:
        raise ValueError(
            "A run is resumed with the settings that it was started with; only these can be given: "
            f"{', '.join(map(flag_of, sorted(FREE_ON_RESUME)))}. "
            f"Received: {', '.join(map(flag_of, fixed))}"
        )
    return dataclasses.replace(folder.load_config(), **given)


def _note_idle_flags(config: RunConfig, given: Mapping[str, Any]) -> None:
    """Says which of the flags that were given do nothing for this model."""
    for name in given:
        models = GROUP_MODELS.get(SETTINGS[name].metadata["group"], (config.model,))
        if config.model not in models and given[name] != SETTINGS[name].default:
            print(f"note: {flag_of(name)} changes nothing for {config.model}", file=sys.stderr)
    if "nll_every" in given and config.logdir is None:
        print("note: --nll-every changes nothing without --logdir", file=sys.stderr)


def _carry_out(config: RunConfig, folder: RunFolder, prog: str) -> int:
    try:
        # Imported here, so that a mistake on the command line need not wait for TensorFlow.
        with quiet_start():
            from tf_mcvae.cli import training

        training.run(config, folder)
    except KeyboardInterrupt:
        if folder.config.exists():
            ending = f"Continue with: {prog} --resume {shlex.quote(str(folder.path))}"
        else:
            ending = "Training had not begun, and nothing is kept"
        print(f"\nInterrupted. {ending}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
