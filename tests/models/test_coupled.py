"""A-MCVAE's coupled gradient: unbiased for all parameters, with one chain, and of low variance.

Statistical checks are at 5 standard errors, a false alarm in 1.7 million, with fixed seeds.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from modes import graph
from reference import LinearGaussian
from test_unbiased import differ, gradients_of_log_slope

import tf_mcvae
from tf_mcvae import random
from tf_mcvae.kernels import MetropolisAdjustedLangevin, UnadjustedLangevin
from tf_mcvae.models.batch import Batch

PPCA = LinearGaussian()
X = PPCA.data(3)


def make(**settings):
    keras.utils.set_random_seed(0)
    options = {"num_transitions": 3, "step_size": 0.6, "num_samples": 1, "gradient": "coupled"}
    return PPCA.model(tf_mcvae.AMCVAE, **{**options, **settings})


def parameters(model):
    """Parameters whose gradient needs the term of the choices, and the direction of a shift."""
    return {
        "log variance of q": (model.encoder.layers[0].bias, np.array([0.0, 0.0, 1.0, 1.0])),
        "log step size": (model.step_size.log_step_size, 1.0),
        "schedule": (model.schedule.logits, 1.0),
    }


def slopes(model, seeds):
    """Estimates of the gradient along each of `parameters`, `[n, 3]`."""
    moved = list(parameters(model).values())

    @graph
    def gradient(seed):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model.estimate(Batch(tf.constant(X)), seed, training=True).loss)
        found = tape.gradient(loss, [variable.value for variable, _ in moved])
        return [-tf.reduce_sum(g * way) for g, (_, way) in zip(found, moved, strict=True)]

    return np.array([np.array(gradient(tf.constant([9, s]))) for s in seeds])


def differences(model, seeds, width=0.1):
    """Central differences of the bound along each of `parameters`, `[n, 3]`."""
    bound = graph(lambda seed: tf.reduce_mean(model.bound(X, seed, 1000)))
    columns = []
    for variable, way in parameters(model).values():
        value, ends = variable.numpy(), []
        for sign in (1, -1):
            variable.assign(value + sign * width * way)
            ends.append(np.array([bound(tf.constant([9, s])).numpy() for s in seeds]))
        variable.assign(value)
        columns.append((ends[0] - ends[1]) / (2 * width))
    return np.stack(columns, 1)


@pytest.mark.parametrize(
    "acceptance", ["metropolis", pytest.param("barker", marks=pytest.mark.slow)]
)
def test_gradient_of_encoder_steps_and_schedule_is_that_of_the_bound(acceptance, monkeypatch):
    """A thousand chains, each with its own inverted choice, average single ones."""
    model = make(
        num_samples=1000,
        acceptance=acceptance,
        schedule="all_learnable",
        step_size=tf_mcvae.StepSize(0.6, "learned"),
    )
    estimates = slopes(model, range(60))
    reference = differences(model, range(1000, 1060))
    for actual, expected in zip(estimates.T, reference.T, strict=True):
        assert differ(actual, expected) < 5
    # Without the term the gradients differ, and the check detects it.
    monkeypatch.setattr(model, "_coefficient", lambda: 0.0)
    for actual, expected in zip(slopes(model, range(60)).T, reference.T, strict=True):
        assert differ(actual, expected) > 10


@pytest.mark.slow
def test_one_coupled_chain_varies_less_than_five_with_a_baseline():
    """Per chain: the variance of the mean over S, multiplied by S."""
    variances = {}
    for gradient, num_samples in (("coupled", 1), ("leave_one_out", 5)):
        model = make(gradient=gradient, num_samples=num_samples)
        estimates = gradients_of_log_slope(model, range(100))
        variances[gradient] = num_samples * estimates.var(ddof=1)
    # Both include the noise of the path itself.
    assert 5 * variances["coupled"] < variances["leave_one_out"]


def gradients(model, x, seed):
    with tf.GradientTape() as tape:
        estimate = model.estimate(Batch(tf.constant(x)), seed, training=True)
        loss = tf.reduce_sum(estimate.loss)
    return estimate, tape.gradient(loss, [v.value for v in model.trainable_variables])


def test_value_and_bound_are_those_without_the_term():
    model = make(num_samples=4)
    estimate, _ = gradients(model, X, random.as_seed(3))
    np.testing.assert_allclose(estimate.bound, model.bound(X, seed=3), rtol=1e-6)
    np.testing.assert_array_equal(estimate.loss, -estimate.bound)
    model.gradient = "leave_one_out"
    other, _ = gradients(model, X, random.as_seed(3))
    np.testing.assert_array_equal(estimate.bound, other.bound)
    np.testing.assert_array_equal(estimate.metrics["acceptance"], other.metrics["acceptance"])


def test_gradients_of_rows_with_seeds_do_not_depend_on_each_other():
    model, seeds = make(num_samples=4), tf.constant([[1, -2], [3, 4], [-5, 6]])
    _, together = gradients(model, X, random.per_row(seeds))
    rows = [
        gradients(model, X[row : row + 1], random.per_row(seeds[row : row + 1]))[1]
        for row in range(3)
    ]
    for whole, parts in zip(together, zip(*rows, strict=True), strict=True):
        np.testing.assert_allclose(whole, sum(parts), rtol=1e-4, atol=1e-4)


def test_chains_without_rejections_have_no_term():
    """Their gradient is that of the path, also in the limit of small steps."""
    model = make(step_size=0.0)
    _, coupled = gradients(model, X, random.as_seed(1))
    model._coefficient = lambda: 0.0
    _, path = gradients(model, X, random.as_seed(1))
    for actual, expected in zip(coupled, path, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_the_encoder_is_called_once():
    """Otherwise both chains would have their own dropout, and moving statistics two updates."""
    encoder, decoder = PPCA.networks()
    encoder = keras.Sequential([keras.layers.BatchNormalization(momentum=0.5), encoder])
    model = tf_mcvae.AMCVAE(encoder, decoder, likelihood="gaussian", gradient="coupled")
    model.build((None, 5))
    model.estimate(Batch(tf.constant(X)), random.as_seed(1), training=True)
    mean = next(w for w in encoder.weights if w.name == "moving_mean")
    np.testing.assert_allclose(mean, 0.5 * X.mean(0), rtol=1e-5)


@keras.saving.register_keras_serializable("test_coupled")
class OtherAcceptance(tf_mcvae.AMCVAE):
    def make_kernel(self, transition):
        return MetropolisAdjustedLangevin(transition.path, transition.step_size, 1.0, "barker")


@keras.saving.register_keras_serializable("test_coupled")
class NoAcceptance(tf_mcvae.AMCVAE):
    def make_kernel(self, transition):
        return UnadjustedLangevin(transition.path, transition.step_size)


@pytest.mark.parametrize("model_class", [OtherAcceptance, NoAcceptance])
def test_kernels_whose_choices_cannot_be_inverted_are_refused(model_class):
    model = PPCA.model(model_class, gradient="coupled")
    with pytest.raises(ValueError, match=r"`gradient='coupled'` needs kernels.*Received: kernel="):
        gradients(model, X, random.as_seed(1))
