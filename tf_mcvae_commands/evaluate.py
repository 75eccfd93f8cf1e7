"""The evaluation command: `log p(x)` of a trained model in all ways, as a table with error bars.

python -m tf_mcvae_commands.evaluate saved_models/<run>

This module imports nothing heavy before it computes, so that mistakes are answered at once.
"""

import dataclasses
import pathlib
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tf_mcvae.files import write_json
from tf_mcvae_commands.cluster import LostWorkerError, Worker, joined, this_worker
from tf_mcvae_commands.run_folder import RunFolder
from tf_mcvae_commands.settings import (
    RunConfig,
    choice,
    cores_option,
    integer,
    number,
    option,
    parse_bool,
)
from tf_mcvae_commands.train import Parser, add_debug, answer_errors, leave

if TYPE_CHECKING:
    from tf_mcvae.evaluation.scores import Scores

_DESCRIPTION = """\
Estimates the log-likelihood of a trained model with error bars, and prints it as a table: the ELBO,
importance sampling from the encoder (IWAE-k), and annealed importance sampling (AIS). All are lower
bounds in expectation; --gap says how loose AIS is.

RUN is the folder of a run of train_keras.py, which knows its data, or its name in saved_models/; or
a .keras file, which needs --data. With --checkpoint, an evaluation that was interrupted goes on to
the same numbers by the same command. Booleans and flags are written as in train_keras.py."""

DATA = "data (default: those of the run)"
ESTIMATES = "estimates"
AIS = "annealed importance sampling"
OUTPUT = "output"


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The settings of an evaluation. None stands for what the run, the model or the preset says."""

    data: str | None = option(
        None, DATA, str, "digits, mnist, ..., a file or a folder, as in train_keras.py --dataset"
    )
    binarize: bool | None = option(
        None,
        DATA,
        parse_bool,
        "draw each pixel once with its grey value as probability (default: as the run; of a .keras "
        "file, for a Bernoulli likelihood)",
    )
    data_dir: str | None = option(
        None, DATA, str, "folder of prepared TFDS data (default: as in train_keras.py)"
    )
    image_size: int | None = option(
        None, DATA, integer(1), "side to which images are resized (default: that of the data)"
    )
    split: str = option(
        "test", DATA, choice("test", "validation", "train"), "test, validation or train"
    )
    examples: int = option(
        500,
        DATA,
        integer(0),
        "evaluate the first so many images, of train in its shuffled order; 0: all",
    )

    elbo_samples: int = option(100, ESTIMATES, integer(1), "draws of each image for the ELBO")
    iwae_samples: int = option(
        5000, ESTIMATES, integer(0), "k of IWAE-k, draws of each image; 0: no such estimate"
    )
    ais: bool = option(True, ESTIMATES, parse_bool, "estimate by annealed importance sampling")
    gap: int = option(
        0,
        ESTIMATES,
        integer(0),
        "bound from both sides how loose AIS is, on so many images that the model draws itself; "
        "takes as long as AIS of twice as many images, 50 mostly are enough; 0: not",
    )
    seed: int = option(0, ESTIMATES, integer(0), "seed of the draws")
    chunk_size: int | None = option(
        None,
        ESTIMATES,
        integer(1),
        "most draws or chains (images times those of each) in memory at a time; less of them show "
        "progress, and are kept by --checkpoint, more often (default: 5000 draws, 1600 chains)",
    )

    cores: int | None = cores_option(ESTIMATES)
    strategy: str = option(
        "none",
        ESTIMATES,
        choice("none", "multiworker"),
        "none, or multiworker: the processes that TF_CONFIG names share the images; each is given "
        "the same command",
    )

    preset: str = option(
        "standard",
        AIS,
        choice("quick", "standard", "paper", "reference_quick"),
        "quick (8 chains, 100 temperatures, 3 leapfrog steps), standard (16, 300, 5), paper (16, "
        "1000, 10: to be cited), or reference_quick (10, 4, 3 with fixed steps: loose, as the "
        "published code has it); time grows with the product of the three",
    )
    num_chains: int | None = option(
        None, AIS, integer(1), "chains of each image (default: by --preset)", "chains"
    )
    num_temperatures: int | None = option(
        None, AIS, integer(2), "temperatures (default: by --preset)", "temperatures"
    )
    num_leapfrog_steps: int | None = option(
        None, AIS, integer(1), "leapfrog steps at each (default: by --preset)", "leapfrogs"
    )
    schedule: str | None = option(
        None, AIS, choice("sigmoid", "linear"), "sigmoid or linear (default: by --preset)"
    )
    step_size: float | None = option(
        None,
        AIS,
        number(positive=True),
        "one step size for all temperatures (default: by --preset, mostly tuned to the acceptance)",
    )
    target_acceptance: float | None = option(
        None,
        AIS,
        number(0.0, 1.0, positive=True),
        "acceptance that the step sizes are tuned to (default: 0.65)",
    )
    start: str | None = option(
        None, AIS, choice("encoder", "prior"), "encoder or prior (default: encoder)"
    )

    json: str | None = option(
        None, OUTPUT, str, "write everything, each image's values included, to this file"
    )
    checkpoint: str | None = option(
        None, OUTPUT, str, "folder that keeps what is done; the same command goes on from there"
    )
    progress: bool | None = option(
        None, OUTPUT, parse_bool, "show bars with the time left (default: on a terminal)"
    )


AIS_SETTINGS = tuple(
    field.name
    for field in dataclasses.fields(EvaluationConfig)
    if field.metadata["group"] == AIS and field.name != "preset"
)


def make_parser() -> Parser:
    """Returns the parser of the evaluation command."""
    script = "tf-mcvae-evaluate"
    called = pathlib.Path(sys.argv[0]).stem == script
    parser = Parser(
        "%(prog)s RUN [--flag VALUE ...]",
        _DESCRIPTION,
        prog=script if called else "python -m tf_mcvae_commands.evaluate",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder or name, or a .keras file")
    add_debug(parser.add_settings(EvaluationConfig)[OUTPUT])
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the evaluation command.

    Args:
        argv: The words after the program's name; by default those of the process.

    Returns:
        The exit code: 0, 2 after an error in what was asked for, 130 after an interruption.
    """
    return answer_errors(_main, argv)


def _main(words: list[str]) -> int:
    parser = make_parser()
    given = vars(parser.parse_args(words))
    given.pop("debug", None)
    name = given.pop("run")
    config = EvaluationConfig(**given)
    path, run = find_model(name, config)
    this_worker(config.strategy)
    _check_outputs(config)
    _note_idle_flags(config, given)
    try:
        _carry_out(path, run, config)
    except KeyboardInterrupt:
        ending = "nothing is kept; --checkpoint DIR would keep what is done"
        if config.checkpoint is not None:
            ending = f"go on with: {parser.prog} {shlex.join(words)}"
        print(f"\nInterrupted; {ending}", file=sys.stderr)
        return 130
    except LostWorkerError as error:
        leave(error)
    return 0


def find_model(name: str, config: EvaluationConfig) -> tuple[pathlib.Path, RunConfig]:
    """Returns the file of a model, and the settings that its data are loaded with.

    Args:
        name: A run's folder, its name in `saved_models/`, or a `.keras` file.
        config: Of which the settings of the data go before those of the run.

    Raises:
        ValueError: If there is no such run, it is not finished, or nothing says what the data are.
    """
    path, run = pathlib.Path(name), RunConfig()
    if path.suffix != ".keras":
        folder = RunFolder(path)
        if not folder.config.exists():
            folder = RunFolder(pathlib.Path(RunConfig.output_dir) / name)
        path, run = folder.model, _settings(folder, name)
    elif config.data is None:
        raise ValueError(
            "A .keras file does not say what its data are: give --data, or the folder of the run. "
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
            "The run is not finished: go on with it by `train_keras.py --resume`, or give its "
            f"{folder.checkpoint.name} and --data. Received: {name!r}"
        )
    return folder.load_config()


def _check_outputs(config: EvaluationConfig) -> None:
    """Finds out before the long work whether its results can be written."""
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


def _note_idle_flags(config: EvaluationConfig, given: dict[str, Any]) -> None:
    if config.ais or config.gap:
        return
    for name in ("preset", *AIS_SETTINGS):
        if name in given:
            flag = name.replace("_", "-")
            print(f"note: --{flag} changes nothing without AIS and --gap", file=sys.stderr)


def _carry_out(path: pathlib.Path, run: RunConfig, config: EvaluationConfig) -> None:
    # Only here, so that mistakes on the command line need not wait for TensorFlow.
    from tf_mcvae.cli.training import share_cores

    share_cores(config.cores, config.strategy)
    with joined(config.strategy) as (worker, strategy):
        _evaluate(path, run, config, worker, strategy)


def _evaluate(
    path: pathlib.Path, run: RunConfig, config: EvaluationConfig, worker: Worker, strategy: Any
) -> None:
    from tf_mcvae import models
    from tf_mcvae.cli import training
    from tf_mcvae.distribute import replicas
    from tf_mcvae.evaluation import scores
    from tf_mcvae.layers import likelihoods

    model = models.load_model(path)
    bernoulli = isinstance(model.likelihood, likelihoods.Bernoulli)
    run = dataclasses.replace(run, likelihood="bernoulli" if bernoulli else "gaussian")
    run, spec, images = training.load_split(run, config.split, config.examples or None)
    data = {
        "name": spec.name,
        "split": config.split,
        "num_examples": len(images),
        "num_available": getattr(spec, f"num_{config.split}"),
        "image_shape": spec.image_shape,
        "binarize": run.binarize,
    }
    print(f"{path}: {type(model).__name__}, latent dimension {model.latent_dim}")
    print(scores.data_text(**data), flush=True)
    with replicas.scope(strategy):
        results = estimate(model, images, config)
        replicas.wait_for_all()
    print(f"\n{scores.report(results)}", flush=True)
    if config.json is not None and worker.is_chief:
        values = {
            "model": {"path": str(path), "class": type(model).__name__},
            "data": data,
            "settings": dataclasses.asdict(config),
            **results.to_dict(),
            "versions": training.versions(),
        }
        write_json(pathlib.Path(config.json), values)
        print(f"Written to {config.json}")


def estimate(model: Any, images: Any, config: EvaluationConfig) -> "Scores":
    """Estimates everything that is asked for, and says what it is at.

    Args:
        model: A trained model.
        images: `[N, ...]`.
        config: The settings.

    Raises:
        ValueError: If the images do not fit the model, the memory does not suffice, a checkpoint is
            of something else, or the gap needs an inverse that a flow does not have.
    """
    import tensorflow as tf

    from tf_mcvae import evaluation
    from tf_mcvae.evaluation import scores

    if config.gap:
        _check_backwards(model, config)
    results, seconds = {}, {}
    latents = evaluation.latent_statistics(model, images)
    for key, (text, function, arguments) in _estimators(config, images).items():
        print(f"{text} ...", flush=True)
        start = time.perf_counter()
        try:
            results[key] = function(model, seed=config.seed, **arguments)
        except tf.errors.ResourceExhaustedError as error:
            raise ValueError(
                "The memory does not suffice: give a smaller --chunk-size. "
                f"Received: --chunk-size {config.chunk_size or '(none)'}"
            ) from error
        seconds[key] = time.perf_counter() - start
    gap = results.pop("gap", None)
    return scores.Scores(results, seconds, latents, gap)


def _estimators(
    config: EvaluationConfig, images: Any
) -> dict[str, tuple[str, Callable[..., Any], dict[str, Any]]]:
    """Returns what is to be estimated: for each a text, the function, and its own arguments."""
    from tf_mcvae import evaluation

    chunk = {} if config.chunk_size is None else {"chunk_size": config.chunk_size}
    verbose = sys.stdout.isatty() if config.progress is None else config.progress

    def on_images(key: str) -> dict[str, Any]:
        folder = config.checkpoint
        path = None if folder is None else pathlib.Path(folder) / f"{key}.npz"
        return {"data": images, "checkpoint": path, "verbose": int(verbose), **chunk}

    ais = ais_settings(config)
    chains = (
        f"{ais['num_chains']} chains, {ais['num_temperatures']} temperatures, "
        f"{ais['num_leapfrog_steps']} leapfrog steps"
    )
    draws, k = config.elbo_samples, config.iwae_samples
    elbo = {"num_samples": draws, **on_images("elbo")}
    iwae = {"num_samples": k, **on_images("iwae")}
    gap = {"num_examples": config.gap, **ais, **chunk}
    simulated = f"gap: {chains}, both ways on {config.gap} simulated images"
    wanted: dict[str, tuple[str, Callable[..., Any], dict[str, Any]]] = {
        "elbo": (f"ELBO: {draws} draws", evaluation.estimate_elbo, elbo),
        "iwae": (f"IWAE: {k} draws", evaluation.estimate_iwae, iwae),
        "ais": (f"AIS: {chains}", evaluation.estimate_log_likelihood, ais | on_images("ais")),
        "gap": (simulated, evaluation.bidirectional_gap, gap),
    }
    left_out = {"iwae": not k, "ais": not config.ais, "gap": not config.gap}
    return {key: value for key, value in wanted.items() if not left_out.get(key)}


def ais_settings(config: EvaluationConfig) -> dict[str, Any]:
    """Returns the preset's arguments of annealed importance sampling with those that are given."""
    from tf_mcvae import evaluation

    given = {name: getattr(config, name) for name in AIS_SETTINGS}
    given = {name: value for name, value in given.items() if value is not None}
    return {**evaluation.PRESETS[config.preset], **given}


def _check_backwards(model: Any, config: EvaluationConfig) -> None:
    """Finds out before the long work whether chains can start backwards."""
    import tensorflow as tf

    from tf_mcvae.models import FlowVAE

    if not isinstance(model, FlowVAE) or config.start == "prior":
        return
    try:
        model.flow.inverse(tf.zeros([1, model.latent_dim]))
    except ValueError as error:
        raise ValueError(
            "The gap needs the inverse of the flow, which this one does not have: add "
            f"--start prior, where chains run without the flow. Received: --gap {config.gap}"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
