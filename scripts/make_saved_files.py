"""Writes `.keras` files of each kind of model, and what they compute, as fixtures.

    python scripts/make_saved_files.py tests/saved_files/<version> [<name of a model> ...]

Run it once for a release. Its files must load, and give the same numbers for the same seeds, in
every later version (`tests/test_saved_files.py`); they are never written again. A folder
`<version>-keras-3.8` holds a file of each class that the oldest supported Keras wrote.
"""

import pathlib
import sys

import keras
import numpy as np

import tf_mcvae

SHAPE, LATENT_DIM, SEED = (4, 4, 1), 2, 7


def networks(shape=SHAPE, **options):
    """A small encoder and decoder."""
    options = {"architecture": "dense", "hidden_units": (8,), **options}
    return tf_mcvae.Encoder(LATENT_DIM, **options), tf_mcvae.Decoder(shape, **options)


def sequential():
    """The same of Keras' own layers."""
    layers = keras.layers
    encoder = [layers.Flatten(), layers.Dense(8, "tanh"), layers.Dense(2 * LATENT_DIM)]
    decoder = [layers.Dense(8, "tanh"), layers.Dense(16), layers.Reshape(SHAPE)]
    return keras.Sequential(encoder), keras.Sequential(decoder)


MODELS = {
    "vae": lambda: tf_mcvae.VAE(*networks(), num_samples=2),
    "vae_gaussian_learned": lambda: tf_mcvae.VAE(
        *networks(activation="leakyrelu"), likelihood=tf_mcvae.Gaussian(0.7, learned=True)
    ),
    "iwae_dreg": lambda: tf_mcvae.IWAE(*networks(), num_samples=3, gradient="dreg"),
    "iwae_sequential": lambda: tf_mcvae.IWAE(*sequential(), num_samples=3),
    "lmcvae": lambda: tf_mcvae.LMCVAE(
        *networks(), num_transitions=3, step_size=tf_mcvae.StepSize(0.05, rule="acceptance")
    ),
    "lmcvae_all_options": lambda: tf_mcvae.LMCVAE(
        *networks(activation="softplus"),
        num_transitions=2,
        num_samples=2,
        schedule="sigmoidal",
        step_size=tf_mcvae.StepSize(0.05, rule="variance"),
        cloned_decoder=True,
        recompute=True,
        skip_threshold=0.01,
        learned_drift=tf_mcvae.LearnedDrift([8]),
        learned_reverse=tf_mcvae.LearnedReverse([8]),
    ),
    "lmcvae_conv": lambda: tf_mcvae.LMCVAE(
        *networks((8, 8, 1), architecture="conv"), num_transitions=2
    ),
    "amcvae": lambda: tf_mcvae.AMCVAE(
        *networks(),
        num_transitions=3,
        num_samples=3,
        schedule="all_learnable",
        step_size=tf_mcvae.StepSize(0.1, rule="learned"),
        acceptance="barker",
        alpha_annealing=True,
    ),
    "flow_realnvp": lambda: tf_mcvae.FlowVAE(*networks(), flow=tf_mcvae.RealNVP([4]), num_flows=2),
    "flow_iaf": lambda: tf_mcvae.FlowVAE(*networks(), flow=tf_mcvae.IAF([4]), num_samples=2),
    "flow_bnaf": lambda: tf_mcvae.FlowVAE(*networks(), flow=tf_mcvae.BNAF([4]), num_flows=3),
}


def examples(shape, count=6):
    """Binary images `[count, *shape]`."""
    return (np.random.default_rng(0).random([count, *shape]) < 0.4).astype(np.float32)


def answers(model, x):
    """What a model must compute for ever, by name."""
    return {
        "bound": model.bound(x, seed=SEED),
        "log_weights": model.log_weights(x, seed=SEED, num_samples=4),
        "posterior_sample": model.posterior_sample(x, 2, seed=SEED),
        "reconstruct": model.reconstruct(x),
    }


def bound_after_a_step(model, x):
    """The bound after one more training step, which shows that no state of training is missing."""
    model.fit(x, batch_size=len(x), shuffle=False, verbose=0)
    return model.bound(x, seed=SEED)


def main(folder, *names):
    """Trains each model for a few steps, so that optimizer and step sizes have a state."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    expected = {}
    for name in names or MODELS:
        keras.utils.set_random_seed(0)
        model = MODELS[name]()
        x = examples(getattr(model.decoder, "event_shape", SHAPE))
        # A convolutional model's moments would be most of the file.
        model.compile("sgd" if "conv" in name else keras.optimizers.Adam(0.01))
        model.fit(x, batch_size=2, epochs=2, verbose=0)
        model.save(folder / f"{name}.keras")
        for key, value in answers(model, x).items():
            expected[f"{name}/{key}"] = np.asarray(value)
        expected[f"{name}/next_bound"] = np.asarray(bound_after_a_step(model, x))
    features(folder, expected)
    np.savez(folder / "expected.npz", **expected)


def features(folder, expected):
    """Writes a classifier on the features of an encoder."""
    model = MODELS["vae"]()
    model.build((None, *SHAPE))
    layers = [keras.Input(SHAPE), tf_mcvae.EncoderFeatures(model), keras.layers.Dense(3)]
    classifier = keras.Sequential(layers)
    classifier.save(folder / "encoder_features.keras")
    expected["encoder_features/output"] = classifier.predict(examples(SHAPE), verbose=0)


if __name__ == "__main__":
    main(*sys.argv[1:])
