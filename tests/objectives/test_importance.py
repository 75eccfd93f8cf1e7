"""The annealed importance loop: its weights, its cost, and its modes of execution.

Log weights are recomputed in float64 NumPy from the states of the loop.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from modes import graph, xla
from reference import LinearGaussian

import tf_mcvae
from tf_mcvae import kernels, random
from tf_mcvae.kernels import AnnealedPath
from tf_mcvae.models.batch import Batch
from tf_mcvae.objectives.annealed import annealed_importance_sampling

PPCA = LinearGaussian()
X = PPCA.data(3)
MODEL = PPCA.model(tf_mcvae.VAE)
SEED = random.as_seed(-5)
K, STEP = 4, 0.1
TEMPERATURES = np.array([0.0, 0.1, 0.35, 0.6, 0.85, 1.0], np.float32)

CALIBRATED = {
    "MALA": lambda path, b: kernels.MetropolisAdjustedLangevin(path, 3 * STEP, b),
    "MALA-barker": lambda path, b: kernels.MetropolisAdjustedLangevin(
        path, STEP, b, acceptance="barker"
    ),
    "HMC": lambda path, b: kernels.HamiltonianMonteCarlo(path, 3 * STEP, 3, b),
}
ALL = {**CALIBRATED, "ULA": lambda path, b: kernels.UnadjustedLangevin(path, STEP, b)}


def anneal(make_kernel, num_samples=6, model=MODEL, seed=SEED, **kwargs):
    """Runs the loop from the encoder along `TEMPERATURES`."""
    posterior = model.posterior(Batch(tf.constant(X)))
    path = model.path(Batch(tf.constant(X)), posterior)
    temperatures = tf.constant(TEMPERATURES)
    start_seed, chain_seed = random.split(seed)
    return annealed_importance_sampling(
        path,
        model.draw_posterior(posterior, num_samples, start_seed),
        lambda index, results: make_kernel(path, temperatures[index + 1]),
        K,
        chain_seed,
        **kwargs,
    )


def trace_state(state, results):
    return state


def states_of(run):
    """All K + 1 states, in float64."""
    states = np.concatenate([run.initial_state[np.newaxis], run.trace])
    return states.astype(np.float64)


# The weights.


@pytest.mark.parametrize("name", CALIBRATED)
def test_calibrated_kernels_give_neals_sum(name):
    run = anneal(CALIBRATED[name], 50, trace_fn=trace_state)
    states = states_of(run)
    np.testing.assert_array_equal(states[-1], run.state)
    moved = np.any(np.diff(states, axis=0), -1)
    assert 0.02 < 1 - moved.mean() < 0.9  # Some proposals are rejected.
    terms = PPCA.log_joint(X, states) - PPCA.log_posterior(X, states)
    expected = np.einsum("k,ksb->sb", np.diff(TEMPERATURES.astype(np.float64)), terms)
    np.testing.assert_allclose(run.log_weights, expected, rtol=1e-5, atol=1e-4)


def test_unadjusted_langevin_gives_the_noises_difference():
    """The noises are also independent: correlations are within 5 standard errors."""
    run = anneal(ALL["ULA"], 2000, trace_fn=trace_state)
    states = states_of(run)
    noises, log_ratios = [], 0.0
    for k in range(K):
        begin, end, b = states[k], states[k + 1], TEMPERATURES[k + 1]
        forward = (end - begin - STEP * PPCA.score(X, begin, b)) / np.sqrt(2 * STEP)
        backward = (begin - end - STEP * PPCA.score(X, end, b)) / np.sqrt(2 * STEP)
        noises.append(forward.ravel())
        log_ratios = log_ratios + 0.5 * np.sum(forward**2 - backward**2, -1)
    ends = PPCA.log_joint(X, states[-1]) - PPCA.log_posterior(X, states[0])
    np.testing.assert_allclose(run.log_weights, ends + log_ratios, rtol=1e-4, atol=1e-3)
    start = (states[0] - PPCA.encoder_moments(X)[0]).ravel()
    correlation = np.corrcoef([start, *noises])[np.triu_indices(K + 1, 1)]
    assert np.max(np.abs(correlation)) < 5 / np.sqrt(start.size)


@pytest.mark.parametrize("name", ALL)
def test_final_density(name):
    """It changes only the weight of the last state, not the chain."""

    def other(z):
        return -tf.reduce_sum(tf.abs(z), -1)

    plain, weighed = anneal(ALL[name]), anneal(ALL[name], final_log_prob_fn=other)
    np.testing.assert_array_equal(plain.state, weighed.state)
    change = other(plain.state) - PPCA.log_joint(X, plain.state.numpy())
    np.testing.assert_allclose(
        weighed.log_weights - plain.log_weights, change, rtol=1e-4, atol=1e-4
    )


def test_traces():
    run = anneal(ALL["MALA"])
    assert (run.trace.shape, run.trace.dtype) == ((K, 6, 3), tf.bool)
    assert run.initial_state.shape == run.state.shape == (6, 3, 2)
    assert run.log_weights.shape == (6, 3)
    nested = anneal(ALL["MALA"], trace_fn=lambda state, results: {"z": state, "r": (results,)})
    np.testing.assert_array_equal(nested.trace["r"][0].is_accepted, run.trace)
    np.testing.assert_array_equal(nested.trace["z"][-1], run.state)
    assert nested.trace["r"][0].endpoints.score_p.shape == (K, 6, 3, 2)


def test_a_kernel_may_follow_the_results_before():
    path = MODEL.path(Batch(tf.constant(X)), MODEL.posterior(Batch(X)))

    def kernel_fn(index, results):
        step = 0.01 if results is None else 2.0 * results.step_size
        return kernels.MetropolisAdjustedLangevin(path, step, 0.5)

    @graph
    def run():
        return annealed_importance_sampling(
            path, tf.zeros([5, 3, 2]), kernel_fn, 3, SEED, trace_fn=lambda _, r: r.step_size
        )

    np.testing.assert_allclose(run().trace, [0.02, 0.04, 0.08], rtol=1e-6)


# The cost.


class CountingDecoder(keras.Model):
    """Counts its calls when they are executed, also in graphs and loops."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units, self.dense = units, keras.layers.Dense(units)
        self.count = tf.Variable(0)

    def call(self, z):
        self.count.assign_add(1)
        return self.dense(z)

    def get_config(self):
        return {"units": self.units}

    def counted(self):
        count = int(self.count)
        self.count.assign(0)
        return count


def counting_model(model_class, **settings):
    encoder, _ = PPCA.networks()
    model = model_class(encoder, CountingDecoder(5), likelihood="gaussian", **settings)
    model.build((None, 5))
    return model


def value_and_gradients(model, function):
    def compute(*arguments):
        with tf.GradientTape() as tape:
            values = function(*arguments)
            weights = tf.reshape(tf.range(1.0, tf.size(values, tf.float32) + 1), values.shape)
            total = tf.reduce_sum(values * weights)
        return values, tape.gradient(
            total, [variable.value for variable in model.trainable_variables]
        )

    return compute


MODEL_CLASSES = [tf_mcvae.LMCVAE, pytest.param(tf_mcvae.AMCVAE, marks=pytest.mark.slow)]


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_one_decoder_call_a_state(model_class):
    """The backward pass does not call the decoder again."""
    model = counting_model(model_class, num_transitions=5, num_samples=3)
    graph(value_and_gradients(model, lambda x: model.log_weights(x, seed=1)))(X)
    assert model.decoder.counted() == 6


def test_coupled_chains_call_the_decoder_twice_as_often_and_have_one_gradient():
    """The loop of the second chains keeps nothing for a backward pass, and has none."""
    model = counting_model(tf_mcvae.AMCVAE, num_transitions=5, num_samples=3, gradient="coupled")

    def loss(x):
        return model.estimate(Batch(x), SEED, training=True).loss

    gradient = graph(value_and_gradients(model, loss))
    gradient(tf.constant(X))
    assert model.decoder.counted() == 12
    loops = [
        operation
        for operation in gradient.get_concrete_function(tf.constant(X)).graph.get_operations()
        if operation.type.endswith("While")
    ]
    kept = [sum(output.dtype == tf.variant for output in loop.outputs) for loop in loops]
    assert len(loops) == 3  # Of the chains, of those with a choice inverted, and the gradient's.
    assert sum(number > 10 for number in kept) == 2
    assert 0 in kept


@pytest.mark.parametrize("model_class", [tf_mcvae.LMCVAE, tf_mcvae.AMCVAE])
def test_one_call_of_the_decoder_beside_its_clone(model_class):
    model = counting_model(model_class, num_transitions=5, cloned_decoder=True)
    tf.function(model.log_weights)(X, seed=1)
    assert model.transition_decoder.counted() == 6
    assert model.decoder.counted() == 1


@pytest.mark.parametrize(
    "name",
    [
        "UHAVAE",
        "CMCDVAE",
        "HVAE",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("DAISVAE", "LDVIVAE", "MCDVAE")),
    ],
)
def test_one_decoder_call_a_transition(name):
    """Those of DAIS are in the middle of its K steps, and one more is at the end."""
    model = counting_model(getattr(tf_mcvae, name), num_transitions=5, num_samples=3)
    graph(value_and_gradients(model, lambda x: model.log_weights(x, seed=1)))(X)
    assert model.decoder.counted() == 6


def test_midpoints_take_one_gradient_a_step(monkeypatch):
    """The call at the end has no gradient."""
    counted = tf.Variable(0)
    evaluate = AnnealedPath.endpoints

    def counting(path, state):
        counted.assign_add(1)
        return evaluate(path, state)

    monkeypatch.setattr(AnnealedPath, "endpoints", counting)
    model = PPCA.model(tf_mcvae.DAISVAE, num_transitions=5)
    tf.function(model.log_weights)(X, seed=1)
    assert int(counted) == 5


def test_one_decoder_call_a_leapfrog():
    model = counting_model(tf_mcvae.VAE)
    graph(lambda: anneal(CALIBRATED["HMC"], model=model))()
    assert model.decoder.counted() == 3 * K + 1


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_graph_does_not_grow_with_the_number_of_transitions(model_class):
    def num_nodes(num_transitions):
        model = PPCA.model(model_class, num_transitions=num_transitions)
        compute = value_and_gradients(model, lambda x: model.log_weights(x, seed=1))
        traced = graph(compute).get_concrete_function(tf.TensorSpec(X.shape))
        definition = traced.graph.as_graph_def()
        return len(definition.node) + sum(len(f.node_def) for f in definition.library.function)

    assert num_nodes(3) == num_nodes(30)


# Modes of execution.


def everything_learned(model_class):
    model = PPCA.model(
        model_class,
        num_transitions=3,
        num_samples=4,
        schedule="all_learnable",
        step_size=tf_mcvae.StepSize(STEP, rule="learned"),
    )
    return model, lambda seed: model.log_weights(tf.constant(X), seed)


CASES = {
    "LMCVAE": lambda: everything_learned(tf_mcvae.LMCVAE),
    "AMCVAE": lambda: everything_learned(tf_mcvae.AMCVAE),
    "HMC": lambda: (MODEL, lambda seed: anneal(CALIBRATED["HMC"], seed=seed).log_weights),
}


@pytest.mark.slow  # tests/test_fixtures.py checks recorded gradients in all modes.
@pytest.mark.parametrize("name", CASES)
def test_same_weights_and_gradients_eager_graph_xla(name):
    compute = value_and_gradients(*CASES[name]())
    values, gradients = compute(SEED)
    assert all(np.any(gradient) for gradient in gradients)
    for compiled in (graph(compute), xla(compute)):
        others, other_gradients = compiled(SEED)
        np.testing.assert_allclose(others, values, rtol=1e-4, atol=1e-4)
        for expected, actual in zip(gradients, other_gradients, strict=True):
            np.testing.assert_allclose(
                actual, expected, rtol=0, atol=1e-4 * np.max(np.abs(expected))
            )


@pytest.mark.parametrize("name", ["LMCVAE", "AMCVAE"])
def test_rows_with_seeds_do_not_depend_on_each_other(name):
    model, _ = CASES[name]()
    seeds = tf.constant([[1, -2], [3, 4], [-5, 6]])
    together = model.log_weights(X, random.per_row(seeds))
    alone = [
        model.log_weights(X[row : row + 1], random.per_row(seeds[row : row + 1]))
        for row in range(3)
    ]
    np.testing.assert_allclose(together, np.concatenate(alone, 1), rtol=1e-4, atol=1e-4)
    assert not np.allclose(together, model.log_weights(X, seeds[0]))
