"""Minimum floating-point operations and bytes of a step, and the peak speed of the machine."""

import json
import subprocess
import sys
import time

from benchmarks import ROOT
from benchmarks.cases import Case

# A matrix product in a network: positions (pixels of one image), inputs and outputs per position.
Product = tuple[int, int, int]


def encoder_products(case: Case) -> list[Product]:
    """Returns the encoder's convolutions and its linear layer."""
    products, side, channels = [], case.image_size, 1
    for block, width in enumerate((16, 32, 64, 64)):
        side = side if not block else side // 2
        products += [(side**2, 9 * channels, width), (side**2, 9 * width, width)]
        channels = width
    return [*products, (1, side**2 * channels, 2 * case.latent_dim)]


def decoder_products(case: Case) -> list[Product]:
    """Returns the decoder's linear layer and convolutions.

    Convolutions of upsampled images are counted before the upsampling, which copies the products.
    """
    side, channels = case.image_size // 8, 64
    products = [(1, case.latent_dim, side**2 * channels)]
    for size, middle, width in ((2 * side, 32, 32), (4 * side, 16, 16), (case.image_size, 8, 16)):
        products += [(side**2, channels, 9 * middle), (size**2, 9 * middle, width)]
        side, channels = size, width
    return [*products, (case.image_size**2, channels, 1)]


def forward_flops(products: list[Product]) -> int:
    """Returns the operations of one image in a network; multiplications and sums count one each."""
    return sum(2 * positions * inputs * outputs for positions, inputs, outputs in products)


def minimum_flops(case: Case, training: bool) -> float:
    """Returns the operations of a step, counting only matrix products.

    A value with its gradient with respect to z costs a forward and a backward pass, 2 F. In
    training the gradient goes back through these two passes, to inputs and to weights: 4 F more, or
    2 F without a score (no transitions). K transitions have K + 1 states.
    """
    encoder, decoder = (forward_flops(p(case)) for p in (encoder_products, decoder_products))
    states = case.batch_size * case.num_samples * (case.num_transitions + 1)
    if not training:
        return float(case.batch_size * encoder + states * decoder * (2 if _has_score(case) else 1))
    passes = 6 if _has_score(case) else 3
    return float(3 * case.batch_size * encoder + passes * states * decoder)


def minimum_bytes(case: Case, training: bool) -> float:
    """Returns the bytes of a step if each layer's output is written and read once in each pass."""
    encoder, decoder = (
        sum(positions * outputs for positions, _, outputs in products)
        for products in (encoder_products(case), decoder_products(case))
    )
    states = case.batch_size * case.num_samples * (case.num_transitions + 1)
    passes = (2 if _has_score(case) else 1) * (2 if training else 1)
    encoder_passes = 2 if training else 1
    return 8.0 * (encoder_passes * case.batch_size * encoder + passes * states * decoder)


def _has_score(case: Case) -> bool:
    return case.num_transitions > 0


def measured_peak(device: str) -> float:
    """Returns the operations per second of a large float32 matrix product in a new process."""
    command = [sys.executable, "-m", "benchmarks.counts", device]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            "error: no matrix product could be run on this device: check that it exists and that "
            f"TensorFlow sees it. Received: --device {device}"
        )
    return float(json.loads(done.stdout.splitlines()[-1]))


def _peak(device: str, size: int) -> float:
    import tensorflow as tf

    if not tf.config.list_physical_devices(device.upper()):
        sys.exit(1)
    with tf.device(device.upper()):
        matrix = tf.random.normal([size, size])
        best = float("inf")
        for _ in range(8):
            start = time.perf_counter()
            float(tf.matmul(matrix, matrix)[0, 0])
            best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


if __name__ == "__main__":
    print(json.dumps(_peak(sys.argv[1], 2048 if sys.argv[1] == "cpu" else 8192)))
