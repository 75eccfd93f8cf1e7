"""Losses that layers report (regularisers, `add_loss`) train every model, and are in its loss."""

import keras
import numpy as np
import pytest

from tf_mcvae import AMCVAE, IWAE, LMCVAE, VAE, FlowVAE, LearnedDrift, LearnedReverse
from tf_mcvae.performance.cores import dividing

SHAPE = (8,)
X = (np.random.default_rng(0).random([6, *SHAPE]) < 0.4).astype("float32")
PENALTY = 3.0


@keras.saving.register_keras_serializable("test_penalties")
class Penalised(keras.layers.Layer):
    """Reports a loss of `PENALTY` times its weight, which starts at 1."""

    def build(self, input_shape):
        self.factor = self.add_weight(shape=(), initializer="ones", name="factor")

    def call(self, x):
        self.add_loss(PENALTY * self.factor)
        return x


def networks():
    dense = keras.layers.Dense
    encoder = keras.Sequential([dense(4, "tanh"), Penalised(), dense(4)])
    return encoder, keras.Sequential([dense(4, "tanh"), Penalised(), dense(8)])


CASES = {
    "VAE": lambda: VAE(*networks()),
    "IWAE": lambda: IWAE(*networks(), num_samples=3),
    "IWAE-dreg": lambda: IWAE(*networks(), num_samples=3, gradient="dreg"),
    "FlowVAE": lambda: FlowVAE(*networks()),
    "LMCVAE": lambda: LMCVAE(*networks(), num_transitions=2, num_samples=3),
    "LMCVAE-cloned": lambda: LMCVAE(*networks(), num_transitions=2, cloned_decoder=True),
    "LMCVAE-recompute": lambda: LMCVAE(*networks(), num_transitions=2, recompute=True),
    "AMCVAE": lambda: AMCVAE(*networks(), num_transitions=2, num_samples=3),
    "AMCVAE-coupled-cloned": lambda: AMCVAE(
        *networks(), num_transitions=2, gradient="coupled", cloned_decoder=True
    ),
}
MODES = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "xla": {"jit_compile": True},
    "parts": {"jit_compile": False},
}
RUNS = [*((case, "eager") for case in CASES), ("LMCVAE-cloned", "graph")]
SLOW = [(case, "graph") for case in CASES if (case, "graph") not in RUNS]
SLOW += [(case, "xla") for case in ("VAE", "LMCVAE-recompute", "AMCVAE")]
SLOW += [(case, "parts") for case in ("IWAE-dreg", "LMCVAE-cloned")]


@pytest.mark.parametrize(
    ("case", "mode"), [*RUNS, *(pytest.param(*run, marks=pytest.mark.slow) for run in SLOW)]
)
def test_losses_of_layers_are_trained_and_reported(case, mode, monkeypatch):
    if mode == "parts":
        monkeypatch.setattr("tf_mcvae.performance.plan.FEWEST_WEIGHTS_TO_DIVIDE", 0)
    keras.utils.set_random_seed(0)
    model = CASES[case]()
    model.build((None, *SHAPE))
    model.compile(keras.optimizers.SGD(0.1), **MODES[mode])
    factors = [w for w in model.trainable_weights if w.name == "factor"]
    assert len(factors) == (3 if "cloned" in case else 2)
    weight = np.full(6, 0.5, "float32")
    with dividing(2 if mode == "parts" else 1):
        model.bound(X, seed=1)  # Nothing is left from here.
        plain = model.test_on_batch(X, return_dict=True)
        half = model.evaluate(X, X, sample_weight=weight, return_dict=True, verbose=0)
        model.train_on_batch(X)
    total = PENALTY * len(factors)
    np.testing.assert_allclose(plain["loss"], -plain["bound"] + total, rtol=1e-5)
    np.testing.assert_allclose(half["loss"], -0.5 * half["bound"] + total, rtol=1e-5)
    np.testing.assert_allclose([float(f) for f in factors], 1.0 - 0.1 * PENALTY, rtol=1e-5)


def penalised_activities(regularizer):
    dense = keras.layers.Dense
    decoder = [dense(4, "tanh", activity_regularizer=regularizer), dense(8)]
    return LMCVAE(networks()[0], keras.Sequential(decoder), num_transitions=2, num_samples=3)


@pytest.mark.slow
def test_penalties_of_activities_are_means_over_the_examples(monkeypatch):
    """The loss and the gradient do not depend on how a batch is divided."""
    monkeypatch.setattr("tf_mcvae.performance.plan.FEWEST_WEIGHTS_TO_DIVIDE", 0)
    losses, weights = [], []
    for regularizer, parts in (("l2", 1), ("l2", 2), (None, 1)):
        keras.utils.set_random_seed(0)
        model = penalised_activities(regularizer)
        model.build((None, *SHAPE))
        model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
        with dividing(parts):
            losses.append(model.train_on_batch(X)[0])
        weights.append(model.get_weights())
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0] > losses[2] + 1e-4
    for whole, divided in zip(*weights[:2], strict=True):
        np.testing.assert_allclose(whole, divided, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "layer"), [("learned_drift", LearnedDrift), ("learned_reverse", LearnedReverse)]
)
def test_layers_that_cannot_report_losses_are_refused(name, layer):
    network = layer()
    network.activity_regularizer = keras.regularizers.L2(0.1)
    model = LMCVAE(*networks(), num_transitions=2, **{name: network})
    model.compile("sgd", run_eagerly=True)
    with pytest.raises(ValueError, match=f"`{name}` is called in a loop.*Received: "):
        model.train_on_batch(X)
