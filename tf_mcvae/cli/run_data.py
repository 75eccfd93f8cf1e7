"""The data of a run, and the settings that depend on them."""

from dataclasses import replace
from typing import Any

import keras
import numpy as np

from tf_mcvae import datasets
from tf_mcvae.datasets import Data, DataSpec
from tf_mcvae_commands.groups import GROUP_MODELS, HAMILTONIAN
from tf_mcvae_commands.training_settings import RunConfig

_NUM_SAMPLES = {"IWAE": 10, "A-MCVAE": 5}  # Otherwise 1.
_SCORED_PIXELS = 25_000  # By default; annealed importance sampling then takes about a minute.


def load_data(config: RunConfig) -> tuple[RunConfig, Data]:
    """Loads the data, shortened to the limits, and completes the settings.

    Returns:
        The settings, see `complete`, so that `config.json` holds what was done even if defaults
        change later; and the data.
    """
    binarize = config.binarize
    if binarize is None:
        binarize = config.likelihood in (None, "bernoulli")
    data = _load(config, binarize)
    likelihood = config.likelihood or data.spec.likelihood
    if config.binarize is None and binarize and likelihood != "bernoulli":
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
    """Loads the first images of a split as one array, ignoring the limits of batches.

    Training images are in the shuffled order of the first epoch of a run with this seed.

    Args:
        config: The settings of the data, the likelihood and the seed.
        split: `"train"`, `"validation"` or `"test"`.
        count: Number of images. None takes all.

    Returns:
        The completed settings, the spec of the data, and the images `[N, H, W, C]`.
    """
    keras.utils.set_random_seed(config.seed)
    whole = replace(config, limit_train_batches=1.0, limit_validation_batches=1.0)
    if split == "train":
        # Training drops a smaller last batch.
        whole = replace(whole, batch_size=1)
    whole, data = load_data(whole)
    images = getattr(data, split).unbatch().take(-1 if count is None else count)
    return whole, data.spec, np.concatenate([np.asarray(x) for x in images.batch(1000)])


def complete(config: RunConfig, spec: DataSpec) -> RunConfig:
    """Returns the settings with values for those that depend on the data or the model."""
    # A convolutional network halves the sides three times.
    small = min(spec.image_shape[:2]) < 16
    decays = config.model in ("L-MCVAE", "A-MCVAE") and not small
    is_hamiltonian = config.model in (*GROUP_MODELS[HAMILTONIAN], "HVAE")
    step_size = 0.1 if is_hamiltonian else 0.01
    return replace(
        config,
        likelihood=config.likelihood or spec.likelihood,
        architecture=config.architecture or ("dense" if small else "conv"),
        learning_rate=config.learning_rate or (3e-3 if small else 1e-3),
        lr_schedule=config.lr_schedule or ("reference" if decays else "constant"),
        num_samples=config.num_samples or _NUM_SAMPLES.get(config.model, 1),
        step_size=step_size if config.step_size is None else config.step_size,
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
    """Returns the first batches of a dataset: a number of them, or a fraction, at least one."""
    count = max(1, int(limit * len(dataset))) if isinstance(limit, float) else limit
    return dataset.take(count) if count < len(dataset) else dataset
