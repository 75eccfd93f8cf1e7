"""What is frozen stays frozen in every copy of a model, and checkpoints hold all of its weights."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_mcvae

X = (np.random.default_rng(0).random([8, 6]) < 0.4).astype(np.float32)
SMALL = {"architecture": "dense", "hidden_units": (4,)}


def encoder(**options):
    return tf_mcvae.Encoder(2, **SMALL, **options)


def decoder(**options):
    return tf_mcvae.Decoder((6,), **SMALL, **options)


def sequential():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(4), keras.layers.Dense(6)])


def functional():
    z = keras.Input((2,))
    return keras.Model(z, keras.layers.Dense(6)(keras.layers.Dense(4)(z)))


MODELS = {
    "VAE": lambda: tf_mcvae.VAE(
        encoder(), decoder(), likelihood=tf_mcvae.Gaussian(0.5, learned=True)
    ),
    "Sequential": lambda: tf_mcvae.IWAE(encoder(), sequential(), num_samples=2),
    "functional": lambda: tf_mcvae.VAE(encoder(), functional()),
    "FlowVAE": lambda: tf_mcvae.FlowVAE(encoder(), decoder(), num_flows=2),
    "LMCVAE": lambda: tf_mcvae.LMCVAE(
        encoder(),
        decoder(),
        num_transitions=2,
        schedule="sigmoidal",
        step_size=tf_mcvae.StepSize(0.05, "learned"),
        learned_drift=True,
        learned_reverse=True,
        cloned_decoder=True,
    ),
    "AMCVAE": lambda: tf_mcvae.AMCVAE(
        encoder(), decoder(), num_transitions=2, num_samples=2, schedule="all_learnable"
    ),
}
PARTS = {
    "encoder": ("VAE", lambda m: m.encoder),
    "decoder": ("LMCVAE", lambda m: m.decoder),
    "likelihood": ("VAE", lambda m: m.likelihood),
    "a layer of the encoder": ("VAE", lambda m: m.encoder.layers[1]),
    "a layer of a Sequential": ("Sequential", lambda m: m.decoder.layers[0]),
    "a layer of a functional model": ("functional", lambda m: m.decoder.layers[1]),
    "flow": ("FlowVAE", lambda m: m.flow),
    "schedule": ("AMCVAE", lambda m: m.schedule),
    "step size": ("LMCVAE", lambda m: m.step_size),
    "drift": ("LMCVAE", lambda m: m.drift),
    "cloned decoder": ("LMCVAE", lambda m: m.transition_decoder),
    "model": ("VAE", lambda m: m),
}


def built(name):
    keras.utils.set_random_seed(0)
    model = MODELS[name]()
    model.build((None, 6))
    return model


def trainable(model):
    """Whether each weight of a model is trained."""
    trained = set(map(id, model.trainable_weights))
    return [id(weight) in trained for weight in model.weights]


@pytest.mark.parametrize("part", PARTS)
def test_frozen_parts_stay_frozen_in_copies(part, tmp_path):
    name, find = PARTS[part]
    model = built(name)
    count = len(model.trainable_weights)
    find(model).trainable = False
    assert len(model.trainable_weights) < count
    model.compile("adam", run_eagerly=True)
    if model.trainable_weights:
        model.train_on_batch(X)
    model.save(tmp_path / "model.keras")
    copies = [tf_mcvae.load_model(tmp_path / "model.keras"), copy.deepcopy(model)]
    for other in copies:
        assert trainable(other) == trainable(model)
        assert not find(other).trainable
        assert int(other.optimizer.iterations) == int(model.optimizer.iterations)
        for a, b in zip(other.optimizer.variables, model.optimizer.variables, strict=True):
            np.testing.assert_array_equal(a, b)
    other = type(model).from_config(model.get_config())
    other.build((None, 6))
    assert trainable(other) == trainable(model)


def test_networks_made_untrainable_are_frozen():
    model = tf_mcvae.VAE(encoder(trainable=False), decoder())
    model.build((None, 6))
    assert not model.encoder.trainable_weights
    assert len(model.trainable_weights) == len(model.decoder.weights)
    whole = tf_mcvae.LMCVAE(encoder(), decoder(), num_transitions=1, trainable=False)
    whole.build((None, 6))
    assert whole.trainable_weights == []


@pytest.mark.parametrize("name", MODELS)
def test_tensorflow_checkpoints_hold_all_weights(name, tmp_path):
    model, other = built(name), built(name)
    for model_of in (model, other):
        model_of.compile("adam", run_eagerly=True)
        model_of.train_on_batch(X)
    for weight in other.weights:
        weight.assign(np.zeros_like(weight.numpy()))
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "c"))
    restored = tf.train.Checkpoint(model=other, optimizer=other.optimizer).restore(path)
    restored.assert_existing_objects_matched()
    for a, b in zip(other.weights, model.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(other.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)
