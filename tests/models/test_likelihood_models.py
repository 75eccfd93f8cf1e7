"""Models on counts, categories and levels: training, evaluation, serving and saving."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_mcvae
from tf_mcvae.layers import likelihoods
from tf_mcvae.layers.likelihoods import Categorical, Composite, NegativeBinomial

RNG = np.random.default_rng(0)
NUM_FEATURES = 6
COUNTS = RNG.poisson(3.0, size=(64, NUM_FEATURES))
DATA = {
    "beta": RNG.uniform(0.1, 0.9, size=COUNTS.shape),
    "categorical": np.eye(NUM_FEATURES)[RNG.integers(0, NUM_FEATURES, 64)],
    "continuous_bernoulli": RNG.uniform(size=COUNTS.shape),
    "discretized_logistic_mixture": RNG.integers(0, 256, COUNTS.shape) / 255,
    "lognormal": np.exp(RNG.normal(size=COUNTS.shape)),
    "negative_binomial": COUNTS,
    "poisson": COUNTS,
    "student_t": RNG.normal(size=COUNTS.shape),
    "zero_inflated_negative_binomial": COUNTS,
    "zero_inflated_poisson": COUNTS,
}
LIKELIHOODS = {name: name for name in DATA}
# Columns of every kind.
LIKELIHOODS["table"] = Composite(
    [
        ("gaussian", 2),
        (NegativeBinomial(learned="per_feature"), 1),
        ("categorical", 3),
        (Categorical(4), 1),
        ("zero_inflated_poisson", 1),
    ]
)
DATA["table"] = np.concatenate(
    [
        RNG.normal(size=(64, 2)),
        COUNTS[:, :1],
        np.eye(3)[RNG.integers(0, 3, 64)],
        RNG.integers(0, 4, (64, 1)),
        COUNTS[:, :1],
    ],
    axis=1,
)


@pytest.mark.parametrize(
    ("name", "model_class"),
    [
        ("categorical", tf_mcvae.VAE),
        *(pytest.param(name, tf_mcvae.LMCVAE, marks=pytest.mark.slow) for name in sorted(DATA)),
    ],
)
def test_train_evaluate_save_and_serve(name, model_class, tmp_path):
    keras.utils.set_random_seed(0)
    likelihood, x = likelihoods.get(LIKELIHOODS[name]), DATA[name]
    width = likelihood.num_parameters(x.shape[1])
    model = model_class(
        tf_mcvae.Encoder(2, "dense", hidden_units=(8,)),
        tf_mcvae.Decoder((width,), "dense", hidden_units=(8,)),
        likelihood=likelihood,
        **({} if model_class is tf_mcvae.VAE else {"num_transitions": 2}),
    )
    model.compile("adam", jit_compile=False)
    history = model.fit(x.astype("float32"), batch_size=32, epochs=2, verbose=0).history
    assert np.all(np.isfinite(history["bound"]))
    # Integers are taken where the likelihood is on integers.
    assert np.all(np.isfinite(model.bound(x if x.dtype == int else x.astype("float32"), seed=1)))
    draws = model.sample(4, seed=0)
    assert draws.shape == (4, x.shape[1])
    gap = tf_mcvae.bidirectional_gap(model, num_examples=4, num_chains=4, num_temperatures=10)
    assert np.isfinite(gap.gap)
    model.save(tmp_path / "model.keras")
    loaded = tf_mcvae.load_model(tmp_path / "model.keras")
    data = x.astype("float32")
    np.testing.assert_allclose(loaded.bound(data, seed=1), model.bound(data, seed=1), rtol=1e-5)
    served = tf.saved_model.load(tf_mcvae.export_saved_model(model, tmp_path / "serving"))
    answer = served.signatures["log_likelihood"](
        x=tf.constant(data), seed=tf.zeros([64, 2], tf.int32)
    )
    assert np.all(np.isfinite(answer["log_likelihood"]))


def test_a_poisson_model_survives_steps_that_are_too_long():
    """Where exp overflows, one example would make the gradient of all others NaN."""
    for seed in range(4):
        keras.utils.set_random_seed(seed)
        model = tf_mcvae.LMCVAE(
            tf_mcvae.Encoder(2, "dense", hidden_units=(8,)),
            tf_mcvae.Decoder((NUM_FEATURES,), "dense", hidden_units=(8,)),
            likelihood="poisson",
            num_transitions=2,
            step_size=0.1,
        )
        assert np.all(np.isfinite(model.bound(COUNTS, seed=0)))
