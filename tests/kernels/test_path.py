"""The path and its endpoints against closed forms and finite differences."""

import numpy as np
import pytest
import tensorflow as tf
from reference import LinearGaussian

import tf_mcvae
from tf_mcvae.kernels import AnnealedPath
from tf_mcvae.models.batch import Batch

PPCA = LinearGaussian()


def test_endpoints_against_closed_forms():
    x = PPCA.data(3)
    z = np.random.default_rng(2).normal(size=[4, 3, 2])
    model = PPCA.model(tf_mcvae.VAE)
    batch = Batch(tf.constant(x))
    ends = model.path(batch, model.posterior(batch)).endpoints(tf.constant(z, tf.float32))
    np.testing.assert_allclose(ends.log_q, PPCA.log_posterior(x, z), rtol=1e-4)
    np.testing.assert_allclose(ends.log_p, PPCA.log_joint(x, z), rtol=1e-4)
    for b in (0.0, 0.3, 1.0):
        expected = (1 - b) * PPCA.log_posterior(x, z) + b * PPCA.log_joint(x, z)
        np.testing.assert_allclose(ends.log_prob(b), expected, rtol=1e-4)
        expected = PPCA.score(x, z, b)
        np.testing.assert_allclose(ends.score(b), expected, rtol=1e-3, atol=1e-4)


WEIGHT = tf.Variable(np.random.default_rng(5).normal(size=[3, 4]))
CURVED = AnnealedPath(
    lambda z: -tf.reduce_sum(tf.cosh(z), -1),
    lambda z: -tf.reduce_sum(tf.square(tf.tanh(z @ WEIGHT) - 0.2), -1),
)
STATE = np.random.default_rng(6).normal(size=[2, 5, 3])


def slope(function, step=1e-5):
    return (function(step) - function(-step)) / (2 * step)


def test_scores_against_differences():
    ends = CURVED.endpoints(tf.constant(STATE))
    np.testing.assert_allclose(ends.score_q, -np.sinh(STATE), rtol=1e-12)
    for axis, along in enumerate(np.eye(3)):
        expected = slope(lambda s, along=along: CURVED.target_log_prob_fn(STATE + s * along))
        np.testing.assert_allclose(ends.score_p[..., axis], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("compiled", [False, True])
def test_second_order_against_differences(compiled):
    """The gradient of the score, with respect to the network's weights and to the state."""
    direction = np.random.default_rng(7).normal(size=STATE.shape)

    def projected(state):
        ends = CURVED.endpoints(state)
        return tf.reduce_sum(direction * ends.score(0.4)) + tf.reduce_sum(ends.log_prob(0.4))

    @tf.function(jit_compile=compiled)
    def gradients(state):
        with tf.GradientTape() as tape:
            tape.watch(state)
            total = projected(state)
        return tape.gradient(total, [WEIGHT, state])

    def value(weight_step=0.0, state_step=0.0):
        original = WEIGHT.numpy()
        WEIGHT.assign(original + weight_step)
        total = projected(tf.constant(STATE + state_step)).numpy()
        WEIGHT.assign(original)
        return total

    by_weight, by_state = gradients(tf.constant(STATE))
    rng = np.random.default_rng(8)
    for _ in range(3):
        along = rng.normal(size=WEIGHT.shape)
        expected = slope(lambda s, along=along: value(weight_step=s * along))
        np.testing.assert_allclose(np.sum(by_weight * along), expected, rtol=1e-6)
        along = rng.normal(size=STATE.shape)
        expected = slope(lambda s, along=along: value(state_step=s * along))
        np.testing.assert_allclose(np.sum(by_state * along), expected, rtol=1e-6)


def test_a_plain_target_has_a_constant_base():
    target = CURVED.target_log_prob_fn
    path = AnnealedPath.from_target(target)
    ends = path.endpoints(tf.constant(STATE))
    np.testing.assert_array_equal(ends.log_q, np.zeros([2, 5]))
    np.testing.assert_array_equal(ends.score_q, np.zeros([2, 5, 3]))
    np.testing.assert_allclose(ends.log_prob(1.0), target(STATE), rtol=1e-12)
    np.testing.assert_allclose(ends.score(0.5), 0.5 * ends.score_p, rtol=1e-12)
    assert AnnealedPath.from_target(path) is path


def test_reversed_paths():
    path = AnnealedPath(lambda z: -(z**2), lambda z: -((z - 1.0) ** 2))
    state = tf.constant([0.3])
    np.testing.assert_array_equal(
        path.reversed().endpoints(state).log_prob(0.25), path.endpoints(state).log_prob(0.75)
    )
    recomputed = AnnealedPath(lambda z: -(z**2), lambda z, w: w * z, [tf.constant(2.0)])
    with pytest.raises(ValueError, match=r"no reverse.*Received: 1 recomputed"):
        recomputed.reversed()


def test_a_plain_target_is_evaluated_once():
    calls = []
    path = AnnealedPath.from_target(lambda z: calls.append(1) or -tf.reduce_sum(z**2, -1))
    path.endpoints(tf.constant(STATE))
    assert len(calls) == 1
