"""Networks against the recorded runs and a NumPy twin, and the contract of all networks."""

import ast
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from modes import MODES, each_mode
from reference import gelu, numpy_conv, numpy_resize
from reference_weights import CONV_FIXTURES, DENSE_FIXTURES, reference_arrays, set_reference_weights

from tf_mcvae.layers.activations import ACTIVATIONS
from tf_mcvae.layers.likelihoods import Bernoulli, Gaussian
from tf_mcvae.layers.networks import Decoder, Encoder

LATENT_DIM = 3


def rng():
    return np.random.default_rng(0)


# All networks run the same tests. To test a new one, add a line.
def make_encoder(shape, architecture, **kwargs):
    return Encoder(LATENT_DIM, architecture, hidden_units=(7, 5), **kwargs), shape


def make_decoder(shape, architecture, **kwargs):
    return Decoder(shape, architecture, hidden_units=(5, 7), **kwargs), (LATENT_DIM,)


NETWORKS = {
    f"{make.__name__[5:]}-{architecture}": (make, architecture)
    for make in (make_encoder, make_decoder)
    for architecture in ("conv", "dense")
}
each_network = pytest.mark.parametrize(("make", "architecture"), NETWORKS.values(), ids=NETWORKS)
SHAPES = [(8, 8, 1), (28, 28, 1), (32, 32, 3), (105, 105, 1), (9, 14, 2)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@each_network
@each_shape
def test_contract(make, architecture, shape, tmp_path):
    """Build, shapes, batch sizes, one gradient step, configuration, saving."""
    network, input_shape = make(shape, architecture)
    network.build((None, *input_shape))
    expected = (2 * LATENT_DIM,) if isinstance(network, Encoder) else shape
    assert network.compute_output_shape((None, *input_shape)) == (None, *expected)
    inputs = rng().normal(size=(3, *input_shape)).astype(np.float32)
    outputs = network(inputs)
    assert outputs.shape == (3, *expected)
    for size in (1, 2):
        np.testing.assert_allclose(network(inputs[:size]), outputs[:size], rtol=1e-4, atol=1e-5)

    before = network.get_weights()
    network.compile(keras.optimizers.SGD(1e-2), loss="mse")
    network.train_on_batch(inputs, np.ones_like(outputs))
    assert all(np.any(a != b) for a, b in zip(before, network.get_weights(), strict=True))

    config = json.loads(json.dumps(network.get_config()))
    assert type(network).from_config(config).get_config() == config
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    assert type(loaded) is type(network)
    np.testing.assert_array_equal(loaded(inputs), network(inputs))


# Keras 3.10 gives this warning for every loaded functional model with one input.
@pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match")
@each_network
def test_saved_within_a_functional_model(make, architecture, tmp_path):
    network, input_shape = make((9, 14, 2), architecture)
    inputs = keras.Input(input_shape)
    model = keras.Model(inputs, network(2.0 * inputs))
    model.save(tmp_path / "model.keras")
    x = rng().normal(size=(2, *input_shape)).astype(np.float32)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), network(2.0 * x), rtol=1e-6, atol=1e-7)


@each_network
def test_variables_have_names_of_their_own(make, architecture):
    paths = []
    for name in ("first_network", "second_network"):
        network, input_shape = make((8, 8, 1), architecture, name=name)
        network.build((None, *input_shape))
        paths += [variable.path for variable in network.trainable_variables]
    assert len(set(paths)) == len(paths)


@each_network
def test_mixed_precision(make, architecture):
    network, input_shape = make((8, 8, 1), architecture, dtype="mixed_bfloat16")
    x = rng().normal(size=(2, *input_shape)).astype(np.float32)
    with tf.GradientTape() as tape:
        outputs = network(x)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 2)
    assert outputs.dtype == tf.bfloat16
    gradients = tape.gradient(loss, [v.value for v in network.trainable_variables])
    for variable, gradient in zip(network.trainable_variables, gradients, strict=True):
        assert variable.dtype == gradient.dtype == "float32"
        assert np.all(np.isfinite(gradient))
    exact = type(network).from_config({**network.get_config(), "dtype": "float32"})
    exact.build((None, *input_shape))
    exact.set_weights(network.get_weights())
    error = np.linalg.norm(tf.cast(outputs, tf.float32) - exact(x))
    assert error < 0.05 * np.linalg.norm(exact(x))


@pytest.mark.parametrize("event", [(36,), (6, 6, 1), (4, 3), (2, 3, 4, 2)], ids=str)
def test_dense_networks_take_any_shape(event):
    x = rng().normal(size=(2, *event)).astype(np.float32)
    code = Encoder(LATENT_DIM, "dense")(x)
    assert code.shape == (2, 2 * LATENT_DIM)
    assert Decoder(event, "dense")(code[:, :LATENT_DIM]).shape == x.shape
    assert Decoder(event, "dense", hidden_units=())(code).shape == x.shape


def test_bytes_are_taken_as_numbers():
    encoder = Encoder(LATENT_DIM, "dense")
    x = np.arange(72, dtype=np.uint8).reshape(2, 36)
    np.testing.assert_allclose(encoder(x), encoder(x.astype(np.float32)))


def test_a_users_activation_is_saved(tmp_path):
    @keras.saving.register_keras_serializable("tf_mcvae_tests")
    def square(x):
        return x * x

    for activation in (square, "silu"):
        decoder = Decoder((6,), "dense", activation=activation)
        decoder.build((None, 2))
        decoder.save(tmp_path / "decoder.keras")
        z = tf.ones([1, 2])
        np.testing.assert_array_equal(
            keras.saving.load_model(tmp_path / "decoder.keras")(z), decoder(z)
        )


@pytest.mark.parametrize("shape", [(7, 8, 1), (8, 7, 1), (6, 6, 1), (28, 28), (None, 28, 1)])
def test_small_images_are_referred_to_the_dense_networks(shape):
    with pytest.raises(ValueError, match=r'architecture="dense".*Received: shape='):
        Encoder(LATENT_DIM).build((None, *shape))
    if None not in shape:
        with pytest.raises(ValueError, match=r'architecture="dense".*Received: shape='):
            Decoder(shape)


def test_wrong_arguments():
    for make in (lambda **k: Encoder(2, **k), lambda **k: Decoder((8, 8, 1), **k)):
        with pytest.raises(ValueError, match=r'"conv" or "dense".*Received: architecture='):
            make(architecture="transformer")
        for wrong in ((0,), (3.5,), "400", None):
            with pytest.raises(ValueError, match=r"`hidden_units` must .*Received: hidden_units="):
                make(architecture="dense", hidden_units=wrong)
    with pytest.raises(ValueError, match="`latent_dim` must be a positive integer"):
        Encoder(0)
    with pytest.raises(ValueError, match="`output_shape` must be a positive integer"):
        Decoder((8, -8, 1))


# Against the recorded runs of the published implementation.


def recorded(path):
    with np.load(path) as file:
        arrays = dict(file)
    config = ast.literal_eval(str(arrays["config"]))
    architecture = {"fc": "dense", "conv": "conv"}[config["net_type"]]
    options = {"architecture": architecture, "activation": "gelu"}
    if architecture == "dense":
        options = {**options, "activation": "tanh", "hidden_units": (16,)}
    x = arrays["x"].transpose(0, 2, 3, 1)
    latent_dim = arrays["out/mu"].shape[1]
    encoder, decoder = Encoder(latent_dim, **options), Decoder(x.shape[1:], **options)
    encoder.build((None, *x.shape[1:]))
    decoder.build((None, latent_dim))
    set_reference_weights(encoder, arrays, "encoder_net")
    set_reference_weights(decoder, arrays, "decoder_net")
    gaussian = config.get("specific_likelihood") == "gaussian"
    likelihood = Gaussian(float(config["sigma"])) if gaussian else Bernoulli()
    return arrays, x, encoder, decoder, likelihood


def folded(x, arrays):
    """Repeats the batch for the recorded samples, row s*B+b."""
    return np.tile(x, (len(arrays["out/mu"]) // len(x), *[1] * (x.ndim - 1)))


def relative_error(actual, expected):
    return np.linalg.norm(np.asarray(actual) - expected) / np.linalg.norm(expected)


RECORDED = [p for p in DENSE_FIXTURES if not p.stem.startswith("nll")] + CONV_FIXTURES
# The published Langevin transitions also return the score at the old state.
SCORES = {"lmcvae": "trace/make_transition.4", "amcvae": "trace/make_transition.3"}
LEARNED_DRIFT = ("reverse_kernels", "score_matching")


def test_convolutional_recordings():
    if not CONV_FIXTURES:
        pytest.skip("the recordings of the convolutional networks are not part of the project")


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_encoder_is_the_published_one(path):
    arrays, x, encoder, _, _ = recorded(path)
    code = np.concatenate([arrays["out/mu"], arrays["out/logvar"]], -1)
    assert relative_error(folded(np.asarray(encoder(x)), arrays), code) < 2e-6


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in RECORDED
        if "mcvae" in p.stem and not any(word in p.stem for word in LEARNED_DRIFT)
    ],
    ids=lambda path: path.stem,
)
def test_decoder_is_the_published_one(path):
    """By the score of the annealing path at every state that the recorded chain visited."""
    arrays, x, _, decoder, likelihood = recorded(path)
    if "param/cloned_decoder.net.0.weight" in arrays:
        set_reference_weights(decoder, arrays, "cloned_decoder")
    x, loc, log_variance = folded(x, arrays), arrays["out/mu"], arrays["out/logvar"]
    states = np.stack([arrays["out/z0"], *arrays["trace/make_transition.0"][:-1]])
    scores = arrays[SCORES[path.stem.split("_")[0]]]
    for z, b, score in zip(tf.constant(states), arrays["out/betas"][1:-1], scores, strict=True):
        with tf.GradientTape() as tape:
            tape.watch(z)
            log_q = -0.5 * tf.reduce_sum((z - loc) ** 2 / np.exp(log_variance), -1)
            log_p = -0.5 * tf.reduce_sum(z**2, -1) + likelihood.log_prob(decoder(z), x)
            target = (1.0 - b) * log_q + b * log_p
        assert relative_error(tape.gradient(target, z), score) < 1e-5


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_gradients_fit_the_variables(path):
    arrays, _, encoder, decoder, _ = recorded(path)
    for network, prefix in ((encoder, "encoder_net"), (decoder, "decoder_net")):
        shapes = [tuple(variable.shape) for variable in network.trainable_variables]
        assert [g.shape for g in reference_arrays(arrays, prefix, "grad")] == shapes


# Against a float64 rewrite of the convolutional pair.


def numpy_block(x, weights):
    y = gelu(numpy_conv(x, next(weights), next(weights)))
    y = gelu(numpy_conv(y, next(weights), next(weights)))
    lacking = y.shape[-1] - x.shape[-1]
    return y if lacking < 0 else y + np.pad(x, [(0, 0)] * 3 + [(0, lacking)])


def numpy_max_pool(x):
    height, width = x.shape[1] // 2, x.shape[2] // 2
    blocks = x[:, : 2 * height, : 2 * width].reshape(len(x), height, 2, width, 2, -1)
    return blocks.max((2, 4))


@pytest.mark.parametrize(
    "shape",
    [pytest.param((8, 8, 1), marks=pytest.mark.slow), (9, 14, 2), (17, 23, 3)],
    ids=str,
)
@each_mode
def test_convolutional_pair_is_its_float64_twin(shape, mode):
    x, z = rng().normal(size=(2, *shape)), rng().normal(size=(2, LATENT_DIM))
    encoder = Encoder(LATENT_DIM, dtype="float64")
    decoder = Decoder(shape, dtype="float64")
    code, image = mode(encoder)(x), mode(decoder)(z)

    weights = iter(encoder.get_weights())
    y = numpy_block(x, weights)
    for _ in range(3):
        y = numpy_block(numpy_max_pool(y), weights)
    expected = y.reshape(2, -1) @ next(weights) + next(weights)
    np.testing.assert_allclose(code, expected, rtol=1e-10, atol=1e-12)

    weights = iter(decoder.get_weights())
    rows, columns = shape[0] // 8, shape[1] // 8
    y = (z @ next(weights) + next(weights)).reshape(2, rows, columns, 64)
    for size in ((2 * rows, 2 * columns), (4 * rows, 4 * columns), shape[:2]):
        y = numpy_block(numpy_resize(y, *size), weights)
    expected = numpy_conv(y, next(weights), next(weights))
    np.testing.assert_allclose(image, expected, rtol=1e-10, atol=1e-12)


# Second derivatives of a decoder, which training a bound through its scores needs.


@pytest.mark.parametrize(
    ("architecture", "activation"),
    [
        pytest.param("conv", "gelu", marks=pytest.mark.slow),
        *(("dense", name) for name in ACTIVATIONS),
    ],
)
def test_second_order_gradients_agree_in_all_modes(architecture, activation):
    """d/dθ of |d log p(x|z)/dz|², by autodiff in all modes and by finite differences."""
    decoder = Decoder((9, 12, 1), architecture, activation, (6,), dtype="float64")
    decoder.build((None, LATENT_DIM))
    weights = [v.value for v in decoder.trainable_variables]
    for value in weights:  # biases away from zero, where ReLU has no derivative
        value.assign_add(0.1 * rng().normal(size=value.shape))
    z = tf.constant(rng().normal(size=(2, LATENT_DIM)))
    x = tf.cast(rng().integers(0, 2, (2, 9, 12, 1)), tf.float64)

    def score_norm():
        with tf.GradientTape() as tape:
            tape.watch(z)
            log_prob = Bernoulli().log_prob(decoder(z), x)
        return tf.reduce_sum(tape.gradient(log_prob, z) ** 2)

    def gradient():
        with tf.GradientTape() as tape:
            value = score_norm()
        return tape.gradient(value, weights, unconnected_gradients="zero")

    gradients = [[np.asarray(g) for g in mode(gradient)()] for mode in MODES.values()]
    scale = max(abs(g).max() for g in gradients[0])
    for other in gradients[1:]:
        for actual, expected in zip(other, gradients[0], strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-9 * scale)

    directions = [rng().normal(size=w.shape) for w in weights]
    slope = sum((g * d).sum() for g, d in zip(gradients[0], directions, strict=True))
    step, values = 1e-6, []
    for sign in (1.0, -2.0):
        for value, direction in zip(weights, directions, strict=True):
            value.assign_add(sign * step * direction)
        values.append(float(score_norm()))
    np.testing.assert_allclose(slope, (values[0] - values[1]) / (2 * step), rtol=1e-4)
