"""Bounds and losses, their values and gradients, against float64 NumPy."""

import numpy as np
import pytest
import scipy.special
import tensorflow as tf
from reference import advantages, iwae, within

from tf_mcvae.objectives import bounds

RNG = np.random.default_rng(3)
SAMPLE_COUNTS = [1, 2, 7]


def draws(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def value_and_gradients(loss, *arguments):
    """Values `[B]`, and gradients of their sum with an uneven upstream gradient 1, 2, ..., B."""
    arguments = [tf.constant(argument) for argument in arguments]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        values = loss(*arguments)
        total = tf.reduce_sum(values * tf.range(1.0, len(values) + 1))
    return values, tape.gradient(total, arguments)


UPSTREAM = np.arange(1.0, 4.0)  # For a batch of 3.


@pytest.mark.parametrize("num_samples", SAMPLE_COUNTS)
def test_elbo_and_iwae(num_samples):
    log_weights = 3.0 * draws(num_samples, 3) - 80.0
    np.testing.assert_allclose(bounds.elbo(log_weights), log_weights.mean(0), rtol=1e-6)
    values, (gradient,) = value_and_gradients(bounds.iwae, log_weights)
    np.testing.assert_allclose(values, iwae(log_weights), rtol=1e-6)
    expected = UPSTREAM * scipy.special.softmax(log_weights.astype(np.float64), 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    assert np.all(values >= log_weights.mean(0) - 1e-4)


@pytest.mark.parametrize("offset", [-1e5, -200.0, 200.0, 1e5])
def test_iwae_neither_over_nor_underflows(offset):
    log_weights = offset + np.array([[0.0, 1.0], [0.5, -300.0]], np.float32)
    np.testing.assert_allclose(bounds.iwae(log_weights), iwae(log_weights), rtol=1e-6)


def test_iwae_of_a_state_without_density():
    """A log weight of -infinity is a weight of 0."""
    log_weights = np.array([[-np.inf, -np.inf], [0.0, -np.inf]], np.float32)
    np.testing.assert_allclose(bounds.iwae(log_weights), [-np.log(2.0), -np.inf], rtol=1e-6)


@pytest.mark.parametrize("num_samples", SAMPLE_COUNTS)
def test_dreg_loss(num_samples):
    """The gradients are `-v_s` for log weights and `-v_s^2 d log w_s / d z_s` for the state."""
    arguments = draws(num_samples, 3), draws(num_samples, 3, 2), draws(num_samples, 3, 2)
    values, gradients = value_and_gradients(bounds.dreg_loss, *arguments)
    log_weights, state, score = (argument.astype(np.float64) for argument in arguments)
    weights = scipy.special.softmax(log_weights, 0)
    pull = weights[..., None] ** 2 * score
    expected = -np.sum(weights * log_weights, 0) - np.sum(pull * state, (0, 2))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    np.testing.assert_allclose(gradients[0], -UPSTREAM * weights, rtol=1e-5)
    np.testing.assert_allclose(gradients[1], -UPSTREAM[:, None] * pull, rtol=1e-5)
    assert gradients[2] is None


def test_dreg_of_one_sample_is_the_reparameterised_gradient():
    """With S = 1 the weight is 1, and the gradient `d log w / d z` that of sticking the landing."""
    score = draws(1, 3, 2)
    _, gradients = value_and_gradients(bounds.dreg_loss, draws(1, 3), draws(1, 3, 2), score)
    np.testing.assert_allclose(gradients[1], -UPSTREAM[:, None] * score, rtol=1e-6)


@pytest.mark.parametrize("coefficient", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("num_samples", SAMPLE_COUNTS)
def test_score_function_loss(num_samples, coefficient):
    """The baseline is the mean of the others, 0 with S = 1; the advantage has no gradient."""
    log_weights, log_probs = draws(num_samples, 3) - 80.0, -np.exp(draws(num_samples, 3))

    def loss(*arguments):
        return bounds.score_function_loss(*arguments, coefficient)

    values, gradients = value_and_gradients(loss, log_weights, log_probs)
    score_weights = coefficient * advantages(log_weights) / num_samples
    expected = -log_weights.mean(0) - np.sum(score_weights * log_probs, 0)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    expected = np.broadcast_to(-UPSTREAM / num_samples, log_weights.shape)
    np.testing.assert_allclose(gradients[0], expected, rtol=1e-6)
    np.testing.assert_allclose(gradients[1], -UPSTREAM * score_weights, rtol=1e-3, atol=1e-5)


def test_a_transition_is_chosen_in_proportion_to_its_slope():
    """At 5 standard errors, for each of 4 numbers: a false alarm in 400,000."""
    slopes = np.array([0.3, 0.0, 1.1, 0.2], np.float32)[:, None, None] * np.ones([1, 20_000, 1])
    draws = RNG.uniform(size=[20_000, 1]).astype(np.float32)
    chosen = bounds.choose_transition(tf.constant(slopes, tf.float32), draws).numpy()
    np.testing.assert_array_equal(np.sum(chosen, 0), 1)
    assert within(chosen[:, :, 0].T, slopes[:, 0, 0] / 1.6)
    assert not np.any(bounds.choose_transition(tf.zeros([3, 4, 2]), tf.fill([4, 2], 0.5)))


@pytest.mark.parametrize("ends", [1e-7, 1 - 2.0**-24])
def test_the_outermost_draws_choose_a_transition(ends):
    slopes = draws(3, 100, 5) ** 2 + 1e-6
    chosen = bounds.choose_transition(tf.constant(slopes), tf.fill([100, 5], np.float32(ends)))
    np.testing.assert_array_equal(chosen[0 if ends < 0.5 else -1], True)


@pytest.mark.parametrize("coefficient", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("num_samples", SAMPLE_COUNTS)
def test_coupled_loss(num_samples, coefficient):
    """The inverted choice has the effect `l_accepted - l_rejected`; its value is minus the bound.

    The first example's chains have no choice to invert, and an impossible proposal.
    """
    log_weights, inverted = draws(num_samples, 3) - 80.0, draws(num_samples, 3) - 80.0
    shape = (4, num_samples, 3)
    log_ratios, slopes = draws(*shape), draws(*shape) ** 2
    is_accepted = RNG.uniform(size=shape) < 0.5
    is_inverted = np.zeros(shape, bool)
    is_inverted[2, :, 1] = is_inverted[1, :, 2] = True
    log_ratios[0], slopes[:, :, 0] = -np.inf, 0.0

    def loss(log_weights, inverted, log_ratios, slopes):
        return bounds.coupled_loss(
            log_weights, inverted, log_ratios, slopes, is_accepted, is_inverted, coefficient
        )

    values, gradients = value_and_gradients(loss, log_weights, inverted, log_ratios, slopes)
    np.testing.assert_allclose(values, -log_weights.mean(0), rtol=1e-5)
    expected = np.broadcast_to(-UPSTREAM / num_samples, log_weights.shape)
    np.testing.assert_allclose(gradients[0], expected, rtol=1e-6)
    effect = log_weights.astype(np.float64) - inverted
    effect = np.where(is_accepted, effect, -effect)
    pull = coefficient * slopes.astype(np.float64).sum(0) * effect * is_inverted
    expected = -UPSTREAM * pull / num_samples
    np.testing.assert_allclose(gradients[2], expected, rtol=1e-3, atol=1e-5)
    assert gradients[1] is gradients[3] is None


@pytest.mark.parametrize("num_samples", [1, 4])
def test_losses_take_shapes_known_at_run_time_only(num_samples):
    two, three = tf.TensorSpec([None, None]), tf.TensorSpec([None, None, 2])
    for loss, signature in [
        (bounds.score_function_loss, [two, two]),
        (bounds.dreg_loss, [two, three, three]),
    ]:
        arguments = [tf.constant(draws(num_samples, 3, *spec.shape[2:])) for spec in signature]
        graph = tf.function(loss, input_signature=signature)
        np.testing.assert_allclose(graph(*arguments), loss(*arguments), rtol=1e-5, atol=1e-6)
