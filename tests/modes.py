"""The ways in which TensorFlow can run a function. All must give the same results."""

from functools import partial

import pytest
import tensorflow as tf

from tf_mcvae.performance.fusion import fusing_graph

# AutoGraph would take most of the time of the tests.
graph = partial(tf.function, autograph=False)
xla = partial(graph, jit_compile=True)

MODES = {"eager": lambda function: function, "graph": graph, "fused": fusing_graph, "xla": xla}
each_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
