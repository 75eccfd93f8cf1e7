"""What is assigned to a built model is used or refused, and what is rejected changes nothing."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from modes import MODES, graph
from reference import LinearGaussian

import tf_mcvae
from tf_mcvae.models.batch import Batch

PPCA = LinearGaussian()
X = PPCA.data(40)
SEED = tf.constant([1, 2])


def gradients_of(model):
    with tf.GradientTape() as tape:
        # The examples are a capture of the graph.
        estimate = model.estimate(Batch(tf.constant(X)), SEED, training=True)
        loss = tf.reduce_mean(estimate.loss)
    return estimate.bound, tape.gradient(loss, [v.value for v in model.trainable_variables])


@pytest.mark.parametrize(
    ("model_class", "name", "value"),
    [
        (tf_mcvae.VAE, "decoder", keras.layers.Dense(5)),
        (tf_mcvae.IWAE, "encoder", keras.layers.Dense(4)),
        (tf_mcvae.IWAE, "likelihood", "bernoulli"),
        (tf_mcvae.FlowVAE, "flow", "iaf"),
        (tf_mcvae.FlowVAE, "num_flows", 3),
        (tf_mcvae.AMCVAE, "num_transitions", 10),
        (tf_mcvae.AMCVAE, "schedule", "sigmoidal"),
        (tf_mcvae.AMCVAE, "step_size", 0.1),
        (tf_mcvae.LMCVAE, "cloned_decoder", True),
        (tf_mcvae.LMCVAE, "transition_decoder", keras.layers.Dense(5)),
        (tf_mcvae.LMCVAE, "learned_drift", True),
        (tf_mcvae.LMCVAE, "learned_reverse", True),
    ],
)
def test_what_layers_are_made_from_stays(model_class, name, value):
    unbuilt = model_class(*PPCA.networks())
    for model in (unbuilt, PPCA.model(model_class)):
        with pytest.raises(ValueError, match=rf"(?s)`{name}` cannot change.*Received: {name}="):
            setattr(model, name, value)
        setattr(model, name, getattr(model, name))  # Nothing changes.


@pytest.mark.parametrize("name", ["VAE", "IWAE", "FlowVAE", "LMCVAE", "AMCVAE"])
def test_every_argument_is_fixed_or_changeable(name):
    model_class = getattr(tf_mcvae, name)
    arguments = set(inspect.signature(model_class).parameters) - {"name", "trainable", "dtype"}
    assert arguments == {*model_class.fixed, *model_class.changeable} - {"transition_decoder"}
    assert all(hasattr(PPCA.model(model_class), argument) for argument in arguments)


def test_attributes_of_a_subclass_are_free():
    """Such as a weight of the divergence that a callback raises."""

    class Weighted(tf_mcvae.VAE):
        def __init__(self, encoder, decoder, beta=1.0, **kwargs):
            super().__init__(encoder, decoder, **kwargs)
            self.beta = beta

    model = Weighted(*PPCA.networks(), likelihood="gaussian")
    model.build((None, 5))
    model.beta = 0.5
    assert model.beta == 0.5


@pytest.mark.parametrize(
    ("model_class", "name", "value", "wrong"),
    [
        (tf_mcvae.VAE, "num_samples", 7, 0),
        (tf_mcvae.IWAE, "seed", 5, "five"),
        (tf_mcvae.IWAE, "gradient", "dreg", "none"),
        pytest.param(tf_mcvae.LMCVAE, "skip_threshold", 0.9, 1.0, marks=pytest.mark.slow),
        pytest.param(tf_mcvae.LMCVAE, "recompute", True, "yes", marks=pytest.mark.slow),
        pytest.param(tf_mcvae.AMCVAE, "acceptance", "barker", "gibbs", marks=pytest.mark.slow),
        pytest.param(tf_mcvae.AMCVAE, "gradient", "coupled", "dreg", marks=pytest.mark.slow),
        pytest.param(tf_mcvae.AMCVAE, "alpha_annealing", True, None, marks=pytest.mark.slow),
    ],
)
def test_a_changed_argument_is_used_by_compiled_steps(model_class, name, value, wrong):
    settings = {"num_samples": 2, **({"step_size": 0.5} if "MC" in model_class.__name__ else {})}
    model = PPCA.model(model_class, **settings)
    given = PPCA.model(model_class, **{**settings, name: value})
    losses = []
    for changed in (model, given):
        changed.compile(keras.optimizers.SGD(0.0), jit_compile=False)
        if changed is model:  # Its steps are compiled with the other value.
            changed.train_on_batch(X)
            changed.test_on_batch(X)
            setattr(model, name, value)
            changed.step.assign(0)
            changed.test_step_counter.assign(0)
        losses.append([changed.train_on_batch(X), changed.test_on_batch(X)])
    # Two compilations may add in different orders.
    np.testing.assert_allclose(np.concatenate(losses[0]), np.concatenate(losses[1]), rtol=1e-6)
    with pytest.raises((TypeError, ValueError), match=rf"`{name}`|`seed`"):
        setattr(model, name, wrong)
    assert model.get_config()[name] == value


def test_a_callback_may_change_an_argument():
    model = PPCA.model(tf_mcvae.VAE)
    model.compile("sgd")

    def more(epoch, logs):
        model.num_samples = 1 + epoch

    callback = keras.callbacks.LambdaCallback(on_epoch_begin=more)
    history = model.fit(X, validation_data=(X,), epochs=3, verbose=0, callbacks=[callback])
    assert len(history.epoch) == model.num_samples == 3


OVERFLOWS = {
    "steps": (tf_mcvae.AMCVAE, {"step_size": 1e19}),
    "larger-steps": (tf_mcvae.AMCVAE, {"step_size": 1e35, "acceptance": "barker"}),
    "learned-steps": (tf_mcvae.AMCVAE, {"step_size": tf_mcvae.StepSize(1e30, "learned")}),
    "recomputed": (tf_mcvae.AMCVAE, {"step_size": 1e35, "recompute": True}),
    "cloned": (tf_mcvae.AMCVAE, {"step_size": 1e35, "cloned_decoder": True}),
    "coupled": (tf_mcvae.AMCVAE, {"step_size": [1e35, 0.3], "gradient": "coupled"}),
    "coupled-barker": (
        tf_mcvae.AMCVAE,
        {"step_size": [1e19, 30.0], "gradient": "coupled", "acceptance": "barker"},
    ),
    "skipped": (tf_mcvae.LMCVAE, {"step_size": 1e35, "skip_threshold": 0.1}),
    "narrow-encoder": (tf_mcvae.AMCVAE, {"step_size": 0.01}),
}
MORE = ("steps", "larger-steps", "learned-steps", "recomputed", "cloned", "coupled-barker")


@pytest.mark.parametrize(
    ("case", "jit_compile"),
    [
        pytest.param(case, jit_compile, marks=[pytest.mark.slow] * (jit_compile or case in MORE))
        for case in OVERFLOWS
        for jit_compile in (False, True)
    ],
)
def test_rejected_overflows_leave_finite_gradients(case, jit_compile):
    model_class, settings = OVERFLOWS[case]
    model = PPCA.model(model_class, num_transitions=2, num_samples=2, **settings)
    if case == "narrow-encoder":
        kernel, bias = model.encoder.get_weights()
        model.encoder.set_weights([kernel, np.concatenate([bias[:2], [-80.0, -80.0]])])
    bound, gradients = graph(lambda: gradients_of(model), jit_compile=jit_compile)()
    assert np.all(np.isfinite(bound))
    assert all(np.all(np.isfinite(g)) for g in gradients if g is not None)
    assert any(np.any(g != 0.0) for g in gradients if g is not None)


@pytest.mark.parametrize(
    ("model_class", "mode"),
    [
        pytest.param(
            model_class,
            mode,
            marks=[pytest.mark.slow] * ((model_class, mode) != (tf_mcvae.LMCVAE, "eager")),
        )
        for model_class in (tf_mcvae.LMCVAE, tf_mcvae.AMCVAE)
        for mode in MODES
    ],
)
def test_recomputed_gradients_with_captured_examples(model_class, mode):
    """With weights, moving averages and examples that the loop would capture."""

    def make(recompute):
        keras.utils.set_random_seed(0)
        encoder, _ = PPCA.networks()
        layers = keras.layers
        decoder = keras.Sequential(
            [
                keras.Input([2]),
                layers.Dense(4, "tanh"),
                layers.BatchNormalization(),
                layers.Dense(5),
            ]
        )
        model = model_class(
            encoder,
            decoder,
            likelihood=tf_mcvae.Gaussian(0.7, learned=True),
            num_transitions=2,
            num_samples=2,
            step_size=0.1,
            cloned_decoder=True,
            recompute=recompute,
        )
        model.build((None, 5))
        return model

    models = [make(recompute) for recompute in (False, True)]
    kept, recomputed = (
        MODES[mode](lambda model=model: gradients_of(model)[1])() for model in models
    )
    for expected, actual in zip(kept, recomputed, strict=True):
        assert (expected is None) == (actual is None)
        if expected is not None:
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_recomputed_gradient_of_the_examples():
    """It has the decoder's share too."""
    gradients = []
    for recompute in (False, True):
        model = PPCA.model(tf_mcvae.LMCVAE, num_transitions=2, step_size=0.1, recompute=recompute)
        x = tf.constant(X)
        with tf.GradientTape() as tape:
            tape.watch(x)
            bound = graph(lambda x, model=model: model.bound(x, seed=SEED))(x)
        gradients.append(tape.gradient(bound, x))
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
