"""Where small operations become single loops, and where they must not."""

import numpy as np
import pytest
import tensorflow as tf

import tf_mcvae
from tf_mcvae.activations import gelu
from tf_mcvae.fusion import fusing, fusing_graph
from tf_mcvae.upsampling import nearest_resize, upsampled_conv

SHAPE = (8, 8, 1)


def has_loops(function):
    """Whether the graph of a function, traced by now, has parts that XLA is to compile."""
    graph = function.get_concrete_function(tf.TensorSpec([None, *SHAPE])).graph.as_graph_def()
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
            loss = model.estimate(x, seed, training=True).loss
        return [loss, *tape.gradient(loss, variables)]

    x = np.random.default_rng(0).integers(0, 2, [7, *SHAPE]).astype(np.float32)
    results = fusing_graph(gradients)(x), tf.function(gradients)(x)
    for actual, expected in zip(*results, strict=True):
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)
