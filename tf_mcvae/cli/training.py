"""Carries out a training run: data, model, training, scores, export."""

import pathlib
import time
import zlib
from dataclasses import asdict
from typing import Any

import keras
import numpy as np

from tf_mcvae import datasets, distribute
from tf_mcvae.cli.building import build_model
from tf_mcvae.cli.callbacks import (
    Checkpoint,
    EpochLine,
    HistoryWriter,
    StopOnNonFinite,
    read_history,
    save_model,
)
from tf_mcvae.cli.environment import share_cores, show_gpus, versions_of_run
from tf_mcvae.cli.run_data import load_data
from tf_mcvae.datasets import Data, DataSpec
from tf_mcvae.evaluation.suite import Suite, report
from tf_mcvae.export import check_onnx_packages, export_onnx, export_saved_model, export_tflite
from tf_mcvae.files import optional, replacing, write_json
from tf_mcvae.integrations.pictures import draw_images
from tf_mcvae.integrations.tensorboard import TensorBoardLogger
from tf_mcvae.models import MonteCarloVAE, load_model
from tf_mcvae_commands.cluster import ALONE, Worker, joined
from tf_mcvae_commands.groups import GROUP_MODELS, TRANSITIONS
from tf_mcvae_commands.parser import flag_of
from tf_mcvae_commands.run_folder import RunFolder
from tf_mcvae_commands.training_settings import FREE_ON_RESUME, OF_THE_MACHINE, RunConfig

# Number of images to calibrate anomaly scores with, for each image that is scored.
_CALIBRATION_SHARE = 4


def run(config: RunConfig, folder: RunFolder) -> None:
    """Trains a model, from its checkpoint if the folder has one, scores it and exports it.

    Each of several workers calls this; only the chief reads and writes the folder.

    Args:
        config: The settings.
        folder: The run's folder; it exists on the chief.

    Raises:
        ImportError: If packages are missing that writing ONNX files needs.
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
    with distribute.scope(strategy):
        _check_agreement(config)
    model = _model(config, data, folder, worker, strategy)
    if worker.is_chief:
        record = {"settings": asdict(config), **versions_of_run(folder.config)}
        write_json(folder.config, record)
    print(describe(config, data.spec, model), flush=True)
    training_seconds = train(config, model, data, folder, worker)
    with distribute.scope(strategy):
        scores = score(config, model, data) if config.score else {}
    if worker.is_chief:
        _write(config, model, data, folder, {"training": training_seconds}, scores)
    with distribute.scope(strategy):
        distribute.wait_for_all()


def _check_same_settings(config: RunConfig, folder: RunFolder) -> None:
    """Raises if the interrupted run in the folder was started with other settings."""
    if not folder.config.exists():
        return
    saved, now = asdict(folder.load_config()), asdict(config)
    other = sorted(name for name in set(now) - FREE_ON_RESUME if saved[name] != now[name])
    if other:
        raise ValueError(
            "There is an interrupted run of this name with other settings: give the same ones, or "
            "choose another --name. Received: "
            + ", ".join(f"{flag_of(name)} {now[name]}" for name in other)
        )


def _check_agreement(config: RunConfig) -> None:
    """Raises on all workers if they have different settings."""
    common = {key: value for key, value in asdict(config).items() if key not in OF_THE_MACHINE}
    sums = distribute.gather(np.array([[zlib.crc32(repr(common).encode())]]))
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
    with distribute.scope(strategy):
        if has_checkpoint and worker.count == 1:
            return load_model(folder.checkpoint)
        model = build_model(config, data.spec, len(data.train))
        if worker.count == 1:
            return model
        # Workers make all variables in step, and so first the same model.
        model.optimizer.build(model.trainable_variables)
    if has_checkpoint:  # Outside the scope, as it makes variables.
        load_model(folder.checkpoint)  # Says why, if the file cannot be loaded.
        model.load_weights(folder.checkpoint)
    with distribute.scope(strategy):
        distribute.broadcast([*model.weights, *model.optimizer.variables])
    return model


def _write(
    config: RunConfig,
    model: MonteCarloVAE,
    data: Data,
    folder: RunFolder,
    seconds: dict[str, float],
    scores: dict[str, Any],
) -> None:
    """Writes the files of a finished run."""
    save_model(model, folder.model)
    with optional("The picture of the images"), replacing(folder.images) as temporary:
        draw_images(model, next(iter(data.test)), temporary, seed=config.seed)
    summary = {
        "epochs": config.epochs,
        "num_parameters": model.count_params(),
        "last_epoch": (read_history(folder.history) or [{}])[-1],
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


def describe(config: RunConfig, spec: DataSpec, model: MonteCarloVAE) -> str:
    """Returns a line on the data and a line on the model."""
    has_transitions = config.model in GROUP_MODELS[TRANSITIONS]
    own = f", K={config.num_transitions}" if has_transitions else ""
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
    # The step is part of the checkpoint, so that no other file can disagree with it.
    epoch = int(model.step.numpy()) // len(data.train)
    if epoch:
        print(f"Resuming after epoch {epoch} of {config.epochs}", flush=True)
    datasets.skip_epochs(data.train, epoch)
    start = time.perf_counter()
    model.fit(
        distribute.by_examples(data.train),
        validation_data=distribute.by_examples(data.validation),
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
    """Writes the SavedModel for TF Serving as the next version, with a card of the run."""
    # Validation images, because the test images have been used for the scores.
    count = _CALIBRATION_SHARE * (config.score_examples or data.spec.num_test)
    ordinary = data.validation.unbatch().take(count).batch(1000)
    card = {
        "data": asdict(data.spec),
        "metrics": summary,
        "settings": asdict(config),
        **versions_of_run(folder.config),
    }
    images = np.concatenate([np.asarray(x) for x in ordinary])
    export_saved_model(model, folder.serving, calibration=images, card=card)


def score(config: RunConfig, model: MonteCarloVAE, data: Data) -> dict[str, Any]:
    """Estimates the log-likelihood of test images by all estimators, and prints their table.

    Returns:
        For each estimate `LogLikelihoodEstimate.to_dict`, and the seconds it took.
    """
    count = config.score_examples
    suite = Suite(
        estimates=("bound", "elbo", "iwae", "ais"),
        iwae_samples=config.iwae_samples,
        annealing=config.annealing,
        seed=config.seed,
    )
    print(f"Scoring {count} of {data.spec.num_test} test images", flush=True)
    scores = suite.run(model, data.test.unbatch().take(count).batch(config.validation_batch_size))
    print(f"\n{report(scores)}", flush=True)
    return {
        key: {**result.to_dict(), "seconds": scores.seconds[key]}
        for key, result in scores.estimates.items()
    }
