"""Further uses of a model on two replicas: `python mirrored.py FOLDER`."""

import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from trained import X, batches, make, strategy_of

import tf_mcvae
from tf_mcvae import distribute, random
from tf_mcvae.export import export_saved_model


def weights(model):
    return [np.asarray(w.numpy()) for w in (*model.weights, *model.optimizer.variables)]


def assert_equal(values, others):
    assert len(values) == len(others)
    for value, other in zip(values, others, strict=True):
        np.testing.assert_array_equal(value, other)


def fit(model, epochs, **kwargs):
    return model.fit(batches(8, 21), epochs=epochs, verbose=0, **kwargs).history


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def check_saving(strategy, folder):
    model = make("VAE", strategy, jit_compile=True)
    checkpoint = keras.callbacks.ModelCheckpoint(folder / "best.keras", monitor="loss")
    fit(model, 2, callbacks=[checkpoint])
    model.save(folder / "model.keras")
    plain = tf_mcvae.models.load_model(folder / "model.keras")
    with strategy.scope():
        mirrored = tf_mcvae.models.load_model(folder / "best.keras")
    assert (plain.jit_compile, plain.is_distributed) == (True, False)
    assert mirrored.is_distributed
    assert mirrored.execution_plan(training=True).compiled_by == "here"
    assert_equal(weights(plain), weights(model))
    assert_equal(weights(mirrored), weights(model))
    expected = fit(model, 3, initial_epoch=2)
    assert fit(mirrored, 3, initial_epoch=2) == expected
    assert_equal(weights(mirrored), weights(model))
    np.testing.assert_allclose(plain.bound(X, seed=3), mirrored_bound(plain, strategy), rtol=1e-6)


def mirrored_bound(plain, strategy):
    with strategy.scope():
        copy = type(plain).from_config(plain.get_config())
        copy.build((None, *X.shape[1:]))
    copy.set_weights(plain.get_weights())
    return copy.bound(X, seed=3)


def check_export(strategy, folder):
    model = make("VAE", strategy)
    fit(model, 1)
    export_saved_model(model, folder / "serving")
    served = tf.saved_model.load(str(folder / "serving" / "1"))
    loc = served.signatures["encode"](x=tf.constant(X))["loc"]
    np.testing.assert_allclose(loc, model.encode(X)[0], rtol=1e-5, atol=1e-6)


def check_resuming(strategy, folder):
    """Keras' callback resumes training that was stopped in the third epoch."""
    whole = make("LMCVAE-variance", strategy)
    fit(whole, 4)
    backup = keras.callbacks.BackupAndRestore(folder / "backup")
    first, second = (make("LMCVAE-variance", strategy) for _ in range(2))
    with pytest.raises(KeyboardInterrupt):
        fit(first, 4, callbacks=[backup, Stop()])
    fit(second, 4, callbacks=[keras.callbacks.BackupAndRestore(folder / "backup")])
    for value, other in zip(weights(second), weights(whole), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-6, atol=1e-6)


def check_noise(strategy):
    """Each replica draws its rows of the numbers that one device draws for all examples."""
    model = make("VAE", strategy)

    def draw():
        share = distribute.share_of_batch(4)
        seed = random.at_row(model.step_seed(0, model.step), share.first)
        return random.normal([1, 4, 2], seed)[0]

    rows = strategy.gather(strategy.run(tf.function(draw)), axis=0).numpy()
    plain = make("VAE", None)
    np.testing.assert_array_equal(
        rows, random.normal([1, 8, 2], random.at_row(plain.step_seed(0, 0), 0))[0]
    )
    assert len(np.unique(rows)) == rows.size


def check_refusals(strategy):
    model = make("VAE", strategy)
    adam = keras.optimizers.Adam
    with pytest.raises(ValueError, match=r"several steps at a time.*Received: steps"):
        model.compile("adam", steps_per_execution=2)
    with strategy.scope(), pytest.raises(ValueError, match=r"accumulate gradients.*Received"):
        model.compile(adam(gradient_accumulation_steps=2))
    with pytest.raises(ValueError, match=r"so must be its optimizer.*Received: an optimizer"):
        model.compile(adam())
    model.compile("adam")  # Made in the scope of the model.
    fit(model, 1)


def main(folder):
    strategy, folder = strategy_of("mirrored"), pathlib.Path(folder)
    check_saving(strategy, folder)
    check_export(strategy, folder)
    check_resuming(strategy, folder)
    check_noise(strategy)
    check_refusals(strategy)


if __name__ == "__main__":
    main(*sys.argv[1:])
