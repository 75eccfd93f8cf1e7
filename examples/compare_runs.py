# %% [markdown]
# # Compare two runs of `train_keras.py` example by example
#
#     python examples/compare_runs.py saved_models/first saved_models/second
#
# Scores of two models on the same test images vary together, so the error of their difference is
# far smaller than the errors of the scores themselves.

# %%
import json
import pathlib
import sys

import keras
import numpy as np

import tf_mcvae


# %%
def score(folder):
    """Returns each test example's log-likelihood, by AIS with the settings of the run."""
    settings = json.loads((folder / "config.json").read_text())["settings"]
    data = tf_mcvae.datasets.load(
        settings["dataset"],
        batch_size=settings["validation_batch_size"],
        binarize="dynamic" if settings["binarize"] else "none",
        data_dir=settings["data_dir"],
    )
    return tf_mcvae.estimate_log_likelihood(
        keras.models.load_model(folder / "model.keras"),
        data.test.unbatch().take(settings["score_examples"]).batch(100),
        num_chains=settings["ais_chains"],
        num_temperatures=settings["ais_temperatures"],
        num_leapfrog_steps=settings["ais_leapfrogs"],
    ).per_example


# %%
folders = [pathlib.Path(argument) for argument in sys.argv[1:3]]
values = [score(folder) for folder in folders]
difference = values[0] - values[1]
error = np.std(difference, ddof=1) / np.sqrt(len(difference))
print(
    f"{folders[0].name} - {folders[1].name}: {difference.mean():.3f} ± {error:.3f} nats per example"
)
