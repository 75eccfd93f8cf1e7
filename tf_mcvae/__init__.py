"""Monte Carlo variational auto-encoders in TensorFlow and Keras 3."""

import importlib
import itertools
import pathlib
import sys
from typing import Any

__version__ = "0.1.0"

_SCRIPTS = ("train_keras", "tf-mcvae-train", "tf-mcvae-evaluate")
_MODULES = (("-m", "tf_mcvae.cli"), ("-m", "tf_mcvae.evaluate"))


def _is_command() -> bool:
    """Returns whether the program is one of this package's own."""
    if sys.argv[0] == "-m":  # Python is about to run a module.
        words = sys.orig_argv
        return any(pair in itertools.pairwise(words) for pair in _MODULES)
    return pathlib.PurePath(sys.argv[0]).stem in _SCRIPTS


# The commands answer `--help` and mistakes before TensorFlow is imported, which takes seconds.
if _is_command():

    def __getattr__(name: str) -> Any:
        return getattr(importlib.import_module("tf_mcvae.public"), name)

else:
    # At once, so that Keras knows the classes that it loads.
    from tf_mcvae.public import *  # noqa: F403
    from tf_mcvae.public import __all__ as __all__
