"""Every option in float64 and in mixed precision, global or of the model and its networks."""

import contextlib
import copy
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import LinearGaussian, iwae

import tf_mcvae
from tf_mcvae import random
from tf_mcvae.performance import cores, plan

X = (np.random.default_rng(0).random([6, 8]) < 0.4).astype(np.float64)
EXAMPLES = {"num_samples": 3}
CHAINS = {"num_samples": 2, "num_transitions": 2}


def steps(rule):
    return lambda: tf_mcvae.StepSize(0.05, rule)


# Values that are callable are made anew for each model.
OPTIONS = {
    "VAE-learned_scale": {"likelihood": lambda: tf_mcvae.Gaussian(0.7, learned=True)},
    "IWAE-dreg": {"gradient": "dreg", **EXAMPLES},
    "IWAE-stl": {"gradient": "stl", **EXAMPLES},
    "FlowVAE-realnvp": {"flow": "realnvp", "num_flows": 2},
    "FlowVAE-iaf": {"flow": "iaf", "num_flows": 2},
    "FlowVAE-bnaf": {"flow": "bnaf", "num_flows": 2},
    "LMCVAE-acceptance": {
        "schedule": "sigmoidal",
        "step_size": steps("acceptance"),
        "cloned_decoder": True,
        "likelihood": "gaussian",
        **CHAINS,
    },
    "LMCVAE-learned": {
        "schedule": "all_learnable",
        "step_size": steps("learned"),
        "recompute": True,
        "learned_drift": True,
        "learned_reverse": True,
        **CHAINS,
    },
    "LMCVAE-per_dimension": {"step_size": [[0.1, 0.2]], "skip_threshold": 0.1, **CHAINS},
    "AMCVAE-variance": {
        "step_size": steps("variance"),
        "schedule": "all_learnable",
        "acceptance": "barker",
        "alpha_annealing": True,
        **CHAINS,
    },
}
SINGLY = {
    "schedule": ["sigmoidal", "all_learnable"],
    "step_size": [*map(steps, ("learned", "acceptance", "variance")), [0.1, 0.2], [[0.1, 0.2]]],
    "cloned_decoder": [True],
    "recompute": [True],
    "likelihood": ["gaussian", lambda: tf_mcvae.Gaussian(0.7, learned=True)],
}
OWN = {
    "LMCVAE": {"skip_threshold": [0.1], "learned_drift": [True], "learned_reverse": [True]},
    "AMCVAE": {"acceptance": ["barker"], "alpha_annealing": [True]},
}
EVERY_OPTION = dict(OPTIONS) | {
    f"{name}-{option}-{number}": {option: value, **CHAINS}
    for name, own in OWN.items()
    for option, values in {**SINGLY, **own}.items()
    for number, value in enumerate(values)
}
SETTINGS = ("float64", "mixed_float16", "mixed_bfloat16")


def in_both_tiers(per_tier):
    """Parameters of a test: some in the default tier, the others with --runslow."""
    default = per_tier["default"]
    slow = [p for p in per_tier["slow"] if p not in default]
    return [*default, *(pytest.param(*p, marks=pytest.mark.slow) for p in slow)]


def set_global(setting):
    keras.config.set_floatx("float64" if setting == "float64" else "float32")
    keras.config.set_dtype_policy(setting)


@pytest.fixture(autouse=True)
def global_precision():
    yield
    set_global("float32")


def make(case, architecture="dense", activation="gelu", dtype=None, **compiling):
    keras.utils.set_random_seed(1)
    options = {
        name: value() if callable(value) else value for name, value in EVERY_OPTION[case].items()
    }
    shape = (8,) if architecture == "dense" else (8, 8, 1)
    networks = {"architecture": architecture, "activation": activation, "dtype": dtype}
    networks["hidden_units"] = (5,)
    model = getattr(tf_mcvae, case.split("-")[0])(
        tf_mcvae.Encoder(2, **networks),
        tf_mcvae.Decoder(shape, **networks),
        dtype=dtype,
        **options,
    )
    optimizer = keras.optimizers.Adam(0.01, global_clipnorm=1.0)
    compiling = {"run_eagerly": True, **compiling}
    model.compile(optimizer, skip_gradient_norm=1e6, **compiling)
    model.build((None, *shape))
    return model


def make_in(setting, scope, case, **kwargs):
    set_global(setting if scope == "global" else "float32")
    return make(case, dtype=None if scope == "global" else setting, **kwargs)


def density_dtype(setting):
    return tf.float64 if setting == "float64" else tf.float32


def check_results(model, dtype, x=X):
    """Results are finite and have the dtype of densities."""
    draws = model.posterior_sample(x, 2, seed=1)
    results = {
        "bound": model.bound(x, seed=1),
        "log_weights": model.log_weights(x, seed=1, num_samples=3),
        "posterior_sample": draws,
        "sample": model.sample(2, seed=1),
        "loc": model.encode(x)[0],
        "reconstruct": model.reconstruct(x),
        "decode": model.decode(draws.numpy()),
        "log_joint": model.log_joint(x, draws),
    }
    assert {name: value.dtype for name, value in results.items()} == dict.fromkeys(results, dtype)
    assert all(np.all(np.isfinite(value)) for value in results.values())


SCOPES = ("global", "local")
ALL = list(itertools.product(EVERY_OPTION, SETTINGS, SCOPES))
ONCE = [(case, "float64", "global") for case in OPTIONS]
ONCE += [(case, "mixed_float16", "local") for case in ("IWAE-dreg", "LMCVAE-learned")]


@pytest.mark.parametrize(
    ("case", "setting", "scope"), in_both_tiers({"default": ONCE, "slow": ALL})
)
def test_options(case, setting, scope):
    """A step of training, and results near those in float32 with the same weights."""
    full = make_in("float32", "global", case)
    expected = full.log_weights(X, seed=1, num_samples=3)
    model = make_in(setting, scope, case)
    model.set_weights(full.get_weights())
    dtype = density_dtype(setting)
    tolerance = 1e-4 if setting == "float64" else 0.03
    log_weights = model.log_weights(X, seed=1, num_samples=3)
    assert log_weights.dtype == dtype
    np.testing.assert_allclose(log_weights, expected, rtol=tolerance, atol=tolerance)
    results = model.train_on_batch(X, return_dict=True)
    assert np.all(np.isfinite(list(results.values())))
    if scope == "global":
        check_results(model, dtype)


METHODS = [("LMCVAE-learned", "float64", "local")]
ALL_METHODS = list(itertools.product(OPTIONS, SETTINGS, SCOPES))


@pytest.mark.parametrize(
    ("case", "setting", "scope"), in_both_tiers({"default": METHODS, "slow": ALL_METHODS})
)
def test_methods_of_keras(case, setting, scope):
    """Arrays and data sets of either dtype, and copies of the model."""
    model = make_in(setting, scope, case)
    for dtype in ("float32", "float64"):
        data = tf.data.Dataset.from_tensor_slices(X.astype(dtype)).batch(3)
        model.fit(data, validation_data=X.astype(dtype), verbose=0)
        assert np.all(np.isfinite(model.evaluate(data, verbose=0)))
        assert np.all(np.isfinite(model.predict(data, verbose=0)))
    model.test_on_batch(X)
    model.predict_on_batch(X)
    expected = model.bound(X, seed=1)
    np.testing.assert_array_equal(copy.deepcopy(model).bound(X, seed=1), expected)


# How the step of a model is executed.
EXECUTION = {
    "graph": {"jit_compile": False},
    "xla": {"jit_compile": True},
    "parts": {"jit_compile": False},
}
# Activations have their own derivatives over images, of which a score takes the second.
ACTIVATIONS = ("gelu", "leakyrelu", "logsigmoid", "relu", "softplus", "tanh")
IMAGES = [("conv", activation, "graph") for activation in ACTIVATIONS]


# Few cases, because TensorFlow keeps up to 300 MB of each as long as the process lives.
TRACED = [("AMCVAE-variance", "float64", ("dense", "gelu", "graph"))]
ALL_STEPS = [
    ("LMCVAE-learned", "float64", ("dense", "gelu", "xla")),
    ("LMCVAE-learned", "mixed_float16", ("dense", "gelu", "parts")),
    ("LMCVAE-learned", "mixed_bfloat16", ("dense", "gelu", "graph")),
    ("AMCVAE-variance", "float64", ("conv", "gelu", "parts")),
    ("AMCVAE-variance", "mixed_float16", ("dense", "gelu", "xla")),
    *itertools.product(("AMCVAE-variance",), ("float64",), IMAGES),
    *itertools.product(("AMCVAE-variance",), ("mixed_float16",), IMAGES[:2]),
]


@pytest.mark.parametrize(
    ("case", "setting", "step"), in_both_tiers({"default": TRACED, "slow": ALL_STEPS})
)
def test_execution(case, setting, step, monkeypatch):
    architecture, activation, mode = step
    in_parts = cores.dividing(2) if mode == "parts" else contextlib.nullcontext()
    if mode == "parts":
        monkeypatch.setattr(plan, "FEWEST_WEIGHTS_TO_DIVIDE", 0)
    options = {"run_eagerly": False, **EXECUTION[mode]}
    model = make_in(
        setting, "global", case, architecture=architecture, activation=activation, **options
    )
    x = X if architecture == "dense" else np.tile(X[:, :, None, None], [1, 1, 8, 1])
    with in_parts:
        history = model.fit(x, batch_size=3, validation_data=x, verbose=0).history
    assert np.all(np.isfinite(list(history.values())))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "setting"),
    [
        ("FlowVAE-realnvp", "float64"),
        ("LMCVAE-learned", "float64"),
        ("LMCVAE-learned", "mixed_float16"),
        ("AMCVAE-variance", "mixed_bfloat16"),
    ],
)
def test_evaluation_and_export(case, setting, tmp_path):
    model = make_in(setting, "local", case)
    chains = {"num_chains": 2, "num_temperatures": 4, "num_leapfrog_steps": 1}
    prior = {"step_size": 0.1, "start": "prior", "schedule": "linear"}
    estimates = [
        tf_mcvae.estimate_elbo(model, X),
        tf_mcvae.estimate_iwae(model, X, num_samples=20),
        tf_mcvae.estimate_bound(model, X),
        tf_mcvae.estimate_log_likelihood(model, X, **chains),
        tf_mcvae.estimate_log_likelihood(model, X, **chains, **prior),
        tf_mcvae.bidirectional_gap(model, 4, **chains).lower,
    ]
    assert all(np.all(np.isfinite(estimate.per_example)) for estimate in estimates)
    assert np.all(np.isfinite(tf_mcvae.latent_statistics(model, X).kl))
    for output in ("loc", "loc_and_scale", "sample"):
        assert np.all(np.isfinite(tf_mcvae.EncoderFeatures(model, output)(X)))
    path = tf_mcvae.export_saved_model(model, tmp_path / "served", calibration=X)
    served = tf.saved_model.load(str(path)).signatures["anomaly_score"]
    outputs = served(x=tf.constant(X, tf.float32), seed=tf.zeros([6, 2], tf.int32))
    assert all(value.dtype == tf.float32 for value in outputs.values())


@pytest.mark.parametrize("case", ["FlowVAE-iaf", "LMCVAE-learned", "AMCVAE-variance"])
def test_float64_model_is_loaded_under_float32(case, tmp_path):
    model = make_in("float64", "global", case)
    model.train_on_batch(X)
    expected = model.bound(X, seed=1)
    model.save(tmp_path / "model.keras")
    set_global("float32")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.bound(X, seed=1), expected)
    assert loaded.train_on_batch(X, return_dict=True)["bound"] < 0
    loaded.save(tmp_path / "again.keras")
    again = keras.models.load_model(tmp_path / "again.keras")
    np.testing.assert_array_equal(again.bound(X, seed=1), loaded.bound(X, seed=1))


@pytest.mark.parametrize("scope", ["global", "local"])
def test_float64_log_weights_are_the_numpy_twin(scope):
    """The same noise gives the log weights of L-MCVAE to the accuracy of float64."""
    set_global("float64")
    ppca = LinearGaussian()
    x, seed, count, step = ppca.data(3).astype(np.float64), random.as_seed(5), 4, 0.03
    networks = ppca.networks()
    if scope == "local":
        set_global("float32")
    model = tf_mcvae.LMCVAE(
        *networks,
        likelihood={"class_name": "gaussian", "config": {"scale": ppca.sigma}},
        num_transitions=3,
        step_size=step,
        dtype="float64",
    )
    log_weights = model.log_weights(x, seed=seed, num_samples=count)

    start_seed, chain_seed = random.split(seed)
    shape = [count, len(x), ppca.latent_dim]
    loc, variance = ppca.encoder_moments(x)
    z = loc + np.sqrt(variance) * random.normal(shape, start_seed).numpy().astype(np.float64)
    expected = -ppca.log_posterior(x, z)
    for k in range(3):
        noise_seed = random.split(random.fold_in(chain_seed, tf.constant(k)))[0]
        noise, b = random.normal(shape, noise_seed).numpy().astype(np.float64), (k + 1) / 4
        new = z + step * ppca.score(x, z, b) + np.sqrt(2 * step) * noise
        back = (z - new - step * ppca.score(x, new, b)) / np.sqrt(2 * step)
        expected += 0.5 * np.sum(noise**2 - back**2, -1)
        z = new
    expected += ppca.log_joint(x, z)
    np.testing.assert_allclose(log_weights, expected, rtol=1e-11)
    np.testing.assert_allclose(model.bound_of(log_weights), iwae(expected), rtol=1e-11)


def test_overflow_of_the_scaled_loss_lowers_its_factor():
    """Also where large gradients are skipped: the factor would otherwise stay, and all updates."""
    model = make("VAE-learned_scale", dtype="mixed_float16")
    scaled = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.01, global_clipnorm=1.0), initial_scale=2.0**40
    )
    model.compile(scaled, skip_gradient_norm=1e6, run_eagerly=True)
    before = [weight.numpy() for weight in model.trainable_weights]
    first = model.train_on_batch(X, return_dict=True)
    assert first["skipped"] == 1
    assert first["clipped"] == 0
    assert np.isfinite(first["grad_norm"])
    assert float(scaled.dynamic_scale) == 2.0**39
    for old, new in zip(before, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(new, old)
    for _ in range(40):
        last = model.train_on_batch(X, return_dict=True)
    assert last["skipped"] == 0
    assert last["grad_norm"] > 0
    assert last["bound"] > first["bound"]
