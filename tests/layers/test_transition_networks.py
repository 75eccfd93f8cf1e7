"""Networks of learned transitions: what they are given, and how many weights they have."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from modes import each_mode
from reference import as_if_trained, drift_network

from tf_mcvae import LMCVAE, Decoder, DriftNetwork, Encoder, LearnedDrift

RNG = np.random.default_rng(0)
# States [S, B, D], and features [B, F] and [S, B, F].
INPUTS = [RNG.normal(size=shape) for shape in ([4, 5, 2], [5, 3], [4, 5, 1])]


def test_a_drift_of_the_encoder_has_weights_for_any_size_of_images():
    options = {"architecture": "dense", "hidden_units": (1,)}
    networks = Encoder(64, **options), Decoder((64, 64, 3), **options)
    model = LMCVAE(*networks, num_transitions=5, learned_drift=True)
    model.build((None, 64, 64, 3))
    # Two hidden layers of 3 D.
    assert model.drift.count_params() == 5 * (2 * (192 * 192 + 192) + 192 * 64 + 64)
    assert model.drift.count_params() < 1_000_000


@pytest.mark.parametrize("features", ["encoder", "x"])
def test_what_a_drift_is_given(features, monkeypatch):
    """A single linear layer with all weights 1 returns the sum of the state and the features."""
    options = {"architecture": "dense", "hidden_units": (4,)}
    drift = LearnedDrift.from_config(LearnedDrift([], features=features).get_config())
    model = LMCVAE(Encoder(2, **options), Decoder((3, 3), **options), learned_drift=drift)
    model.build((None, 3, 3))
    drift.kernels[0].assign(tf.ones_like(drift.kernels[0]))
    seen = []

    def call(state, features, index):
        seen.append((state, features, LearnedDrift.call(drift, state, features, index)))
        return seen[-1][-1]

    monkeypatch.setattr(drift, "call", call)
    x = np.random.default_rng(0).random([5, 3, 3]).astype("float32")
    model.log_weights(x, seed=1, num_samples=2)
    loc, scale = (np.asarray(value) for value in model.encode(x))
    rows = np.concatenate([loc, np.log(scale)], -1) if features == "encoder" else x.reshape(5, 9)
    state, given, output = seen[0]
    np.testing.assert_allclose(np.reshape(given, [5, -1]), rows, rtol=1e-5, atol=1e-6)
    expected = np.sum(state, -1) + np.sum(rows, -1)
    np.testing.assert_allclose(output, np.stack([expected] * 2, -1), rtol=1e-4, atol=1e-5)


def test_a_drift_saved_without_features_is_given_the_examples():
    config = LearnedDrift().get_config()
    assert LearnedDrift.from_config(config).features == "encoder"
    del config["features"]
    assert LearnedDrift.from_config(config).features == "x"


def test_unknown_features_are_refused():
    with pytest.raises(ValueError, match=r"one of .*'encoder', 'x'.*Received: features='pixels'"):
        LearnedDrift(features="pixels")


def drift(dtype="float64", **options):
    """A drift network for `INPUTS`."""
    keras.utils.set_random_seed(0)
    network = DriftNetwork(**{"hidden_units": (7, 6), "num_frequencies": 4, **options}, dtype=dtype)
    network.build(6, 2)
    for bias in network.biases:
        bias.assign(np.linspace(-0.5, 0.5, bias.shape[0]))
    return network


def tensors(dtype="float64"):
    return tuple(tf.constant(value, dtype) for value in INPUTS)


def expected_of(network, inputs, time):
    kernels, biases = ([np.asarray(w) for w in ws] for ws in (network.kernels, network.biases))
    return drift_network(kernels, biases, inputs, time)


@pytest.mark.parametrize("hidden_units", [(), (7,), (7, 6)])
@pytest.mark.parametrize("time", [0.0, 0.3, 1.0])
def test_a_drift_network_is_its_numpy_twin(hidden_units, time):
    network = drift(hidden_units=hidden_units)
    as_if_trained(network)
    output = network(tensors(), tf.constant(time, tf.float64))
    np.testing.assert_allclose(output, expected_of(network, INPUTS, time), rtol=1e-12, atol=1e-14)
    alone = DriftNetwork(dtype="float64")
    alone.build(2, 2)
    as_if_trained(alone)
    output = alone(tensors()[:1], tf.constant(time, tf.float64))
    np.testing.assert_allclose(output, expected_of(alone, INPUTS[:1], time), rtol=1e-12, atol=1e-14)


def test_a_drift_network_starts_at_0_and_can_leave_it():
    """All of the last kernel has a gradient at first, the last hidden layer."""
    network = DriftNetwork((7, 6), dtype="float64")
    network.build(6, 2)
    with tf.GradientTape() as tape:
        output = network(tensors(), tf.constant(0.3, tf.float64))
        total = tf.reduce_sum(output)
    *others, of_last = tape.gradient(total, network.kernels)
    assert np.all(output == 0.0)
    assert all(np.all(gradient == 0.0) for gradient in others)
    assert np.all(np.abs(of_last) > 1e-3)


@each_mode
def test_a_drift_network_runs_in_a_loop(mode):
    """Values and gradients of three steps, by finite differences of the twin."""
    network = drift()
    as_if_trained(network)

    def run(*inputs):
        def step(index, state):
            time = tf.cast(index, state.dtype) / 3.0
            return index + 1, state + network((state, *inputs[1:]), time)

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            start = (tf.constant(0), inputs[0])
            _, state = tf.while_loop(lambda i, _: i < 3, step, start, maximum_iterations=3)
            total = tf.reduce_sum(state**2)
        weights = [weight.value for weight in network.trainable_variables]
        return total, tape.gradient(total, [*inputs, *weights])

    def twin():
        state = INPUTS[0]
        for index in range(3):
            state = state + expected_of(network, [state, *INPUTS[1:]], index / 3)
        return np.sum(state**2)

    total, gradients = mode(run)(*tensors())
    np.testing.assert_allclose(total, twin(), rtol=1e-10)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    for weight, gradient in zip(network.trainable_variables, gradients[3:], strict=True):
        value, values = weight.numpy(), []
        direction = np.random.default_rng(1).normal(size=value.shape)
        for sign in (1.0, -1.0):
            weight.assign(value + sign * 1e-5 * direction)
            values.append(twin())
        weight.assign(value)
        slope = (values[0] - values[1]) / 2e-5
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("policy", "dtype", "tolerance"),
    [
        ("float32", "float32", 1e-5),
        ("mixed_bfloat16", "float32", 0.03),
        ("float32", "float64", 1e-5),
    ],
)
def test_a_drift_network_returns_the_dtype_of_the_state(policy, dtype, tolerance):
    network = drift(policy)
    as_if_trained(network)
    output = network(tensors(dtype), tf.constant(0.3, dtype))
    assert output.dtype == dtype
    expected = expected_of(network, INPUTS, 0.3)
    atol = tolerance * np.max(np.abs(expected))
    np.testing.assert_allclose(output, expected, rtol=0, atol=atol)


def test_a_drift_network_has_a_configuration_and_seeded_weights():
    network = drift("float32", activation="tanh")
    config = network.get_config()
    copy = DriftNetwork.from_config(config)
    assert copy.get_config() == config
    copy.build_from_config(network.get_build_config())
    assert [w.shape for w in copy.weights] == [w.shape for w in network.weights]
    for one, other in zip(drift().kernels, drift().kernels, strict=True):
        np.testing.assert_array_equal(one, other)
    limit = np.sqrt(6 / (6 + 8 + 7))  # Glorot's.
    assert 0.8 * limit < np.max(np.abs(drift().kernels[0])) <= limit


@pytest.mark.parametrize("arguments", [{"hidden_units": (0,)}, {"num_frequencies": 0}])
def test_bad_arguments_of_a_drift_network(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be a positive.*Received"):
        DriftNetwork(**arguments)
