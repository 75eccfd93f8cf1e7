"""Tests of the export: what a server that has TensorFlow alone answers."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_mcvae
from tf_mcvae.export import check_servable, export_saved_model

SHAPE, LATENT_DIM, NUM_SAMPLES = (8, 8, 1), 3, 16
NAMES = ("vae", "iwae", "flow", "lmcvae", "amcvae", "conv")
INPUTS = {
    "serving_default": ("x",),
    "encode": ("x",),
    "posterior_sample": ("x", "seed"),
    "decode": ("z",),
    "reconstruct": ("x",),
    "generate": ("seed",),
    "log_likelihood": ("x", "seed"),
}

# Loads every model with TensorFlow alone and answers with batches of 7 rows, of the last of these,
# and of none.
SERVER = f"""
import sys
for name in ("keras", "tf_keras", "tensorflow_probability", "tf_mcvae"):
    sys.modules[name] = None
import numpy as np, tensorflow as tf
folder, inputs = sys.argv[1], {INPUTS}
requests, answers = dict(np.load(folder + "/requests.npz")), {{}}
for name in {NAMES}:
    signatures = tf.saved_model.load(f"{{folder}}/{{name}}/1").signatures
    for signature in signatures:
        for case, rows in (("all", slice(None)), ("last", slice(6, 7)), ("none", slice(0, 0))):
            feed = {{key: tf.constant(requests[key][rows]) for key in inputs[signature]}}
            for key, value in signatures[signature](**feed).items():
                answers[f"{{name}}/{{signature}}/{{key}}/{{case}}"] = value.numpy()
np.savez(folder + "/answers.npz", **answers)
"""


def networks(architecture="dense", decoder=tf_mcvae.Decoder):
    keras.utils.set_random_seed(1)
    options = {"architecture": architecture}
    if architecture == "dense":
        options["hidden_units"] = (16,)
    return tf_mcvae.Encoder(LATENT_DIM, **options), decoder(SHAPE, **options)


def built(model):
    model.build((None, *SHAPE))
    return model


def make_models():
    cloned = tf_mcvae.LMCVAE(
        *networks(), num_transitions=3, step_size=0.05, cloned_decoder=True, schedule="sigmoidal"
    )
    gaussian = tf_mcvae.Gaussian(0.5, learned=True)
    models = {
        "vae": tf_mcvae.VAE(*networks(), likelihood=gaussian),
        "iwae": tf_mcvae.IWAE(*networks()),
        "flow": tf_mcvae.FlowVAE(*networks(), flow="bnaf"),
        "lmcvae": cloned,
        "amcvae": tf_mcvae.AMCVAE(*networks(), num_transitions=3, step_size=0.3),
        "conv": tf_mcvae.LMCVAE(*networks("conv"), num_transitions=2, schedule="all_learnable"),
    }
    for model in models.values():
        built(model)
    # As training would: a clone that differs from the decoder.
    transition_decoder = cloned.transition_decoder
    transition_decoder.set_weights([1.5 * weight for weight in transition_decoder.get_weights()])
    return models


@pytest.fixture(scope="module")
def models():
    return make_models()


@pytest.fixture(scope="module")
def requests():
    rng = np.random.default_rng(5)
    arrays = {
        "x": rng.uniform(size=(7, *SHAPE)).astype(np.float32),
        "z": rng.normal(size=(7, LATENT_DIM)).astype(np.float32),
        "seed": rng.integers(-(2**31), 2**31, size=(7, 2)).astype(np.int32),
    }
    for array in arrays.values():
        array[4] = array[1]  # Two equal requests in one batch.
    return arrays


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    for name, model in models.items():
        export_saved_model(model, folder / name, num_samples=NUM_SAMPLES)
    return folder


@pytest.fixture(scope="module")
def answers(folder, requests):
    np.savez(folder / "requests.npz", **requests)
    command = [sys.executable, "-c", SERVER, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    with np.load(folder / "answers.npz") as file:
        return dict(file)


def expected_answers(model, x, z, seed):
    loc, scale = model.encode(x)
    log_weights = model.log_weights(x, seed, NUM_SAMPLES).numpy().astype(np.float64)
    weights = np.exp(log_weights - log_weights.max(axis=0))
    mean = weights.mean(axis=0)
    return {
        "serving_default": {"loc": loc, "scale": scale},
        "encode": {"loc": loc, "scale": scale},
        "posterior_sample": {"z": model.posterior_sample(x, 1, seed)[0]},
        "decode": {"image": model.decode(z)},
        "reconstruct": {"image": model.reconstruct(x)},
        "generate": {
            "image": model.sample(7, seed),
            "z": tf_mcvae.random.normal([1, 7, LATENT_DIM], tf.constant(seed))[0],
        },
        "log_likelihood": {
            "log_likelihood": log_weights.max(axis=0) + np.log(mean),
            "standard_error": weights.std(axis=0, ddof=1) / np.sqrt(NUM_SAMPLES) / mean,
        },
    }


@pytest.mark.parametrize("name", NAMES)
def test_tensorflow_alone_answers_as_the_keras_model_does(name, models, requests, answers):
    expected = expected_answers(models[name], **requests)
    assert expected.keys() == INPUTS.keys()
    for signature, outputs in expected.items():
        for key, value in outputs.items():
            answer = answers[f"{name}/{signature}/{key}/all"]
            assert answer.dtype == np.float32
            np.testing.assert_allclose(
                answer, value, rtol=1e-4, atol=1e-5, err_msg=f"{signature} {key}"
            )


@pytest.mark.parametrize("name", NAMES)
def test_a_row_gets_the_same_answer_whatever_is_batched_beside_it(name, answers):
    found = [key for key in answers if key.startswith(f"{name}/") and key.endswith("/all")]
    assert len(found) == 11
    for key in found:
        together, alone = answers[key], answers[key.removesuffix("all") + "last"]
        np.testing.assert_allclose(alone[0], together[6], rtol=1e-4, atol=1e-5, err_msg=key)
        np.testing.assert_allclose(together[4], together[1], rtol=1e-4, atol=1e-5, err_msg=key)
    # Unequal requests, of which the seed is a part, get unequal answers.
    draws = answers[f"{name}/generate/z/all"]
    assert len(np.unique(draws.round(4), axis=0)) == 6


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_gets_an_empty_answer(name, answers):
    for key in answers:
        if key.startswith(f"{name}/") and key.endswith("/none"):
            full = answers[key.removesuffix("none") + "all"]
            assert answers[key].shape == (0, *full.shape[1:])


@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_and_dtypes_of_the_signatures(name, folder):
    shapes = {"x": [None, *SHAPE], "z": [None, LATENT_DIM], "seed": [None, 2]}
    signatures = tf.saved_model.load(str(folder / name / "1")).signatures
    assert signatures.keys() == INPUTS.keys()
    for signature, function in signatures.items():
        _, inputs = function.structured_input_signature
        assert {key: spec.shape.as_list() for key, spec in inputs.items()} == {
            key: shapes[key] for key in INPUTS[signature]
        }
        assert all(
            spec.dtype == (tf.int32 if key == "seed" else tf.float32)
            for key, spec in inputs.items()
        )


@pytest.mark.parametrize("name", NAMES)
def test_each_weight_is_stored_once(name, models, folder):
    model = models[name]
    weights = [*model.encoder.weights, *model.decoder.weights]
    if name == "lmcvae":
        weights += model.transition_decoder.weights
    if name == "flow":
        weights += model.flow.weights
    num_bytes = 4 * sum(int(np.prod(weight.shape)) for weight in weights)
    stored = sum(file.stat().st_size for file in (folder / name / "1" / "variables").iterdir())
    # Beside the numbers there is an index of names and shapes.
    assert num_bytes <= stored < 1.02 * num_bytes + 3000


def test_the_standard_error_is_the_spread_over_seeds(folder, requests):
    served = tf.saved_model.load(str(folder / "iwae" / "1")).signatures["log_likelihood"]
    x = tf.repeat(requests["x"][:1], 1000, axis=0)
    seed = tf.stack([tf.range(1000), tf.fill([1000], 3)], axis=1)
    answer = served(x=x, seed=seed)
    spread = np.std(answer["log_likelihood"])
    assert spread > 0.005
    # The spread of 1000 draws is known to 2.2 % (one standard deviation), and the linear
    # approximation behind the standard error costs a few per cent: about one false alarm in 1e6.
    assert np.sqrt(np.mean(np.square(answer["standard_error"]))) == pytest.approx(spread, rel=0.15)


def test_half_precision_networks_answer_in_float32(tmp_path):
    options = {"architecture": "dense", "hidden_units": (16,), "dtype": "mixed_bfloat16"}
    encoder = tf_mcvae.Encoder(LATENT_DIM, **options)
    model = built(tf_mcvae.VAE(encoder, tf_mcvae.Decoder(SHAPE, **options)))
    signatures = tf.saved_model.load(str(export_saved_model(model, tmp_path))).signatures
    answer = signatures["reconstruct"](x=tf.fill([2, *SHAPE], 0.3))["image"]
    np.testing.assert_allclose(answer, model.reconstruct(np.full([2, *SHAPE], 0.3, "f")), rtol=1e-2)


def call(signatures, name, **inputs):
    """Runs a signature as a server does, where Python does not look at the shapes first."""
    function = signatures[name]
    return tf.raw_ops.StatefulPartitionedCall(
        args=[*(tf.constant(inputs[key]) for key in sorted(inputs)), *function.captured_inputs],
        Tout=[tf.float32] * len(function.structured_outputs),
        f=function,
    )


def images(num_rows=2, value=0.5):
    x = np.full([num_rows, *SHAPE], 0.5, np.float32)
    x[-1, 2, 3, 0] = value
    return x


SEEDS = np.zeros([2, 2], np.int32)
BAD_REQUESTS = {
    "pixel not a number": ("encode", {"x": images(value=np.nan)}, "must be finite"),
    "pixel infinite": ("reconstruct", {"x": images(value=np.inf)}, "must be finite"),
    "pixel out of range": (
        "log_likelihood",
        {"x": images(value=1.5), "seed": SEEDS},
        "needs values in",
    ),
    "latent not a number": ("decode", {"z": np.full([2, 3], np.nan, np.float32)}, "must be finite"),
    "shape of images": ("encode", {"x": images().reshape(2, 4, 16, 1)}, "expected shape"),
    "flat images": ("encode", {"x": images().reshape(2, 64)}, "expected shape"),
    "shape of latents": ("decode", {"z": np.zeros([2, 6], np.float32)}, "expected shape"),
    "shape of seeds": ("generate", {"seed": np.zeros([4], np.int32)}, "expected shape"),
    "too few seeds": ("posterior_sample", {"x": images(), "seed": SEEDS[:1]}, "needs a `seed`"),
    "too many seeds": ("log_likelihood", {"x": images(1), "seed": SEEDS}, "needs a `seed`"),
}


@pytest.fixture(scope="module")
def signatures(folder):
    return tf.saved_model.load(str(folder / "amcvae" / "1")).signatures


@pytest.mark.parametrize("request_", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_gets_an_error_and_no_numbers(request_, signatures):
    name, inputs, message = request_
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(signatures, name, **inputs)


def test_a_good_request_of_the_same_kind_is_answered(signatures):
    (z,) = call(signatures, "posterior_sample", x=images(), seed=SEEDS)
    assert np.all(np.isfinite(z))


# Folders and versions.


@pytest.fixture(scope="module")
def small_model():
    return built(tf_mcvae.VAE(*networks()))


def test_versions_count_up_from_the_highest(small_model, tmp_path):
    base = tmp_path / "new" / "model"
    assert export_saved_model(small_model, base) == base / "1"
    assert export_saved_model(small_model, str(base), version=7) == base / "7"
    assert export_saved_model(small_model, base) == base / "8"
    assert sorted(path.name for path in base.iterdir()) == ["1", "7", "8"]
    # Another user's server can read it.
    assert (base / "1").stat().st_mode & 0o005 == 0o005


def test_an_existing_version_is_left_alone(small_model, tmp_path):
    (tmp_path / "3").mkdir()
    with pytest.raises(ValueError, match=r"exists already.*take the next, 4.*Received: version=3"):
        export_saved_model(small_model, tmp_path, version=3)
    assert not list((tmp_path / "3").iterdir())


@pytest.mark.parametrize(
    "error", [OSError("disk full"), tf.errors.UnknownError(None, None, "gone")]
)
def test_a_failure_leaves_nothing_behind(error, small_model, tmp_path, monkeypatch):
    def fail(module, path, *args):
        pathlib.Path(path).mkdir()
        (pathlib.Path(path) / "saved_model.pb").write_text("half")
        raise error

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(ValueError, match=r"could not be written.*Received: "):
        export_saved_model(small_model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(small_model, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(ValueError, match=r"could not be written.*Received: "):
            export_saved_model(small_model, path)


def test_arguments_are_checked(small_model, tmp_path):
    with pytest.raises(ValueError, match=r"no shapes yet.*Received: an unbuilt model"):
        export_saved_model(tf_mcvae.VAE(*networks()), tmp_path)
    with pytest.raises(TypeError, match="Received: Encoder"):
        export_saved_model(small_model.encoder, tmp_path)
    with pytest.raises(TypeError, match="Received: path=3"):
        export_saved_model(small_model, 3)
    with pytest.raises(ValueError, match="Received: num_samples=1"):
        export_saved_model(small_model, tmp_path, num_samples=1)
    with pytest.raises(ValueError, match="Received: version=0"):
        export_saved_model(small_model, tmp_path, version=0)
    assert not list(tmp_path.iterdir())


# What a server cannot run.

OPERATIONS = {
    "EagerPyFunc": lambda y: tf.py_function(np.array, [y], tf.float32),
    "PyFunc": lambda y: tf.numpy_function(np.array, [y], tf.float32),
    "PyFuncStateless": lambda y: tf.numpy_function(np.array, [y], tf.float32, stateful=False),
    "_XlaMustCompile": tf.function(tf.tanh, jit_compile=True),
}


class OddDecoder(tf_mcvae.Decoder):
    operation = None

    def call(self, z):
        y = super().call(z)
        return tf.ensure_shape(OPERATIONS[self.operation](y), y.shape)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_networks_that_no_server_can_run_are_refused(operation, tmp_path, monkeypatch):
    monkeypatch.setattr(OddDecoder, "operation", operation)
    model = built(tf_mcvae.VAE(*networks(decoder=OddDecoder)))
    with pytest.raises(ValueError, match=rf"A server .*'{operation}'.* in 'decode'"):
        export_saved_model(model, tmp_path / "served")
    assert not (tmp_path / "served").exists()

    # A SavedModel written by other means.
    module = tf.Module()
    module.state = [variable.value for variable in model.variables]
    decode = tf.function(model.decode, input_signature=[tf.TensorSpec([None, LATENT_DIM])])
    tf.saved_model.save(module, str(tmp_path / "other"), signatures=decode)
    with pytest.raises(ValueError, match=rf"A server .*'{operation}'"):
        check_servable(tmp_path / "other")


def test_exports_are_servable(folder, signatures):
    for name in NAMES:
        check_servable(folder / name / "1")
    check_servable(signatures["encode"])


def test_what_is_no_saved_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must hold a SavedModel.*Received: "):
        check_servable(tmp_path)
    with pytest.raises(TypeError, match="Received: int"):
        check_servable(3)
