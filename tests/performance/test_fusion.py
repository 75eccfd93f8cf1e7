"""Where small operations are fused into loops, and where they must not be."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_mcvae
from tf_mcvae.layers.activations import gelu
from tf_mcvae.models import compilation
from tf_mcvae.models.batch import Batch
from tf_mcvae.models.coming_steps import steps_at_end
from tf_mcvae.performance import cores, plan
from tf_mcvae.performance.fusion import fusing, fusing_graph, is_fusing
from tf_mcvae.performance.upsampling import nearest_resize, upsampled_conv

SHAPE = (8, 8, 1)
SPEC = tf.TensorSpec([None, *SHAPE])


def has_loops(function):
    """Whether the graph of a function, which is traced here, has parts for XLA to compile."""
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
    with fusing():  # Neither eagerly nor in other graphs.
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
        entered.append(is_fusing())
        return estimate(self, x, seed, training)

    monkeypatch.setattr(type(model), "estimate", spying)
    model.compile("adam", jit_compile=jit)
    assert np.isfinite(model.train_on_batch(np.zeros([2, *SHAPE], np.float32))).all()
    assert set(entered) == {not jit}


@pytest.mark.slow
def test_gradients_of_the_whole_model_are_those_of_the_plain_graph():
    """Through a transition, and therefore through second derivatives."""
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


@keras.saving.register_keras_serializable("test_fusion")
class TracedGelu(keras.layers.Layer):
    """A user's layer with a `tf.function`, whose traces TensorFlow keeps."""

    @tf.function
    def call(self, x, training=None):
        return gelu(x)


@pytest.mark.slow
@pytest.mark.parametrize("is_exported_first", [False, True])
def test_a_users_own_tf_function_takes_no_loops_into_an_export(is_exported_first, tmp_path):
    """Whether it is first traced in `fit` or in the export, no export contains XLA."""
    encoder = keras.Sequential([TracedGelu(), keras.layers.Flatten(), keras.layers.Dense(4)])
    model = tf_mcvae.VAE(encoder, tf_mcvae.Decoder(SHAPE))
    model.build((None, *SHAPE))
    model.compile("adam", jit_compile=False)
    x = np.zeros([2, *SHAPE], np.float32)
    if is_exported_first:
        tf_mcvae.export_saved_model(model, tmp_path)
    model.fit(x, validation_data=(x,), verbose=0)
    assert has_loops(tf.function(model.train_step, autograph=False))  # Those of the decoder.
    tf_mcvae.export_saved_model(model, tmp_path)
    graphs = [path.read_bytes() for path in tmp_path.rglob("saved_model.pb")]
    assert len(graphs) == 1 + is_exported_first
    assert not any(b"_XlaMustCompile" in graph for graph in graphs)


def test_loops_and_branches_of_a_fused_graph_are_fused():
    def body(x):
        assert is_fusing()
        return gelu(x)

    def function(x):
        (x,) = tf.while_loop(lambda x: True, lambda x: (body(x),), [x], maximum_iterations=2)
        return tf.cond(tf.reduce_all(x > 0), lambda: body(x), lambda: x)

    assert has_loops(fusing_graph(function))


# Training steps that XLA compiles.


def dense_model(cls, jit_compile, decoder=None):
    decoder = decoder or tf_mcvae.Decoder(SHAPE, architecture="dense", hidden_units=(8,))
    model = cls(tf_mcvae.Encoder(2, architecture="dense", hidden_units=(8,)), decoder)
    model.build((None, *SHAPE))
    model.compile(keras.optimizers.Adam(0.01), jit_compile=jit_compile)
    model.optimizer.build(model.trainable_variables)
    return model


# Layers of users, which XLA may not support.


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


def own_likelihood_that_says_so(*networks):
    class Own(tf_mcvae.Bernoulli):
        suits_xla = True

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
        pytest.param(own_likelihood_that_says_so, "auto", None, True, id="own, says so"),
        pytest.param(OwnModel, "auto", None, False, id="own model", marks=pytest.mark.slow),
    ],
)
def test_auto_compiles_the_training_of_dense_networks_with_transitions(
    cls, jit_compile, decoder, is_compiled
):
    model = dense_model(cls, jit_compile, decoder and decoder())
    assert has_loops(tf.function(model.train_step, autograph=False)) == is_compiled


@pytest.mark.slow
def test_auto_compiles_only_for_many_steps(monkeypatch):
    """Compiling takes as long as hundreds of steps; steps of earlier calls count too."""
    monkeypatch.setattr(plan, "FEWEST_STEPS_TO_COMPILE", 3)
    model, x = dense_model(tf_mcvae.LMCVAE, "auto"), np.zeros([4, *SHAPE], np.float32)
    plans, original = [], plan.plan_execution

    def recorded(**arguments):
        plans.append(original(**arguments))
        return plans[-1]

    monkeypatch.setattr(compilation, "plan_execution", recorded)
    for epochs in (2, 1):
        model.fit(x, epochs=epochs, verbose=0)
    assert [found.compiled_by for found in plans] == ["none", "here"]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"x": np.zeros([65, 2])}, 3),
        ({"x": np.zeros([65, 2]), "batch_size": 10, "validation_split": 0.5, "epochs": 3}, 12),
        ({"x": np.zeros([64, 2]), "epochs": 5, "initial_epoch": 3}, 4),
        ({"x": tf.data.Dataset.range(7).batch(2), "epochs": 2}, 8),
        ({"x": tf.data.Dataset.range(7).repeat()}, None),
        ({"x": tf.data.Dataset.range(7).repeat(), "steps_per_epoch": 6}, 6),
        ({"x": iter([1])}, None),
    ],
)
def test_the_steps_of_a_training_are_counted(arguments, steps):
    assert steps_at_end(arguments, 0) == steps
    assert steps_at_end(arguments, 10) == (None if steps is None else steps + 10)


def test_auto_leaves_evaluation_a_graph():
    """Its batches have many sizes, and it gains little."""
    model = dense_model(tf_mcvae.LMCVAE, "auto")
    assert not has_loops(tf.function(model.test_step, autograph=False))


@pytest.mark.parametrize("num_weights", [100, pytest.param(100_000, marks=pytest.mark.slow)])
def test_auto_compiles_small_networks_where_cores_share_batches(num_weights, monkeypatch):
    monkeypatch.setattr(plan, "MOST_WEIGHTS_FOR_ONE_CORE", num_weights)
    model = dense_model(tf_mcvae.LMCVAE, "auto")
    assert 100 < model.count_params() < 100_000
    with cores.dividing(2):
        is_compiled = has_loops(tf.function(model.train_step, autograph=False))
    assert is_compiled == (num_weights == 100_000)


def test_a_loaded_model_decides_anew(tmp_path):
    model = dense_model(tf_mcvae.LMCVAE, "auto")
    model.save(tmp_path / "model.keras")
    loaded = tf_mcvae.load_model(tmp_path / "model.keras")
    assert has_loops(tf.function(loaded.train_step, autograph=False))


@pytest.mark.slow
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
