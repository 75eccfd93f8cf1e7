"""Estimates of log p(x) of a linear-Gaussian model, where it is exact, and their error bars.

Estimates are checked at 5 of their own standard errors: a false alarm in 1.7 million for each
number checked, fixed seeds.
"""

import functools
import itertools
import json

import keras
import memory
import numpy as np
import pytest
import reference
import scipy.special
import scipy.stats
import tensorflow as tf
from reference import LinearGaussian, within

import tf_mcvae
from tf_mcvae import estimate_bound, estimate_elbo, estimate_iwae, estimate_log_likelihood, random
from tf_mcvae.evaluation import (
    PRESETS,
    AISSettings,
    annealed,
    bidirectional_gap,
    chunks,
    compare,
    latent_statistics,
)
from tf_mcvae.evaluation.uncertainty import Moments
from tf_mcvae.layers.schedules import linear_temperatures

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

# To test another estimator, add a line: its draws per example in a chunk, and a function.
ESTIMATORS = {
    "ELBO": (50, functools.partial(estimate_elbo, num_samples=120)),
    "IWAE": (50, functools.partial(estimate_iwae, num_samples=120)),
    "bound": (1, estimate_bound),
    "AIS": (3, functools.partial(estimate_log_likelihood, **QUICK)),
}
# Other tests cover AIS: tests/cli/test_evaluate.py interrupts it, one here changes its chunks.
SLOW_AIS = pytest.param("AIS", marks=pytest.mark.slow)


def run(name, model, data, examples=100, **settings):
    """Runs an estimator with chunks of `examples` examples."""
    draws, estimate = ESTIMATORS[name]
    return estimate(model, data, chunk_size=draws * examples, **settings)


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
    result = estimate_log_likelihood(MODELS[name], X, AISSettings(16, 250, 5), start=start, seed=4)
    assert agrees(result, EVIDENCE)
    assert result.monte_carlo_error < 0.03
    # The mean acceptance is near the target of the pilot run, and every transition accepts.
    assert 0.5 < result.acceptance[1] < 0.8
    assert result.acceptance[0] > 0.3
    assert 8 < result.effective_sample_size[0] <= result.effective_sample_size[1] < 16


@pytest.fixture(scope="module")
def flow_vae():
    """A model whose flow is far from the identity, with reliable importance weights."""
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


@pytest.mark.slow
@pytest.mark.parametrize("start", ["encoder", "prior"])
def test_annealed_importance_sampling_of_a_flow(start, flow_vae):
    """Chains from the encoder run before the flow, chains from the prior after it."""
    result = estimate_log_likelihood(flow_vae, X, AISSettings(16, 250, 5), start=start, seed=4)
    assert agrees(result, EVIDENCE)
    assert result.monte_carlo_error < 0.03
    assert result.effective_sample_size[0] > 8


@pytest.fixture(scope="module")
def curved_vae():
    """A model with a curved decoder, so that the posterior is not Gaussian, and images of it."""
    keras.utils.set_random_seed(0)
    decoder = tf_mcvae.Decoder((4, 4, 1), architecture="dense", hidden_units=(8,))
    encoder = tf_mcvae.Encoder(2, architecture="dense", hidden_units=(8,))
    model = tf_mcvae.VAE(encoder, decoder)
    model.build((None, 4, 4, 1))
    decoder.set_weights([3.0 * weight for weight in decoder.get_weights()])
    return model, annealed.simulate(model, 12, random.at_row(random.as_seed(1), 0))[0]


def quadrature(decoder, x):
    """Integrates `p(x|z) p(z)` over a grid of z with NumPy's float64, `[B]`."""
    axis = np.linspace(-7.0, 7.0, 351)
    z = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    first, first_bias, last, last_bias = (w.astype(np.float64) for w in decoder.get_weights())
    hidden = z @ first + first_bias
    hidden *= scipy.stats.norm.cdf(hidden)  # gelu
    logits = hidden @ last + last_bias
    x = np.reshape(x, [len(x), -1]).astype(np.float64)
    log_likelihood = x @ logits.T - np.logaddexp(0.0, logits).sum(1)
    log_prior = scipy.stats.norm.logpdf(z).sum(1)
    cell = 2.0 * np.log(axis[1] - axis[0])
    return scipy.special.logsumexp(log_likelihood + log_prior, axis=1) + cell


@pytest.mark.parametrize("start", ["encoder", pytest.param("prior", marks=pytest.mark.slow)])
def test_annealed_importance_sampling_agrees_with_quadrature(start, curved_vae):
    """An estimator that shares no code with it, on posteriors that are not Gaussian."""
    model, x = curved_vae
    exact = quadrature(model.decoder, x)
    result = estimate_log_likelihood(model, x, AISSettings(64, 300, 5), start=start, seed=4)
    assert agrees(result, exact.mean())
    assert result.monte_carlo_error < 0.02
    np.testing.assert_allclose(result.per_example, exact, atol=0.2)
    # The encoder is not trained, and far from the posterior.
    assert estimate_elbo(model, x, 200).mean < exact.mean() - 0.5


@pytest.mark.slow
def test_few_temperatures_are_annealed_too():
    """Two temperatures give one transition, between the ends, which improves the weights."""
    result = estimate_log_likelihood(VAE, X, AISSettings(10_000, 2, 10))
    assert agrees(result, EVIDENCE)
    direct = estimate_iwae(VAE, X, 10_000)
    # A transition at one of the ends would give a ratio of 1, to about 1 %.
    assert result.monte_carlo_error < 0.95 * direct.monte_carlo_error


@pytest.mark.parametrize(
    ("target", "low", "high"),
    [pytest.param(0.4, 0.3, 0.6, marks=pytest.mark.slow), (0.9, 0.85, 0.95)],
)
def test_pilot_run_follows_the_target_acceptance(target, low, high):
    result = estimate_log_likelihood(VAE, X, AISSettings(16, 250, 2), target_acceptance=target)
    assert low < result.acceptance[1] < high


@pytest.mark.parametrize("name", MODELS)
def test_bound_is_the_models_own(name):
    """Against a mean over many runs, with the model's transitions and its reduction over S."""
    model = MODELS[name]
    many = np.repeat(X, 200, 0)
    result = estimate_bound(model, many, chunk_size=1000 * model.num_samples)
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
    """The estimates of 2000 copies of an example spread as the error says, to a fifth.

    For that, the draws of different chunks must differ.
    """
    equal = np.repeat(X[:1], 2000, 0)
    if name == "AIS":  # with enough chains for the delta method
        settings = {**QUICK, "num_chains": 60}
        result = estimate_log_likelihood(VAE, equal, chunk_size=60_000, **settings)
    else:
        result = run(name, VAE, equal, 1000)
    assert result.monte_carlo_error == pytest.approx(result.standard_error, rel=0.2)


# Equal numbers from all forms of data.


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
    first = estimate_elbo(VAE, X, 9, chunk_size=36)
    other = estimate_elbo(VAE, FORMS[form], 9, chunk_size=36)
    np.testing.assert_allclose(other.per_example, first.per_example, rtol=1e-5)
    assert first.per_example.shape == (10,)
    assert first.mean == pytest.approx(first.per_example.mean())
    assert other.settings == first.settings
    assert first.settings["num_examples"] == 10


@pytest.mark.parametrize("name", ["bound", "ELBO", "IWAE", SLOW_AIS])
def test_partial_batches_and_seeds(name):
    """A partial last batch changes nothing; another seed gives other draws."""
    model = MODELS["AMCVAE" if name == "bound" else "VAE"]
    first = run(name, model, X, 4, seed=3).per_example
    full = run(name, model, batches(X[:8], size=3), 4, seed=3)
    if name != "AIS":  # Its pilot run has other examples.
        np.testing.assert_allclose(full.per_example, first[:8], rtol=1e-4)
    different = run(name, model, X[:4], 4, seed=4)
    assert np.all(different.per_example != first[:4])


def test_equal_examples_have_draws_of_their_own():
    result = estimate_iwae(VAE, np.repeat(X[:1], 6, 0), 5, chunk_size=15)
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
    run(name, model, X)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(model.log_weights(X), following)  # The next seed, too.


# Reports.


@pytest.mark.parametrize("name", ESTIMATORS)
def test_reports(name):
    result = run(name, VAE, X, seed=5)
    values = result.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["mean"] == result.mean == -result.nll
    bits, error = result.bits_per_dimension(5)
    assert bits == pytest.approx(-result.mean / 5 * np.log2(np.e))
    assert error / result.standard_error == pytest.approx(np.log2(np.e) / 5)
    assert values["settings"]["seed"] == 5
    assert "per_example" not in values
    assert str(result).splitlines()[0] == (
        f"{result.method}: {result.mean:.3f} ± {result.standard_error:.3f} nats per example"
    )
    every = json.loads(result.to_json())
    np.testing.assert_array_equal(every.pop("per_example"), result.per_example)
    assert every == values


def test_what_cannot_be_known_is_none():
    values = estimate_iwae(VAE, X[:1], np.int64(1)).to_dict()
    assert values["standard_error"] is values["monte_carlo_error"] is None
    assert json.loads(json.dumps(values, allow_nan=False)) == values


# Errors.


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
        run(name, VAE, data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_temperatures": 1}, "at least 2.*`estimate_iwae`.*Received: num_temperatures=1"),
        ({"num_temperatures": 2.5}, "positive integer.*Received: num_temperatures=2.5"),
        ({"num_chains": 0}, "positive integer.*Received: num_chains=0"),
        ({"num_leapfrog_steps": 0}, "positive integer.*Received: num_leapfrog_steps=0"),
        ({"target_acceptance": 1.0}, "between 0 and 1.*Received: target_acceptance=1.0"),
        ({"start": "posterior"}, "'encoder' or 'prior'.*Received: start='posterior'"),
        ({"chunk_size": 0}, "positive integer.*Received: chunk_size=0"),
        ({"schedule": "cosine"}, "'sigmoid' or 'linear'.*Received: schedule='cosine'"),
        ({"step_size": 0.0}, "above 0.*Received: step_size=0.0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        estimate_log_likelihood(VAE, X, **settings)


@pytest.mark.parametrize("function", [estimate_log_likelihood, bidirectional_gap])
def test_unknown_settings_are_answered_with_the_one_that_was_meant(function):
    arguments = (VAE, X) if function is estimate_log_likelihood else (VAE, 2)
    match = r"no field `num_chain` \(did you mean `num_chains`\?\)\. Received: num_chain=3"
    with pytest.raises(TypeError, match=match):
        function(*arguments, num_chain=3)
    with pytest.raises(TypeError, match=r"they are num_chains, .*\. Received: loud=True"):
        function(*arguments, loud=True)
    with pytest.raises(TypeError, match=r"must be an `AISSettings`.*Received: settings=16"):
        function(*arguments, 16)


def test_settings_are_given_whole_by_name_or_both():
    settings = AISSettings(3, 4, 1)
    whole = estimate_log_likelihood(VAE, X, settings, seed=1)
    for given in (
        estimate_log_likelihood(VAE, X, **QUICK, seed=1),
        estimate_log_likelihood(VAE, X, settings.updated(num_chains=7), num_chains=3, seed=1),
    ):
        assert given.to_dict() == whole.to_dict()


@pytest.mark.parametrize("estimate", [estimate_elbo, estimate_iwae])
def test_bad_number_of_samples(estimate):
    with pytest.raises(ValueError, match=r"positive integer.*Received: num_samples=0"):
        estimate(VAE, X, num_samples=0)


@pytest.mark.parametrize(
    "num_temperatures", [10, *[pytest.param(n, marks=pytest.mark.slow) for n in (50, 400)]]
)
def test_pilot_run_reaches_its_target_with_few_temperatures_too(num_temperatures):
    result = estimate_log_likelihood(
        VAE, X, num_temperatures=num_temperatures, num_leapfrog_steps=3, target_acceptance=0.7
    )
    assert 0.62 < result.acceptance[1] < 0.78


# Properties for all distributions of the weights.


@pytest.mark.parametrize(
    ("start", "schedule"),
    [
        ("encoder", "sigmoid"),
        ("prior", "linear"),
        pytest.param("encoder", "linear", marks=pytest.mark.slow),
        pytest.param("prior", "sigmoid", marks=pytest.mark.slow),
    ],
)
def test_every_start_and_schedule_agrees_with_the_evidence(start, schedule):
    settings = {"num_temperatures": 60, "num_leapfrog_steps": 5, "start": start}
    many = np.repeat(X, 20, 0)
    result = estimate_log_likelihood(VAE, many, schedule=schedule, chunk_size=4000, **settings)
    # The mean weight is unbiased, example by example, at 5 standard errors.
    ratios = np.exp(result.per_example - np.repeat(PPCA.log_evidence(X), 20))
    assert within(ratios, 1.0)
    assert 0.01 < ratios.std() < 1.0


@pytest.mark.parametrize("loose", ["IWAE", "AIS"])
def test_estimates_are_hardly_ever_far_above_the_evidence(loose):
    """By Markov's inequality `Pr(log p^ > log p + b) < exp(-b)`, for any sampler with E[w] = p.

    The share of 4000 estimates may exceed it by 5 standard errors.
    """
    many = np.repeat(X[:1], 4000, 0)
    if loose == "IWAE":
        result = estimate_iwae(VAE, many, 1, chunk_size=4000)
    else:
        settings = {"num_temperatures": 2, "num_leapfrog_steps": 1, "step_size": 0.5}
        settings = {"num_chains": 1, "start": "prior", **settings}
        result = estimate_log_likelihood(VAE, many, chunk_size=4000, **settings)
    excess = result.per_example - PPCA.log_evidence(X[:1])
    assert excess.mean() < -0.1  # Loose enough for the shares to mean something.
    for b in (0.25, 0.5, 1.0, 1.5, 2.0):
        share, limit = np.mean(excess > b), np.exp(-b)
        assert share < limit + 5 * np.sqrt(limit * (1 - limit) / len(many))
    assert np.mean(excess > 0.25) > 0.02


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("VAE", "prior"),
        pytest.param("VAE", "encoder", marks=pytest.mark.slow),
        pytest.param("LMCVAE", "encoder", marks=pytest.mark.slow),
    ],
)
def test_bidirectional_bounds_bracket_the_evidence(name, start):
    """For simulated images, whose evidence is known, with loose settings that leave a gap."""
    settings = {"num_temperatures": 12, "num_leapfrog_steps": 2, "start": start}
    settings["num_chains"] = 2
    gap = bidirectional_gap(MODELS[name], 1000, chunk_size=2000, seed=3, **settings)
    assert gap.lower.settings["num_examples"] == 1000
    assert gap.gap == pytest.approx(gap.upper.mean - gap.lower.mean)
    x, _ = simulated(MODELS[name], 1000, 3)
    evidence = PPCA.log_evidence(x)
    for estimate, sign in ((gap.lower, 1.0), (gap.upper, -1.0)):
        # Unbiased for p(x) from below, for 1 / p(x) from above.
        assert within(np.exp(sign * (estimate.per_example - evidence)), 1.0)
        off = sign * (evidence - estimate.per_example)
        assert off.mean() > 3 * off.std() / np.sqrt(len(off))
    tight = bidirectional_gap(MODELS[name], 200, AISSettings(16, 150, 5), start=start)
    assert abs(tight.gap) < 0.2 * gap.gap
    assert "<= log p(x) <=" in str(gap)
    assert json.loads(json.dumps(gap.to_dict(), allow_nan=False))["gap"] == gap.gap


def simulated(model, count, seed):
    """The images that `bidirectional_gap` draws, and their latents."""
    data_seed = random.split(random.as_seed(seed), 4)[0]
    return annealed.simulate(model, count, random.at_row(data_seed, 0))


def test_simulated_images_are_the_models():
    """Mean and covariance of x, at 5 standard errors."""
    x = np.asarray(simulated(VAE, 20_000, 1)[0], np.float64)
    assert within(x, PPCA.loc)
    centred = x - PPCA.loc
    covariance = PPCA.weight @ PPCA.weight.T + PPCA.sigma**2 * np.eye(5)
    assert within(centred[:, :, np.newaxis] * centred[:, np.newaxis], covariance)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["encoder", "prior"])
def test_bidirectional_bounds_of_a_flow(start, flow_vae):
    """Unbiased at 5 standard errors (false alarms some 1e-6 each), and close for long chains.

    The error of a single image has heavy tails, so the bound is on their root mean square, which
    lay between 0.06 and 0.12 over the seeds 0 to 5.
    """
    gap = bidirectional_gap(flow_vae, 100, AISSettings(16, 150, 5), start=start)
    evidence = PPCA.log_evidence(simulated(flow_vae, 100, 0)[0])
    for estimate, sign in ((gap.lower, 1.0), (gap.upper, -1.0)):
        off = estimate.per_example - evidence
        assert within(np.exp(sign * off), 1.0)
        assert np.sqrt(np.mean(off**2)) < 0.15
    assert -5 * gap.standard_error < gap.gap < 0.05


@pytest.mark.slow
def test_a_flow_without_inverse_cannot_start_backwards_chains():
    model = PPCA.model(tf_mcvae.FlowVAE, flow="bnaf")
    with pytest.raises(ValueError, match=r"no inverse.*Received: "):
        bidirectional_gap(model, 2, **QUICK)
    assert np.isfinite(bidirectional_gap(model, 2, **QUICK, start="prior").gap)


@pytest.mark.slow
def test_more_temperatures_do_not_lower_the_estimate():
    many = np.repeat(X, 20, 0)
    results = [
        estimate_log_likelihood(
            VAE, many, AISSettings(4, number, 3, start="prior"), chunk_size=4000, seed=number
        )
        for number in (5, 10, 20, 40, 80)
    ]
    for few, more in itertools.pairwise(results):
        error = np.hypot(few.monte_carlo_error, more.monte_carlo_error)
        assert more.mean > few.mean - 5 * error
    assert results[-1].mean > results[0].mean + 0.1
    assert results[-1].chain_spread < 0.5 * results[0].chain_spread


def test_the_graph_does_not_grow_with_the_temperatures():
    sizes = []
    for number in (10, 1000):
        settings = AISSettings(2, number, 3, target_acceptance=0.6)
        anneal = annealed._Annealing(VAE, tf.TensorSpec([None, 5]), settings)
        sizes.append(len(anneal.forward_graph.graph.as_graph_def().node))
    assert sizes[0] == sizes[1]


# In chunks, with interruptions.


@pytest.mark.parametrize("name", ESTIMATORS)
def test_numbers_do_not_depend_on_the_chunk_size(name):
    model = MODELS["LMCVAE" if name == "bound" else "VAE"]
    whole = run(name, model, X, 10, seed=2)
    for examples in (1, 3):
        part = run(name, model, X, examples, seed=2)
        np.testing.assert_allclose(part.per_example, whole.per_example, rtol=1e-4)
        assert part.monte_carlo_error == pytest.approx(
            whole.monte_carlo_error, rel=1e-3, nan_ok=True
        )
        assert part.acceptance == pytest.approx(whole.acceptance)


class InterruptionError(Exception):
    pass


@pytest.mark.parametrize("name", ["ELBO", "IWAE", SLOW_AIS])
def test_interrupted_scoring_goes_on_to_the_same_number(name, tmp_path, monkeypatch):
    whole = run(name, VAE, X, 2, seed=2, checkpoint=tmp_path / "whole.npz")
    path = tmp_path / "part.npz"
    add = chunks.Progress.add
    calls = []

    def add_and_stop(self, *args):
        add(self, *args)
        calls.append(self.num_done)
        if len(calls) == 3:
            raise InterruptionError

    with monkeypatch.context() as patch:
        patch.setattr(chunks.Progress, "add", add_and_stop)
        with pytest.raises(InterruptionError):
            run(name, VAE, X, 2, seed=2, checkpoint=path)
    assert calls == [2, 4, 6]
    resumed = run(name, VAE, batches(X, size=7), 2, seed=2, checkpoint=path)
    np.testing.assert_array_equal(resumed.per_example, whole.per_example)
    assert resumed.to_dict() == whole.to_dict()
    # The file is complete: with any chunks, nothing is drawn again.
    with monkeypatch.context() as patch:
        patch.setattr(chunks.Progress, "add", None)
        again = run(name, VAE, X, 3, seed=2, checkpoint=path)
    assert again.to_dict() == whole.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 3}, "another model or other settings"),
        ({"model": "other"}, "another model or other settings"),
        ({"data": X[::-1]}, "not those that were scored before"),
        ({"data": X[:5]}, "holds 10 examples"),
        ({"file": b"no such file"}, "not a file of an interrupted evaluation"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(change, message, tmp_path):
    path = tmp_path / "scores.npz"
    run("IWAE", VAE, X, 2, checkpoint=path)
    if "file" in change:
        path.write_bytes(change["file"])
    content = path.read_bytes()
    model = PPCA.model(tf_mcvae.VAE)
    if "model" in change:
        model.decoder.set_weights([1.01 * weight for weight in model.decoder.get_weights()])
    with pytest.raises(ValueError, match=rf"{message}.*Received: .*scores\.npz"):
        run("IWAE", model, change.get("data", X), 2, checkpoint=path, seed=change.get("seed", 0))
    assert path.read_bytes() == content


@pytest.mark.slow
def test_progress_is_shown_with_the_time_left(capsys):
    run("AIS", VAE, batches(X, size=4), 2, verbose=1)
    shown = capsys.readouterr().out
    assert "10/10" in shown
    assert "example" in shown
    run("AIS", VAE, X, 2)
    assert not capsys.readouterr().out


# The parts.


def test_moments_of_parts_are_those_of_the_whole():
    log_weights = 300.0 * np.random.default_rng(0).normal(size=[11, 4]) - 1e4
    weights = np.exp(log_weights - log_weights.max(0))
    parts = Moments.of(log_weights[:5]).merged(Moments.of(log_weights[5:]))
    for moments in (parts, Moments.of(log_weights)):
        expected = np.log(weights.mean(0)) + log_weights.max(0)
        np.testing.assert_allclose(moments.log_mean, expected, rtol=1e-14)
        sizes = weights.sum(0) ** 2 / np.sum(weights**2, 0)
        np.testing.assert_allclose(moments.effective_sample_size, sizes, rtol=1e-9)
        np.testing.assert_allclose(moments.log_spread, log_weights.std(0, ddof=1), rtol=1e-12)
        bias, variance = reference.jackknife(log_weights)
        np.testing.assert_allclose(moments.log_mean_errors.bias, bias, rtol=1e-9)
        np.testing.assert_allclose(moments.log_mean_errors.variance, variance, rtol=1e-9)


def test_chain_spread_is_that_of_single_chains():
    """For the ELBO, a chain is one draw: the error of the mean times the root of their number."""
    result = estimate_elbo(VAE, X, 4000)
    assert result.chain_spread == pytest.approx(
        result.monte_carlo_error * np.sqrt(4000 * len(X)), rel=0.1
    )


def test_latent_statistics():
    many = PPCA.data(3000, seed=5)
    statistics = latent_statistics(VAE, batches(many, size=70))
    loc, variance = PPCA.encoder_moments(many)
    kl = 0.5 * (loc**2 + variance - 1 - np.log(variance)).mean(0)
    np.testing.assert_allclose(statistics.kl, kl, rtol=1e-4)
    np.testing.assert_allclose(statistics.variance, loc.var(0, ddof=1), rtol=1e-4)
    assert (statistics.active_units, statistics.num_examples) == (2, 3000)
    # A dimension whose location is the same for all images is not active.
    model = PPCA.model(tf_mcvae.VAE)
    kernel, bias = model.encoder.get_weights()
    kernel[:, 1] = 0.0
    model.encoder.set_weights([kernel, bias])
    statistics = latent_statistics(model, many)
    assert statistics.active_units == 1
    assert "1 of 2" in str(statistics)
    assert json.loads(json.dumps(statistics.to_dict()))["active_units"] == 1


def test_the_reference_preset_is_its_five_temperatures():
    result = estimate_log_likelihood(VAE, X, PRESETS["reference_quick"])
    np.testing.assert_allclose(linear_temperatures(4), [0.0, 0.25, 0.5, 0.75, 1.0])
    assert result.acceptance[1] > 0.9  # Its steps are small.
    assert set(PRESETS) == {"quick", "standard", "paper", "reference_quick"}


# Warnings.


def test_warnings_say_when_not_to_believe():
    good = estimate_log_likelihood(VAE, X, AISSettings(16, 100, 5), target_acceptance=0.8)
    assert good.warnings == ()
    rough = estimate_log_likelihood(VAE, X, AISSettings(16, 20, 5), step_size=1.5)
    assert any("transitions accept less than 0.6" in text for text in rough.warnings)
    assert "warning: " in str(rough)
    far = np.full([10, 5], 60.0, np.float32)
    few = estimate_iwae(VAE, far, 100)
    assert any("worth less than 10 draws" in text for text in few.warnings)
    # The number of draws does not make the ELBO doubtful.
    assert estimate_elbo(VAE, far, 100).warnings == ()


def test_comparison_is_made_example_by_example():
    other = PPCA.model(tf_mcvae.VAE)
    other.decoder.set_weights([1.05 * weight for weight in other.decoder.get_weights()])
    first, second = (estimate_iwae(model, X, 2000) for model in (VAE, other))
    result = compare(first, second)
    differences = first.per_example - second.per_example
    assert result.difference == pytest.approx(differences.mean())
    assert result.standard_error == pytest.approx(differences.std(ddof=1) / np.sqrt(10))
    assert result.standard_error < 0.5 * first.standard_error
    assert result.warnings == ()
    doubtful = compare(first, second, gap=2 * abs(result.difference))
    assert "more than they differ" in doubtful.warnings[0]
    assert "differently loose" in str(compare(first, estimate_elbo(other, X)))
    with pytest.raises(ValueError, match=r"same data. Received: 10 and 5 examples"):
        compare(first, estimate_iwae(VAE, X[:5], 10))


@memory.on_linux
@pytest.mark.slow
def test_a_hundred_thousand_draws_fit_in_memory():
    """The whole process, TensorFlow included, stays below 2 GiB."""
    code = """
import numpy as np
import tf_mcvae

encoder, decoder = tf_mcvae.Encoder(16), tf_mcvae.Decoder((28, 28, 1))
model = tf_mcvae.VAE(encoder, decoder)
x = np.random.default_rng(0).integers(0, 2, [3, 28, 28, 1]).astype("float32")
print(tf_mcvae.estimate_iwae(model, x, 100_000).mean)
print(peak())
"""
    mean, mebibytes = map(float, memory.printed(code))
    assert np.isfinite(mean)
    assert mebibytes < 2048
