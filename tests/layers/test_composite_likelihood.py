"""Likelihoods of tables whose columns differ."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
from reference import within

import tf_mcvae
from tf_mcvae.layers.likelihoods import Bernoulli, Categorical, Composite, Gaussian

B, S = 7, 3
RNG = np.random.default_rng(0)
X = np.concatenate(
    [
        RNG.normal(size=(B, 2)),
        RNG.poisson(3.0, (B, 1)),
        np.eye(3)[RNG.integers(0, 3, B)],
        RNG.integers(0, 4, (B, 1)),
    ],
    axis=1,
).astype(np.float32)


def table():
    groups = [(Gaussian(0.7, "predicted"), 2), ("poisson", 1), ("categorical", 3)]
    return Composite([*groups, (Categorical(4), 1)])


def parameters(*leading):
    return RNG.normal(size=(*leading, 4 + 1 + 3 + 4)).astype(np.float32)


def twin(parameters, x):
    """SciPy's log-densities of the columns, in float64."""
    loc, log_ratio, log_mean, logits, others = np.split(
        parameters.astype(np.float64), [2, 4, 5, 8], axis=-1
    )
    chosen = np.broadcast_to(x[:, 6:].astype(int), (*others.shape[:-1], 1))
    return (
        scipy.stats.norm.logpdf(x[:, :2], loc, 0.7 * np.exp(log_ratio)).sum(-1)
        + scipy.stats.poisson.logpmf(x[:, 2], np.exp(log_mean[..., 0]))
        + (x[:, 3:6] * scipy.special.log_softmax(logits, -1)).sum(-1)
        + np.take_along_axis(scipy.special.log_softmax(others, -1), chosen, -1)[..., 0]
    )


@pytest.mark.parametrize("leading", [(B,), (S, B)])
def test_log_prob_is_the_sum_over_the_groups(leading):
    given = parameters(*leading)
    log_prob = table().log_prob(given, X)
    assert log_prob.shape == leading
    np.testing.assert_allclose(log_prob, twin(given, X), rtol=1e-5)
    distribution = table().distribution(given, event_ndims=1)
    assert (distribution.batch_shape, distribution.event_shape) == (leading, (7,))
    np.testing.assert_allclose(log_prob, distribution.log_prob(X), rtol=1e-5)


def test_draws_and_means_are_those_of_the_groups():
    """Within 5 standard errors of 40,000 draws: 19 numbers, a false alarm in 90,000 seeds."""
    given = parameters(1)
    draws = table().sample(np.repeat(given, 40_000, axis=0), seed=1, event_ndims=1).numpy()
    assert np.all(table().in_support(draws))
    mean = table().mean(given)[0].numpy()
    assert within(draws[:, :6], mean[:6])
    shares = scipy.special.softmax(given[0, 8:])
    assert mean[6] == np.argmax(shares)
    assert within(np.eye(4)[draws[:, 6].astype(int)][:, :3], shares[:3])
    # Columns are independent.
    correlation = np.corrcoef(draws[:, [0, 1, 2, 3, 6]].T)
    assert np.max(np.abs(correlation - np.eye(5))) < 5 / 200


def test_a_configuration_gives_the_same_likelihood():
    likelihood = Composite([(Gaussian(0.3, learned=True), 1), ("bernoulli", 2)])
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(likelihood))
    assert copy.get_config() == likelihood.get_config()
    assert [type(member) for member, _ in copy.groups] == [Gaussian, Bernoulli]
    assert len(copy.trainable_variables) == 1


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (2, -1.0, r"In feature 2: The Poisson likelihood.*as they were counted.*Received"),
        (3, 0.5, r"In features 3 to 5: The Categorical likelihood needs one-hot.*Received"),
        (6, 4.0, r"In feature 6: The Categorical likelihood needs the integers 0 to 3.*Received"),
    ],
)
def test_wrong_values_are_refused_with_their_features(column, value, message):
    x = X.copy()
    x[2, column] = value
    networks = (
        keras.Sequential([keras.layers.Dense(4)]),
        keras.Sequential([keras.layers.Dense(12)]),
    )
    model = tf_mcvae.VAE(*networks, likelihood=table())
    model.build((None, 7))
    model.compile("sgd")
    with pytest.raises(ValueError, match=message):
        model.bound(x, seed=1)
    in_graph = r"needs .* in feature 2; .*Correct the features.*Received"
    with pytest.raises(ValueError, match=in_graph):
        model.evaluate(tf.data.Dataset.from_tensors(x), verbose=0)
    # Integers are taken: what they are was said.
    assert model.bound(np.round(X).astype(int), seed=1).shape == (B,)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ([], TypeError, "must be pairs.*Received"),
        ("gaussian", TypeError, "must be pairs.*Received"),
        (["gaussian", "poisson"], TypeError, "must be pairs.*Received"),
        ([("gaussian", 0)], ValueError, "positive integer.*Received"),
        ([("gausian", 1)], ValueError, "no such likelihood.*Received"),
    ],
)
def test_groups_are_checked(groups, error, message):
    with pytest.raises(error, match=message):
        Composite(groups)


def test_other_numbers_of_features_are_refused():
    with pytest.raises(ValueError, match=r"have 7 features.*Received: x with 5"):
        table().log_prob(parameters(2), X[:2, :5])
