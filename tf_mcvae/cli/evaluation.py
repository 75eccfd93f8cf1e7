"""Carries out an evaluation: data and model of a run, the suite of estimators, its report."""

import dataclasses
import pathlib
import sys
from typing import Any

import tensorflow as tf

from tf_mcvae import distribute
from tf_mcvae.cli.environment import share_cores, versions
from tf_mcvae.cli.run_data import load_split
from tf_mcvae.evaluation.suite import Suite, report
from tf_mcvae.files import write_json
from tf_mcvae.layers.likelihoods import Bernoulli
from tf_mcvae.models import load_model
from tf_mcvae_commands.cluster import Worker, joined
from tf_mcvae_commands.evaluation_settings import EvaluationConfig
from tf_mcvae_commands.training_settings import RunConfig


def run(path: pathlib.Path, run: RunConfig, config: EvaluationConfig) -> None:
    """Estimates the log-likelihood of a saved model, prints the report and writes the results.

    Args:
        path: A `.keras` file.
        run: The settings that its data are loaded with.
        config: The settings of the evaluation.

    Raises:
        ValueError: If the images do not fit the model, memory runs out, a checkpoint is that of
            another evaluation, or the gap needs an inverse that a flow does not have.
        LostWorkerError: If another worker is gone.
    """
    share_cores(config.cores, config.strategy)
    with joined(config.strategy) as (worker, strategy):
        _run(path, run, config, worker, strategy)


def _run(
    path: pathlib.Path, run: RunConfig, config: EvaluationConfig, worker: Worker, strategy: Any
) -> None:
    model = load_model(path)
    # Decides whether images are binarised.
    likelihood = "bernoulli" if isinstance(model.likelihood, Bernoulli) else "gaussian"
    run = dataclasses.replace(run, likelihood=likelihood)
    run, spec, images = load_split(run, config.split, config.examples or None)
    data = {
        "name": spec.name,
        "split": config.split,
        "num_examples": len(images),
        "num_available": getattr(spec, f"num_{config.split}"),
        "image_shape": spec.image_shape,
        "binarize": run.binarize,
    }
    print(f"{path}: {type(model).__name__}, latent dimension {model.latent_dim}")
    print(_data_text(data), flush=True)
    with distribute.scope(strategy):
        scores = _estimate(model, images, config)
        distribute.wait_for_all()
    print(f"\n{report(scores)}", flush=True)
    if config.json is not None and worker.is_chief:
        values = {
            "model": {"path": str(path), "class": type(model).__name__},
            "data": data,
            "settings": config.to_dict(),
            **scores.to_dict(),
            "versions": versions(),
        }
        write_json(pathlib.Path(config.json), values)
        print(f"Written to {config.json}")


def _estimate(model: Any, images: Any, config: EvaluationConfig) -> Any:
    try:
        return suite_of(config).run(model, images)
    except tf.errors.ResourceExhaustedError as error:
        raise ValueError(
            "Memory ran out: give a smaller --chunk-size. "
            f"Received: --chunk-size {config.chunk_size or '(none)'}"
        ) from error


def suite_of(config: EvaluationConfig) -> Suite:
    """Returns the estimators that the settings ask for."""
    wanted = {"elbo": True, "iwae": config.iwae_samples > 0, "ais": config.ais}
    verbose = sys.stdout.isatty() if config.progress is None else config.progress
    estimates: Any = tuple(name for name in wanted if wanted[name])
    return Suite(
        estimates=estimates,
        elbo_samples=config.elbo_samples,
        iwae_samples=config.iwae_samples,
        annealing=config.annealing,
        gap=config.gap,
        chunk_size=config.chunk_size,
        seed=config.seed,
        checkpoint=config.checkpoint,
        verbose=int(verbose),
    )


def _data_text(data: dict[str, Any]) -> str:
    """Returns in a line which images are evaluated."""
    count, available = data["num_examples"], data["num_available"]
    part, note = f"all {count}", ""
    if count < available:
        part, note = f"the first {count} of {available}", " (--examples 0: all)"
    shape = "x".join(map(str, data["image_shape"]))
    pixels = "binarised" if data["binarize"] else "grey or colour"
    return f"{part} {data['split']} images of {data['name']}{note}, {shape}, {pixels} pixels"
