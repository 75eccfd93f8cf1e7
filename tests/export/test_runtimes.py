"""ONNX and TFLite files, run in ONNX Runtime and LiteRT, against the Keras model.

Both runtimes compute in float32 with kernels of their own: outputs of order 1 agree to 1e-5, with
weights in half precision to 2e-3.
"""

import contextlib
import importlib.util
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_mcvae
from tf_mcvae.export import export_onnx, export_tflite, portable, to_onnx, to_tflite
from tf_mcvae.models.batch import Batch
from tf_mcvae_commands import train as cli

PACKAGES = ("tf2onnx", "onnx", "onnxruntime", "ai_edge_litert")
missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(missing), reason=f"needs {missing}: pip install -e '.[onnx,tflite]'"
)

SHAPE, LATENT_DIM = (8, 8, 1), 3
INPUTS = {"encode": ("x",), "decode": ("z",), "reconstruct": ("x", "noise")}
OUTPUTS = {"encode": ("loc", "scale"), "decode": ("image",), "reconstruct": ("image",)}
EXPORTS = {"onnx": export_onnx, "tflite": export_tflite}


def networks(architecture="dense", shape=SHAPE, **options):
    if architecture == "dense":
        options.setdefault("hidden_units", (16,))
    options["architecture"] = architecture
    return tf_mcvae.Encoder(LATENT_DIM, **options), tf_mcvae.Decoder(shape, **options)


def built(model, shape=SHAPE):
    model.build((None, *shape))
    return model


def perturbed(model, shape=SHAPE):
    """Makes all weights nonzero, so that omitting one is noticed and a flow is not the identity."""
    rng = np.random.default_rng(3)
    built(model, shape).set_weights(
        [w + 0.1 * rng.normal(size=w.shape).astype(np.float32) for w in model.get_weights()]
    )
    return model


def make_dense():
    return perturbed(tf_mcvae.VAE(*networks(hidden_units=(400,))))


def make_flow(flow="iaf"):
    gaussian = tf_mcvae.Gaussian(0.5, learned=True)
    return perturbed(tf_mcvae.FlowVAE(*networks(), flow=flow, num_flows=2, likelihood=gaussian))


def make_conv():
    return perturbed(tf_mcvae.LMCVAE(*networks("conv"), num_transitions=2, cloned_decoder=True))


def make_amcvae():
    shape = (12, 10, 3)
    gaussian = tf_mcvae.AMCVAE(*networks("conv", shape), num_transitions=2, likelihood="gaussian")
    return perturbed(gaussian, shape)


FURTHER = {
    "iaf": make_flow,
    "bnaf": lambda: make_flow("bnaf"),
    "realnvp": lambda: make_flow("realnvp"),
    "amcvae": make_amcvae,
    "iwae": lambda: perturbed(tf_mcvae.IWAE(*networks(activation="leakyrelu"), num_samples=4)),
}
MODELS = [
    pytest.param(make_dense, id="dense"),
    pytest.param(make_conv, id="conv"),
    *(pytest.param(f, id=name, marks=pytest.mark.slow) for name, f in FURTHER.items()),
]


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    keras.utils.set_random_seed(1)
    return request.param()


@pytest.fixture(scope="module")
def small_model():
    return built(tf_mcvae.VAE(*networks()))


class Onnx:
    def __init__(self, folder):
        import onnxruntime

        files = {path.stem: path for path in pathlib.Path(folder).iterdir()}
        self.sessions = {name: onnxruntime.InferenceSession(f) for name, f in files.items()}

    def run(self, name, **feed):
        session = self.sessions[name]
        return dict(zip(OUTPUTS[name], session.run(OUTPUTS[name], feed), strict=True))


class TFLite:
    def __init__(self, path):
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_path=str(path))

    def run(self, name, **feed):
        return self.interpreter.get_signature_runner(name)(**feed)


RUNTIMES = {"onnx": Onnx, "tflite": TFLite}


@pytest.fixture(scope="module", params=RUNTIMES)
def opened(request, model, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "model"
    assert EXPORTS[request.param](model, path) == path
    return RUNTIMES[request.param](path)


def arrays(model, num_rows, seed=5):
    rng = np.random.default_rng(seed)
    latents = rng.normal(size=(2, num_rows, model.latent_dim)).astype(np.float32)
    x = rng.uniform(size=(num_rows, *model.event_shape)).astype(np.float32)
    return {"x": x, "z": latents[0], "noise": latents[1]}


def draw_base(model, x, seed):
    """A draw of the encoder's posterior, after the flow if there is one, but before transitions."""
    states = model.draw_posterior(model.posterior(Batch(x)), 1, seed)
    return model.to_latents(states)[0]


def close(answer, expected, tolerance=1e-5):
    assert answer.dtype == np.float32
    # The rounding error of a sum is proportional to its largest terms.
    atol = tolerance * max(1.0, np.max(np.abs(expected), initial=0.0))
    np.testing.assert_allclose(answer, expected, rtol=tolerance, atol=atol)


# Outputs of the files.


@pytest.mark.parametrize("num_rows", [1, 7, 2])
def test_a_file_answers_as_the_keras_model_does(num_rows, model, opened):
    given, seed = arrays(model, num_rows), tf.constant([3, -4])
    for key, value in zip(("loc", "scale"), model.encode(given["x"]), strict=True):
        close(opened.run("encode", x=given["x"])[key], value)
    close(opened.run("decode", z=given["z"])["image"], model.decode(given["z"]))
    noise = tf_mcvae.random.normal([1, num_rows, model.latent_dim], seed)[0].numpy()
    expected = model.decode(draw_base(model, given["x"], seed))
    close(opened.run("reconstruct", x=given["x"], noise=noise)["image"], expected)
    without = opened.run("reconstruct", x=given["x"], noise=np.zeros_like(noise))["image"]
    close(without, model.reconstruct(given["x"]))
    assert np.max(np.abs(without - expected)) > 1e-3


def test_no_rows_get_no_rows(model, opened):
    """LiteRT may raise an error instead, since not all its operations accept empty tensors."""
    refusals = () if isinstance(opened, Onnx) else (RuntimeError, ValueError)
    given = arrays(model, 0)
    for name, keys in INPUTS.items():
        with contextlib.suppress(*refusals):
            for answer in opened.run(name, **{key: given[key] for key in keys}).values():
                assert answer.shape in ((0, model.latent_dim), (0, *model.event_shape))
    z = arrays(model, 1)["z"]
    close(opened.run("decode", z=z)["image"], model.decode(z))  # The next request works.


BAD = {
    "other size": ("encode", {"x": np.zeros([2, 8, 9, 1], np.float32)}),
    "other latents": ("decode", {"z": np.zeros([2, 4], np.float32)}),
    "float64": ("decode", {"z": np.zeros([2, 3])}),
    "bytes": ("encode", {"x": np.zeros([2, 8, 8, 1], np.uint8)}),
    "no noise": ("reconstruct", {"x": np.zeros([2, 8, 8, 1], np.float32)}),
    "other rows": (
        "reconstruct",
        {"x": np.zeros([7, 8, 8, 1], np.float32), "noise": np.zeros([3, 3], np.float32)},
    ),
}


@pytest.fixture(scope="module", params=RUNTIMES)
def small(request, small_model, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "model"
    return RUNTIMES[request.param](EXPORTS[request.param](small_model, path))


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_gets_the_error_of_the_runtime(kind, small):
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    errors = (ValueError, RuntimeError, state.InvalidArgument, state.Fail)
    name, feed = BAD[kind]
    with pytest.raises(errors):
        small.run(name, **feed)


def test_flat_images(small, small_model):
    """LiteRT checks shapes only where an operation does: a dense network accepts flat images."""
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    x = arrays(small_model, 2)["x"]
    if isinstance(small, Onnx):
        with pytest.raises(InvalidArgument, match="Invalid rank"):
            small.run("encode", x=x.reshape(2, -1))
        return
    close(small.run("encode", x=x.reshape(2, -1))["loc"], small_model.encode(x)[0])
    inputs = small.interpreter.get_input_details()
    (index,) = [tensor["index"] for tensor in inputs if len(tensor["shape"]) == 2]
    with pytest.raises(RuntimeError, match="only allows mutating unknown dimensions"):
        small.interpreter.resize_tensor_input(index, [5, 4], strict=True)


def test_names_shapes_and_dtypes(small):
    shapes = {"x": SHAPE, "image": SHAPE} | dict.fromkeys(
        ("z", "noise", "loc", "scale"), (LATENT_DIM,)
    )
    for name in INPUTS:
        if isinstance(small, Onnx):
            session = small.sessions[name]
            found = [
                {t.name: t for t in ts} for ts in (session.get_inputs(), session.get_outputs())
            ]
            of = {t.name: (tuple(t.shape), t.type) for ts in found for t in ts.values()}
            expected = {k: (("B", *shapes[k]), "tensor(float)") for k in of}
        else:
            runner = small.interpreter.get_signature_runner(name)
            found = [runner.get_input_details(), runner.get_output_details()]
            of = {
                k: (tuple(t["shape_signature"]), t["dtype"]) for ts in found for k, t in ts.items()
            }
            expected = {k: ((-1, *shapes[k]), np.float32) for k in of}
        assert [set(ts) for ts in found] == [set(INPUTS[name]), set(OUTPUTS[name])]
        assert of == expected


def test_onnx_files_have_standard_operations_alone(small_model, tmp_path):
    import onnx

    path = export_onnx(small_model, str(tmp_path / "new" / "model"), ["reconstruct", "decode"])
    assert sorted(file.name for file in path.iterdir()) == ["decode.onnx", "reconstruct.onnx"]
    for file in path.iterdir():
        proto = onnx.load(file)
        onnx.checker.check_model(proto, full_check=True)
        assert {node.domain for node in proto.graph.node} == {""}
        assert not proto.functions
        (opset,) = [entry.version for entry in proto.opset_import if not entry.domain]
        assert (opset, proto.ir_version) == (17, 8)


def test_weights_are_stored_once_and_in_half_precision_take_half(tmp_path):
    model = make_dense()
    num_bytes, graph = 4 * model.count_params(), 40_000
    full = export_tflite(model, tmp_path / "full")
    half = export_tflite(model, tmp_path / "half", ["encode"], float16=True)
    assert num_bytes < full.stat().st_size < num_bytes + graph
    assert half.stat().st_size < 2 * model.encoder.count_params() + graph
    x = arrays(model, 7)["x"]
    answer, right = TFLite(half).run("encode", x=x)["loc"], model.encode(x)[0].numpy()
    close(answer, right, tolerance=2e-3)
    assert np.max(np.abs(answer - right)) > 1e-5


# Networks that users bring.


@keras.saving.register_keras_serializable("test_runtimes")
class Calls(keras.layers.Layer):
    """Calls a function."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


def custom(*layers):
    encoder = keras.Sequential([keras.layers.Flatten(), *layers, keras.layers.Dense(6)])
    return built(tf_mcvae.VAE(encoder, networks()[1]))


@pytest.mark.parametrize("kind", RUNTIMES)
def test_keras_networks(kind, tmp_path):
    layers = [
        keras.layers.Dense(8, activation="gelu"),
        Calls(lambda x: keras.activations.gelu(x, approximate=False)),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
        keras.layers.GaussianNoise(1.0),
        Calls(tf.math.erf),
    ]
    model = perturbed(custom(*layers))
    opened = RUNTIMES[kind](EXPORTS[kind](model, tmp_path / "model", ["encode"]))
    x = arrays(model, 7)["x"]
    for key, value in zip(("loc", "scale"), model.encode(x), strict=True):
        close(opened.run("encode", x=x)[key], value)


@pytest.mark.parametrize("x", [np.linspace(-6.0, 6.0, 10_001), np.array([0.0, 1e-30, 40.0, -3e38])])
def test_the_error_function_of_tflite_files(x):
    from scipy.special import erf

    np.testing.assert_allclose(to_tflite._erf(x.astype(np.float32)), erf(x), atol=6e-7)


def beta(x):
    return tf.math.betainc(1.5, 2.5, tf.sigmoid(x))


NOT_PORTABLE = {
    "random": (lambda x: x + tf.random.normal(tf.shape(x)), "op 'RandomStandardNormal'"),
    "stateless": (
        lambda x: x + tf_mcvae.random.normal([2, 64], tf.constant([1, 2]))[0],
        r"Random numbers can.*op 'Stateless",
    ),
    "python": (
        lambda x: tf.ensure_shape(tf.numpy_function(np.tanh, [x], tf.float32), x.shape),
        "op 'PyFunc'",
    ),
    "xla": (tf.function(tf.tanh, jit_compile=True), "'_XlaMustCompile'"),
    "lacking": (beta, "no such operation.*Betainc"),
}


@pytest.mark.parametrize("kind", RUNTIMES)
@pytest.mark.parametrize("operation", NOT_PORTABLE)
def test_what_cannot_be_exported_is_named(operation, kind, tmp_path):
    function, message = NOT_PORTABLE[operation]
    with pytest.raises(ValueError, match=message):
        EXPORTS[kind](custom(Calls(function)), tmp_path / "model", ["encode"])
    assert not list(tmp_path.iterdir())


def test_half_precision_networks_are_refused_with_a_reason(tmp_path):
    model = built(tf_mcvae.VAE(*networks(dtype="mixed_bfloat16")))
    with pytest.raises(ValueError, match=r"not in float32.*Received: signature 'encode'"):
        export_onnx(model, tmp_path / "model", ["encode"])
    with pytest.raises(ValueError, match=r"in float32\. Received: .*MatMul"):
        export_tflite(model, tmp_path / "model", ["encode"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", RUNTIMES)
def test_what_a_runtime_computes_otherwise_is_refused(kind, small_model, tmp_path, monkeypatch):
    """The difference is caused by a `reconstruct` of the model that the export does not use."""
    monkeypatch.setattr(small_model, "reconstruct", lambda x: 0.5 * small_model.call(x))
    message = (
        r"does not answer as the model does: `image` is off.*Received: signature 'reconstruct'"
    )
    with pytest.raises(ValueError, match=message):
        EXPORTS[kind](small_model, tmp_path / "model", ["reconstruct"])
    assert not list(tmp_path.iterdir())


# Arguments and files.


@pytest.mark.parametrize("kind", RUNTIMES)
def test_arguments_are_checked(kind, small_model, tmp_path):
    export, path = EXPORTS[kind], tmp_path / "model"
    for name in ("posterior_sample", "generate", "log_likelihood"):
        with pytest.raises(ValueError, match=rf"draws random numbers.*Received: .*'{name}'"):
            export(small_model, path, ["encode", name])
    for wrong in ("encode", [], ["encode", "other"], ["encode", "encode"], None):
        with pytest.raises(ValueError, match=r"must be some of.*Received: signatures="):
            export(small_model, path, wrong)
    with pytest.raises(ValueError, match="Received: an unbuilt model"):
        export(tf_mcvae.VAE(*networks()), path)
    with pytest.raises(TypeError, match="Received: Encoder"):
        export(small_model.encoder, path)
    with pytest.raises(TypeError, match="Received: path=3"):
        export(small_model, 3)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"could not be written.*Received: "):
        export(small_model, tmp_path / "file" / "model")
    assert not path.exists()


@pytest.mark.parametrize("kind", RUNTIMES)
def test_nothing_is_overwritten_unasked(kind, small_model, tmp_path):
    export, path = EXPORTS[kind], tmp_path / "model"
    export(small_model, path, ["decode"])
    with pytest.raises(ValueError, match=r"exists already.*`overwrite=True`.*Received: path="):
        export(small_model, path, ["encode"])
    export(small_model, path, ["encode"], overwrite=True)
    opened = RUNTIMES[kind](path)
    opened.run("encode", x=arrays(small_model, 2)["x"])
    with pytest.raises((ValueError, KeyError)):
        opened.run("decode", z=arrays(small_model, 2)["z"])


def test_what_no_export_has_written_is_left_alone(small_model, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for export, name in ((export_onnx, "model"), (export_onnx, "file"), (export_tflite, "model")):
        with pytest.raises(
            ValueError, match=r"not a \w+ that an export has written.*Received: path="
        ):
            export(small_model, tmp_path / name, overwrite=True)
    assert (tmp_path / "model" / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("kind", "module"), [("onnx", to_onnx), ("tflite", to_tflite)])
def test_a_failure_leaves_what_was_there(kind, module, small_model, tmp_path, monkeypatch):
    export, path = EXPORTS[kind], tmp_path / "model"
    export(small_model, path, ["decode"])
    seen = []

    def fail(*args, **kwargs):
        seen.append([child.name for child in tmp_path.iterdir()])
        raise OSError("disk full")

    monkeypatch.setattr(module, "check_answers", fail)
    with pytest.raises(ValueError, match=r"could not be written here: disk full.*Received: "):
        export(small_model, path, ["decode"], overwrite=True)
    assert seen == [["model"]]
    assert [child.name for child in tmp_path.iterdir()] == ["model"]
    RUNTIMES[kind](path).run("decode", z=arrays(small_model, 2)["z"])


def test_a_missing_package_is_named(small_model, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else find(name)
    )
    message = r"pip install -e '\.\[onnx\]'.*Received: no module named 'tf2onnx'"
    with pytest.raises(ImportError, match=message):
        export_onnx(small_model, tmp_path / "model")
    export_tflite(small_model, tmp_path / "model", ["decode"])


def test_signatures_are_those_of_the_saved_model():
    from tf_mcvae.export.signatures import OUTPUTS as SERVED

    assert tuple(INPUTS) == portable.SIGNATURES
    assert {name: set(SERVED[name]) for name in INPUTS} == {k: set(v) for k, v in OUTPUTS.items()}
    assert set(portable.ONLY_SERVED) == SERVED.keys() - INPUTS.keys() - {"serving_default"}


def test_the_code_of_the_documentation(tmp_path, monkeypatch):
    """Runs the export, and the runtimes in a process that cannot import TensorFlow."""
    text = (pathlib.Path(__file__).parents[2] / "docs/runtimes.md").read_text("utf-8")
    export, *runs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(export, "docs/runtimes.md", "exec"), {})
    block = "import sys\nsys.modules |= dict.fromkeys(['tensorflow', 'keras', 'tf_mcvae'])\n"
    assert len(runs) == 2
    for code in runs:
        command = [sys.executable, "-c", block + code]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "(5, 8, 8, 1)" in done.stdout


@pytest.mark.slow
def test_a_run_writes_files_that_answer_as_its_model_does(tmp_path, capsys):
    line = "--hidden_dim 2 --K 2 --limit_train_batches 3 --epochs 1 --name run --no-score"
    exports = "--no-export --export-onnx --export-tflite"
    words = [*line.split(), *exports.split(), "--output-dir", str(tmp_path)]
    assert cli.main(words) == 0
    assert "model.tflite, onnx/" in capsys.readouterr().out
    model = tf_mcvae.load_model(tmp_path / "run/model.keras")
    z = np.array([[0.5, -1.0], [2.0, 0.0]], np.float32)
    for runtime in (Onnx(tmp_path / "run/onnx"), TFLite(tmp_path / "run/model.tflite")):
        close(runtime.run("decode", z=z)["image"], model.decode(z))
