"""The evaluation command: `log p(x)` of a trained model by all estimators, as a table.

python -m tf_mcvae_commands.evaluate saved_models/<run>
"""

import dataclasses
import pathlib
import shlex
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

from tf_mcvae_commands.ais import AIS_FIELDS, AISSettings
from tf_mcvae_commands.cluster import this_worker
from tf_mcvae_commands.evaluation_settings import OUTPUT, EvaluationConfig
from tf_mcvae_commands.parser import Parser, answer_errors, called_as, flag_of
from tf_mcvae_commands.quiet import quiet_start
from tf_mcvae_commands.run_folder import RunFolder
from tf_mcvae_commands.training_settings import RunConfig

_DESCRIPTION = """\
Estimates the log-likelihood of a trained model with error bars, and prints it as a table: the ELBO,
importance sampling from the encoder (IWAE-k), and annealed importance sampling (AIS). All are lower
bounds in expectation; --gap bounds the error of AIS.

RUN is the folder of a run of train_keras.py, which knows its data, or its name in saved_models/; or
a .keras file, which needs --data. With --checkpoint, the same command continues an interrupted
evaluation to the same numbers. Booleans and flags are written as in train_keras.py."""


def make_parser() -> Parser:
    """Returns the parser of the evaluation command."""
    prog = called_as("tf_mcvae_commands.evaluate", "tf-mcvae-evaluate")
    parser = Parser("%(prog)s RUN [--flag VALUE ...]", _DESCRIPTION, prog)
    parser.add_argument("run", metavar="RUN", help="a run's folder or name, or a .keras file")
    parser.add_settings(EvaluationConfig)
    parser.add_settings(AISSettings, default="that of --preset")
    parser.add_debug(OUTPUT)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the evaluation command.

    Args:
        argv: The words after the program's name; by default those of the process.

    Returns:
        The exit code: 0, 2 after a mistake in the command, 130 after an interruption.
    """
    return answer_errors(_main, argv)


def _main(words: list[str]) -> int:
    parser = make_parser()
    given = parser.parse(words)
    name = given.pop("run")
    config = EvaluationConfig.from_flags(given)
    path, run = find_model(name, config)
    this_worker(config.strategy)
    _check_outputs(config)
    _note_idle_flags(config, given)
    try:
        # Imported here, so that a mistake on the command line need not wait for TensorFlow.
        with quiet_start():
            from tf_mcvae.cli import evaluation

        evaluation.run(path, run, config)
    except KeyboardInterrupt:
        ending = "Nothing is kept; --checkpoint DIR would keep results"
        if config.checkpoint is not None:
            ending = f"Continue with: {parser.prog} {shlex.join(words)}"
        print(f"\nInterrupted. {ending}", file=sys.stderr)
        return 130
    return 0


def find_model(name: str, config: EvaluationConfig) -> tuple[pathlib.Path, RunConfig]:
    """Returns the file of a model, and the settings that its data are loaded with.

    Args:
        name: A run's folder, its name in `saved_models/`, or a `.keras` file.
        config: Its settings of the data take precedence over those of the run.

    Raises:
        ValueError: If there is no such run, it is not finished, or the data of a file are not
            given.
    """
    path, run = pathlib.Path(name), RunConfig()
    if path.suffix != ".keras":
        folder = RunFolder(path)
        if not folder.config.exists():
            folder = RunFolder(pathlib.Path(RunConfig.output_dir) / name)
        path, run = folder.model, _settings(folder, name)
    elif config.data is None:
        raise ValueError(
            "A .keras file does not name its data: give --data, or the folder of the run. "
            f"Received: {name!r}"
        )
    given: dict[str, Any] = {
        "dataset": config.data,
        "data_dir": config.data_dir,
        "image_size": config.image_size,
        "binarize": config.binarize,
    }
    given = {key: value for key, value in given.items() if value is not None}
    return path, dataclasses.replace(run, **given)


def _settings(folder: RunFolder, name: str) -> RunConfig:
    if not folder.config.exists():
        raise ValueError(
            "There is no such run: give a folder that train_keras.py has written, its name in "
            f"{RunConfig.output_dir}/, or a .keras file. Received: {name!r}"
        )
    if not folder.model.exists():
        raise ValueError(
            "The run is not finished: continue it by `train_keras.py --resume`, or give its "
            f"{folder.checkpoint.name} and --data. Received: {name!r}"
        )
    return folder.load_config()


def _check_outputs(config: EvaluationConfig) -> None:
    """Raises ValueError if the results cannot be written, before the long computation."""
    folders = {"--checkpoint": config.checkpoint}
    if config.json is not None:
        if pathlib.Path(config.json).is_dir():
            raise ValueError(f"This is a folder; a file is needed. Received: --json {config.json}")
        folders["--json"] = str(pathlib.Path(config.json).parent)
    for flag, folder in folders.items():
        if folder is None:
            continue
        try:
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ValueError(
                f"The folder of {flag} cannot be made or written to ({error.strerror}): choose "
                f"another. Received: {folder!r}"
            ) from error


def _note_idle_flags(config: EvaluationConfig, given: Iterable[str]) -> None:
    if config.ais or config.gap:
        return
    for name in given:
        if name == "preset" or name in AIS_FIELDS:
            print(f"note: {flag_of(name)} changes nothing without AIS and --gap", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
