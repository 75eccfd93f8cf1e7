"""Evaluations are compiled once for a model and its settings, and see what the model is now."""

import copy
import gc
import logging
import pickle
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import LinearGaussian

import tf_mcvae
from tf_mcvae import estimate_bound, estimate_elbo, estimate_iwae, estimate_log_likelihood
from tf_mcvae.evaluation import bidirectional_gap, graphs, latent_statistics
from tf_mcvae.evaluation.graphs import graph_of

PPCA = LinearGaussian()
X = PPCA.data(6)
QUICK = {"num_chains": 2, "num_temperatures": 3, "num_leapfrog_steps": 1}

# To test another evaluation, add a line: a number that it computes from a model and a seed.
EVALUATIONS = {
    "ELBO": lambda model, seed: estimate_elbo(model, X, 3 + seed, seed=seed).mean,
    "IWAE": lambda model, seed: estimate_iwae(model, X, 3 + seed, seed=seed).mean,
    "bound": lambda model, seed: estimate_bound(model, X, seed=seed).mean,
    "latents": lambda model, seed: latent_statistics(model, X[seed % 3 :]).kl.sum(),
    "AIS": lambda model, seed: (
        estimate_log_likelihood(
            model, X, **{**QUICK, "num_chains": 2 + seed, "num_temperatures": 3 + seed}, seed=seed
        ).mean
    ),
    "gap": lambda model, seed: bidirectional_gap(model, 3 + seed, seed=seed, **QUICK).gap,
}


class OwnModel(tf_mcvae.LMCVAE):
    """A user's model, whose constructor does not name its arguments."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class OwnLayer(keras.layers.Layer):
    """A user's layer, with a layer of its own and an attribute that is not an argument."""

    def __init__(self):
        super().__init__()
        self.gain, self.inner = 1.0, keras.layers.Dense(5)

    def call(self, z):
        return self.gain * self.inner(z)


def new_model(model_class=tf_mcvae.LMCVAE):
    return PPCA.model(model_class, num_transitions=2, num_samples=2, step_size=0.1)


def graphs_of(model):
    return vars(model)["_evaluation_graphs"].made


@pytest.fixture
def logged():
    """The messages of TensorFlow's logger."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = tf.get_logger()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.fixture(scope="module")
def scored():
    """A model that all evaluations have scored."""
    model = new_model()
    for evaluate in EVALUATIONS.values():
        evaluate(model, 0)
    return model


@pytest.mark.parametrize("name", EVALUATIONS)
def test_nothing_is_compiled_again(name, scored):
    before = list(graphs_of(scored).items())
    for seed in range(3):
        assert np.isfinite(EVALUATIONS[name](scored, seed))
    assert list(graphs_of(scored).items()) == before


def test_tensorflow_does_not_warn_of_retracing(logged, scored):
    names = list(EVALUATIONS)
    for number in range(3):  # Five graphs of one kind would do for a warning.
        model = new_model()
        for name in names[2 * number : 2 * number + 2]:
            EVALUATIONS[name](model, 0)
            EVALUATIONS[name](scored, 1)
    assert not [text for text in logged if "retracing" in text]


def trained(model):
    model.compile("sgd")
    model.fit(X, epochs=1, verbose=0)


def with_weights(model):
    model.decoder.set_weights([1.1 * weight for weight in model.decoder.get_weights()])


def with_more_samples(model):
    model.num_samples = 5


def with_another_activation(model):
    model.decoder.layers[0].activation = keras.activations.tanh


@pytest.mark.parametrize(
    ("model_class", "change"),
    [
        (tf_mcvae.LMCVAE, trained),
        pytest.param(tf_mcvae.LMCVAE, with_weights, marks=pytest.mark.slow),
        (OwnModel, with_more_samples),
        pytest.param(tf_mcvae.LMCVAE, with_another_activation, marks=pytest.mark.slow),
    ],
)
def test_a_changed_model_is_scored_as_it_is(model_class, change):
    model = new_model(model_class)
    before = estimate_bound(model, X).mean
    change(model)
    after = estimate_bound(model, X)
    assert after.mean != before
    vars(model).pop("_evaluation_graphs")
    np.testing.assert_array_equal(after.per_example, estimate_bound(model, X).per_example)


@pytest.mark.parametrize("name", ["gain", "activation"])
def test_a_changed_layer_is_scored_as_it_is(name):
    layer = OwnLayer()
    encoder = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4)])
    model = tf_mcvae.VAE(encoder, keras.Sequential([keras.Input((2,)), layer]))
    before = estimate_bound(model, X > 0).mean
    if name == "gain":
        layer.gain = 3.0
    else:
        layer.inner.activation = keras.activations.tanh
    assert estimate_bound(model, X > 0).mean != before


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_have_no_graphs(copied, scored):
    copy_of = copied(scored)
    assert not getattr(vars(copy_of).get("_evaluation_graphs"), "made", {})
    assert EVALUATIONS["bound"](copy_of, 1) == pytest.approx(EVALUATIONS["bound"](scored, 1))


def test_files_do_not_hold_graphs(scored, tmp_path):
    scored.save(tmp_path / "scored.keras")
    loaded = tf_mcvae.load_model(tmp_path / "scored.keras")
    assert "_evaluation_graphs" not in vars(loaded)
    assert "graph" not in str(scored.get_config())
    tf.train.Checkpoint(model=scored).write(str(tmp_path / "checkpoint"))
    names = [name for name, _ in tf.train.list_variables(str(tmp_path / "checkpoint"))]
    assert not [name for name in names if "_evaluation_graphs" in name]


def test_graphs_are_freed_with_their_model():
    model = new_model()
    for name in ("bound", "AIS"):
        EVALUATIONS[name](model, 0)
    kept = [weakref.ref(made.graph) for made, _ in graphs_of(model).values()]
    kept += [weakref.ref(model), weakref.ref(model.decoder)]
    assert len(kept) == 6
    del model
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(kept)


def doubled(model, factor, x):
    return factor * x


def test_a_model_keeps_a_limited_number_of_graphs(monkeypatch):
    monkeypatch.setattr(graphs, "_MOST_GRAPHS", 3)
    model = new_model()
    for factor in range(5):
        graph = graph_of(doubled, model, factor, signature=[tf.TensorSpec([])])
        assert graph(tf.constant(2.0)) == 2.0 * factor
    assert [key[1] for key in graphs_of(model)] == [(2,), (3,), (4,)]
