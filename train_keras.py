"""Trains, scores and exports a Monte Carlo VAE; see `python train_keras.py --help`."""

import os
import sys

# TensorFlow's start-up messages would hide the progress; it reads this when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tf_mcvae_commands.train import main

if __name__ == "__main__":
    sys.exit(main())
