"""The ways in which TensorFlow can run a function. All must give the same results."""

import pytest
import tensorflow as tf

from tf_mcvae.performance.fusion import fusing_graph

MODES = {
    "eager": lambda function: function,
    "graph": tf.function,
    "fused": fusing_graph,
    "xla": lambda function: tf.function(function, jit_compile=True),
}
each_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
