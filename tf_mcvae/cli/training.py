"""Carries out a run: data, networks and model, training, scores, export."""

import contextlib
import importlib.metadata
import pathlib
import platform
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tf_mcvae
from tf_mcvae import datasets, evaluation
from tf_mcvae.cli.building import build_model
from tf_mcvae.cli.callbacks import (
    Checkpoint,
    EpochLine,
    HistoryWriter,
    StopOnNonFinite,
    read_history,
    save_model,
)
from tf_mcvae.cli.pictures import draw_images
from tf_mcvae.datasets import Data, DataSpec
from tf_mcvae.distribute import replicas
from tf_mcvae.evaluation import LogLikelihoodEstimate
from tf_mcvae.export import check_onnx_packages, export_onnx, export_saved_model, export_tflite
from tf_mcvae.files import replacing, write_json
from tf_mcvae.integrations.tensorboard import TensorBoardLogger
from tf_mcvae.models import MonteCarloVAE, load_model
from tf_mcvae.performance.cores import parallelize_over_batch
from tf_mcvae_commands.cluster import ALONE, Worker, joined
from tf_mcvae_commands.run_folder import RunFolder
from tf_mcvae_commands.settings import FREE_ON_RESUME, GROUP_MODELS, TRANSITIONS, RunConfig

_NUM_SAMPLES = {"IWAE": 10, "A-MCVAE": 5}  # Of the others 1.
_SCORED_PIXELS = 25_000  # By default; annealed importance sampling then takes about a minute.
_CALIBRATION_SHARE = 4  # Images to calibrate anomaly scores with, for one that is scored.
_LOCAL = ("cores", "data_dir", "gpus", "logdir", "output_dir")  # May differ from worker to worker.
_PACKAGES = ("tensorflow", "keras", "tensorflow-probability", "numpy")


def run(config: RunConfig, folder: RunFolder) -> None:
    """Trains a model, from its checkpoint if the folder has one, scores it and exports it.

    Of several workers, each of which calls this, the chief alone reads and writes the folder.

    Args:
        config: The settings.
        folder: Where to write; it exists, or is not this worker's to write to.

    Raises:
        ImportError: If packages are missing that ONNX files take.
        LostWorkerError: If another worker is gone.
    """
    show_gpus(config.gpus)
    share_cores(config.cores, config.strategy)
    if config.export_onnx:
        check_onnx_packages()  # Before the work, not after it.
    with joined(config.strategy) as (worker, strategy):
        _run(config, folder, worker, strategy)


def _run(config: RunConfig, folder: RunFolder, worker: Worker, strategy: Any) -> None:
    keras.utils.set_random_seed(config.seed)
    config, data = load_data(config)
    if worker.is_chief:
        _check_same_settings(config, folder)
    with replicas.scope(strategy):
        _check_agreement(config)
    model = _model(config, data, folder, worker, strategy)
    if worker.is_chief:
        write_json(folder.config, {"settings": asdict(config), "versions": versions()})
    print(describe(config, data.spec, model), flush=True)
    training_seconds = train(config, model, data, folder, worker)
    with replicas.scope(strategy):
        scores = score(config, model, data) if config.score else {}
    if worker.is_chief:
        _write(config, model, data, folder, {"training": training_seconds}, scores)
    with replicas.scope(strategy):
        replicas.wait_for_all()


def _check_same_settings(config: RunConfig, folder: RunFolder) -> None:
    """Raises if the run that is gone on with was started with other settings."""
    if not folder.config.exists():
        return
    saved, now = asdict(folder.load_config()), asdict(config)
    other = sorted(name for name in set(now) - FREE_ON_RESUME if saved[name] != now[name])
    if other:
        raise ValueError(
            "There is an interrupted run of this name with other settings: give the same ones, or "
            "choose another --name. Received: "
            + ", ".join(f"--{name.replace('_', '-')} {now[name]}" for name in other)
        )


def _check_agreement(config: RunConfig) -> None:
    """Raises on all workers if they have different settings."""
    common = {key: value for key, value in asdict(config).items() if key not in _LOCAL}
    sums = replicas.gather(np.array([[zlib.crc32(repr(common).encode())]]))
    if len(set(sums[:, 0])) > 1:
        raise ValueError(
            "The workers have different settings, or data of different sizes: start all of them by "
            f"the same command. Received: {len(set(sums[:, 0]))} kinds of settings"
        )


def _model(
    config: RunConfig, data: Data, folder: RunFolder, worker: Worker, strategy: Any
) -> MonteCarloVAE:
    """Returns the model of the checkpoint, if there is one, or a new one."""
    has_checkpoint = worker.is_chief and folder.checkpoint.exists()
    with replicas.scope(strategy):
        if has_checkpoint and worker.count == 1:
            return load_model(folder.checkpoint)
        model = build_model(config, data.spec, len(data.train))
        if worker.count == 1:
            return model
        # Workers make all variables in step, and so first the same model.
        model.optimizer.build(model.trainable_variables)
    if has_checkpoint:
        model.load_weights(folder.checkpoint)  # Outside the scope, as it makes variables.
    with replicas.scope(strategy):
        replicas.broadcast([*model.weights, *model.optimizer.variables])
    return model


def _write(
    config: RunConfig,
    model: MonteCarloVAE,
    data: Data,
    folder: RunFolder,
    seconds: dict[str, float],
    scores: dict[str, Any],
) -> None:
    """Writes what a finished run leaves."""
    save_model(model, folder.model)
    with replacing(folder.images) as temporary:
        draw_images(model, next(iter(data.test)), temporary, seed=config.seed)
    summary = {
        "epochs": config.epochs,
        "num_parameters": model.count_params(),
        "last_epoch": read_history(folder.history)[-1],
        "scores": scores,
        "seconds": seconds,
    }
    if config.export:
        export(config, model, data, folder, summary)
    if config.export_onnx:
        export_onnx(model, folder.onnx, overwrite=True)
    if config.export_tflite:
        export_tflite(model, folder.tflite, overwrite=True)
    write_json(folder.metrics, summary)
    folder.checkpoint.unlink(missing_ok=True)
    print(f"Written to {folder.path}: {', '.join(folder.written())}", flush=True)


def show_gpus(count: int | None) -> None:
    """Lets TensorFlow see the first GPUs only, or with None all; it computes on the first."""
    if count is None:
        return
    found = tf.config.list_physical_devices("GPU")
    tf.config.set_visible_devices(found[:count], "GPU")
    if len(found) < count:
        print(f"note: --gpus {count}, but TensorFlow finds {len(found)}", file=sys.stderr)


def share_cores(count: int | None, strategy: str) -> None:
    """Lets cores share batches, unless devices do; a process that has computed stays as it is."""
    if strategy == "none":
        with contextlib.suppress(RuntimeError):
            parallelize_over_batch(count)


def load_data(config: RunConfig) -> tuple[RunConfig, Data]:
    """Loads the data, shortened to the limits, and completes the settings.

    Returns:
        The settings, of which those are filled in that hang on the data or the model, so that
        `config.json` says what was done whatever the defaults become; and the data.
    """
    binarize = config.binarize
    if binarize is None:
        binarize = config.likelihood != "gaussian"
    data = _load(config, binarize)
    likelihood = config.likelihood or data.spec.likelihood
    if config.binarize is None and binarize and likelihood == "gaussian":
        binarize = False
        data = _load(config, binarize)
    data = data._replace(
        train=_limited(data.train, config.limit_train_batches),
        validation=_limited(data.validation, config.limit_validation_batches),
    )
    return complete(replace(config, binarize=binarize, likelihood=likelihood), data.spec), data


def load_split(
    config: RunConfig, split: str, count: int | None = None
) -> tuple[RunConfig, DataSpec, Any]:
    """Loads the first images of a split at once, whatever the limits of the settings are.

    Of `"train"` they are in the order, shuffled, of the first epoch of a run with this seed.

    Args:
        config: The settings, of which those of the data, the likelihood and the seed count.
        split: `"train"`, `"validation"` or `"test"`.
        count: How many images. None: all.

    Returns:
        The settings, completed; what the data are; and the images, `[N, H, W, C]`.
    """
    keras.utils.set_random_seed(config.seed)
    whole = replace(config, limit_train_batches=1.0, limit_validation_batches=1.0)
    if split == "train":
        # A smaller last batch would be left out.
        whole = replace(whole, batch_size=1)
    whole, data = load_data(whole)
    images = getattr(data, split).unbatch().take(-1 if count is None else count)
    return whole, data.spec, np.concatenate([np.asarray(x) for x in images.batch(1000)])


def complete(config: RunConfig, spec: DataSpec) -> RunConfig:
    """Returns settings in which nothing is left open that hangs on the data or the model."""
    # Three halvings would leave a convolutional network no room.
    small = min(spec.image_shape[:2]) < 16
    decays = config.model in GROUP_MODELS[TRANSITIONS] and not small
    return replace(
        config,
        likelihood=config.likelihood or spec.likelihood,
        architecture=config.architecture or ("dense" if small else "conv"),
        learning_rate=config.learning_rate or (3e-3 if small else 1e-3),
        lr_schedule=config.lr_schedule or ("reference" if decays else "constant"),
        num_samples=config.num_samples or _NUM_SAMPLES.get(config.model, 1),
        score_examples=_score_examples(config, spec),
    )


def _score_examples(config: RunConfig, spec: DataSpec) -> int:
    height, width = spec.image_shape[:2]
    wanted = config.score_examples
    if wanted is None:
        wanted = max(1, _SCORED_PIXELS // (height * width))
    return min(wanted or spec.num_test, spec.num_test)


def _load(config: RunConfig, binarize: bool) -> Data:
    return datasets.load(
        config.dataset,
        batch_size=config.batch_size,
        validation_batch_size=config.validation_batch_size,
        binarize="dynamic" if binarize else "none",
        image_size=config.image_size,
        data_dir=config.data_dir,
        seed=config.seed,
    )


def _limited(dataset: Any, limit: int | float) -> Any:
    """Returns the first batches of a dataset: a count, or a fraction of them, but at least one."""
    count = max(1, int(limit * len(dataset))) if isinstance(limit, float) else limit
    return dataset.take(count) if count < len(dataset) else dataset


def describe(config: RunConfig, spec: DataSpec, model: MonteCarloVAE) -> str:
    """Returns in two lines what is trained on what."""
    own = f", K={config.num_transitions}" if "MCVAE" in config.model else ""
    own = f", {config.num_flows} {config.flow_type}" if config.model == "FlowVAE" else own
    pixels = f"{'binarised' if config.binarize else 'grey or colour'} pixels"
    return (
        f"{spec.name}: {spec.num_train} training, {spec.num_validation} validation and "
        f"{spec.num_test} test images of {'x'.join(map(str, spec.image_shape))}, {pixels}, "
        f"{config.likelihood} likelihood\n"
        f"{config.model}: {config.architecture} networks, latent dimension {config.latent_dim}"
        f"{own}, S={config.num_samples}, {model.count_params():,} parameters"
    )


def train(
    config: RunConfig,
    model: MonteCarloVAE,
    data: Data,
    folder: RunFolder,
    worker: Worker = ALONE,
) -> float:
    """Trains up to the last epoch, from the epoch that the model has reached.

    Returns:
        The seconds that it took.
    """
    # The checkpoint itself knows how far it is, so that no other file can disagree with it.
    epoch = int(model.step.numpy()) // len(data.train)
    if epoch:
        print(f"Resuming after epoch {epoch} of {config.epochs}", flush=True)
    datasets.skip_epochs(data.train, epoch)
    start = time.perf_counter()
    model.fit(
        replicas.by_examples(data.train),
        validation_data=replicas.by_examples(data.validation),
        initial_epoch=epoch,
        epochs=config.epochs,
        shuffle=False,  # The dataset does that.
        verbose=0,
        callbacks=[
            EpochLine(),
            StopOnNonFinite(),
            *(_writers(config, data, folder, epoch) if worker.is_chief else []),
        ],
    )
    return time.perf_counter() - start


def _writers(config: RunConfig, data: Data, folder: RunFolder, epoch: int) -> list[Any]:
    return [
        HistoryWriter(folder.history, epoch),
        *_tensorboard(config, data, folder),
        Checkpoint(folder.checkpoint),
    ]


def _tensorboard(config: RunConfig, data: Data, folder: RunFolder) -> list[Any]:
    if config.logdir is None:
        return []
    path = pathlib.Path(config.logdir) / folder.path.name
    return [TensorBoardLogger(path, data.validation, config.nll_every, config.seed)]


def export(
    config: RunConfig,
    model: MonteCarloVAE,
    data: Data,
    folder: RunFolder,
    summary: dict[str, Any],
) -> None:
    """Writes the SavedModel for TF Serving as the next version, with what is known of the run."""
    # Held-out images: those of the test split have been looked at for the scores.
    count = _CALIBRATION_SHARE * (config.score_examples or data.spec.num_test)
    ordinary = data.validation.unbatch().take(count).batch(1000)
    card = {
        "data": asdict(data.spec),
        "metrics": summary,
        "settings": asdict(config),
        "versions": versions(),
    }
    images = np.concatenate([np.asarray(x) for x in ordinary])
    export_saved_model(model, folder.serving, calibration=images, card=card)


def score(config: RunConfig, model: MonteCarloVAE, data: Data) -> dict[str, Any]:
    """Estimates the log-likelihood of test images in all ways, and prints a table of them.

    Returns:
        For each estimate what `LogLikelihoodEstimate.to_dict` gives, and the seconds it took.
    """
    count = config.score_examples
    test = data.test.unbatch().take(count).batch(config.validation_batch_size)
    print(f"log p(x) of {count} test images in nats, ± standard error over the images")
    scores: dict[str, Any] = {}
    for key, estimate, arguments in _estimators(config):
        start = time.perf_counter()
        result = estimate(model, test, seed=config.seed, **arguments)
        seconds = time.perf_counter() - start
        print(score_text(result, seconds), flush=True)
        scores[key] = {**result.to_dict(), "seconds": seconds}
    print(f"negative log-likelihood by AIS: {result.nll:.2f} ± {result.standard_error:.2f} nats")
    return scores


def _estimators(
    config: RunConfig,
) -> list[tuple[str, Callable[..., LogLikelihoodEstimate], dict[str, Any]]]:
    ais = {
        "num_chains": config.ais_chains,
        "num_temperatures": config.ais_temperatures,
        "num_leapfrog_steps": config.ais_leapfrogs,
    }
    return [
        ("bound", evaluation.estimate_bound, {}),
        ("elbo", evaluation.estimate_elbo, {}),
        ("iwae", evaluation.estimate_iwae, {"num_samples": config.iwae_samples}),
        ("ais", evaluation.estimate_log_likelihood, ais),
    ]


def score_text(result: LogLikelihoodEstimate, seconds: float) -> str:
    """Returns a row of the table of scores."""
    value = f"{result.mean:9.2f} ± {result.standard_error:.2f}"
    return f"  {result.method:<16}{value}   {seconds:6.1f} s"


def versions() -> dict[str, str]:
    """Returns the versions of Python, this package, and what it computes with."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "tf_mcvae": tf_mcvae.__version__, **packages}
