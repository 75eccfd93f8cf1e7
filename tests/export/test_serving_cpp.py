"""The export in a C++ server with its own loader, without XLA, from serialised requests."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from serving import loader
from serving.loader import FAILED_PRECONDITION, INTERNAL, INVALID_ARGUMENT, OK

import tf_mcvae
from benchmarks import serving as serving_benchmark
from tf_mcvae.export import export_saved_model

pytestmark = pytest.mark.skipif(bool(loader.missing()), reason=loader.missing() or "-")

SHAPE, LATENT_DIM, NUM_SAMPLES = (8, 8, 1), 3, 8
RNG = np.random.default_rng(2)
X = RNG.uniform(size=(7, *SHAPE)).astype(np.float32)
BYTES = np.round(255.0 * X).astype(np.uint8)
SCALED = (BYTES / 255.0).astype(np.float32)
EXTREMES = np.stack([np.zeros(SHAPE, np.uint8), np.full(SHAPE, 255, np.uint8)])
Z = RNG.normal(size=(7, LATENT_DIM)).astype(np.float32)
SEED = RNG.integers(-(2**31), 2**31, size=(7, 2)).astype(np.int32)
ROW_SEED = tf_mcvae.random.per_row(SEED)
COUNT = np.full([7], 3, np.int32)
CALIBRATION = RNG.uniform(size=(9, *SHAPE)).astype(np.float32)
WARM_UP = "assets.extra/tf_serving_warmup_requests"

REQUESTS = {
    "serving_default": {"x": X},
    "encode": {"x": X},
    "posterior_sample": {"x": X, "seed": SEED},
    "posterior_samples": {"x": X, "seed": SEED, "num_samples": COUNT},
    "decode": {"z": Z},
    "reconstruct": {"x": X},
    "generate": {"seed": SEED},
    "log_likelihood": {"x": X, "seed": SEED},
    "anomaly_score": {"x": X, "seed": SEED},
}
REQUESTS |= {
    f"{name}_uint8": {**inputs, "x": BYTES}
    for name, inputs in REQUESTS.items()
    if "x" in inputs and name != "serving_default"
}


def networks(architecture):
    keras.utils.set_random_seed(4)
    options = {"architecture": architecture}
    if architecture == "dense":
        options["hidden_units"] = (16,)
    return tf_mcvae.Encoder(LATENT_DIM, **options), tf_mcvae.Decoder(SHAPE, **options)


def make_model(name):
    if name == "vae":
        model = tf_mcvae.VAE(*networks("dense"))
    elif name == "uhavae":
        model = tf_mcvae.UHAVAE(*networks("dense"), num_transitions=2)
    elif name == "cmcdvae":
        model = tf_mcvae.CMCDVAE(*networks("dense"), num_transitions=2, step_size=0.05)
    elif name == "hvae":
        model = tf_mcvae.HVAE(*networks("dense"), num_transitions=2)
    elif name == "amcvae":
        model = tf_mcvae.AMCVAE(*networks("dense"), num_transitions=2, step_size=0.3)
    else:
        model = tf_mcvae.LMCVAE(*networks("conv"), num_transitions=2, step_size=0.05)
    model.build((None, *SHAPE))
    return model


MODELS = ("vae", "amcvae", "lmcvae", "uhavae", "cmcdvae", "hvae")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) for name in MODELS],
)
def served(request, tmp_path_factory):
    """A model, and the folder of its export. Seven rows are three chunks of `log_likelihood`."""
    model = make_model(request.param)
    path = tmp_path_factory.mktemp("served")
    options = {"num_samples": NUM_SAMPLES, "chunk_size": 3 * NUM_SAMPLES}
    return model, export_saved_model(model, path, calibration=CALIBRATION, **options)


@pytest.fixture(scope="module")
def program(request):
    return loader.build(request.config.cache.mkdir("replay"))


def slices(rows):
    return [(name, {k: v[rows] for k, v in inputs.items()}) for name, inputs in REQUESTS.items()]


@pytest.fixture(scope="module")
def answers(program, served):
    """Answers to all requests. The server is started only once, since starting it is slow."""
    warm_up = loader.read_requests(served[1] / WARM_UP)
    requests = {
        "warm-up": warm_up,
        "all": slices(slice(0, 7)),
        "last": slices(slice(6, 7)),
        "none": slices(slice(0, 0)),
        "scaled": [
            (name, {**inputs, "x": SCALED} if "x" in inputs else inputs)
            for name, inputs in REQUESTS.items()
            if not name.endswith("_uint8")
        ],
        "bad": [(name, inputs) for name, inputs, _ in BAD.values()],
        "extremes": [("encode_uint8", {"x": EXTREMES}), ("embed", {"x": X})],
    }
    everything = [request for part in requests.values() for request in part]
    got, _, _ = loader.replay(program, served[1], everything)
    assert len(got) == len(everything)
    parts = iter(got)
    return {case: [next(parts) for _ in part] for case, part in requests.items()}


def by_name(found):
    """Outputs by the names of the signatures, after a check that there are no errors."""
    assert {(a.code, a.message) for a in found} == {(OK, "")}
    return {name: answer.outputs for name, answer in zip(REQUESTS, found, strict=True)}


def test_the_model_s_own_numbers(served, answers):
    model, _ = served
    got = by_name(answers["all"])
    loc, scale = model.encode(X)
    log_weights = model.log_weights(X, ROW_SEED, NUM_SAMPLES).numpy().astype(np.float64)
    log_likelihood = np.logaddexp.reduce(log_weights) - np.log(NUM_SAMPLES)
    expected = {
        ("encode", "loc"): loc,
        ("encode", "scale"): scale,
        ("posterior_sample", "z"): model.posterior_sample(X, 1, ROW_SEED)[0],
        ("decode", "image"): model.decode(Z),
        ("reconstruct", "image"): model.reconstruct(X),
        ("generate", "image"): model.sample(7, ROW_SEED),
        ("log_likelihood", "log_likelihood"): log_likelihood,
        ("anomaly_score", "anomaly_score"): -log_likelihood,
    }
    for (signature, output), value in expected.items():
        np.testing.assert_allclose(got[signature][output], value, rtol=1e-4, atol=1e-5)
    first = got["posterior_samples"]["z"][:, 0]
    np.testing.assert_allclose(first, got["posterior_sample"]["z"], rtol=1e-4, atol=1e-5)


def test_warm_up_requests_are_answered_as_in_python(served, answers):
    signatures = tf.saved_model.load(str(served[1])).signatures
    requests = loader.read_requests(served[1] / WARM_UP)
    assert {name for name, _ in requests} == signatures.keys() == REQUESTS.keys()
    for (name, inputs), answer in zip(requests, answers["warm-up"], strict=True):
        assert (answer.code, answer.message) == (OK, "")
        assert all(len(value) == 1 for value in inputs.values())
        if name.endswith("_uint8"):
            continue  # `test_bytes_are_the_images_they_stand_for` checks these.
        got = signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
        assert got.keys() == answer.outputs.keys()
        for key, value in got.items():
            np.testing.assert_allclose(answer.outputs[key], value, rtol=1e-4, atol=1e-5)


def test_a_row_alone_and_no_rows(answers):
    alone, none = by_name(answers["last"]), by_name(answers["none"])
    for name, outputs in by_name(answers["all"]).items():
        for key, together in outputs.items():
            row = alone[name][key][0]
            np.testing.assert_allclose(row, together[6], rtol=1e-4, atol=1e-5, err_msg=name)
            expected = (0, 1, LATENT_DIM) if "samples" in name else (0, *together.shape[1:])
            assert none[name][key].shape == expected


def test_bytes_are_the_images_they_stand_for(served, answers):
    got = by_name(answers["all"])
    names = [name for name in REQUESTS if not name.endswith("_uint8")]
    for name, answer in zip(names, answers["scaled"], strict=True):
        for key, value in answer.outputs.items():
            if f"{name}_uint8" in got:
                of_bytes = got[f"{name}_uint8"][key]
                np.testing.assert_allclose(of_bytes, value, rtol=1e-4, atol=1e-5)
    # Both black and white are in the support.
    expected, _ = served[0].encode((EXTREMES / 255).astype(np.float32))
    loc = answers["extremes"][0].outputs["loc"]
    np.testing.assert_allclose(loc, expected, rtol=1e-4, atol=1e-5)


def changed(x, value):
    x = x.copy()
    x[-1, 2, 3, 0] = value
    return x


BAD = {
    "float64 images": ("encode", {"x": X.astype(np.float64)}, "Expects arg"),
    "float16 images": ("encode", {"x": X.astype(np.float16)}, "Expects arg"),
    "bytes where floats are due": ("encode", {"x": BYTES}, "Expects arg"),
    "floats where bytes are due": ("encode_uint8", {"x": X}, "Expects arg"),
    "int64 seeds": ("generate", {"seed": SEED.astype(np.int64)}, "Expects arg"),
    "text": ("encode", {"x": np.full([2], b"image", object)}, "Expects arg"),
    "no seeds": ("posterior_sample", {"x": X}, "input"),
    "another name": ("encode", {"images": X}, "input"),
    "a number too many": ("encode", {"x": X, "seed": SEED}, "input"),
    "NaN": ("encode", {"x": changed(X, np.nan)}, "must be finite"),
    "NaN in latents": ("decode", {"z": np.full([2, LATENT_DIM], np.nan, "f")}, "must be finite"),
    "infinite": ("reconstruct", {"x": changed(X, -np.inf)}, "must be finite"),
    "out of range": ("log_likelihood", {"x": changed(X, 1.5), "seed": SEED}, r"values in \[0, 1\]"),
    "flat images": ("encode", {"x": X.reshape(7, 64)}, "expected shape"),
    "one image": ("encode", {"x": X[0]}, "expected shape"),
    "a scalar": ("encode", {"x": np.float32(0.5)}, "expected shape"),
    "other images": ("encode", {"x": X.reshape(7, 4, 16, 1)}, "expected shape"),
    "a seed of one number": ("generate", {"seed": SEED[:, :1]}, "expected shape"),
    "a flat seed": ("generate", {"seed": SEED[0]}, "expected shape"),
    "too few seeds": ("posterior_sample", {"x": X, "seed": SEED[:1]}, "needs a `seed`"),
    "too many seeds": ("anomaly_score", {"x": X[:2], "seed": SEED}, "needs a `seed`"),
    "too few numbers": (
        "posterior_samples",
        {"x": X, "seed": SEED, "num_samples": COUNT[:2]},
        "needs a `num_samples`",
    ),
    "different numbers": (
        "posterior_samples",
        {"x": X, "seed": SEED, "num_samples": np.arange(1, 8, dtype=np.int32)},
        "the same in all rows",
    ),
    "no draws": ("posterior_samples", {"x": X, "seed": SEED, "num_samples": 0 * COUNT}, "from 1 "),
    "too many draws": (
        "posterior_samples",
        {"x": X, "seed": SEED, "num_samples": 2000 + 0 * COUNT},
        "to 1024",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_gets_a_status_and_no_numbers(case, answers):
    answer = answers["bad"][list(BAD).index(case)]
    assert answer.code == INVALID_ARGUMENT
    assert re.search(BAD[case][2], answer.message)
    assert not answer.outputs


def test_an_unknown_signature(answers):
    assert answers["extremes"][1].code == FAILED_PRECONDITION


@pytest.mark.slow
def test_ten_thousand_rows_in_bounded_memory(program, tmp_path):
    """With 16 draws a row, the decoder's widest layer would need 655 MB for all rows at once."""
    keras.utils.set_random_seed(4)
    options = {"architecture": "dense", "hidden_units": (1024,)}
    encoder, decoder = tf_mcvae.Encoder(2, **options), tf_mcvae.Decoder((4, 4, 1), **options)
    model = tf_mcvae.VAE(encoder, decoder)
    model.build((None, 4, 4, 1))
    version = export_saved_model(model, tmp_path, num_samples=16)
    x = np.random.default_rng(0).uniform(size=[10_000, 4, 4, 1]).astype(np.float32)
    seed = np.stack([np.arange(10_000), -np.arange(10_000)], axis=1).astype(np.int32)
    some = [0, 4999, 9999]
    request = ("log_likelihood", {"x": x, "seed": seed})
    small = ("log_likelihood", {"x": x[some], "seed": seed[some]})
    (few,), _, memory_of_few = loader.replay(program, version, [small])
    (many,), _, memory = loader.replay(program, version, [request])
    assert many.code == OK
    np.testing.assert_allclose(
        many.outputs["log_likelihood"][some], few.outputs["log_likelihood"], rtol=1e-4
    )
    assert memory < memory_of_few + 250.0


@pytest.mark.slow
def test_a_jitted_export_needs_a_server_with_xla(program, tmp_path):
    model = tf_mcvae.VAE(*networks("dense"))
    model.build((None, *SHAPE))
    jitted = export_saved_model(model, tmp_path, num_samples=NUM_SAMPLES, jit_compile=True)
    (answer,), _, _ = loader.replay(program, jitted, [("encode", {"x": X})])
    assert answer.code == INTERNAL
    assert "XLA compilation disabled" in answer.message
    # In Python, where XLA is enabled, it has the same outputs as a model without XLA.
    signatures = tf.saved_model.load(str(jitted)).signatures
    got = signatures["posterior_sample"](x=tf.constant(X), seed=tf.constant(SEED))["z"]
    expected = model.posterior_sample(X, 1, ROW_SEED)[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_benchmark_times_every_signature(program, tmp_path, capsys):
    model = tf_mcvae.VAE(*networks("dense"))
    model.build((None, *SHAPE))
    version = export_saved_model(model, tmp_path, num_samples=NUM_SAMPLES)
    rows = serving_benchmark.measure(version, program, batches=[1, 5], repeats=3)
    signatures = set(REQUESTS) - {"serving_default"}
    assert {(row["signature"], row["batch"]) for row in rows} == {
        (name, batch) for name in signatures for batch in (1, 5)
    }
    for row in rows:
        assert 0.0 < row["median_ms"] <= row["p95_ms"]
        assert row["rows_per_second"] == pytest.approx(1e3 * row["batch"] / row["median_ms"])
    serving_benchmark.show("VAE", rows)
    assert capsys.readouterr().out.count("`encode`") == 2
