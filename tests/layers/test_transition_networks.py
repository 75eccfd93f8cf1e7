"""Networks of learned transitions: what they are given, and how many weights they have."""

import numpy as np
import pytest
import tensorflow as tf

from tf_mcvae import LMCVAE, Decoder, Encoder, LearnedDrift


def test_a_drift_of_the_encoder_has_weights_for_any_size_of_images():
    options = {"architecture": "dense", "hidden_units": (1,)}
    networks = Encoder(64, **options), Decoder((64, 64, 3), **options)
    model = LMCVAE(*networks, num_transitions=5, learned_drift=True)
    model.build((None, 64, 64, 3))
    # Two hidden layers of 3 D.
    assert model.drift.count_params() == 5 * (2 * (192 * 192 + 192) + 192 * 64 + 64)
    assert model.drift.count_params() < 1_000_000


@pytest.mark.parametrize("features", ["encoder", "x"])
def test_what_a_drift_is_given(features, monkeypatch):
    """A single linear layer with all weights 1 returns the sum of the state and the features."""
    options = {"architecture": "dense", "hidden_units": (4,)}
    drift = LearnedDrift.from_config(LearnedDrift([], features=features).get_config())
    model = LMCVAE(Encoder(2, **options), Decoder((3, 3), **options), learned_drift=drift)
    model.build((None, 3, 3))
    drift.kernels[0].assign(tf.ones_like(drift.kernels[0]))
    seen = []

    def call(state, features, index):
        seen.append((state, features, LearnedDrift.call(drift, state, features, index)))
        return seen[-1][-1]

    monkeypatch.setattr(drift, "call", call)
    x = np.random.default_rng(0).random([5, 3, 3]).astype("float32")
    model.log_weights(x, seed=1, num_samples=2)
    loc, scale = (np.asarray(value) for value in model.encode(x))
    rows = np.concatenate([loc, np.log(scale)], -1) if features == "encoder" else x.reshape(5, 9)
    state, given, output = seen[0]
    np.testing.assert_allclose(np.reshape(given, [5, -1]), rows, rtol=1e-5, atol=1e-6)
    expected = np.sum(state, -1) + np.sum(rows, -1)
    np.testing.assert_allclose(output, np.stack([expected] * 2, -1), rtol=1e-4, atol=1e-5)


def test_a_drift_saved_without_features_is_given_the_examples():
    config = LearnedDrift().get_config()
    assert LearnedDrift.from_config(config).features == "encoder"
    del config["features"]
    assert LearnedDrift.from_config(config).features == "x"


def test_unknown_features_are_refused():
    with pytest.raises(ValueError, match=r"one of .*'encoder', 'x'.*Received: features='pixels'"):
        LearnedDrift(features="pixels")
