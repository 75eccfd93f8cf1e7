"""The example clients against a small server that speaks TensorFlow Serving's protocols."""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import urllib.error
import urllib.request

import keras
import numpy as np
import pytest
from serving import loader, stand_in

import tf_mcvae
from tf_mcvae.export import export_saved_model

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples/serving"
SHAPE, LATENT_DIM, NUM_SAMPLES = (4, 4, 1), 2, 4
RNG = np.random.default_rng(3)
X = RNG.uniform(size=(5, *SHAPE)).astype(np.float32)
BYTES = np.round(255 * X).astype(np.uint8)
SEED = RNG.integers(-(2**31), 2**31, size=(5, 2)).astype(np.int32)
ROW_SEED = tf_mcvae.random.per_row(SEED)

needs_stubs = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_serving") is None,
    reason="needs the gRPC stubs: pip install --no-deps tensorflow-serving-api==2.21.0",
)


def make_model(seed):
    keras.utils.set_random_seed(seed)
    options = {"architecture": "dense", "hidden_units": (8,)}
    encoder, decoder = tf_mcvae.Encoder(LATENT_DIM, **options), tf_mcvae.Decoder(SHAPE, **options)
    model = tf_mcvae.VAE(encoder, decoder)
    model.build((None, *SHAPE))
    return model


@pytest.fixture(scope="module")
def models():
    """Two trainings of a model, by the number of the version."""
    return {1: make_model(1), 2: make_model(2)}


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    path = tmp_path_factory.mktemp("served")
    for version, model in models.items():
        export_saved_model(model, path, version, NUM_SAMPLES)
    return path


@pytest.fixture(scope="module")
def server(served):
    return stand_in.Model(served, "digits")


@pytest.fixture(scope="module")
def host(server):
    with stand_in.serving_rest(server) as port:
        yield f"http://127.0.0.1:{port}"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rest(host):
    return example("rest_client").ServedModel("digits", host)


# REST.


def test_rest_gives_the_model_s_numbers(rest, models):
    model = models[2]
    loc, scale = model.encode(X)
    got = rest.predict("encode", x=X)
    np.testing.assert_allclose(got["loc"], loc, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["scale"], scale, rtol=1e-4, atol=1e-5)
    # A single output is not named.
    z = rest.predict("posterior_sample", x=X, seed=SEED)
    np.testing.assert_allclose(z, model.posterior_sample(X, 1, ROW_SEED)[0], rtol=1e-4, atol=1e-5)
    draws = rest.predict("posterior_samples", x=X, seed=SEED, num_samples=np.full([5], 3))
    assert draws.shape == (5, 3, LATENT_DIM)
    image = rest.predict("reconstruct_uint8", x=BYTES)
    expected = model.reconstruct((BYTES / 255).astype(np.float32))
    np.testing.assert_allclose(image, expected, rtol=1e-4, atol=1e-5)


def test_rest_serves_each_version(host, models):
    for version, model in models.items():
        client = example("rest_client").ServedModel("digits", host, version)
        np.testing.assert_allclose(client.predict("encode", x=X)["loc"], model.encode(X)[0], 1e-4)


def post(host, path, **body):
    request = urllib.request.Request(f"{host}/v1/models/{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def test_rest_by_rows(host, rest):
    rows = [{"x": x.tolist(), "seed": seed.tolist()} for x, seed in zip(X, SEED, strict=True)]
    got = post(host, "digits:predict", signature_name="log_likelihood", instances=rows)
    expected = rest.predict("log_likelihood", x=X, seed=SEED)
    for key, values in expected.items():
        np.testing.assert_allclose([row[key] for row in got["predictions"]], values, rtol=1e-6)
    # A single input needs no name, and neither does the default signature.
    got = post(host, "digits:predict", instances=X.tolist())["predictions"]
    np.testing.assert_allclose([row["loc"] for row in got], rest.predict("encode", x=X)["loc"])


REFUSED = {
    "shape": ("encode", {"x": X.reshape(5, 16)}, "(?i)shape"),
    "NaN": ("encode", {"x": np.full([1, *SHAPE], np.nan)}, "must be finite"),
    "floats for bytes": ("encode_uint8", {"x": X}, "expected type uint8"),
    "bytes out of range": ("encode_uint8", {"x": np.full([1, *SHAPE], 256)}, "range of uint8"),
    "seeds": ("posterior_sample", {"x": X, "seed": SEED[:2]}, "needs a `seed`"),
    "no seeds": ("posterior_sample", {"x": X}, "inputs must be"),
    "signature": ("embed", {"x": X}, "not found"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rest_refuses(case, rest):
    signature, inputs, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        rest.predict(signature, **inputs)


def test_rest_tells_status_and_metadata(host, rest):
    with urllib.request.urlopen(f"{host}/v1/models/digits") as response:
        (status,) = json.load(response)["model_version_status"]
    assert (status["version"], status["state"]) == ("2", "AVAILABLE")
    inputs = rest.metadata()["posterior_sample"]["inputs"]
    assert inputs["seed"]["dtype"] == "DT_INT32"
    assert [d["size"] for d in inputs["x"]["tensor_shape"]["dim"]] == ["-1", "4", "4", "1"]
    for path in ("other", "digits/versions/3", "digits/weights"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{host}/v1/models/{path}")


def run_example(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    example(name).main()


def test_the_rest_client_as_a_program(host, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "x.npy", X)
    common = ("--host", host, "--model", "digits")
    run_example("rest_client", monkeypatch, *common)
    assert "posterior_sample(" in capsys.readouterr().out
    for name, shape in (("log_likelihood", "(5,)"), ("decode", "(4, 4, 4, 1)")):
        images = ("--images", tmp_path / "x.npy")
        run_example("rest_client", monkeypatch, *common, "--signature", name, *images)
        assert shape in capsys.readouterr().out


# gRPC.


@pytest.fixture(scope="module")
def target(server):
    with stand_in.serving_grpc(server) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def client(target):
    client = example("grpc_client").ServedModel("digits", target)
    yield client
    client.close()


@needs_stubs
def test_grpc_gives_what_rest_gives(client, rest):
    for name, inputs in {
        "encode": {"x": X},
        "log_likelihood": {"x": X, "seed": SEED},
        "generate": {"seed": SEED},
        "log_likelihood_uint8": {"x": BYTES, "seed": SEED},
    }.items():
        got, expected = client.predict(name, **inputs), rest.predict(name, **inputs)
        for key, value in expected.items():
            np.testing.assert_allclose(got[key], value, rtol=1e-5, atol=1e-6)
    assert client.predict("encode", x=X[:0])["loc"].shape == (0, LATENT_DIM)


@needs_stubs
def test_grpc_refuses(client):
    import grpc

    requests = [(name, inputs) for name, inputs, _ in REFUSED.values()]
    requests += [("encode", {"x": X.astype(np.float64)}), ("generate", {"seed": np.int64(SEED)})]
    for name, inputs in requests:
        with pytest.raises(grpc.RpcError) as error:
            client.predict(name, **inputs)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@needs_stubs
def test_grpc_tells_status_and_metadata(target):
    import grpc
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_service_pb2_grpc,
        prediction_service_pb2_grpc,
    )

    with grpc.insecure_channel(target) as channel:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "digits"
        status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request)
        assert status.model_version_status[0].version == 2
        request = get_model_metadata_pb2.GetModelMetadataRequest()
        request.model_spec.name = "digits"
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        found = get_model_metadata_pb2.SignatureDefMap()
        stub.GetModelMetadata(request).metadata["signature_def"].Unpack(found)
        assert {"encode", "generate_uint8"} & found.signature_def.keys() == {"encode"}
        request.model_spec.name = "other"
        with pytest.raises(grpc.RpcError) as error:
            stub.GetModelMetadata(request)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND


@needs_stubs
def test_the_grpc_client_as_a_program(target, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "x.npy", BYTES)
    arguments = ("--target", target, "--model", "digits", "--images", tmp_path / "x.npy")
    run_example("grpc_client", monkeypatch, *arguments)
    assert capsys.readouterr().out.count(" nats\n") == 5


@needs_stubs
def test_warm_up_requests_are_messages_of_the_real_kind(served, server):
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    path = served / "2/assets.extra/tf_serving_warmup_requests"
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    assert len(records) <= 1000
    own = loader.read_requests(path)
    for record, (name, inputs) in zip(records, own, strict=True):
        log = prediction_log_pb2.PredictionLog.FromString(record)
        assert log.SerializeToString(deterministic=True)
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.signature_name == name
        read = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        assert read.keys() == inputs.keys()
        assert server.find("digits").predict(name, read)


# The clients in an environment without Keras.

ALONE = """
import importlib.util, sys
for name in ("keras", "tf_keras", "tensorflow_probability", "tf_mcvae", "sklearn"):
    assert importlib.util.find_spec(name) is None, name
import numpy as np, tensorflow as tf
signatures = tf.saved_model.load(sys.argv[1]).signatures
x, seed = np.load(sys.argv[2]), np.load(sys.argv[3])
got = signatures["log_likelihood"](x=tf.constant(x), seed=tf.constant(seed))
np.save(sys.argv[4], got["log_likelihood"].numpy())
"""


def test_in_an_environment_with_tensorflow_alone(served, models, tmp_path):
    """A virtual environment with TensorFlow and its requirements, except Keras."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    parts = parts_of("tensorflow", without={"keras"})
    if not parts:
        pytest.skip("TensorFlow is installed under another name: its parts are not known")
    for path in parts:
        if not (packages / path.name).exists():
            (packages / path.name).symlink_to(path)
    for name, array in (("x", X), ("seed", SEED)):
        np.save(tmp_path / f"{name}.npy", array)
    files = [str(tmp_path / f"{name}.npy") for name in ("x", "seed", "answer")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(tmp_path / "venv/bin/python"), "-c", ALONE, str(served / "1"), *files]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    log_weights = models[1].log_weights(X, ROW_SEED, NUM_SAMPLES).numpy().astype(np.float64)
    expected = np.logaddexp.reduce(log_weights) - np.log(NUM_SAMPLES)
    np.testing.assert_allclose(np.load(tmp_path / "answer.npy"), expected, rtol=1e-5)


def parts_of(name, without):
    """The top-level files and folders of a distribution and of its requirements."""
    found, names = set(), [name]
    done = set(without)
    while names:
        name = names.pop()
        if name in done:
            continue
        done.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # For another platform.
        for file in distribution.files or ():
            if file.parts[0] not in ("..", "__pycache__"):
                found.add(pathlib.Path(distribution.locate_file(file.parts[0])))
        required = [r for r in distribution.requires or () if "extra ==" not in r]
        names += [re.match(r"[\w.-]+", r)[0].lower() for r in required]
    return found
