"""Training that diverges stops, and says so once, with the likely causes."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_mcvae
from tf_mcvae.models.divergence import StopOnDivergence

X = (np.random.default_rng(0).random([8, 8]) < 0.4).astype("float32")


def make(rate=0.01, likelihood="bernoulli", **compile_options):
    keras.utils.set_random_seed(0)
    model = tf_mcvae.VAE(
        tf_mcvae.Encoder(2, architecture="dense", hidden_units=(4,)),
        tf_mcvae.Decoder((8,), architecture="dense", hidden_units=(4,)),
        likelihood=likelihood,
    )
    options = {"run_eagerly": True, **compile_options}
    model.compile(keras.optimizers.SGD(rate), **options)
    return model


def warned(function):
    """Returns the function's result, and the messages of its warnings of divergence."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function()
    ours = [w for w in caught if issubclass(w.category, RuntimeWarning) and "Received" in str(w)]
    assert all(w.filename == __file__ for w in ours)  # The user's line, not one of Keras.
    return result, [str(w.message) for w in ours]


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_training_that_diverges_stops_with_its_likely_causes(mode):
    x = np.concatenate([X, 1e6 * X], axis=1)[:, 4:12]
    model = make(1e30, "gaussian", run_eagerly=mode == "eager", jit_compile=False)
    history, messages = warned(
        lambda: model.fit(x, epochs=9, verbose=0, batch_size=4, validation_data=(x,)).history
    )
    assert len(history["loss"]) == len(history["val_loss"]) < 4
    assert len(messages) == 1
    for part in (
        "from 0 to 1e+06",
        "learning rate of 1e+30",
        "global_clipnorm",
        "skip_gradient_norm",
    ):
        assert part in messages[0]
    _, messages = warned(lambda: [model.evaluate(X, verbose=0), model.test_on_batch(X)])
    assert len(messages) == 2
    assert all("weights of the model are not finite" in message for message in messages)


def test_training_continues_where_updates_are_skipped():
    """The data are finite, but not their squares."""
    x = np.full([8, 8], 1e30, "float32")
    model = make(likelihood="gaussian", skip_gradient_norm=1.0)
    history, messages = warned(lambda: model.fit(x, epochs=3, verbose=0).history)
    assert len(history["loss"]) == 3
    assert len(messages) == 1
    assert "loss not finite in epoch 1; training continues" in messages[0]


def test_long_epochs_are_not_waited_for(monkeypatch):
    monkeypatch.setattr("tf_mcvae.models.divergence.STEPS_BETWEEN_CHECKS", 5)
    model, data = make(1e30), tf.data.Dataset.from_tensors(X).repeat()
    _, messages = warned(lambda: model.fit(data, steps_per_epoch=40, verbose=0))
    assert int(model.step) == 5
    assert len(messages) == 1


ANSWERS = {
    "TerminateOnNaN": keras.callbacks.TerminateOnNaN,
    "own": lambda: type("Own", (StopOnDivergence,), {"answer": lambda self, *args: None})(),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_there_is_one_answer(name):
    """That of a callback that is given takes the place of the default one."""
    model = make(1e30)
    _, messages = warned(lambda: model.fit(X, epochs=3, verbose=0, callbacks=[ANSWERS[name]()]))
    assert messages == []


def test_steps_warn_once():
    model = make(1e30)
    _, messages = warned(lambda: [model.train_on_batch(X) for _ in range(5)])
    assert len(messages) == 1


MONITORS = {
    "EarlyStopping": lambda path: keras.callbacks.EarlyStopping("val_bound", patience=1),
    "ReduceLROnPlateau": lambda path: keras.callbacks.ReduceLROnPlateau("bound", patience=1),
    "ModelCheckpoint": lambda path: keras.callbacks.ModelCheckpoint(
        path / "best.keras", monitor="val_bound", save_best_only=True
    ),
}


@pytest.mark.parametrize("name", MONITORS)
def test_callbacks_maximise_the_bound_without_a_mode(name, tmp_path):
    callback = MONITORS[name](tmp_path)
    make().fit(X, epochs=2, verbose=0, validation_data=(X,), callbacks=[callback])
    assert bool(callback.monitor_op(2.0, 1.0))
