"""Options and fixtures of all tests."""

import gc
import os
import sys

if "--runslow" not in sys.argv:
    # LLVM's optimisation takes half the compile time of XLA, and tests run the code only once.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pytest
import tensorflow as tf

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


@pytest.fixture(autouse=True, scope="module")
def short_collections():
    """Stops the garbage collector from traversing the graphs of earlier test modules again."""
    yield
    gc.collect()
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="also run the tests of minutes each")
    parser.addoption(
        "--recorded",
        action="append",
        default=[],
        metavar="DIR",
        help="a further folder of recorded fixtures (*.npz) to reproduce",
    )


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--runslow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs --runslow"))
