"""The exported SavedModel: answers of a server that has only TensorFlow, and its folders."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from reference import as_if_trained, jackknife

import tf_mcvae
from tf_mcvae.cli import run_data, training
from tf_mcvae.export import check_servable, export_saved_model
from tf_mcvae_commands.run_folder import RunFolder
from tf_mcvae_commands.training_settings import RunConfig

SHAPE, LATENT_DIM, NUM_SAMPLES = (8, 8, 1), 3, 16
INPUTS = {
    "serving_default": ("x",),
    "encode": ("x",),
    "posterior_sample": ("x", "seed"),
    "posterior_samples": ("x", "seed", "num_samples"),
    "decode": ("z",),
    "reconstruct": ("x",),
    "generate": ("seed",),
    "log_likelihood": ("x", "seed"),
    "anomaly_score": ("x", "seed"),
}
# Each signature of images has a second form for bytes.
OF_BYTES = {f"{name}_uint8" for name, keys in INPUTS.items() if "x" in keys} - {
    "serving_default_uint8"
}

# Loads a model with TensorFlow only. Answers all 7 rows, the last of them alone, and an empty
# batch.
SERVER = f"""
import sys
for name in ("keras", "tf_keras", "tensorflow_probability", "tf_mcvae"):
    sys.modules[name] = None
import numpy as np, tensorflow as tf
folder, inputs = sys.argv[1], {INPUTS}
requests, answers = dict(np.load(folder + "/requests.npz")), {{}}
signatures = tf.saved_model.load(folder + "/1").signatures
for signature in inputs:
    for case, rows in (("all", slice(None)), ("last", slice(6, 7)), ("none", slice(0, 0))):
        feed = {{key: tf.constant(requests[key][rows]) for key in inputs[signature]}}
        for key, value in signatures[signature](**feed).items():
            answers[f"{{signature}}/{{key}}/{{case}}"] = value.numpy()
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


def make_flow():
    return tf_mcvae.FlowVAE(*networks(), flow="bnaf", likelihood=tf_mcvae.Gaussian(0.5, True))


def make_lmcvae():
    options = {"num_transitions": 3, "step_size": 0.05, "schedule": "sigmoidal"}
    model = built(tf_mcvae.LMCVAE(*networks(), cloned_decoder=True, **options))
    # After training the clone differs from the decoder.
    clone = model.transition_decoder
    clone.set_weights([1.5 * weight for weight in clone.get_weights()])
    return model


def make_amcvae():
    return tf_mcvae.AMCVAE(*networks(), num_transitions=3, step_size=0.3)


def make_conv():
    return tf_mcvae.LMCVAE(*networks("conv"), num_transitions=2, schedule="all_learnable")


def make_ldvivae():
    """With all parts that the new kernels have: momentum, masses and a network."""
    momentum = tf_mcvae.MomentumRefresh(0.5, [0.8] * LATENT_DIM, learn_mass=True)
    network = tf_mcvae.DriftNetwork([8])
    model = tf_mcvae.LDVIVAE(*networks(), num_transitions=2, momentum=momentum, network=network)
    as_if_trained(built(model).network, 0.5)
    return model


def make_daisvae():
    return tf_mcvae.DAISVAE(*networks(), num_transitions=2)


# `test_serving_cpp.py` and `test_serving_protocol.py` run others by default.
MODELS = [
    pytest.param(make, marks=pytest.mark.slow)
    for make in (make_flow, make_lmcvae, make_amcvae, make_conv, make_ldvivae, make_daisvae)
]


@pytest.fixture(scope="module")
def small_model():
    return built(tf_mcvae.VAE(*networks()))


CALIBRATION = np.random.default_rng(9).uniform(size=(19, *SHAPE)).astype(np.float32)
CARD = {"data": {"name": "noise", "binarize": None}, "metrics": {"elbo": -3.5, "nan": float("nan")}}


@pytest.fixture(scope="module")
def small_path(small_model, tmp_path_factory):
    """Versions 7 and 8 of a model, the first with all options."""
    path = tmp_path_factory.mktemp("new") / "model"
    options = {"calibration": CALIBRATION, "pixel_range": (0.25, 0.75), "card": CARD}
    version = export_saved_model(small_model, str(path), 7, NUM_SAMPLES, **options)
    assert version == path / "7"
    return path


@pytest.fixture(scope="module")
def small_served(small_path):
    return tf.saved_model.load(str(small_path / "7"))


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return built(request.param())


@pytest.fixture(scope="module")
def requests():
    rng = np.random.default_rng(5)
    arrays = {
        "x": rng.uniform(size=(7, *SHAPE)).astype(np.float32),
        "z": rng.normal(size=(7, LATENT_DIM)).astype(np.float32),
        "seed": rng.integers(-(2**31), 2**31, size=(7, 2)).astype(np.int32),
        "num_samples": np.full([7], 11, np.int32),
    }
    for array in arrays.values():
        array[4] = array[1]  # Two equal requests in one batch.
    return arrays


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    export_saved_model(model, folder, num_samples=NUM_SAMPLES)
    return folder


@pytest.fixture(scope="module")
def answers(folder, requests):
    np.savez(folder / "requests.npz", **requests)
    command = [sys.executable, "-c", SERVER, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    with np.load(folder / "answers.npz") as file:
        return dict(file)


def expected_answers(model, x, z, seed, num_samples):
    del num_samples
    seed = tf_mcvae.random.per_row(seed)
    loc, scale = model.encode(x)
    log_weights = model.log_weights(x, seed, NUM_SAMPLES).numpy().astype(np.float64)
    weights = np.exp(log_weights - log_weights.max(axis=0))
    mean = weights.mean(axis=0)
    log_likelihood = log_weights.max(axis=0) + np.log(mean)
    bias, variance = jackknife(log_weights)
    widened = scipy.stats.t.ppf(0.975, NUM_SAMPLES - 1) / 1.96
    standard_error = widened * np.sqrt(variance + bias**2)
    # Draws are made in groups of eight.
    further = tf_mcvae.random.fold_in(seed, 1)
    draws = [*model.posterior_sample(x, 8, seed), *model.posterior_sample(x, 3, further)]
    return {
        "serving_default": {"loc": loc, "scale": scale},
        "encode": {"loc": loc, "scale": scale},
        "posterior_sample": {"z": model.posterior_sample(x, 1, seed)[0]},
        "posterior_samples": {"z": np.stack(draws, axis=1)},
        "decode": {"image": model.decode(z)},
        "reconstruct": {"image": model.reconstruct(x)},
        "generate": {
            "image": model.sample(7, seed),
            "z": tf_mcvae.random.normal([1, 7, LATENT_DIM], seed)[0],
        },
        "log_likelihood": {
            "log_likelihood": log_likelihood,
            "standard_error": standard_error,
        },
        "anomaly_score": {"anomaly_score": -log_likelihood, "standard_error": standard_error},
    }


def test_tensorflow_alone_answers_as_the_keras_model_does(model, requests, answers):
    expected = expected_answers(model, **requests)
    assert expected.keys() == INPUTS.keys()
    for signature, outputs in expected.items():
        for key, value in outputs.items():
            answer = answers[f"{signature}/{key}/all"]
            assert answer.dtype == np.float32
            np.testing.assert_allclose(
                answer, value, rtol=1e-4, atol=1e-5, err_msg=f"{signature} {key}"
            )


def test_a_row_gets_the_same_answer_whatever_is_batched_beside_it(answers):
    found = [key for key in answers if key.endswith("/all")]
    assert len(found) == 14
    for key in found:
        together, alone = answers[key], answers[key.removesuffix("all") + "last"]
        np.testing.assert_allclose(alone[0], together[6], rtol=1e-4, atol=1e-5, err_msg=key)
        np.testing.assert_allclose(together[4], together[1], rtol=1e-4, atol=1e-5, err_msg=key)
    # Requests with different seeds get different answers.
    draws = answers["generate/z/all"]
    assert len(np.unique(draws.round(4), axis=0)) == 6


def test_an_empty_batch_gets_an_empty_answer(answers):
    for key in answers:
        if key.endswith("/none"):
            full = answers[key.removesuffix("none") + "all"]
            # A request without rows has no `num_samples`, and 1 is the default.
            shape = (0, 1, LATENT_DIM) if "posterior_samples" in key else (0, *full.shape[1:])
            assert answers[key].shape == shape


def test_names_shapes_and_dtypes_of_the_signatures(folder):
    shapes = {"x": [None, *SHAPE], "z": [None, LATENT_DIM], "seed": [None, 2]}
    shapes["num_samples"] = [None]
    dtypes = {"x": tf.float32, "z": tf.float32, "seed": tf.int32, "num_samples": tf.int32}
    signatures = tf.saved_model.load(str(folder / "1")).signatures
    assert signatures.keys() == INPUTS.keys() | OF_BYTES
    for signature, function in signatures.items():
        _, inputs = function.structured_input_signature
        keys = INPUTS[signature.removesuffix("_uint8")]
        found = {key: (spec.shape.as_list(), spec.dtype) for key, spec in inputs.items()}
        expected = {key: (shapes[key], dtypes[key]) for key in keys}
        if signature in OF_BYTES:
            expected["x"] = (shapes["x"], tf.uint8)
        assert found == expected


def test_each_weight_is_stored_once(model, folder):
    weights = [*model.encoder.weights, *model.decoder.weights]
    if getattr(model, "cloned_decoder", False):
        weights += model.transition_decoder.weights
    for name in ("flow", "network"):
        weights += getattr(model, name).weights if hasattr(model, name) else []
    num_bytes = 4 * sum(int(np.prod(weight.shape)) for weight in weights)
    stored = sum(file.stat().st_size for file in (folder / "1" / "variables").iterdir())
    # The files also contain an index of names and shapes.
    assert num_bytes <= stored < 1.02 * num_bytes + 3000


@pytest.mark.slow
def test_the_standard_error_is_the_spread_over_seeds(small_served):
    served = small_served.signatures["log_likelihood"]
    x = tf.repeat(CALIBRATION[:1], 1000, axis=0)
    seed = tf.stack([tf.range(1000), tf.fill([1000], 3)], axis=1)
    answer = served(x=x, seed=seed)
    spread = np.std(answer["log_likelihood"])
    assert spread > 0.005
    # The spread of 1000 draws has a standard deviation of 2.2 %, and the linear approximation of
    # the standard error is off by a few per cent: about one false alarm in 1e6.
    assert np.sqrt(np.mean(np.square(answer["standard_error"]))) == pytest.approx(spread, rel=0.15)


@pytest.mark.slow
def test_half_precision_networks_answer_in_float32(tmp_path):
    options = {"architecture": "dense", "hidden_units": (16,), "dtype": "mixed_bfloat16"}
    encoder = tf_mcvae.Encoder(LATENT_DIM, **options)
    model = built(tf_mcvae.VAE(encoder, tf_mcvae.Decoder(SHAPE, **options)))
    signatures = tf.saved_model.load(str(export_saved_model(model, tmp_path))).signatures
    answer = signatures["reconstruct"](x=tf.fill([2, *SHAPE], 0.3))["image"]
    np.testing.assert_allclose(answer, model.reconstruct(np.full([2, *SHAPE], 0.3, "f")), rtol=1e-2)


def call(signatures, name, **inputs):
    """Runs a signature as a server does, without the checks of shapes in Python."""
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
def signatures(small_served):
    return small_served.signatures


@pytest.mark.parametrize("request_", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_gets_an_error_and_no_numbers(request_, signatures):
    name, inputs, message = request_
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(signatures, name, **inputs)


def test_a_good_request_of_the_same_kind_is_answered(signatures):
    (z,) = call(signatures, "posterior_sample", x=images(), seed=SEEDS)
    assert np.all(np.isfinite(z))


# Folders and versions.


def test_versions_count_up_from_the_highest(small_model, small_path):
    before = (small_path / "7" / "saved_model.pb").read_bytes()
    assert export_saved_model(small_model, small_path) == small_path / "8"
    names = sorted(path.name for path in small_path.iterdir())
    assert names == ["7", "8", "README.md", "model_card.json"]
    assert (small_path / "7" / "saved_model.pb").read_bytes() == before
    # A server of another user can read it.
    assert (small_path / "8").stat().st_mode & 0o005 == 0o005
    # The card of the latest version is copied to the folder of the versions.
    for name in ("README.md", "model_card.json"):
        assert (small_path / name).read_bytes() == (small_path / "8" / name).read_bytes()


def test_the_card_says_what_is_served(small_path):
    card = json.loads((small_path / "7" / "model_card.json").read_text("utf-8"))
    assert card["model"]["class"] == "VAE"
    assert card["model"]["image_shape"] == list(SHAPE)
    assert card["serving"]["version"] == 7
    assert card["serving"]["num_samples"] == NUM_SAMPLES
    assert card["serving"]["uint8_pixel_range"] == [0.25, 0.75]
    assert card["serving"]["calibration_images"] == len(CALIBRATION)
    assert card["data"] == CARD["data"]
    assert card["metrics"] == {"elbo": -3.5, "nan": None}  # JSON has no NaN.
    readme = (small_path / "7" / "README.md").read_text("utf-8")
    assert "| `log_likelihood` | `standard_error` | [B] | float32 | nats |" in readme
    assert "- elbo: -3.5" in readme


def test_the_card_has_the_tensors_of_the_file(small_path, small_served):
    card = json.loads((small_path / "7" / "model_card.json").read_text("utf-8"))["signatures"]
    assert card.keys() == small_served.signatures.keys()
    for name, function in small_served.signatures.items():
        _, inputs = function.structured_input_signature
        for kind, specs in (("inputs", inputs), ("outputs", function.structured_outputs)):
            described = card[name][kind]
            assert described.keys() == specs.keys()
            for key, spec in specs.items():
                named = [None if isinstance(n, str) else n for n in described[key]["shape"]]
                assert named == spec.shape.as_list()
                assert described[key]["dtype"] == spec.dtype.name
                assert described[key]["unit"]


def test_p_values_are_ranks_among_the_calibration_images(small_served):
    served = small_served.signatures["anomaly_score"]
    own = np.stack([np.arange(19), np.full([19], -1)], axis=1).astype(np.int32)
    ordinary = served(x=tf.constant(CALIBRATION), seed=tf.constant(own))
    scores = ordinary["anomaly_score"].numpy()
    # With the seeds of the calibration, the scores are equal: the highest has one as high.
    ranks = np.argsort(np.argsort(-scores))
    np.testing.assert_allclose(ordinary["p_value"], (2.0 + ranks) / 20.0, atol=1.01 / 20)
    x = np.concatenate([CALIBRATION[:4], (CALIBRATION[:4] > 0.5).astype(np.float32)])
    got = served(x=tf.constant(x), seed=tf.constant(own[:8] + 5))
    counts = np.sum(scores >= got["anomaly_score"].numpy()[:, np.newaxis], axis=1)
    np.testing.assert_allclose(got["p_value"], (1.0 + counts) / 20.0, rtol=1e-6)


def test_bytes_have_the_range_that_was_named(small_model, small_served):
    x = np.arange(128, dtype=np.uint8).reshape(2, *SHAPE) * 2
    x[-1, -1, -1] = 255
    got = small_served.signatures["encode_uint8"](x=tf.constant(x))["loc"]
    expected, _ = small_model.encode((0.25 + 0.5 * (x / 255.0)).astype(np.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_run_is_exported_with_what_is_known_of_it(small_model, tmp_path):
    settings = RunConfig(dataset="digits", model="VAE", score_examples=10, binarize=True)
    config, data = run_data.load_data(settings)
    folder = RunFolder(tmp_path)
    training.export(config, small_model, data, folder, {"epochs": 3})
    card = json.loads((folder.serving / "1" / "model_card.json").read_text("utf-8"))
    assert card["metrics"] == {"epochs": 3}
    assert (card["data"]["name"], card["data"]["num_train"]) == ("digits", data.spec.num_train)
    assert card["settings"]["binarize"] is True
    assert card["versions"]["tf_mcvae"] == tf_mcvae.__version__
    # Four for each scored image, from 150 available ones.
    assert card["serving"]["calibration_images"] == 40
    assert "p_value" in card["signatures"]["anomaly_score"]["outputs"]


@pytest.mark.slow
def test_an_answer_that_is_not_finite_is_an_error(tmp_path):
    model = built(tf_mcvae.VAE(*networks(), likelihood="gaussian"))
    far = np.full([2, *SHAPE], 1e30, np.float32)
    with pytest.raises(ValueError, match="Received: 2 of 2 images"):
        export_saved_model(model, tmp_path, calibration=far)
    signatures = tf.saved_model.load(str(export_saved_model(model, tmp_path))).signatures
    # The pixel is finite, but its square is not.
    with pytest.raises(tf.errors.InvalidArgumentError, match="no finite answer"):
        call(signatures, "log_likelihood", x=images(value=1e30), seed=SEEDS)


def test_an_existing_version_is_left_alone(small_model, tmp_path):
    (tmp_path / "3").mkdir()
    with pytest.raises(ValueError, match=r"exists already.*take the next, 4.*Received: version=3"):
        export_saved_model(small_model, tmp_path, version=3)
    assert not list((tmp_path / "3").iterdir())


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.UnknownError(None, None, "disk full"),
        pytest.param(OSError("disk full"), marks=pytest.mark.slow),
    ],
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
    with pytest.raises(ValueError, match="Received: chunk_size=0"):
        export_saved_model(small_model, tmp_path, chunk_size=0)
    for wrong in ((1.0, 0.0), (0.0,), (0.0, np.nan), "01"):
        with pytest.raises(ValueError, match="Received: pixel_range="):
            export_saved_model(small_model, tmp_path, pixel_range=wrong)
    with pytest.raises(ValueError, match="Received: shape"):
        export_saved_model(small_model, tmp_path, calibration=CALIBRATION[:, :4])
    with pytest.raises(TypeError, match="Received: list"):
        export_saved_model(small_model, tmp_path, calibration=[CALIBRATION])
    with pytest.raises(ValueError, match=r"Received: \['model'\]"):
        export_saved_model(small_model, tmp_path, card={"model": {}})
    with pytest.raises(ValueError, match="Received: 'text'"):
        export_saved_model(small_model, tmp_path, card="text")
    with pytest.raises(ValueError, match="Received: version=0"):
        export_saved_model(small_model, tmp_path, version=0)
    assert not list(tmp_path.iterdir())


# Operations that a server cannot run.

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
def test_what_no_server_can_run_is_found_in_a_file(operation, tmp_path, monkeypatch):
    """The SavedModel is written without the export."""
    monkeypatch.setattr(OddDecoder, "operation", operation)
    model = built(tf_mcvae.VAE(*networks(decoder=OddDecoder)))
    module = tf.Module()
    module.state = [variable.value for variable in model.variables]
    decode = tf.function(model.decode, input_signature=[tf.TensorSpec([None, LATENT_DIM])])
    tf.saved_model.save(module, str(tmp_path / "other"), signatures=decode)
    with pytest.raises(ValueError, match=rf"A server .*'{operation}'"):
        check_servable(tmp_path / "other")
    if operation == "_XlaMustCompile":
        check_servable(tmp_path / "other", allow_xla=True)


@pytest.mark.parametrize("operation", ["EagerPyFunc", "_XlaMustCompile"])
def test_networks_that_no_server_can_run_are_refused(operation, tmp_path, monkeypatch):
    monkeypatch.setattr(OddDecoder, "operation", operation)
    model = built(tf_mcvae.VAE(*networks(decoder=OddDecoder)))
    with pytest.raises(ValueError, match=rf"A server .*'{operation}'.* in '.*row"):
        export_saved_model(model, tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_exports_are_servable(small_path, signatures):
    check_servable(small_path / "7")
    check_servable(signatures["encode"])


def test_what_is_no_saved_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must hold a SavedModel.*Received: "):
        check_servable(tmp_path)
    with pytest.raises(TypeError, match="Received: int"):
        check_servable(3)
