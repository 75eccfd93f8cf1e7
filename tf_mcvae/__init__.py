"""Monte Carlo variational auto-encoders in TensorFlow and Keras 3."""

import importlib
import pathlib
import sys
from typing import Any

__version__ = "0.1.0"

# These answer `--help` and mistakes before TensorFlow is imported, which takes seconds ("-m" is a
# module that Python is about to run).
_COMMANDS = ("-m", "train_keras", "tf-mcvae-train", "tf-mcvae-evaluate")

if pathlib.PurePath(sys.argv[0]).stem in _COMMANDS:

    def __getattr__(name: str) -> Any:
        return getattr(importlib.import_module("tf_mcvae.public"), name)

else:
    # At once, so that Keras knows the classes that it loads.
    from tf_mcvae.public import *  # noqa: F403
    from tf_mcvae.public import __all__ as __all__
