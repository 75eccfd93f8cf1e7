"""AutoGraph does not rewrite the library's code, which takes longer than tracing it."""

import os
import traceback

import numpy as np
import pytest
import tensorflow as tf
from reference import LinearGaussian

import tf_mcvae

PPCA = LinearGaussian()
X = PPCA.data(3)
PACKAGE = os.path.dirname(tf_mcvae.__file__)


class Watched(tf_mcvae.layers.likelihoods.Gaussian):
    """Notes the files of the functions by which it is called."""

    def elementwise(self, parameters):
        self.files = [frame.filename for frame in traceback.extract_stack()]
        return super().elementwise(parameters)


CALLS = {
    "call": lambda model: model(X),
    "decode": lambda model: model.decode(np.zeros([1, 2], "float32")),
    "reconstruct": lambda model: model.reconstruct(X),
    "log_joint": lambda model: model.log_joint(X, np.zeros([1, 3, 2], "float32")),
    "sample": lambda model: model.sample(2, seed=1),
    "posterior_sample": lambda model: model.posterior_sample(X, 2, seed=1),
    "log_weights": lambda model: model.log_weights(X, seed=1),
    "bound": lambda model: model.bound(X, seed=1),
    "train_step": lambda model: model.train_step(tf.constant(X)),
    "test_step": lambda model: model.test_step(tf.constant(X)),
}


@pytest.mark.parametrize("method", CALLS)
def test_methods_are_traced_as_they_are_written(method):
    encoder, decoder = PPCA.networks()
    model = tf_mcvae.LMCVAE(encoder, decoder, likelihood=Watched(), num_transitions=1)
    model.build((None, 5))
    model.compile("sgd")

    tf.function(lambda: CALLS[method](model))()
    own = next(n for n, file in enumerate(model.likelihood.files) if file.startswith(PACKAGE))
    rewritten = [n for n, file in enumerate(model.likelihood.files) if "__autograph_" in file]
    # The functions above are rewritten, and nothing that they call.
    assert 0 < max(rewritten) < own
