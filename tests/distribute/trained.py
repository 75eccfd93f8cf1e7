"""Trains a small model on one device, on two replicas, or as one of several workers.

    python trained.py CASE DEVICES OUTPUT.npz [OPTIONS AS JSON]

DEVICES is `one`, `mirrored` (two logical CPUs) or `workers` (named by TF_CONFIG). The results of
training, evaluation and prediction are written to OUTPUT.npz. The option `cores` is the number of
cores that share a batch.
"""

import json
import os
import pathlib
import sys

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1", GRPC_VERBOSITY="ERROR")

import keras
import numpy as np
import tensorflow as tf

import tf_mcvae
from tf_mcvae import distribute
from tf_mcvae.performance import plan

SHAPE = (4, 4, 1)
_rng = np.random.default_rng(0)
X = (_rng.uniform(size=[21, *SHAPE]) < 0.4).astype(np.float32)
WEIGHTS = _rng.uniform(0.5, 2.0, size=21).astype(np.float32)


def networks():
    layers, kernel = keras.layers, {"kernel_regularizer": keras.regularizers.L2(0.05)}
    encoder = keras.Sequential(
        [layers.Flatten(), layers.Dense(8, "tanh", **kernel), layers.Dense(4)]
    )
    decoder = keras.Sequential(
        [layers.Dense(8, "tanh", **kernel), layers.Dense(16), layers.Reshape(SHAPE)]
    )
    return encoder, decoder


def annealed(rule, **kwargs):
    step_size = tf_mcvae.StepSize([0.01, 0.3], rule, 0.95)
    return tf_mcvae.LMCVAE(*networks(), num_transitions=2, step_size=step_size, **kwargs)


CASES = {
    "LMCVAE-acceptance": lambda: annealed("acceptance", num_samples=3),
    "LMCVAE-variance": lambda: annealed("variance", num_samples=2),
    "LMCVAE-variance-S=1": lambda: annealed("variance"),
    "LMCVAE-learned": lambda: annealed("learned", learned_drift=True, cloned_decoder=True),
    "AMCVAE": lambda: tf_mcvae.AMCVAE(
        *networks(), num_transitions=2, num_samples=3, step_size=0.2, alpha_annealing=True
    ),
    "VAE": lambda: tf_mcvae.VAE(*networks()),
    "IWAE": lambda: tf_mcvae.IWAE(*networks(), num_samples=3, gradient="dreg"),
    "FlowVAE": lambda: tf_mcvae.FlowVAE(*networks(), flow=tf_mcvae.RealNVP((4,))),
}


def strategy_of(devices):
    """Makes a strategy. Call this before TensorFlow computes anything."""
    if devices == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        configuration = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [configuration] * 2)
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    return distribute.make_strategy("none" if devices == "one" else "multiworker")


def make(case, strategy, optimizer=None, **compile_options):
    keras.utils.set_random_seed(1)
    with distribute.scope(strategy):
        model = CASES[case]()
        model.build((None, *SHAPE))
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, **(optimizer or {}))
        model.compile(optimizer, **compile_options)
    return model


def batches(size, num, weighted=False, shuffled=False):
    arrays = (X[:num], X[:num, 0, 0, 0], WEIGHTS[:num]) if weighted else X[:num]
    dataset = tf.data.Dataset.from_tensor_slices(arrays)
    return (dataset.shuffle(100, seed=3) if shuffled else dataset).batch(size)


def train(model, epochs=2, batch_size=8, num=21, weighted=False, **kwargs):
    """The results of two epochs with smaller last batches."""
    history = model.fit(
        batches(batch_size, num, weighted, shuffled=True),
        validation_data=batches(batch_size, num),
        epochs=epochs,
        verbose=0,
        **kwargs,
    ).history
    evaluated = model.evaluate(batches(batch_size, num), verbose=0, return_dict=True)
    return {
        **{f"history_{name}": values for name, values in history.items()},
        **{f"evaluated_{name}": value for name, value in evaluated.items()},
        "predicted": model.predict(X[:num], batch_size=batch_size, verbose=0),
        **{f"weight_{i}_{w.name}": w.numpy() for i, w in enumerate(model.weights)},
        "iterations": keras.ops.convert_to_numpy(model.optimizer.iterations),
    }


def main(case, devices, output, options="{}"):
    options = json.loads(options)
    tf_mcvae.parallelize_over_batch(options.pop("cores", 1))
    plan.FEWEST_WEIGHTS_TO_DIVIDE = 0  # Divides small networks, too.
    strategy = strategy_of(devices)
    training = {key: options.pop(key) for key in ("num", "weighted", "epochs") if key in options}
    np.savez(pathlib.Path(output), **train(make(case, strategy, **options), **training))


if __name__ == "__main__":
    main(*sys.argv[1:])
