"""Trains, scores and exports a Monte Carlo VAE; see `python train_keras.py --help`."""

import sys

from tf_mcvae_commands.train import main

if __name__ == "__main__":
    sys.exit(main())
