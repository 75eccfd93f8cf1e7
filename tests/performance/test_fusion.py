"""Where small operations become single loops, and where they must not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_mcvae
from tf_mcvae.layers.activations import gelu
from tf_mcvae.models import annealed
from tf_mcvae.models.batch import Batch
from tf_mcvae.performance import cores
from tf_mcvae.performance.fusion import fusing, fusing_graph
from tf_mcvae.performance.upsampling import nearest_resize, upsampled_conv

SHAPE = (8, 8, 1)
SPEC = tf.TensorSpec([None, *SHAPE])


def has_loops(function):
    """Whether the graph of a function, traced by now, has parts that XLA is to compile."""
    graph = function.get_concrete_function(SPEC).graph.as_graph_def()
    return any("_XlaMustCompile" in library.attr for library in graph.library.function)


@pytest.mark.parametrize(
    "function",
    [
        gelu,
        lambda x: nearest_resize(x, 16, 12),
        lambda x: upsampled_conv(x, tf.ones([3, 3, 1, 2]), tf.ones([2]), 16, 16),
    ],
)
def test_only_a_fusing_graph_has_loops(function):
    assert has_loops(fusing_graph(function))
    assert not has_loops(tf.function(function))
    with fusing():  # Not eagerly, nor in graphs that are made without asking for it.
        assert not has_loops(tf.function(function))


def conv_model(cls, **kwargs):
    model = cls(tf_mcvae.Encoder(2), tf_mcvae.Decoder(SHAPE), **kwargs)
    model.build((None, *SHAPE))
    return model


def test_the_few_numbers_of_dense_layers_are_not_fused():
    function = fusing_graph(lambda x: gelu(tf.reshape(x, [-1, 64])))
    assert not has_loops(function)


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_training_step_is_fused_unless_xla_compiles_it(jit, monkeypatch):
    model, entered = conv_model(tf_mcvae.VAE), []
    estimate = type(model).estimate

    def spying(self, x, seed, training):
        entered.append(has_loops(tf.function(gelu)))
        return estimate(self, x, seed, training)

    monkeypatch.setattr(type(model), "estimate", spying)
    model.compile("adam", jit_compile=jit)
    assert np.isfinite(model.train_on_batch(np.zeros([2, *SHAPE], np.float32))).all()
    assert set(entered) == {not jit}


@pytest.mark.slow
def test_gradients_of_the_whole_model_are_those_of_the_plain_graph():
    """Through a transition and so through second derivatives."""
    model, seed = conv_model(tf_mcvae.LMCVAE, num_transitions=1), tf.constant([1, 2, 0])
    variables = [variable.value for variable in model.trainable_variables]

    def gradients(x):
        with tf.GradientTape() as tape:
            loss = model.estimate(Batch(x), seed, training=True).loss
        return [loss, *tape.gradient(loss, variables)]

    x = np.random.default_rng(0).integers(0, 2, [7, *SHAPE]).astype(np.float32)
    results = fusing_graph(gradients)(x), tf.function(gradients)(x)
    for actual, expected in zip(*results, strict=True):
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)


# Training steps that XLA compiles.


def dense_model(cls, jit_compile, decoder=None):
    decoder = decoder or tf_mcvae.Decoder(SHAPE, architecture="dense", hidden_units=(8,))
    model = cls(tf_mcvae.Encoder(2, architecture="dense", hidden_units=(8,)), decoder)
    model.build((None, *SHAPE))
    model.compile(keras.optimizers.Adam(0.01), jit_compile=jit_compile)
    model.optimizer.build(model.trainable_variables)
    return model


# What a user may write himself, and XLA may not know.


def sequential():
    return keras.Sequential([keras.layers.Dense(64), keras.layers.Reshape(SHAPE)])


def own_activation():
    options = {"architecture": "dense", "hidden_units": (8,)}
    return tf_mcvae.Decoder(SHAPE, activation=lambda x: tf.tanh(2.0 * x), **options)


class OwnModel(tf_mcvae.LMCVAE):
    pass


def own_likelihood(*networks):
    class Own(tf_mcvae.Bernoulli):
        pass

    return tf_mcvae.LMCVAE(*networks, likelihood=Own())


@pytest.mark.parametrize(
    ("cls", "jit_compile", "decoder", "is_compiled"),
    [
        pytest.param(tf_mcvae.LMCVAE, "auto", None, True, id="L-MCVAE"),
        pytest.param(tf_mcvae.AMCVAE, "auto", None, True, id="A-MCVAE", marks=pytest.mark.slow),
        pytest.param(tf_mcvae.LMCVAE, False, None, False, id="asked not to"),
        pytest.param(tf_mcvae.VAE, "auto", None, False, id="VAE"),
        pytest.param(tf_mcvae.LMCVAE, "auto", sequential, False, id="own layers"),
        pytest.param(
            tf_mcvae.LMCVAE,
            "auto",
            own_activation,
            False,
            id="own activation",
            marks=pytest.mark.slow,
        ),
        pytest.param(own_likelihood, "auto", None, False, id="own likelihood"),
        pytest.param(OwnModel, "auto", None, False, id="own model", marks=pytest.mark.slow),
    ],
)
def test_auto_compiles_the_training_of_dense_networks_with_moves(
    cls, jit_compile, decoder, is_compiled
):
    model = dense_model(cls, jit_compile, decoder and decoder())
    assert has_loops(tf.function(model.train_step, autograph=False)) == is_compiled


def test_auto_leaves_evaluation_a_graph():
    """It comes in as many sizes as there are requests, and gains little."""
    model = dense_model(tf_mcvae.LMCVAE, "auto")
    assert not has_loops(tf.function(model.test_step, autograph=False))


@pytest.mark.parametrize("num_weights", [100, pytest.param(100_000, marks=pytest.mark.slow)])
def test_auto_compiles_small_networks_where_cores_share_batches(num_weights, monkeypatch):
    monkeypatch.setattr(cores, "_num_parts", 2)
    monkeypatch.setattr(annealed, "_FEW_WEIGHTS", num_weights)
    model = dense_model(tf_mcvae.LMCVAE, "auto")
    assert 100 < model.count_params() < 100_000
    is_compiled = has_loops(tf.function(model.train_step, autograph=False))
    assert is_compiled == (num_weights == 100_000)


def test_a_loaded_model_decides_anew(tmp_path):
    model = dense_model(tf_mcvae.LMCVAE, "auto")
    model.save(tmp_path / "model.keras")
    loaded = tf_mcvae.load_model(tmp_path / "model.keras")
    assert has_loops(tf.function(loaded.train_step, autograph=False))


def test_training_that_xla_compiles_is_that_of_the_graph():
    x = np.random.default_rng(0).integers(0, 2, [7, *SHAPE]).astype(np.float32)
    logs = []
    for jit_compile in (False, "auto"):
        keras.utils.set_random_seed(0)
        model = dense_model(tf_mcvae.LMCVAE, jit_compile)
        logs.append([model.train_on_batch(x, return_dict=True) for _ in range(3)][-1])
    assert logs[0].keys() == logs[1].keys()
    for name, expected in logs[0].items():
        np.testing.assert_allclose(logs[1][name], expected, 1e-4, 1e-5, err_msg=name)
