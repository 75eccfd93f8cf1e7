"""Estimates of log p(x) of a linear-Gaussian model, where it is exact, and their error bars.

Estimates are checked at 5 of their own standard errors: a false alarm in 1.7 million for each
number checked, fixed seeds.
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import LinearGaussian, within

import tf_mcvae
from tf_mcvae import estimate_bound, estimate_elbo, estimate_iwae, estimate_log_likelihood

PPCA = LinearGaussian()
X = PPCA.data(10)
EVIDENCE, ELBO = PPCA.log_evidence(X).mean(), PPCA.elbo(X).mean()
ANNEALED = {"num_transitions": 3, "num_samples": 4, "step_size": 0.1}
QUICK = {"num_temperatures": 4, "num_chains": 3, "num_leapfrog_steps": 1}
MODELS = {
    "VAE": PPCA.model(tf_mcvae.VAE),
    "LMCVAE": PPCA.model(tf_mcvae.LMCVAE, **ANNEALED),
    "AMCVAE": PPCA.model(tf_mcvae.AMCVAE, **ANNEALED),
}
VAE = MODELS["VAE"]

# Adding an estimator is adding a line.
ESTIMATORS = {
    "ELBO": lambda model, data, **kw: estimate_elbo(model, data, 120, **kw),
    "IWAE": lambda model, data, **kw: estimate_iwae(model, data, 120, **kw),
    "bound": estimate_bound,
    "AIS": lambda model, data, **kw: estimate_log_likelihood(model, data, **QUICK, **kw),
}


def batches(*arrays, size=2):
    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0]).batch(size)


def agrees(estimate, exact):
    return abs(estimate.mean - exact) < 5 * estimate.monte_carlo_error


# Right numbers.


@pytest.mark.parametrize("name", ["VAE", "LMCVAE"])
def test_elbo_and_iwae_agree_with_closed_forms(name):
    elbo = estimate_elbo(MODELS[name], X, 2000)
    iwae = estimate_iwae(MODELS[name], X, 5000)
    assert agrees(elbo, ELBO)
    assert agrees(iwae, EVIDENCE)
    assert max(elbo.monte_carlo_error, iwae.monte_carlo_error) < 0.02 < EVIDENCE - ELBO
    within_data = np.std(iwae.per_example, ddof=1) / np.sqrt(len(X))
    assert iwae.standard_error == pytest.approx(within_data)
    np.testing.assert_allclose(iwae.per_example, PPCA.log_evidence(X), atol=0.1)
    assert 1 < iwae.effective_sample_size[0] < iwae.effective_sample_size[1] < 5000
    assert (iwae.method, iwae.acceptance) == ("IWAE-5000", None)


@pytest.mark.parametrize(
    ("name", "start"), [("VAE", "encoder"), ("VAE", "prior"), ("LMCVAE", "encoder")]
)
def test_annealed_importance_sampling_agrees_with_the_evidence(name, start):
    result = estimate_log_likelihood(MODELS[name], X, 16, 250, 5, start=start, seed=4)
    assert agrees(result, EVIDENCE)
    assert result.monte_carlo_error < 0.03
    # The pilot run reached about its target, in the mean; no transition stands still.
    assert 0.5 < result.acceptance[1] < 0.8
    assert result.acceptance[0] > 0.3
    assert 8 < result.effective_sample_size[0] <= result.effective_sample_size[1] < 16


@pytest.fixture(scope="module")
def flow_vae():
    """A model whose flow is far from the identity, but does not spoil the importance weights."""
    keras.utils.set_random_seed(0)
    model = PPCA.model(tf_mcvae.FlowVAE, flow="iaf", num_flows=2)
    rng = np.random.default_rng(0)
    weights = [weight + 0.05 * rng.normal(size=weight.shape) for weight in model.flow.weights]
    model.flow.set_weights(weights)
    return model


def test_elbo_and_iwae_of_a_flow(flow_vae):
    """The flow is part of the encoder."""
    iwae = estimate_iwae(flow_vae, X, 5000)
    assert agrees(iwae, EVIDENCE)
    elbo, bound = estimate_elbo(flow_vae, X, 2000), estimate_bound(flow_vae, np.repeat(X, 200, 0))
    error = np.hypot(elbo.monte_carlo_error, bound.standard_error)
    assert abs(elbo.mean - bound.mean) < 5 * error
    assert abs(elbo.mean - ELBO) > 20 * elbo.monte_carlo_error


@pytest.mark.parametrize("start", ["encoder", "prior"])
def test_annealed_importance_sampling_of_a_flow(start, flow_vae):
    """From the encoder chains run before the flow, from the prior after it."""
    result = estimate_log_likelihood(flow_vae, X, 16, 250, 5, start=start, seed=4)
    assert agrees(result, EVIDENCE)
    assert result.monte_carlo_error < 0.03
    assert result.effective_sample_size[0] > 8


def test_few_temperatures_are_annealed_too():
    """Two are one transition, at a temperature between the ends: it helps the weights."""
    result = estimate_log_likelihood(VAE, X, 10_000, 2, 10)
    assert agrees(result, EVIDENCE)
    direct = estimate_iwae(VAE, X, 10_000)
    # At one of the ends it would change nothing: a ratio of 1, known to about 1 %.
    assert result.monte_carlo_error < 0.95 * direct.monte_carlo_error


@pytest.mark.parametrize(("target", "low", "high"), [(0.4, 0.3, 0.6), (0.9, 0.85, 0.95)])
def test_pilot_run_follows_the_target_acceptance(target, low, high):
    result = estimate_log_likelihood(VAE, X, 16, 250, 2, target_acceptance=target)
    assert low < result.acceptance[1] < high


@pytest.mark.parametrize("name", MODELS)
def test_bound_is_the_models_own(name):
    """Against a mean over many runs: the transitions count, and the model's reduction over S."""
    model = MODELS[name]
    many = np.repeat(X, 200, 0)
    result = estimate_bound(model, many, batch_size=1000)
    bounds = tf.function(lambda s: model.bound(X, s))
    others = np.stack([bounds(tf.constant([7, s])) for s in range(200)]).astype(np.float64)
    values = result.per_example.reshape(len(X), 200).T
    assert within(np.mean(values - others, 1), 0.0)
    assert values.mean() < EVIDENCE
    assert (result.method, result.settings["num_samples"]) == (f"{name} bound", model.num_samples)
    if name == "VAE":
        assert within(values.mean(1), ELBO)
    else:
        assert values.mean() > ELBO + 0.1


@pytest.mark.parametrize("name", ["ELBO", "IWAE", "AIS"])
def test_monte_carlo_error_is_the_spread_of_the_draws(name):
    """Of one example 2000 times over, the estimates spread as the error says, to a fifth.

    Samples come in chunks, whose draws must differ for that.
    """
    equal = np.repeat(X[:1], 2000, 0)
    if name == "AIS":  # with enough chains for the delta method
        settings = {**QUICK, "num_chains": 60}
        result = estimate_log_likelihood(VAE, equal, batch_size=1000, **settings)
    else:
        result = ESTIMATORS[name](VAE, equal, batch_size=1000)
    assert result.monte_carlo_error == pytest.approx(result.standard_error, rel=0.2)


# The same numbers, from whatever the data come in.


FORMS = {
    "array": X,
    "float64": X.astype(np.float64),
    "tensor": tf.constant(X),
    "dataset": batches(X, size=3),
    "labelled": batches(X, np.arange(10), size=10),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_data_give_equal_numbers(form):
    """Batches of 4, 4 and 2, however the data set was batched."""
    first = estimate_elbo(VAE, X, 9, batch_size=4)
    other = estimate_elbo(VAE, FORMS[form], 9, batch_size=4)
    np.testing.assert_allclose(other.per_example, first.per_example, rtol=1e-5)
    assert first.per_example.shape == (10,)
    assert first.mean == pytest.approx(first.per_example.mean())
    assert other.settings == first.settings
    assert first.settings["num_examples"] == 10


@pytest.mark.parametrize("name", ESTIMATORS)
def test_partial_batches_and_seeds(name):
    """A last batch that is not full is only that; another seed gives other draws."""
    model = MODELS["AMCVAE" if name == "bound" else "VAE"]
    first = ESTIMATORS[name](model, X, batch_size=4, seed=3).per_example
    full = ESTIMATORS[name](model, batches(X[:8], size=3), batch_size=4, seed=3)
    np.testing.assert_allclose(full.per_example, first[:8], rtol=1e-4)
    different = ESTIMATORS[name](model, X[:4], batch_size=4, seed=4)
    assert np.all(different.per_example != first[:4])


def test_equal_examples_have_draws_of_their_own():
    result = estimate_iwae(VAE, np.repeat(X[:1], 6, 0), 5, batch_size=3)
    assert len(set(result.per_example)) == 6


def test_monte_carlo_error_shrinks_with_more_samples():
    few = estimate_elbo(VAE, X, 107).monte_carlo_error
    assert estimate_elbo(VAE, X, 1712).monte_carlo_error == pytest.approx(few / 4, rel=0.2)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_nothing_of_the_model_moves(name):
    settings = {"num_transitions": 2, "step_size": tf_mcvae.StepSize(0.1, rule="acceptance")}
    model = PPCA.model(tf_mcvae.LMCVAE, **settings)
    following = PPCA.model(tf_mcvae.LMCVAE, **settings).log_weights(X)
    before = [weight.numpy() for weight in model.weights]
    ESTIMATORS[name](model, X)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(model.log_weights(X), following)  # the stream of seeds neither


# What is reported.


@pytest.mark.parametrize("name", ESTIMATORS)
def test_reports(name):
    result = ESTIMATORS[name](VAE, X, seed=5)
    values = result.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["mean"] == result.mean == -result.nll
    assert values["settings"]["seed"] == 5
    assert "per_example" not in values
    assert str(result) == (
        f"{result.method}: {result.mean:.3f} ± {result.standard_error:.3f} nats per example"
    )


def test_what_cannot_be_known_is_none():
    values = estimate_iwae(VAE, X[:1], np.int64(1)).to_dict()
    assert values["standard_error"] is values["monte_carlo_error"] is None
    assert json.loads(json.dumps(values, allow_nan=False)) == values


# What is refused.


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X[:0], "at least one example.*Received: shape"),
        (X[:, :4], r"\[B, 5\].*Received: shape \(10, 4\)"),
        (np.where(np.arange(5) == 2, np.nan, X), "finite.*Received: 10 of 50"),
        (np.zeros([3, 5], np.int32), "floating-point.*Received: an array of int32"),
        ([[0.0] * 5], "array.*Dataset.*Received: data of type list"),
        (batches(X[:0]), "at least one batch.*Received: an empty data set"),
        (batches(X).filter(lambda x: False), "at least one batch.*Received: data without examples"),
        (batches(X[:, :4]), r"\[B, 5\].*Received: shape"),
        (batches(X * np.nan), "finite.*Received: .*nan"),
        (batches(X).repeat(), "never ends.*Received: "),
    ],
)
def test_bad_data(name, data, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ESTIMATORS[name](VAE, data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_temperatures": 1}, "at least 2.*`estimate_iwae`.*Received: num_temperatures=1"),
        ({"num_temperatures": 2.5}, "positive integer.*Received: num_temperatures=2.5"),
        ({"num_chains": 0}, "positive integer.*Received: num_chains=0"),
        ({"num_leapfrog_steps": 0}, "positive integer.*Received: num_leapfrog_steps=0"),
        ({"target_acceptance": 1.0}, "between 0 and 1.*Received: target_acceptance=1.0"),
        ({"start": "posterior"}, "'encoder' or 'prior'.*Received: start='posterior'"),
        ({"batch_size": 0}, "positive integer.*Received: batch_size=0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        estimate_log_likelihood(VAE, X, **settings)


@pytest.mark.parametrize("estimate", [estimate_elbo, estimate_iwae])
def test_bad_number_of_samples(estimate):
    with pytest.raises(ValueError, match=r"positive integer.*Received: num_samples=0"):
        estimate(VAE, X, num_samples=0)


@pytest.mark.parametrize("num_temperatures", [10, 50, 400])
def test_pilot_run_reaches_its_target_with_few_temperatures_too(num_temperatures):
    result = estimate_log_likelihood(
        VAE, X, num_temperatures=num_temperatures, num_leapfrog_steps=3, target_acceptance=0.7
    )
    assert 0.62 < result.acceptance[1] < 0.78
