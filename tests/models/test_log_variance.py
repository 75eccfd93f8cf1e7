"""The log-variance objective of CMCD: its value, its gradient, and what it costs."""

import keras
import memory
import numpy as np
import pytest
import tensorflow as tf
from modes import graph
from reference import LinearGaussian, as_if_trained

import tf_mcvae
from tf_mcvae import random
from tf_mcvae.models.batch import Batch
from tf_mcvae.objectives.bounds import log_variance
from tf_mcvae.objectives.detached import sum_over_transitions

PPCA = LinearGaussian()
X = PPCA.data(3)
SEED = random.as_seed(5)


def make(**settings):
    keras.utils.set_random_seed(0)
    model = PPCA.model(
        tf_mcvae.CMCDVAE,
        num_transitions=3,
        num_samples=6,
        schedule="all_learnable",
        step_size=tf_mcvae.StepSize(0.15, "learned"),
        network=tf_mcvae.DriftNetwork([6]),
        dtype="float64",
        **settings,
    )
    as_if_trained(model.network, 0.7)
    return model


def test_half_the_variance_of_the_log_weights():
    weights = np.random.default_rng(0).normal(size=[5, 3])
    np.testing.assert_allclose(log_variance(weights), 0.5 * weights.var(0, ddof=1), rtol=1e-12)


def gradients(model):
    with tf.GradientTape() as tape:
        estimate = model.estimate(Batch(tf.constant(X)), SEED, training=True)
    variables = model.trainable_variables
    return estimate, tape.gradient(estimate.loss, [v.value for v in variables])


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_value_and_gradient_at_constant_states(compiled):
    """Against the weights of the run, and central differences with the states held constant."""
    model = make(objective="log_variance")
    batch = Batch(tf.constant(X))
    compute = graph(lambda: gradients(model)) if compiled else lambda: gradients(model)
    estimate, found = compute()
    log_weights = model.log_weights(X, SEED).numpy()
    log_p = model.log_joint(X, model.posterior_sample(X, 6, SEED)).numpy()
    expected = 0.5 * log_weights.var(0, ddof=1) - log_p.mean(0)
    np.testing.assert_allclose(estimate.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(estimate.bound, model.bound(X, SEED), rtol=1e-6)

    from tf_mcvae.models import cmcdvae

    run = model.run_transitions(batch, SEED, 6, trace_fn=cmcdvae._trace_states)
    decoder = [id(variable) for variable in model.decoder.trainable_variables]
    constant = model.generative.bind(batch)(run.state)

    def value(is_decoder):
        log_joint = model.generative.bind(batch)(run.state)
        if is_decoder:
            return -np.sum(np.mean(log_joint, 0))
        ratios = model._log_ratios(batch, model.posterior(batch), run)
        return np.sum(log_variance(constant + ratios))

    for variable, gradient in zip(model.trainable_variables, found, strict=True):
        weights = variable.numpy()
        way = np.random.default_rng(1).normal(size=weights.shape).astype(weights.dtype)
        step = 1e-5 if weights.dtype == np.float64 else 3e-3
        ends = []
        for sign in (1, -1):
            variable.assign(weights + sign * step * way)
            ends.append(value(id(variable) in decoder))
        variable.assign(weights)
        difference = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient * way), difference, rtol=2e-3, atol=2e-3)


def test_sums_have_the_gradient_of_their_terms():
    inputs = [tf.constant([1.0, 2.0]), tf.constant(0.5)]

    def term(index, x, y):
        return tf.sin(x * tf.cast(index, x.dtype)) * y

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        total = sum_over_transitions(term, 4, inputs)
        plain = tf.add_n([term(tf.constant(k), *inputs) for k in range(4)])
    np.testing.assert_allclose(total, plain, rtol=1e-6)
    for ours, theirs in zip(
        tape.gradient(total, inputs), tape.gradient(plain, inputs), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_training_brings_the_weights_together():
    model = make(objective="log_variance")
    model.decoder.trainable = False
    model.compile(keras.optimizers.Adam(0.01), jit_compile=False)
    x = PPCA.data(64, seed=3)
    before = np.var(model.log_weights(x, 1, num_samples=50), axis=0).mean()
    model.fit(x, epochs=30, batch_size=32, verbose=0)
    assert np.var(model.log_weights(x, 1, num_samples=50), axis=0).mean() < 0.7 * before


@pytest.mark.parametrize("settings", [{"cloned_decoder": True}, {"num_samples": 1}])
def test_what_it_cannot_do(settings):
    model = PPCA.model(
        tf_mcvae.CMCDVAE, **{"num_samples": 3, "objective": "log_variance", **settings}
    )
    with pytest.raises(ValueError, match=r"at least two samples.*Received: num_samples="):
        model.estimate(Batch(tf.constant(X)), SEED, training=True)
    with pytest.raises(ValueError, match=r"`objective` must be 'kl' or 'log_variance'. Received"):
        model.objective = "variance"


@memory.on_linux
@pytest.mark.slow
def test_memory_hardly_grows_with_the_number_of_transitions():
    code = """
import tensorflow as tf, tf_mcvae

model = tf_mcvae.CMCDVAE(
    tf_mcvae.Encoder(2, architecture="dense", hidden_units=(8,)),
    tf_mcvae.Decoder((8, 8, 1), architecture="dense", hidden_units=(512,)),
    num_transitions=int(sys.argv[1]),
    num_samples=2,
    objective=sys.argv[2],
    network=tf_mcvae.DriftNetwork([64]),
)
model.compile("adam", jit_compile=False)
model.train_on_batch(tf.zeros([2000, 8, 8, 1]))
print(peak())
"""

    def growth(objective):
        few, many = (float(*memory.printed(code, k, objective)) for k in (25, 45))
        return many - few

    assert growth("log_variance") < 0.1 * growth("kl")
