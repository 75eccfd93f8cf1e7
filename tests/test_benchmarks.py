"""The benchmarks: operation counts, equal bounds in all variants, the table of results."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.cases import CASES, Case
from benchmarks.counts import (
    decoder_products,
    encoder_products,
    forward_flops,
    minimum_flops,
)
from benchmarks.library import make_model
from benchmarks.run import report
from tf_mcvae import random
from tf_mcvae.models.batch import Batch
from tf_mcvae.performance.fusion import fusing_graph

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("side", [16, 28])
def test_counts_are_those_of_the_networks(side):
    """The products of the kernels' sizes and the numbers of pixels that they run over."""
    case = Case("VAE", image_size=side)
    model = make_model(case)
    for network, products in (
        (model.encoder, encoder_products(case)),
        (model.decoder, decoder_products(case)),
    ):
        kernels = [w.shape for w in network.weights if "kernel" in w.path]
        assert [inputs * outputs for _, inputs, outputs in products] == [
            np.prod(shape) for shape in kernels
        ]
    # One pass of each network; training an annealed model adds the scores of the states.
    encoder, decoder = (forward_flops(p(case)) for p in (encoder_products, decoder_products))
    assert minimum_flops(case, training=False) == 100 * (encoder + decoder)
    annealed = Case("L-MCVAE", num_transitions=5, image_size=side)
    assert minimum_flops(annealed, training=True) == 100 * (3 * encoder + 6 * 6 * decoder)


def test_pixels_are_counted_as_tensorflow_does():
    """TensorFlow's profiler counts all operations, of which products are all but a few per cent."""
    case = CASES[0]
    decoder = make_model(case).decoder
    graph = fusing_graph(decoder).get_concrete_function(tf.TensorSpec([1, 64])).graph
    profiler = tf.compat.v1.profiler
    options = {**profiler.ProfileOptionBuilder.float_operation(), "output": "none"}
    counted = profiler.profile(graph, options=options).total_float_ops
    assert forward_flops(decoder_products(case)) < counted
    assert forward_flops(decoder_products(case)) == pytest.approx(counted, rel=0.05)


def images(case):
    shape = (case.batch_size, *case.image_shape)
    return (np.random.default_rng(0).uniform(size=shape) < 0.3).astype(np.float32)


def torch_model(case, model):
    """The PyTorch model with the weights of the library's."""
    torch = pytest.importorskip("torch", reason="needs PyTorch (the bench extra)")
    from benchmarks import pytorch

    theirs = pytorch.Model(case)
    for ours, network in ((model.encoder, theirs.encoder), (model.decoder, theirs.decoder)):
        parameters = list(network.parameters())
        for mine, parameter in zip(ours.get_weights(), parameters, strict=True):
            # Kernels [H, W, in, out] and [in, out] there are [out, in, H, W] and [out, in].
            value = mine.transpose(3, 2, 0, 1) if mine.ndim == 4 else mine.T
            parameter.data = torch.tensor(np.ascontiguousarray(value))
    return theirs


def flat_channels_last(case, theirs):
    """Gives PyTorch's linear layers the pixels in the library's order, channels last."""
    import torch

    side = case.image_size // 8
    order = np.arange(64 * side**2).reshape(side, side, 64).transpose(2, 0, 1).ravel()
    theirs.encoder[-1].weight.data = theirs.encoder[-1].weight.data[:, torch.tensor(order)]
    theirs.decoder[0].weight.data = theirs.decoder[0].weight.data[torch.tensor(order)]
    theirs.decoder[0].bias.data = theirs.decoder[0].bias.data[torch.tensor(order)]


@pytest.mark.parametrize(
    "case",
    [
        Case("VAE", batch_size=3, latent_dim=4, image_size=16),
        Case("IWAE", num_samples=4, batch_size=3, latent_dim=4, image_size=16),
        Case("L-MCVAE", num_transitions=2, batch_size=3, latent_dim=4, image_size=16),
        Case("A-MCVAE", 2, 3, batch_size=3, latent_dim=4, image_size=16),
    ],
    ids=lambda case: case.name,
)
def test_pytorch_computes_the_same_bound(case, monkeypatch):
    """With the same weights and the same draws."""
    torch = pytest.importorskip("torch", reason="needs PyTorch (the bench extra)")
    model, x = make_model(case), images(case)
    theirs = torch_model(case, model)
    flat_channels_last(case, theirs)
    seed = random.as_seed(3)
    first, rest = random.split(seed)
    shape = [case.num_samples, case.batch_size, case.latent_dim]
    pairs = [random.split(random.fold_in(rest, k)) for k in range(case.num_transitions)]
    normals = [random.normal(shape, s) for s in (first, *(pair[0] for pair in pairs))]
    uniforms = [random.uniform(shape[:2], pair[1]) for pair in pairs]
    draw = lambda draws: lambda like: torch.tensor(draws.pop(0).numpy())  # noqa: E731
    monkeypatch.setattr(torch, "randn_like", draw(normals))
    monkeypatch.setattr(torch, "rand_like", draw(uniforms))
    value = theirs.loss(torch.tensor(x).permute(0, 3, 1, 2))[0].item()
    assert value == pytest.approx(
        float(tf.reduce_mean(model.estimate(Batch(tf.constant(x)), seed, training=True).loss)),
        rel=1e-4,
    )


@pytest.mark.parametrize("name", ["L-MCVAE", "A-MCVAE"])
def test_tfp_kernels_compute_the_same_bound(name):
    """The mean log weight agrees at 5 standard errors: a false alarm in 1.7 million."""
    from benchmarks.tfp_kernels import log_weights

    case = Case(name, 2, 200, batch_size=2, latent_dim=4, image_size=16)
    model, x = make_model(case), tf.constant(images(case))
    tf.random.set_seed(1)
    theirs = log_weights(model, case, x)[0].numpy()
    ours = model.log_weights(x, seed=1, num_samples=200).numpy()
    error = np.sqrt((theirs.var(0) + ours.var(0)) / 200)
    np.testing.assert_array_less(np.abs(theirs.mean(0) - ours.mean(0)), 5 * error)


def run(*words):
    command = [sys.executable, "-m", "benchmarks.run", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_command_prints_a_table_and_writes_json(tmp_path):
    path = tmp_path / "numbers.json"
    words = ["--cases", "VAE", "--variants", "graph", "--repeats", "2"]
    done = run(*words, "--image-size", "8", "--batch-size", "4", "--json", str(path))
    assert done.returncode == 0, done.stderr
    numbers = json.loads(path.read_text())["VAE"]
    assert numbers["case"]["batch_size"] == 4
    graph = numbers["variants"]["graph"]
    for step in ("train", "evaluate"):
        assert 0 < graph[step]["least"] <= graph[step]["median"] <= graph[step]["most"]
        assert graph[f"compile_{step}"] > 0
    assert graph["memory_mib"] > 0
    assert f"{1e3 * graph['train']['median']:10.0f}" in done.stdout.split("\n  graph ")[1]


def test_report_gives_ratios_and_shares_of_the_peak():
    def times(train):
        step = {"median": train, "least": train, "most": train}
        return {"train": step, "evaluate": step, "compile_train": 1.0, "memory_mib": 1.0}

    case, flops = CASES[2], minimum_flops(CASES[2], training=True)
    lines = report(case, {"torch": times(3.0), "graph": times(1.5)}, peak=flops)
    assert lines[1].split()[:4] == ["torch", "1.00", "1.00", "33"]
    assert lines[2].split()[:4] == ["graph", "2.00", "2.00", "67"]


@pytest.mark.slow
def test_a_gpu_that_is_not_there_is_said_so():
    done = run("--device", "gpu", "--cases", "VAE")
    assert done.returncode == 1
    assert done.stderr.endswith("Received: --device gpu\n")


def test_growth_slopes_and_figure(tmp_path):
    growth = pytest.importorskip("benchmarks.growth")
    assert growth.slope([(1, 5.0), (2, 1.0), (8, 4.0)]) == pytest.approx(1.0)
    rows = [
        {"varied": name, "size": size, "seconds": 0.1 * size}
        for name, sizes in growth.SIZES.items()
        for size in sizes
    ]
    growth.draw(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
