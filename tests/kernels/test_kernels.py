"""Kernels leave their target invariant, agree with TFP's, and evaluate only what they need.

Statistical checks are at 5 standard errors: a false alarm in 1.7 million for each number checked.
"""

import inspect

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp
from modes import graph, xla
from reference import within

from tf_mcvae import kernels, random
from tf_mcvae.kernels.path import AnnealedPath
from tf_mcvae.kernels.step_size_rules import published_acceptance_update, variance_update
from tf_mcvae.kernels.transition import acceptance_slope, draw_acceptance, log_accept_probs

tfd = tfp.distributions
SCALES = np.array([0.5, 1.5], np.float32)
BASE = tfd.MultivariateNormalDiag([1.0, -1.0], [1.0, 0.4])
TARGET = tfd.MultivariateNormalDiag([0.0, 0.5], SCALES)
PATH = AnnealedPath(BASE.log_prob, TARGET.log_prob)

# To test another kernel, add a line.
CALIBRATED = {
    "MALA": lambda target, **kw: kernels.MetropolisAdjustedLangevin(target, 0.2, **kw),
    "MALA-barker": lambda target, **kw: kernels.MetropolisAdjustedLangevin(
        target, 0.2, acceptance="barker", **kw
    ),
    "MALA-per-dimension": lambda target, **kw: kernels.MetropolisAdjustedLangevin(
        target, [0.05, 0.4], **kw
    ),
    "HMC": lambda target, **kw: kernels.HamiltonianMonteCarlo(target, 0.4, 3, **kw),
    "HMC-persistent": lambda target, **kw: kernels.HamiltonianMonteCarlo(
        target, 0.4, 1, momentum_persistence=0.8, **kw
    ),
    "HMC-barker": lambda target, **kw: kernels.HamiltonianMonteCarlo(
        target, 0.4, 3, acceptance="barker", **kw
    ),
}
UNCALIBRATED = {
    "ULA": lambda target, **kw: kernels.UnadjustedLangevin(target, 0.1, **kw),
    "midpoint": lambda target, **kw: kernels.UncalibratedHamiltonian(
        target, 0.15, 2, momentum_persistence=0.5, mass=0.7, integrator="drift_kick_drift", **kw
    ),
}
ALL = {**CALIBRATED, **UNCALIBRATED}


def mixed_normal(b):
    """Mean and scale of `pi_b`, which is Gaussian: precisions mix linearly."""
    precisions = [(1 - b) / BASE.variance(), b / TARGET.variance()]
    means = [BASE.mean(), TARGET.mean()]
    total = precisions[0] + precisions[1]
    mean = sum(p * m for p, m in zip(precisions, means, strict=True)) / total
    return mean.numpy(), (total**-0.5).numpy()


def chain(kernel, start, num_steps, seed):
    @graph
    def run():
        state, results = start, kernel.bootstrap_results(start)
        moments = []
        for index in range(num_steps):
            state, results = kernel.one_step(state, results, random.fold_in(seed, index))
            moments.append(results.is_accepted)
        return state, tf.stack(moments)

    return run()


FEW = [("MALA", 0.3), ("MALA-barker", 0.3), ("HMC", 0.3), ("HMC-persistent", 0.3)]


@pytest.mark.parametrize(
    ("name", "b"),
    [
        pytest.param(name, b, marks=[pytest.mark.slow] * ((name, b) not in FEW))
        for name in CALIBRATED
        for b in (0.0, 0.3, 1.0)
    ],
)
def test_target_is_invariant(name, b):
    mean, scale = mixed_normal(b)
    kernel = CALIBRATED[name](PATH, inverse_temperature=b)
    noise = random.normal([50_000, 2], random.as_seed(1))
    state, accepted = chain(kernel, mean + scale * noise, 5, random.as_seed(2))
    standard = (state.numpy() - mean) / scale
    assert within(standard, 0.0)
    assert within(standard**2, 1.0)
    assert within(standard**4, 3.0)
    assert 0.3 < np.mean(accepted) < 0.999
    assert not np.allclose(state, mean + scale * noise)


def test_unadjusted_langevin_has_its_own_stationary_law():
    """On N(0, 1) with step e the variance is 1 / (1 - e / 2), not 1."""
    step = 0.5
    kernel = kernels.UnadjustedLangevin(tfd.Normal(0.0, 1.0).log_prob, step)
    start = random.normal([100_000], random.as_seed(1)) / np.sqrt(1 - step / 2)
    state, _ = chain(kernel, start, 4, random.as_seed(2))
    assert within(np.square(state, dtype=np.float64), 1 / (1 - step / 2))
    assert not within(np.square(state, dtype=np.float64), 1.0)


@pytest.mark.filterwarnings("ignore:supplied `TransitionKernel` is not calibrated")
@pytest.mark.parametrize("name", ALL)
def test_runs_under_sample_chain(name):
    kernel = ALL[name](TARGET.log_prob)

    @graph
    def run():
        return tfp.mcmc.sample_chain(
            300,
            tf.zeros([200, 2]),
            kernel=kernel,
            num_burnin_steps=50,
            trace_fn=lambda _, results: results.is_accepted,
            seed=3,
        )

    draws, accepted = run()
    assert draws.shape == (300, 200, 2)
    assert accepted.shape == (300, 200)
    chain_means = tf.reduce_mean(draws, 0)
    bias = 0.0 if kernel.is_calibrated else 0.02
    error = np.std(chain_means, 0) / np.sqrt(200)
    assert np.all(np.abs(np.mean(chain_means, 0) - TARGET.mean()) < 5 * error + bias)
    assert kernel.is_calibrated is (name not in UNCALIBRATED)


@pytest.mark.parametrize("name", ALL)
def test_copy_keeps_the_parameters(name):
    """`tfp.mcmc` rebuilds kernels through `parameters`."""
    kernel = ALL[name](TARGET.log_prob)
    state = tf.ones([3, 2])
    results = kernel.bootstrap_results(state)
    expected = kernel.one_step(state, results, seed=5)[0]
    np.testing.assert_array_equal(kernel.copy().one_step(state, results, seed=5)[0], expected)


def test_agrees_with_tfp_langevin():
    """TFP's step is twice ours; the mean acceptance and squared jump are equal."""
    ours = kernels.MetropolisAdjustedLangevin(TARGET.log_prob, 0.15)
    theirs = tfp.mcmc.MetropolisAdjustedLangevinAlgorithm(TARGET.log_prob, step_size=0.3)
    start = TARGET.sample(50_000, seed=4)
    statistics = []
    for kernel in (ours, theirs):
        state, results = kernel.one_step(start, kernel.bootstrap_results(start), seed=(5, 6))
        jump = np.sum(np.square(state - start), -1)
        statistics.append(np.stack([np.asarray(results.is_accepted, np.float64), jump], 1))
    difference = statistics[0].mean(0) - statistics[1].mean(0)
    error = np.sqrt(sum(s.var(0) / len(s) for s in statistics))
    assert np.all(np.abs(difference) < 5 * error)


def test_score_of_a_state_that_tfp_drew_itself():
    """TFP's caches would make the gradient vanish without an error."""
    state = TARGET.sample(3, seed=1)
    expected = -(state - TARGET.mean()) / TARGET.variance()
    np.testing.assert_allclose(PATH.endpoints(state).score_p, expected, rtol=1e-5)


def test_agrees_with_tfp_leapfrog():
    state, momentum = tf.constant([[0.3, -1.0]]), tf.constant([[0.5, 0.2]])
    integrator = tfp.mcmc.internal.leapfrog_integrator.SimpleLeapfrogIntegrator(
        TARGET.log_prob, [tf.constant(0.2)], 4
    )
    their_momentum, their_state, _, _ = integrator([momentum], [state])
    kernel = kernels.UncalibratedHamiltonian(TARGET.log_prob, 0.2, 4)
    ours = kernel.leapfrogs(state, momentum, kernel.path.endpoints(state))
    np.testing.assert_allclose(ours[0], their_state[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1], their_momentum[0], rtol=1e-5)


def test_endpoints_are_not_tied_to_a_temperature():
    """Results of a step at one temperature are valid for the next step at another."""
    state = tf.constant([[0.4, 1.0], [2.0, -0.5]])
    hot = kernels.MetropolisAdjustedLangevin(PATH, 0.2, 0.1)
    cold = kernels.MetropolisAdjustedLangevin(PATH, 0.2, 0.9)
    state, carried = hot.one_step(state, hot.bootstrap_results(state), seed=1)
    fresh = cold.bootstrap_results(state)
    for expected, actual in zip(
        tf.nest.flatten(cold.one_step(state, fresh, seed=2)),
        tf.nest.flatten(cold.one_step(state, carried, seed=2)),
        strict=True,
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "ULA",
        "HMC-persistent",
        *[
            pytest.param(name, marks=pytest.mark.slow)
            for name in ALL
            if name not in ("ULA", "HMC-persistent")
        ],
    ],
)
def test_same_numbers_eager_graph_xla(name):
    state = tf.constant([[0.4, 1.0], [2.0, -0.5]])

    def step():
        kernel = ALL[name](PATH, inverse_temperature=0.4)
        return kernel.one_step(state, kernel.bootstrap_results(state), random.as_seed(3))

    eager = tf.nest.flatten(step())
    for compiled in (graph(step), xla(step)):
        for expected, actual in zip(eager, tf.nest.flatten(compiled()), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("acceptance", ["metropolis", "barker"])
def test_acceptance_probabilities(acceptance):
    log_ratio = np.array([-40.0, -2.0, -1e-3, 0.0, 0.5, 30.0])
    ratio = np.exp(log_ratio)
    accept = np.minimum(1, ratio) if acceptance == "metropolis" else ratio / (1 + ratio)
    log_accept, log_reject = log_accept_probs(tf.constant(log_ratio), acceptance)
    np.testing.assert_allclose(np.exp(log_accept), accept, rtol=1e-9)
    np.testing.assert_allclose(np.exp(log_reject), 1 - accept, atol=2e-8)


@pytest.mark.parametrize("acceptance", ["metropolis", "barker"])
def test_slope_is_the_derivative_of_the_probability_of_acceptance(acceptance):
    log_ratio = tf.constant([-40.0, -2.0, -1e-3, 0.5, 30.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(log_ratio)
        accept = tf.exp(log_accept_probs(log_ratio, acceptance)[0])
    expected = tape.gradient(accept, log_ratio)
    np.testing.assert_allclose(acceptance_slope(log_ratio, acceptance), expected, rtol=1e-9)
    hopeless_or_certain = tf.constant([-np.inf, np.nan, np.inf])
    np.testing.assert_array_equal(acceptance_slope(hopeless_or_certain, acceptance), 0.0)


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.MetropolisAdjustedLangevin(PATH, 0.5, 0.7),
        kernels.HamiltonianMonteCarlo(PATH, 1.0, 3, 0.7, momentum_persistence=0.5),
    ],
    ids=["MALA", "HMC"],
)
def test_decisions_are_inverted(kernel):
    """With the same proposal: the other decision takes the other of the two states."""
    start = random.normal([50, 2, 2], random.as_seed(1))
    results = kernel.bootstrap_results(start)
    own, decided = kernel.one_step(start, results, random.as_seed(2))
    where = tf.random.stateless_uniform([50, 2], [1, 2]) < 0.5
    other, inverted = kernel.inverting(where).one_step(start, results, random.as_seed(2))
    assert 0.1 < np.mean(decided.is_accepted) < 0.9
    np.testing.assert_array_equal(inverted.is_accepted, decided.is_accepted ^ where)
    np.testing.assert_array_equal(inverted.log_accept_ratio, decided.log_accept_ratio)
    np.testing.assert_array_equal(other[~where], own[~where])
    stayed = np.all(other == start, -1)
    np.testing.assert_array_equal(stayed, ~inverted.is_accepted)
    probs = np.exp(inverted.log_choice_prob) + np.exp(decided.log_choice_prob)
    np.testing.assert_allclose(probs[where], 1.0, rtol=1e-5)


@pytest.mark.parametrize("acceptance", ["metropolis", "barker"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_certain_acceptance_stays_finite_when_compiled(acceptance, jit_compile):
    """Constant folding must not make the logarithm of a rejection probability of 0 -inf."""

    @graph(jit_compile=jit_compile)
    def values_and_gradients(log_ratio):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(log_ratio)
            values = log_accept_probs(log_ratio, acceptance)
            chosen = tf.where(log_ratio > -1.0, *values)
        return values, tape.gradient(chosen, log_ratio)

    results = values_and_gradients(tf.constant([0.0, 3.0, 80.0, -1e-6, -80.0]))
    assert all(np.all(np.isfinite(value)) for value in tf.nest.flatten(results))


def test_langevin_log_ratio_is_that_of_the_two_densities():
    """Against the two transition densities, written out in float64."""
    step, b = 0.3, 0.6
    start = np.array([[0.4, 1.0], [2.0, -0.5]])
    kernel = kernels.UnadjustedLangevin(PATH, step, b)
    begin = tf.constant(start, tf.float32)
    end, results = kernel.one_step(begin, kernel.bootstrap_results(begin), seed=4)
    mean, scale = mixed_normal(b)

    def log_density(to, origin):
        loc = origin - step * (origin - mean) / scale**2
        return np.sum(-((to - loc) ** 2) / (4 * step), -1)

    end = end.numpy().astype(np.float64)
    expected = log_density(start, end) - log_density(end, start)
    np.testing.assert_allclose(results.log_ratio, expected, rtol=1e-4)


def test_skip_threshold_undoes_unlikely_proposals():
    """Against the rule in NumPy, which undoes proposals of MH probability <= threshold."""
    state = TARGET.sample(1000, seed=1)
    plain = kernels.UnadjustedLangevin(TARGET.log_prob, 0.5)
    skipping = kernels.UnadjustedLangevin(TARGET.log_prob, 0.5, skip_threshold=0.4)
    results = plain.bootstrap_results(state)
    moved, free = plain.one_step(state, results, seed=2)
    kept, ruled = skipping.one_step(state, results, seed=2)
    undone = np.exp(np.minimum(free.log_accept_ratio, 0)) <= 0.4
    assert 50 < undone.sum() < 950
    np.testing.assert_allclose(kept, np.where(undone[:, None], state, moved))
    np.testing.assert_allclose(ruled.log_ratio, np.where(undone, 0, free.log_ratio), atol=1e-6)


def test_published_acceptance_rule():
    step = tf.constant([0.1, 0.1, 0.4999, 0.001])
    new = published_acceptance_update(step, tf.constant([0.9, 0.89, 1.0, 0.0]), 0.9)
    np.testing.assert_allclose(new, [0.1 * 1.002, 0.1 * 0.998, 0.5, 0.001], rtol=1e-5)


def test_variance_rule():
    step, scale = tf.constant([[0.1, 0.2]] * 2), tf.constant([0.1, 0.3])
    score_std = tf.constant([[0.0, 1.0], [3.0, 9.0]])
    new, gamma = variance_update(step, scale, tf.constant([0.5, 0.95]), score_std, 0.9)
    np.testing.assert_allclose(
        new, [[0.09 + 0.01, 0.18 + 0.005], [0.09 + 0.0075, 0.18 + 0.003]], rtol=1e-5
    )
    np.testing.assert_allclose(gamma, [0.1 * 0.99, 0.3 * 1.02], rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kernels.UnadjustedLangevin(3.0, 0.1), "callable.*Received: .*3.0"),
        (lambda: kernels.HamiltonianMonteCarlo(TARGET.log_prob, 0.1, 0), "positive.*Received: .*0"),
        (
            lambda: kernels.MetropolisAdjustedLangevin(TARGET.log_prob, 0.1, acceptance="gibbs"),
            "'metropolis' or 'barker'.*Received: .*gibbs",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_target_without_gradient():
    kernel = kernels.UnadjustedLangevin(lambda z: tf.cast(tf.cast(z, tf.int32), tf.float32), 0.1)
    with pytest.raises(ValueError, match=r"differentiable.*Received: "):
        kernel.bootstrap_results(tf.zeros([3]))


def test_seed_is_required():
    kernel = kernels.UnadjustedLangevin(TARGET.log_prob, 0.1)
    state = tf.zeros([1, 2])
    with pytest.raises(ValueError, match=r"needs a seed.*Received: seed=None"):
        kernel.one_step(state, kernel.bootstrap_results(state))


def test_kernels_follow_the_contract_of_tfp():
    public = [getattr(kernels, name) for name in kernels.__all__]
    classes = [kernel for kernel in public if hasattr(kernel, "one_step")]
    assert len(classes) == 6
    for kernel in classes:
        assert issubclass(kernel, tfp.mcmc.TransitionKernel)
        names = list(inspect.signature(kernel.one_step).parameters)
        assert names == ["self", "current_state", "previous_kernel_results", "seed"]


def test_all_randomness_of_a_chain_comes_from_the_seeds_of_its_steps():
    """The first momentum of a kernel that keeps it, too."""
    kernel = ALL["HMC-persistent"](TARGET.log_prob)
    start = tf.zeros([4, 2])
    first, again, other = (chain(kernel, start, 1, random.as_seed(s))[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.all(np.any(first.numpy() != other.numpy(), axis=-1))


def test_first_momentum_is_drawn_whole():
    """Before the first transition there is none to keep: it is standard normal, as all others."""
    kernel = kernels.UncalibratedHamiltonian(TARGET.log_prob, 1e-3, 1, momentum_persistence=0.8)
    state = tf.zeros([50_000, 2])
    results = kernel.bootstrap_results(state)
    for seed in (1, 2):
        state, results = kernel.one_step(state, results, random.as_seed(seed))
        assert within(np.asarray(results.carry.value, np.float64) ** 2, 1.0)


def test_drifts_are_any_functions_of_the_place():
    """The log ratio is that of the two Gaussian densities, written out in float64."""
    step, features = 0.3, np.array([[0.5], [-1.0]], np.float32)

    def forward(place):
        return kernels.Drift(place.score + place.features * tf.cast(place.index, tf.float32))

    def backward(place):
        return kernels.Drift(0.5 * place.score, tf.zeros_like(place.state) - 1.0)

    start = tf.constant([[0.4, 1.0], [2.0, -0.5]])
    kernel = kernels.UnadjustedLangevin(
        PATH,
        step,
        0.6,
        forward_drift=forward,
        backward_drift=backward,
        index=2,
        features=tf.constant(features),
    )
    end, results = kernel.one_step(start, kernel.bootstrap_results(start), seed=4)
    mean, scale = mixed_normal(0.6)
    z, w = start.numpy().astype(np.float64), end.numpy().astype(np.float64)
    there = scipy.stats.norm.logpdf(
        w, z + step * ((mean - z) / scale**2 + 2 * features), np.sqrt(2 * step)
    )
    back = scipy.stats.norm.logpdf(z, w + step * 0.5 * (mean - w) / scale**2, np.exp(-0.5))
    np.testing.assert_allclose(results.log_ratio, np.sum(back - there, -1), rtol=1e-4)
    error = np.sum((2 * features * np.ones([2, 2])) ** 2, -1)
    np.testing.assert_allclose(results.diagnostics["drift_error"], error, rtol=1e-5)


@pytest.mark.parametrize("acceptance", ["metropolis", "barker"])
def test_the_smallest_draw_does_not_accept_hopeless_proposals(acceptance, monkeypatch):
    """Not even with bits that are all 0; what is unknown is hopeless."""
    monkeypatch.setattr(random, "integers", lambda shape, seed: tf.zeros(shape, tf.int32))
    log_ratio = tf.constant([-60.0, -np.inf, np.nan, 0.0, np.inf])
    log_accept, log_reject = log_accept_probs(log_ratio, acceptance)
    accepted = draw_acceptance(log_accept, random.as_seed(1)).numpy()
    assert accepted.tolist() == [False, False, False, True, True]
    assert not np.any(np.isnan(log_accept))
    assert not np.any(np.isnan(log_reject))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["MALA", "MALA-barker", "HMC", "HMC-persistent"])
def test_rejected_overflows_do_not_reach_the_gradient(name, compiled):
    """Chains that start with a possible state keep it, and all gradients are finite."""
    start = tf.constant([[0.4, 1.0], [2.0, -0.5]])

    @graph(jit_compile=compiled)
    def run(scale):
        def log_prob(z):
            return -tf.reduce_sum(tf.square(z / scale) + tf.nn.softplus(z), -1)

        path = AnnealedPath(lambda z: -0.5 * tf.reduce_sum(tf.square(z), -1), log_prob)
        kernel = ALL[name](path, inverse_temperature=0.5)
        inner = kernel.inner_kernel
        with tf.GradientTape() as tape:
            tape.watch(scale)
            state, results, total = start, kernel.bootstrap_results(start), 0.0
            for index, step in enumerate((1e19, 1e30, 1e37)):
                inner.step_size = tf.constant(step)
                state, results = kernel.one_step(state, results, random.as_seed(index))
                total += tf.reduce_sum(results.log_ratio + results.log_choice_prob)
            total += tf.reduce_sum(results.endpoints.log_p)
        return state, results.is_accepted, results.carry, tape.gradient(total, scale)

    state, accepted, carry, gradient = run(tf.constant([1.0, 2.0]))
    np.testing.assert_array_equal(state, start)
    assert not np.any(accepted)
    assert all(np.all(np.isfinite(tf.cast(c, tf.float32))) for c in tf.nest.flatten(carry))
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient != 0.0)
