"""Every estimator averages to the exact evidence of a linear-Gaussian model.

Checks are at 5 standard errors, a false alarm in 1.7 million for each number checked, or in 400,000
where means of 60 estimates are compared. About 100 numbers are checked here, with fixed seeds.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from modes import graph
from reference import LinearGaussian, as_if_trained, iwae, within

import tf_mcvae
from tf_mcvae import random
from tf_mcvae.kernels import MetropolisHastings, UncalibratedHamiltonian
from tf_mcvae.models.annealed import AnnealedVAE
from tf_mcvae.models.batch import Batch
from tf_mcvae.models.generative import GenerativeModel
from tf_mcvae.objectives.annealed import annealed_importance_sampling

PPCA = LinearGaussian()
X = PPCA.data(3)
# Estimates of gradients are of 10 copies, as a call takes as long for one.
ROWS = np.tile(X, [10, 1])
LOG_EVIDENCE = PPCA.log_evidence(X)
SCHEDULES = ["linear", "sigmoidal", "all_learnable"]
STEP = 0.08
PER_DIMENSION = [[0.05, 0.1]]
MASSES = tf_mcvae.MomentumRefresh(0.6, [0.8, 1.3])

# To test another model or option, add a line.
CASES = {
    "VAE": (tf_mcvae.VAE, {}),
    "IWAE": (tf_mcvae.IWAE, {}),
    **{
        f"FlowVAE-{f}": (tf_mcvae.FlowVAE, {"flow": f, "num_flows": 2})
        for f in ("realnvp", "iaf", "bnaf")
    },
    **{f"LMCVAE-{s}": (tf_mcvae.LMCVAE, {"schedule": s}) for s in SCHEDULES},
    **{
        f"AMCVAE-{s}-{a}": (tf_mcvae.AMCVAE, {"schedule": s, "acceptance": a})
        for s in SCHEDULES
        for a in ("metropolis", "barker")
    },
    "LMCVAE-per-dimension": (tf_mcvae.LMCVAE, {"step_size": PER_DIMENSION}),
    "AMCVAE-per-dimension": (tf_mcvae.AMCVAE, {"step_size": PER_DIMENSION}),
    "LMCVAE-cloned": (tf_mcvae.LMCVAE, {"cloned_decoder": True}),
    "AMCVAE-cloned": (tf_mcvae.AMCVAE, {"cloned_decoder": True}),
    "UHAVAE-partial": (tf_mcvae.UHAVAE, {"step_size": 0.3}),
    "UHAVAE-full": (tf_mcvae.UHAVAE, {"step_size": 0.3, "momentum": 0.0, "schedule": "sigmoidal"}),
    "UHAVAE-mass": (
        tf_mcvae.UHAVAE,
        {"step_size": [[0.2, 0.3]], "momentum": MASSES, "num_leapfrog_steps": 2},
    ),
    **{f"DAISVAE-{s}": (tf_mcvae.DAISVAE, {"step_size": 0.3, "schedule": s}) for s in SCHEDULES},
    "DAISVAE-mass": (tf_mcvae.DAISVAE, {"step_size": 0.3, "momentum": MASSES}),
    "LDVIVAE": (tf_mcvae.LDVIVAE, {"step_size": 0.3, "momentum": 0.6}),
    "LDVIVAE-mass": (
        tf_mcvae.LDVIVAE,
        {"step_size": 0.3, "momentum": MASSES, "schedule": "all_learnable"},
    ),
    **{f"MCDVAE-{s}": (tf_mcvae.MCDVAE, {"schedule": s}) for s in SCHEDULES},
    **{f"CMCDVAE-{s}": (tf_mcvae.CMCDVAE, {"schedule": s}) for s in SCHEDULES},
    "CMCDVAE-cloned": (tf_mcvae.CMCDVAE, {"cloned_decoder": True}),
    **{
        f"HVAE-{s}": (tf_mcvae.HVAE, {"step_size": [[0.2, 0.3]], "tempering": s})
        for s in ("quadratic", "free", "none")
    },
    "HVAE-cloned": (tf_mcvae.HVAE, {"step_size": 0.2, "cloned_decoder": True}),
    "LMCVAE-learned-drift": (tf_mcvae.LMCVAE, {"learned_drift": True}),
    "LMCVAE-learned-drift-of-x": (
        tf_mcvae.LMCVAE,
        {"learned_drift": tf_mcvae.LearnedDrift(features="x")},
    ),
    "LMCVAE-learned-reverse": (tf_mcvae.LMCVAE, {"learned_reverse": True}),
    "LMCVAE-learned-both": (
        tf_mcvae.LMCVAE,
        {"learned_drift": True, "learned_reverse": True, "step_size": PER_DIMENSION},
    ),
}


def make(case):
    model_class, settings = CASES[case]
    if issubclass(model_class, AnnealedVAE):
        settings = {"num_transitions": 4, "step_size": STEP, **settings}
    keras.utils.set_random_seed(0)
    model = PPCA.model(model_class, **settings)
    if settings.get("cloned_decoder"):
        # As if trained separately, so that the two decoders differ.
        weights = [1.1 * weight + 0.05 for weight in model.decoder.get_weights()]
        model.transition_decoder.set_weights(weights)
    for name in ("drift", "reverse_kernel"):
        layer = getattr(model, name, None)
        if layer is not None:  # As if trained: they start at 0.
            last = layer.kernels[-1]
            scale = 0.4 / last.shape[1] ** 0.5
            last.assign(scale * np.random.default_rng(1).normal(size=last.shape))
    if hasattr(model, "network"):
        as_if_trained(model.network, 0.7)
    if model_class is tf_mcvae.FlowVAE:
        # As if trained: a new flow has almost no effect. The changes are small, as the weights of a
        # flow that narrows the posterior may have no finite variance.
        rng = np.random.default_rng(0)
        weights = [weight + 0.05 * rng.normal(size=weight.shape) for weight in model.flow.weights]
        model.flow.set_weights(weights)
    return model


# Combinations of options whose own part other cases test.
SLOW = {
    f"{name}-{schedule}{end}"
    for name, end in (
        ("AMCVAE", "-barker"),
        ("AMCVAE", "-metropolis"),
        ("DAISVAE", ""),
        ("MCDVAE", ""),
        ("CMCDVAE", ""),
    )
    for schedule in ("sigmoidal", "all_learnable")
} - {"AMCVAE-all_learnable-barker"}
SLOW |= {
    "FlowVAE-bnaf",
    "AMCVAE-per-dimension",
    "LMCVAE-cloned",
    "UHAVAE-full",
    "DAISVAE-mass",
    "LDVIVAE",
    "CMCDVAE-cloned",
    "HVAE-none",
    "LMCVAE-learned-drift",
    "LMCVAE-learned-reverse",
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES]
)
def test_mean_weight_is_the_evidence(case):
    log_weights = tf.function(make(case).log_weights)(X, seed=3, num_samples=20_000)
    ratios = np.exp(np.asarray(log_weights, np.float64) - LOG_EVIDENCE)
    assert within(ratios, 1.0)
    # The weights vary: a constant would pass the check above.
    assert 0.001 < ratios.std() < 6.0


@pytest.mark.parametrize("persistence", [pytest.param(0.0, marks=pytest.mark.slow), 0.7])
@pytest.mark.parametrize("acceptance", ["metropolis", "barker", None])
def test_hamiltonian_weights_average_to_the_evidence(acceptance, persistence):
    """None is the uncalibrated kernel, weighted by its own log ratio."""
    model = make("VAE")
    path = model.path(Batch(tf.constant(X)), model.posterior(Batch(X)))

    def kernel_fn(index, results):
        temperature = tf.cast(index + 1, tf.float32) / 5.0
        kernel = UncalibratedHamiltonian(path, 0.3, 3, temperature, persistence)
        return MetropolisHastings(kernel, acceptance) if acceptance else kernel

    @graph
    def run():
        start = model.draw_posterior(model.posterior(Batch(X)), 20_000, tf.constant([1, 2]))
        return annealed_importance_sampling(path, start, kernel_fn, 4, tf.constant([3, 4]))

    assert within(np.exp(np.asarray(run().log_weights, np.float64) - LOG_EVIDENCE), 1.0)


def test_skip_threshold_is_biased_as_documented():
    """The check of unbiased estimators can detect this bias."""
    model = PPCA.model(tf_mcvae.LMCVAE, num_transitions=4, step_size=0.4, skip_threshold=0.9)
    log_weights = tf.function(model.log_weights)(X, seed=3, num_samples=20_000)
    assert not within(np.exp(np.asarray(log_weights, np.float64) - LOG_EVIDENCE), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [tf_mcvae.LMCVAE, tf_mcvae.AMCVAE])
def test_gap_closes_with_more_transitions(model_class):
    """With steps of K^-1/2, time grows and the discretisation shrinks as K^1/2."""
    gaps = []
    for num_transitions in (1, 16, 256):
        model = PPCA.model(
            model_class, num_transitions=num_transitions, step_size=0.3 / num_transitions**0.5
        )
        elbo = np.mean(tf.function(model.log_weights)(X, seed=5, num_samples=4000), 0)
        gaps.append(np.mean(LOG_EVIDENCE - elbo))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


@pytest.mark.parametrize("model_class", [tf_mcvae.LMCVAE, tf_mcvae.AMCVAE])
def test_zero_step_size_is_iwae(model_class):
    """The same seed gives the same first states, so the weights are equal, not only their mean."""
    annealed = PPCA.model(model_class, num_transitions=3, step_size=0.0)
    plain = PPCA.model(tf_mcvae.IWAE)
    expected = plain.log_weights(X, seed=7, num_samples=6)
    np.testing.assert_allclose(
        annealed.log_weights(X, seed=7, num_samples=6), expected, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(plain.bound(X, 7, 6), iwae(expected), rtol=1e-5)
    vae = PPCA.model(tf_mcvae.VAE)
    np.testing.assert_allclose(plain.bound(X, 7, 1), vae.bound(X, 7, 1), rtol=1e-6)


def gradients_of_log_slope(model, seeds, network="decoder"):
    """Estimates of the gradient with respect to a common factor on a network's kernel, `[n]`."""
    kernel = getattr(model, network).layers[0].kernel.value

    @graph
    def gradient(seed):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model.estimate(Batch(tf.constant(ROWS)), seed, True).loss)
        return -tf.reduce_sum(tape.gradient(loss, kernel) * kernel)

    return np.array([gradient(tf.constant([9, s])).numpy() for s in seeds])


def finite_differences(model, seeds, num_samples, width=0.05, network="decoder"):
    """Central differences of the bound with respect to the same factor, `[n]`."""
    network = getattr(model, network)
    weights = network.get_weights()
    bound = graph(lambda s: tf.reduce_mean(model.bound(ROWS, s, num_samples)))
    values = []
    for factor in (1 + width, 1 - width):
        network.set_weights([factor * weights[0], weights[1]])
        values.append(np.array([bound(tf.constant([9, s])).numpy() for s in seeds]))
    network.set_weights(weights)
    return (values[0] - values[1]) / (2 * width)


def differ(a, b):
    """How many standard errors two independent sets of estimates lie apart."""
    error = np.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b))
    return abs(np.mean(a) - np.mean(b)) / error


@pytest.mark.parametrize(
    ("gradient", "acceptance"),
    [
        ("leave_one_out", "metropolis"),
        pytest.param("coupled", "metropolis", marks=pytest.mark.slow),
        pytest.param("leave_one_out", "barker", marks=pytest.mark.slow),
        pytest.param("coupled", "barker", marks=pytest.mark.slow),
    ],
)
def test_amcvae_gradient_is_that_of_the_bound(gradient, acceptance, monkeypatch):
    """With large steps, half the proposals are rejected and the term of the choices matters."""
    settings = {"num_transitions": 2, "step_size": 0.6, "num_samples": 100}
    model = PPCA.model(tf_mcvae.AMCVAE, gradient=gradient, acceptance=acceptance, **settings)
    estimates = gradients_of_log_slope(model, range(60))
    reference = finite_differences(model, range(1000, 1120), 100)
    assert differ(estimates, reference) < 5
    # Without the term the gradient differs, and the check detects it.
    monkeypatch.setattr(model, "_coefficient", lambda: 0.0)
    assert differ(gradients_of_log_slope(model, range(60)), reference) > 10


@pytest.mark.parametrize(
    ("model_class", "settings"),
    [
        (tf_mcvae.VAE, {"num_samples": 50}),
        pytest.param(tf_mcvae.IWAE, {"num_samples": 5}, marks=pytest.mark.slow),
        (tf_mcvae.IWAE, {"num_samples": 5, "gradient": "dreg"}),
        (tf_mcvae.LMCVAE, {"num_transitions": 2, "step_size": 0.2, "num_samples": 5}),
        *[
            (model_class, {"num_transitions": 2, "step_size": step, "num_samples": 5})
            for model_class, step in (
                (tf_mcvae.UHAVAE, 0.4),
                (tf_mcvae.DAISVAE, 0.4),
                (tf_mcvae.HVAE, 0.2),
            )
        ],
        pytest.param(
            tf_mcvae.LMCVAE,
            {"num_transitions": 2, "step_size": 0.2, "num_samples": 5, "learned_reverse": True},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_gradients_are_those_of_the_bound(model_class, settings):
    model = PPCA.model(model_class, **settings)
    estimates = gradients_of_log_slope(model, range(60))
    reference = finite_differences(model, range(1000, 1060), settings["num_samples"], 0.02)
    assert differ(estimates, reference) < 5


# Kernels, chains with a momentum, and deterministic ones; the others share their code.
LANDING = {"LMCVAE": 0.2, "UHAVAE": 0.4, "HVAE": 0.2}


@pytest.mark.parametrize(
    ("name", "gradient", "num_samples"),
    [
        ("UHAVAE", "stl", 1),
        ("HVAE", "dreg", 5),
        pytest.param("LMCVAE", "dreg", 5, marks=pytest.mark.slow),
        pytest.param("LMCVAE", "stl", 1, marks=pytest.mark.slow),
        pytest.param("UHAVAE", "dreg", 5, marks=pytest.mark.slow),
        pytest.param("HVAE", "stl", 1, marks=pytest.mark.slow),
    ],
)
def test_gradients_of_the_first_draws_are_those_of_the_bound(name, gradient, num_samples):
    """With respect to the encoder. STL is unbiased for one sample, DReG for any number."""
    settings = {"num_transitions": 2, "step_size": LANDING[name], "num_samples": num_samples}
    model = PPCA.model(getattr(tf_mcvae, name), gradient=gradient, **settings)
    estimates = gradients_of_log_slope(model, range(60), "encoder")
    plain = PPCA.model(getattr(tf_mcvae, name), **settings)
    reference = finite_differences(plain, range(1000, 1060), num_samples, 0.02, "encoder")
    assert differ(estimates, reference) < 5
    others = gradients_of_log_slope(plain, [*range(10), *range(500, 560)], "encoder")
    assert differ(estimates, others[10:]) < 5
    assert not np.allclose(others[:10], estimates[:10])


def test_landing_gradients_leave_the_rest_unchanged():
    """Of the decoder, the step sizes and the schedule, whose part is that of the plain gradient."""
    values = {}
    for gradient in ("plain", "stl", "dreg"):
        model = PPCA.model(
            tf_mcvae.UHAVAE,
            num_transitions=2,
            num_samples=5,
            gradient=gradient,
            schedule="all_learnable",
            step_size=tf_mcvae.StepSize(0.3, "learned"),
        )
        with tf.GradientTape() as tape:
            estimate = model.estimate(Batch(tf.constant(X)), random.as_seed(1), training=True)
        others = [
            *model.decoder.trainable_variables,
            model.schedule.logits,
            model.step_size.log_step_size,
        ]
        values[gradient] = tape.gradient(estimate.loss, [v.value for v in others])
    for gradient in ("stl", "dreg"):
        for actual, expected in zip(values[gradient], values["plain"], strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_class", [tf_mcvae.LMCVAE, tf_mcvae.AMCVAE])
def test_any_number_of_transitions(model_class):
    """A graph that takes the number as a tensor is traced once, and gives the eager numbers."""
    steps = [0.05, 0.08, 0.1, 0.06]
    schedule = "linear" if model_class is tf_mcvae.LMCVAE else "sigmoidal"
    model = PPCA.model(model_class, num_transitions=4, step_size=steps, schedule=schedule)
    traced = []

    @graph
    def log_weights(num_transitions):
        traced.append(1)
        return model.log_weights(X, 3, 20_000, num_transitions)

    for number in (1, 7):
        weights = log_weights(tf.constant(number))
        assert within(np.exp(np.asarray(weights, np.float64) - LOG_EVIDENCE), 1.0)
        eager = model.log_weights(X, 3, 20_000, num_transitions=number)
        np.testing.assert_allclose(weights, eager, atol=1e-4)
    own = model.log_weights(X, 3, 20_000)
    np.testing.assert_allclose(log_weights(tf.constant(4)), own, atol=1e-4)
    assert np.any(np.abs(eager - own) > 1e-2)
    assert len(traced) == 1
    draws = model.posterior_sample(X, 5, seed=1, num_transitions=7)
    assert draws.shape == (5, 3, 2)
    assert model.bound(X, 3, 6, num_transitions=7).shape == (3,)


@pytest.mark.parametrize(
    ("case", "number", "message"),
    [
        ("VAE", 2, "no transitions"),
        ("IWAE", 2, "no transitions"),
        ("FlowVAE-realnvp", 2, "no transitions"),
        ("LMCVAE-all_learnable", 3, "a weight for each"),
        ("LMCVAE-learned-drift", 3, "networks for each"),
        ("LMCVAE-learned-reverse", 3, "networks for each"),
        ("LMCVAE-linear", 0, "positive integer"),
        ("LMCVAE-linear", 2.0, "positive integer"),
    ],
)
def test_no_other_number_of_transitions(case, number, message):
    model = make(case)
    for method in (model.bound, model.log_weights, model.posterior_sample):
        with pytest.raises(ValueError, match=rf"{message}.*Received: .*num_transitions={number}"):
            method(X, seed=1, num_transitions=number)


def test_the_published_weight_of_a_cloned_decoder_is_biased():
    """It omits `b_K (log p_true - log p_clone)(z_K)`; the README has the ratios."""
    model = make("AMCVAE-cloned")

    @graph
    def run():
        batch = Batch(tf.constant(X))
        result = model.run_transitions(batch, tf.constant([1, 2]), 50_000)
        clone = GenerativeModel(model.prior, model.transition_decoder, model.likelihood)
        differ = model.generative.bind(batch)(result.state) - clone.bind(batch)(result.state)
        return result.log_weights, model.schedule.inverse_temperatures()[-2] * differ

    log_weights, omitted = (np.asarray(value, np.float64) for value in run())
    ours = np.exp(log_weights - LOG_EVIDENCE)
    published = np.exp(log_weights - omitted - LOG_EVIDENCE)
    assert within(ours, 1.0)
    np.testing.assert_allclose(published.mean(0), [0.97, 0.97, 0.88], atol=0.01)
