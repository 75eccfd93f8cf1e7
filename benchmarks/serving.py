"""Measures each signature of an export in a C++ process with TensorFlow Serving's loader.

    python -m benchmarks.serving                                  # four models on 28x28 images
    python -m benchmarks.serving --folder saved_models/digits/serving/1
    python -m benchmarks.serving --json serving.json

prints, for each signature and batch size, the median and the 95th percentile of the milliseconds
per request, and the rows per second, with one request at a time. The costs of the network and of
encoding a request are not included. The program is tests/serving/replay.cc; it needs g++.
"""

import argparse
import json
import os
import pathlib
import platform
import sys
import tempfile
from typing import Any

import numpy as np

from benchmarks import ROOT

sys.path.append(str(ROOT / "tests"))  # For `serving.loader`, which is imported in the functions.

SHAPE, LATENT_DIM = (28, 28, 1), 64
NUM_SAMPLES = 10  # For `posterior_samples`.


def make_model(name: str, architecture: str) -> Any:
    """Makes a model of the reference's size with random weights."""
    import keras

    import tf_mcvae

    keras.utils.set_random_seed(0)
    encoder = tf_mcvae.Encoder(LATENT_DIM, architecture=architecture)
    decoder = tf_mcvae.Decoder(SHAPE, architecture=architecture)
    if name == "VAE":
        model = tf_mcvae.VAE(encoder, decoder)
    else:
        model = getattr(tf_mcvae, name)(encoder, decoder, num_transitions=5)
    model.build((None, *SHAPE))
    return model


def requests_of(folder: pathlib.Path, batch: int) -> list[tuple[str, dict[str, Any]]]:
    """Returns a request with `batch` rows for each signature, made from the warm-up requests."""
    from serving.loader import read_requests

    requests = []
    rng = np.random.default_rng(0)
    for name, inputs in read_requests(folder / "assets.extra/tf_serving_warmup_requests"):
        rows = {key: np.repeat(value, batch, axis=0) for key, value in inputs.items()}
        if "seed" in rows:
            rows["seed"] = rng.integers(0, 2**31, size=(batch, 2)).astype(np.int32)
        if "num_samples" in rows:
            rows["num_samples"] = np.full([batch], NUM_SAMPLES, np.int32)
        if name != "serving_default":  # It is `encode`.
            requests.append((name, rows))
    return requests


def measure(
    folder: pathlib.Path, program: pathlib.Path, batches: list[int], repeats: int
) -> list[dict[str, Any]]:
    """Measures all signatures of a version, after a first request that is not counted.

    Returns:
        For each signature and batch size the median and 95th percentile in ms, and rows/s.
    """
    from serving.loader import OK, replay

    results = []
    for batch in batches:
        requests = requests_of(folder, batch)
        answers, printed, memory = replay(program, folder, requests, repeats)
        for (name, _), answer, line in zip(requests, answers, printed, strict=True):
            if answer.code != OK:
                raise RuntimeError(f"The request failed. Received: {name}: {answer.message}")
            seconds = np.array(line.split(), float)
            results.append(
                {
                    "signature": name,
                    "batch": batch,
                    "median_ms": 1e3 * float(np.median(seconds)),
                    "p95_ms": 1e3 * float(np.percentile(seconds, 95)),
                    "rows_per_second": batch / float(np.median(seconds)),
                    "peak_mib_of_the_process": memory,
                }
            )
    return results


def show(title: str, results: list[dict[str, Any]]) -> None:
    """Prints a table."""
    print(
        f"\n{title}\n\n| signature | batch | median ms | p95 ms | rows/s |\n|---|---|---|---|---|"
    )
    for row in results:
        print(
            f"| `{row['signature']}` | {row['batch']} | {row['median_ms']:.2f} | "
            f"{row['p95_ms']:.2f} | {row['rows_per_second']:,.0f} |"
        )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", help="folder of an exported version, instead of new models")
    parser.add_argument("--models", nargs="+", default=["VAE", "LMCVAE"])
    parser.add_argument("--architectures", nargs="+", default=["dense", "conv"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", help="write the numbers to this file")
    arguments = parser.parse_args()

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    import tensorflow as tf
    from serving.loader import build, missing

    from tf_mcvae.export import export_saved_model

    if missing():
        parser.error(missing())
    everything: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        program = build(pathlib.Path(scratch) / "program")
        folders = {arguments.folder: pathlib.Path(arguments.folder)} if arguments.folder else {}
        for name in [] if arguments.folder else arguments.models:
            for architecture in arguments.architectures:
                title = f"{name}, {architecture}"
                folders[title] = pathlib.Path(scratch) / title
                model = make_model(name, architecture)
                folders[title] = export_saved_model(model, folders[title])
        for title, folder in folders.items():
            everything[title] = measure(folder, program, arguments.batches, arguments.repeats)
            show(title, everything[title])
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        content = {"machine": machine, "tensorflow": tf.__version__, "results": everything}
        pathlib.Path(arguments.json).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
