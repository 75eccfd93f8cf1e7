# %% [markdown]
# # Compare two runs of `train_keras.py` example by example
#
#     python examples/compare_runs.py saved_models/first saved_models/second
#
# The scores of two models on the same test images are correlated, so the error of their difference
# is far smaller than the errors of the scores.

# %%
import sys

import tf_mcvae
from tf_mcvae.cli.run_data import load_split
from tf_mcvae.evaluation import compare
from tf_mcvae_commands.run_folder import RunFolder


# %%
def score(folder):
    """Estimates the log-likelihood of the test images by AIS with the settings of the run."""
    config = folder.load_config()
    _, _, images = load_split(config, "test", config.score_examples)
    model = tf_mcvae.load_model(folder.model)
    return tf_mcvae.estimate_log_likelihood(model, images, config.annealing)


# %%
first, second = map(RunFolder, sys.argv[1:3])
print(f"{first.path.name} - {second.path.name}: {compare(score(first), score(second))}")
