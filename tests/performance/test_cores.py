"""Batches that the cores of a CPU share: the same numbers, whatever the number of parts."""

import contextlib
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from distribute import trained

import tf_mcvae
from tf_mcvae.performance import cores, plan

SHAPE = trained.SHAPE


@pytest.fixture
def parts(monkeypatch):
    """Sets the number of parts as `parallelize_over_batch` does, but not TensorFlow's threads."""
    monkeypatch.setattr(plan, "FEWEST_WEIGHTS_TO_DIVIDE", 0)  # The networks of tests are small.
    with contextlib.ExitStack() as stack:
        yield lambda count: stack.enter_context(cores.dividing(count))


def run(*lines):
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# The division of a batch.


@pytest.mark.parametrize("size", [7, 2, 0])
def test_parts_follow_each_other(size):
    @tf.function(input_signature=[tf.TensorSpec([None, 2])])
    def divide(x):
        found = cores.in_parts(lambda rows, first: (rows[0], rows[1], first), (x, None), 3)
        assert [second for _, second, _ in found] == [None] * 3
        return [(rows, first) for rows, _, first in found]

    x = np.arange(2.0 * size, dtype=np.float32).reshape(size, 2)
    found = divide(x)
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in found]), x)
    sizes = [len(rows) for rows, _ in found]
    assert max(sizes) - min(sizes) <= 1
    assert [int(first) for _, first in found] == [0, sizes[0], sizes[0] + sizes[1]]


CASES = [
    ("VAE", {"skip_gradient_norm": 2.5}, {"weighted": True, "num": 17}),
    pytest.param(
        "LMCVAE-variance",
        {"skip_gradient_norm": 2.5},
        {"weighted": True, "num": 17},
        marks=pytest.mark.slow,
    ),
    pytest.param("IWAE", {"optimizer": {"global_clipnorm": 1.0}}, {}, marks=pytest.mark.slow),
    pytest.param("AMCVAE", {}, {}, marks=pytest.mark.slow),
    pytest.param("LMCVAE-acceptance", {}, {}, marks=pytest.mark.slow),
    pytest.param("LMCVAE-learned", {}, {"num": 17}, marks=pytest.mark.slow),
    pytest.param("FlowVAE", {}, {}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("case", "compiled", "fitted"), CASES, ids=str)
def test_training_evaluation_and_predictions_are_those_of_whole_batches(
    case, compiled, fitted, parts
):
    """With a penalty on weights; the last batch has one of the 17 examples, so parts are empty."""
    results = []
    for count in (1, 3):
        parts(count)
        results.append(trained.train(trained.make(case, None, **compiled), **fitted))
    assert results[0].keys() == results[1].keys()
    for name, expected in results[0].items():
        np.testing.assert_allclose(results[1][name], expected, 2e-5, 1e-5, err_msg=name)


@pytest.mark.parametrize("jit", [False, True])
def test_what_is_not_divided(jit, parts):
    """Steps that XLA compiles, and training of networks with a state, do not change by a bit."""
    weights = []
    for count in (1, 3):
        parts(count)
        keras.utils.set_random_seed(0)
        encoder, decoder = trained.networks()
        if not jit:
            encoder = keras.Sequential([keras.layers.BatchNormalization(), encoder])
        model = tf_mcvae.VAE(encoder, decoder)
        model.build((None, *SHAPE))
        model.compile(keras.optimizers.SGD(0.1), jit_compile=jit)
        model.fit(trained.X, batch_size=7, epochs=2, verbose=0)
        weights.append(model.get_weights())
    for first, second in zip(*weights, strict=True):
        np.testing.assert_array_equal(first, second)


def test_small_dense_networks_are_not_divided(parts, monkeypatch):
    """Op dispatch dominates their steps, so dividing them would not pay."""
    parts(3)
    divided = []
    monkeypatch.setattr(cores, "divided", lambda *args: divided.append(args))
    monkeypatch.setattr(plan, "FEWEST_WEIGHTS_TO_DIVIDE", 1_000_000)
    trained.make("VAE", None).train_on_batch(trained.X)
    assert not divided


# Evaluations.


def test_evaluations_are_those_of_whole_chunks(parts):
    model = trained.make("LMCVAE-acceptance", None)
    x = trained.X[:11]
    ais = {"num_chains": 2, "num_temperatures": 4, "num_leapfrog_steps": 2}

    def evaluate():
        iwae = tf_mcvae.estimate_iwae(model, x, num_samples=10, chunk_size=70)
        annealed = tf_mcvae.estimate_log_likelihood(model, x[:5], **ais)
        return [iwae.per_example, annealed.per_example]

    whole = evaluate()
    parts(3)
    for actual, expected in zip(evaluate(), whole, strict=True):
        np.testing.assert_allclose(actual, expected, 2e-6)


@pytest.mark.slow
def test_gaps_are_those_of_whole_chunks(parts):
    model = trained.make("LMCVAE-acceptance", None)
    ais = {"num_chains": 2, "num_temperatures": 4, "num_leapfrog_steps": 2}
    whole = tf_mcvae.bidirectional_gap(model, num_examples=5, **ais)
    parts(3)
    gap = tf_mcvae.bidirectional_gap(model, num_examples=5, **ais)
    # The gap is a difference, as uncertain as the bounds.
    np.testing.assert_allclose(gap.gap, whole.gap, atol=2e-6 * abs(whole.upper.mean))
    for actual, expected in zip((gap.lower, gap.upper), (whole.lower, whole.upper), strict=True):
        np.testing.assert_allclose(actual.per_example, expected.per_example, 2e-6)


# The threads.


@pytest.mark.slow
def test_threads_are_set_before_tensorflow_computes():
    printed = run(
        "import tensorflow as tf, tf_mcvae",
        "tf_mcvae.parallelize_over_batch(1)",
        "print(tf.config.threading.get_intra_op_parallelism_threads())",
        "tf_mcvae.parallelize_over_batch(3)",
        "print(tf.config.threading.get_intra_op_parallelism_threads())",
        "print(tf.config.threading.get_inter_op_parallelism_threads())",
        "tf.zeros([])",
        "tf_mcvae.parallelize_over_batch(3)",  # No change.
        "print(tf_mcvae.performance.cores.num_parts())",
    )
    assert printed == ["0", "1", "3", "3"]


def test_one_core_undoes_what_can_be_undone():
    """Before TensorFlow computes, everything; later batches are whole but the threads stay."""
    printed = run(
        "import tensorflow as tf, tf_mcvae",
        "threading = tf.config.threading",
        "threading.set_intra_op_parallelism_threads(2)",
        "def divide(count):",
        "    tf_mcvae.parallelize_over_batch(count)",
        "    print(tf_mcvae.performance.cores.num_parts())",
        "    print(threading.get_intra_op_parallelism_threads())",
        "    print(threading.get_inter_op_parallelism_threads())",
        "divide(3), divide(4), divide(1), divide(3)",
        "tf.zeros([])",
        "divide(1), divide(3), divide(1)",
    )
    before = ["3", "1", "3", "4", "1", "4", "1", "2", "0", "3", "1", "3"]
    assert printed == [*before, "1", "1", "3", "3", "1", "3", "1", "1", "3"]


def test_a_tensorflow_that_has_computed_is_left_as_it_is():
    tf.zeros([])
    intra = tf.config.threading.get_intra_op_parallelism_threads()
    other = tf.config.threading.get_inter_op_parallelism_threads() + 2
    with pytest.raises(RuntimeError, match=r"right after the imports.* Received: "):
        tf_mcvae.parallelize_over_batch(other)
    assert cores.num_parts() == 1
    assert tf.config.threading.get_intra_op_parallelism_threads() == intra


@pytest.mark.parametrize("count", [0, -1, 1.5, "two"])
def test_impossible_numbers_of_cores_are_refused(count):
    with pytest.raises((TypeError, ValueError), match=r"num_cores.*Received: "):
        tf_mcvae.parallelize_over_batch(count)


def test_a_machine_with_a_gpu_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["a GPU"])
    tf_mcvae.parallelize_over_batch(3)
    assert cores.num_parts() == 1
