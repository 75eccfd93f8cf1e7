"""A user's kernel, as in CONTRIBUTING.md, which draws with TensorFlow's functions."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import LinearGaussian, within

import tf_mcvae
from tf_mcvae import random
from tf_mcvae.kernels import AnnealedKernel, Proposal

PPCA = LinearGaussian()
X = PPCA.data(4)


class RandomWalk(AnnealedKernel):
    """A symmetric random walk, whose forward and backward densities are equal."""

    def propose(self, state, previous, seed):
        noise = tf.random.stateless_normal(tf.shape(state), seed)
        new_state = state + self.step_size * noise
        endpoints = self.path.endpoints(new_state)
        return Proposal(new_state, endpoints, tf.zeros_like(endpoints.log_p))


@keras.saving.register_keras_serializable("test_own_kernel")
class RandomWalkVAE(tf_mcvae.LMCVAE):
    def make_kernel(self, transition):
        return RandomWalk(transition.path, transition.step_size, transition.inverse_temperature)


def make(**options):
    return PPCA.model(RandomWalkVAE, num_transitions=2, step_size=0.1, **options)


def test_weights_average_to_the_evidence():
    """At 5 standard errors: a false alarm in 1.7 million for each of 4 numbers."""
    log_weights = tf.function(make().log_weights)(X, seed=3, num_samples=20_000)
    ratios = np.exp(np.asarray(log_weights, np.float64) - PPCA.log_evidence(X))
    assert within(ratios, 1.0)
    assert ratios.std() > 0.001


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_trains_and_evaluates(run_eagerly):
    model = make(num_samples=3)
    model.compile("adam", run_eagerly=run_eagerly)
    history = model.fit(X, epochs=2, verbose=0).history
    assert np.all(np.isfinite(history["bound"]))
    assert np.isfinite(tf_mcvae.estimate_bound(model, X).mean)


def test_a_seed_for_each_row_says_how_to_draw():
    with pytest.raises(TypeError, match=r"(?s)`tf_mcvae.random.normal`.*Received: SeedPerRow"):
        make().log_weights(X, seed=random.per_row(np.zeros([4, 2], np.int32)))
