"""Methods whose limits are other methods agree with them, weight by weight.

Equal seeds give equal draws, so the log weights agree themselves and not only in the mean.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import LinearGaussian, as_if_trained, normal_log_prob

import tf_mcvae
from tf_mcvae import kernels, random
from tf_mcvae.models.batch import Batch

PPCA = LinearGaussian()
X = PPCA.data(3)
K = 4


def log_weights(model_class, **settings):
    keras.utils.set_random_seed(1)
    model = PPCA.model(model_class, **{"num_transitions": K, **settings})
    return model.log_weights(X, seed=7, num_samples=6).numpy()


def assert_same(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("model_class", [tf_mcvae.MCDVAE, tf_mcvae.CMCDVAE])
def test_diffusions_start_as_langevin(model_class):
    """The network's last layer is 0 at first."""
    expected = log_weights(tf_mcvae.LMCVAE, step_size=0.08)
    assert_same(log_weights(model_class, step_size=0.08), expected)


@pytest.mark.parametrize("schedule", ["linear", "sigmoidal"])
def test_langevin_variational_inference_starts_as_hamiltonian_annealing(schedule):
    settings = {"step_size": 0.3, "momentum": 0.7, "schedule": schedule, "num_leapfrog_steps": 2}
    expected = log_weights(tf_mcvae.UHAVAE, **settings)
    assert_same(log_weights(tf_mcvae.LDVIVAE, **settings), expected)


@pytest.mark.parametrize(
    "model_class", [tf_mcvae.UHAVAE, tf_mcvae.DAISVAE, tf_mcvae.LDVIVAE, tf_mcvae.HVAE]
)
def test_steps_of_size_0_are_iwae(model_class):
    expected = PPCA.model(tf_mcvae.IWAE).log_weights(X, seed=7, num_samples=6)
    assert_same(log_weights(model_class, step_size=0.0), expected)


@pytest.mark.parametrize("mass", [1.0, [0.5, 2.0]])
def test_full_refreshment_and_one_leapfrog_are_overdamped_langevin(mass):
    """A leapfrog of size e is a Langevin step of size `e^2 / (2 M)` in each dimension."""
    step = 0.4
    momentum = tf_mcvae.MomentumRefresh(0.0, mass)
    langevin = np.broadcast_to(step**2 / (2.0 * np.asarray(mass)), [1, 2])
    expected = log_weights(tf_mcvae.LMCVAE, step_size=langevin)
    assert_same(log_weights(tf_mcvae.UHAVAE, step_size=step, momentum=momentum), expected)


def test_persistence_makes_a_difference():
    """What the comparisons above would not see if the momentum were ignored."""
    full, part = (log_weights(tf_mcvae.UHAVAE, step_size=0.4, momentum=r) for r in (0.0, 0.7))
    assert np.max(np.abs(full - part)) > 0.05


def chain_in_numpy(z, noises, score, step, persistence, mass, midpoint=False):
    """K transitions of one leapfrog in float64: states, and the sum of log ratios."""
    total, v = 0.0, None
    for k, noise in enumerate(noises):
        fresh = np.sqrt(mass) * noise
        v = fresh if v is None else persistence * v + np.sqrt(1.0 - persistence**2) * fresh
        first = v
        if midpoint:
            half = z + 0.5 * step * v / mass
            v = v + step * score(half, k)
            z = half + 0.5 * step * v / mass
        else:
            v = v + 0.5 * step * score(z, k)
            z = z + step * v / mass
            v = v + 0.5 * step * score(z, k)
        total += normal_log_prob(v, 0.0, np.sqrt(mass)) - normal_log_prob(first, 0.0, np.sqrt(mass))
    return z, total


def draws_of(model, num_samples=6):
    """The first states and the momenta's noises that `log_weights(X, 7)` draws, in float64."""
    first, chain = random.split(random.as_seed(7))
    posterior = model.posterior(Batch(tf.constant(X)))
    start = model.draw_posterior(posterior, num_samples, first).numpy().astype(np.float64)
    seeds = [random.split(random.fold_in(chain, k))[0] for k in range(model.num_transitions)]
    return start, [random.normal(start.shape, s).numpy().astype(np.float64) for s in seeds]


@pytest.mark.parametrize("model_class", [tf_mcvae.UHAVAE, tf_mcvae.DAISVAE])
def test_hamiltonian_annealing_in_float64(model_class):
    """The last transition of DAIS has the temperature 1."""
    mass, midpoint = np.array([0.8, 1.3]), model_class is tf_mcvae.DAISVAE
    momentum = tf_mcvae.MomentumRefresh(0.6, mass)
    model = PPCA.model(model_class, num_transitions=K, step_size=0.3, momentum=momentum)
    z, noises = draws_of(model)
    temperatures = np.arange(1, K + 1) / (K if midpoint else K + 1)
    end, ratios = chain_in_numpy(
        z, noises, lambda s, k: PPCA.score(X, s, temperatures[k]), 0.3, 0.6, mass, midpoint
    )
    expected = PPCA.log_joint(X, end) - PPCA.log_posterior(X, z) + ratios
    actual = model.log_weights(X, seed=7, num_samples=6)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.posterior_sample(X, 6, seed=7), end, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", ["quadratic", "free", "none"])
def test_hamiltonian_vae_in_float64(scheme):
    """As published: a momentum from `N(0, T_0)`, slowed after each leapfrog under `p(x, z)`."""
    step = np.array([0.2, 0.3])
    model = PPCA.model(
        tf_mcvae.HVAE,
        num_transitions=K,
        step_size=tf_mcvae.StepSize([step.tolist()]),
        tempering=tf_mcvae.Tempering(scheme, 1.8),
    )
    roots = np.sqrt(1.8) + (1 - np.sqrt(1.8)) * (np.arange(K + 1) / K) ** 2
    temperatures = {
        "quadratic": roots**2,
        "free": 1.8 ** (1.0 - np.arange(K + 1) / K),
        "none": np.ones(K + 1),
    }[scheme]
    np.testing.assert_allclose(model.tempering.temperatures(), temperatures, rtol=1e-5)
    z, noises = draws_of(model)
    log_q = PPCA.log_posterior(X, z)
    v = first = np.sqrt(temperatures[0]) * noises[0]
    for k in range(K):
        v = v + 0.5 * step * PPCA.score(X, z, 1.0)
        z = z + step * v
        v = v + 0.5 * step * PPCA.score(X, z, 1.0)
        v = v * np.sqrt(temperatures[k + 1] / temperatures[k])
    kinetic = normal_log_prob(v, 0.0, 1.0) - normal_log_prob(first, 0.0, np.sqrt(temperatures[0]))
    volume = 0.5 * PPCA.latent_dim * np.log(temperatures[-1] / temperatures[0])
    expected = PPCA.log_joint(X, z) - log_q + kinetic + volume
    actual = model.log_weights(X, seed=7, num_samples=6)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_controlled", [False, True])
def test_diffusions_in_float64(is_controlled):
    """Against both transition densities, written out; the network is evaluated as it is."""
    keras.utils.set_random_seed(2)
    model = PPCA.model(
        tf_mcvae.CMCDVAE if is_controlled else tf_mcvae.MCDVAE, num_transitions=K, step_size=0.1
    )
    as_if_trained(model.network, 0.8)
    step, log_q = 0.1, None
    posterior = model.posterior(Batch(tf.constant(X)))
    features = posterior.distribution.loc, tf.math.log(posterior.distribution.scale)

    def network(z, k):
        outputs = model.network((tf.constant(z, tf.float32), *features), tf.constant(k / K))
        return outputs.numpy().astype(np.float64)

    z, noises = draws_of(model)
    log_q, ratios = PPCA.log_posterior(X, z), 0.0
    scale = np.sqrt(2 * step)
    for k in range(K):
        b = (k + 1) / (K + 1)
        forward = z + step * PPCA.score(X, z, b) + is_controlled * step * network(z, k)
        end = forward + scale * noises[k]
        sign = -1.0 if is_controlled else 1.0
        back = end + step * PPCA.score(X, end, b) + sign * step * network(end, k + 1)
        ratios += normal_log_prob(z, back, scale) - normal_log_prob(end, forward, scale)
        z = end
    expected = PPCA.log_joint(X, z) - log_q + ratios
    assert np.max(np.abs(network(z, K))) > 0.1
    actual = model.log_weights(X, seed=7, num_samples=6)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-4)


def test_learned_backward_refreshment_in_float64():
    """Against the two densities of each refreshment; the first has none."""
    keras.utils.set_random_seed(2)
    r, mass, step = 0.6, np.array([0.8, 1.3]), 0.3
    momentum = tf_mcvae.MomentumRefresh(r, mass)
    model = PPCA.model(tf_mcvae.LDVIVAE, num_transitions=K, step_size=step, momentum=momentum)
    as_if_trained(model.network, 0.8)
    posterior = model.posterior(Batch(tf.constant(X)))
    features = posterior.distribution.loc, tf.math.log(posterior.distribution.scale)
    z, noises = draws_of(model)
    log_q, total, before = PPCA.log_posterior(X, z), 0.0, None
    scale = np.sqrt((1 - r**2) * mass)
    for k in range(K):
        b = (k + 1) / (K + 1)
        v = np.sqrt(mass) * noises[k] if before is None else r * before + scale * noises[k]
        if before is None:
            total -= normal_log_prob(v, 0.0, np.sqrt(mass))
        else:
            inputs = (tf.constant(z, tf.float32), tf.constant(v, tf.float32), *features)
            shift = model.network(inputs, tf.constant(k / K)).numpy().astype(np.float64)
            total += normal_log_prob(before, r * v + (1 - r**2) * shift, scale)
            total -= normal_log_prob(v, r * before, scale)
        v = v + 0.5 * step * PPCA.score(X, z, b)
        z = z + step * v / mass
        before = v + 0.5 * step * PPCA.score(X, z, b)
    total += normal_log_prob(before, 0.0, np.sqrt(mass))
    expected = PPCA.log_joint(X, z) - log_q + total
    actual = model.log_weights(X, seed=7, num_samples=6)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-4)


def test_midpoint_has_no_acceptance_test():
    kernel = kernels.UncalibratedHamiltonian(
        lambda z: -0.5 * tf.reduce_sum(z**2, -1), 0.1, 1, integrator="drift_kick_drift"
    )
    with pytest.raises(ValueError, match=r"acceptance test.*Received: inner_kernel="):
        kernels.MetropolisHastings(kernel)
    with pytest.raises(ValueError, match=r"no acceptance test.*Received: .*'acceptance'"):
        PPCA.model(tf_mcvae.DAISVAE, step_size=tf_mcvae.StepSize(0.1, "acceptance"))
