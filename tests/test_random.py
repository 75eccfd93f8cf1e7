"""The one source of random numbers: portable, well distributed, independent.

False alarms: 5 standard errors, one in 1.7 million for each number checked (about 60 of them);
Kolmogorov-Smirnov at p = 1e-6.
"""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp
from modes import graph, xla

from tf_mcvae import random

SEEDS = {
    "one": random.as_seed(11),
    "negative": tf.constant([-1860230133, -671226999]),
    "per-row": random.per_row([[1, 2], [3, 4], [1, 3], [-7, 2**31 - 1]]),
    "at-row": random.at_row(tf.constant([11, -671226999]), 1_000_000_000),
}


INTEGER = tf.TensorSpec([], tf.int32)
SPECS = {
    "per-row": random.SeedPerRow.Spec(tf.TensorSpec([None, 2], tf.int32)),
    "at-row": random.NumberedRows.Spec(tf.TensorSpec([2], tf.int32), INTEGER),
}


def in_each_mode(function, *arguments):
    """Runs a function in eager, graph and XLA. The seed is an argument: constants are folded."""
    yield function(*arguments)
    yield graph(function)(*arguments)
    yield xla(function)(*arguments)


def parts_of(seed):
    """The tensors of a seed of any kind in one shape, as float64, which is exact."""
    parts = tf.nest.flatten(seed, expand_composites=True)
    return [tf.broadcast_to(tf.cast(part, tf.float64), tf.shape(parts[0])) for part in parts]


def standardised(values, mean, variance):
    """How many standard errors the mean of `values` lies from `mean`."""
    return abs(np.mean(values) - mean) / np.sqrt(variance / np.size(values))


# Seeds.


def test_seeds_of_integers_are_distinct():
    integers = [0, 1, -1, 2**31, -(2**31), 2**32, 2**32 + 1, -(2**32), 2**63, np.int64(5)]
    seeds = [tuple(random.as_seed(value).numpy()) for value in integers]
    assert len(set(seeds)) == len(integers)
    assert all(random.as_seed(value).dtype == tf.int32 for value in integers)
    assert not np.allclose(
        random.normal([8], random.as_seed(5)), random.normal([8], random.as_seed(2**32 + 5))
    )


@pytest.mark.parametrize("seed", [(3, 4), [3, 4], np.array([3, 4], np.uint8), tf.constant([3, 4])])
def test_pairs_are_seeds_as_they_are(seed):
    np.testing.assert_array_equal(random.as_seed(seed), [3, 4])


def test_a_seed_for_each_row():
    np.testing.assert_array_equal(random.per_row([[1, 2], [3, 4]]).seeds, [[1, 2], [3, 4]])
    wide = random.per_row(tf.constant([[1, 2], [3, 4]], tf.int64))
    assert (wide.seeds.dtype, wide.seeds.shape) == (tf.int32, (2, 2))
    assert random.as_seed(wide) is wide


@pytest.mark.parametrize(
    "seed",
    [1.5, True, None, "a", [1, 2, 3], [1.0, 2.0], [], tf.zeros([2]), tf.constant(1), [[1, 2]]],
)
def test_what_is_no_seed(seed):
    with pytest.raises(TypeError, match=r"shape \[2\].*per_row.*Received: seed="):
        random.as_seed(seed)


# Equal numbers in all modes of execution.


@pytest.mark.parametrize("kind", SEEDS)
def test_same_numbers_eager_graph_xla(kind):
    def draw(seed):
        seeds = [
            *random.split(seed, 3),
            random.fold_in(seed, 7),
            random.fold_in(seed, tf.size(parts_of(seed)[0])),
        ]
        shape = [6, 4, 500]
        numbers = tf.stack([number for seed in seeds for number in parts_of(seed)])
        return numbers, random.uniform(shape, seed), random.normal(shape, seed)

    eager, *compiled = in_each_mode(draw, SEEDS[kind])
    for seeds, uniforms, normals in compiled:
        np.testing.assert_array_equal(seeds, eager[0])
        np.testing.assert_array_equal(uniforms, eager[1])
        np.testing.assert_allclose(normals, eager[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("draw", [random.normal, random.uniform])
def test_rows_with_seeds_do_not_depend_on_each_other(draw):
    seeds = SEEDS["per-row"]
    together = draw([5, 4, 3], seeds).numpy()
    for row, seed in enumerate(seeds.seeds):
        alone = draw([5, 1, 3], random.per_row(seed[tf.newaxis]))[:, 0]
        np.testing.assert_allclose(alone, together[:, row], rtol=1e-6)
        np.testing.assert_allclose(draw([5, 3], seed), together[:, row], rtol=1e-6)
    np.testing.assert_allclose(
        draw([5, 4, 3], random.per_row(seeds.seeds[::-1])), together[:, ::-1], rtol=1e-6
    )


@pytest.mark.parametrize("draw", [random.normal, random.uniform])
@pytest.mark.parametrize("shape", [[5, 11], [3, 11, 2], [1, 11, 3]])
def test_a_batch_drawn_in_parts_is_that_drawn_at_once(draw, shape):
    seed, rest = random.as_seed(-3), shape[2:]
    whole = draw(shape, random.at_row(seed, 0)).numpy()
    for first, size in ((0, 4), (4, 1), (5, 6)):
        part = draw([shape[0], size, *rest], random.at_row(seed, first))
        np.testing.assert_allclose(part, whole[:, first : first + size], rtol=1e-6)
    children = [random.split(random.at_row(seed, 4))[1], random.fold_in(random.at_row(seed, 4), 7)]
    parents = [random.split(seed)[1], random.fold_in(seed, 7)]
    for child, parent in zip(children, parents, strict=True):
        np.testing.assert_array_equal(parts_of(child), parts_of(random.at_row(parent, 4)))


def test_rows_split_and_fold_as_they_do_alone():
    seeds = SEEDS["per-row"]
    splits, folded = random.split(seeds, 3), random.fold_in(seeds, 9)
    for row, seed in enumerate(seeds.seeds):
        alone = random.split(seed, 3)
        np.testing.assert_array_equal([part.seeds[row] for part in splits], alone)
        np.testing.assert_array_equal(folded.seeds[row], random.fold_in(seed, 9))


def one_by_one(function, seeds):
    """Rows drawn by TensorFlow's own operations."""
    return tf.map_fn(lambda seed: function(seed, alg="philox"), seeds)


@pytest.mark.parametrize(
    "row_shape",
    [[3, 5, 7], *[pytest.param(s, marks=pytest.mark.slow) for s in ([1, 64], [9, 64])]],
    ids=str,
)
def test_rows_have_tensorflows_own_numbers(row_shape):
    """Bit for bit, for rows of any length, the longest of them beyond `_LONG_ROW`."""
    rng = np.random.default_rng(4)
    extreme = [[0, 0], [-1, -1], [2**31 - 1, -(2**31)], [-(2**31), 2**31 - 1]]
    seeds = [*extreme, *rng.integers(-(2**31), 2**31, size=(60, 2))]
    seeds = tf.constant(np.array(seeds, np.int32))
    options = {"minval": None, "maxval": None, "dtype": tf.int32}
    expected = one_by_one(
        lambda seed, alg: tf.random.stateless_uniform(row_shape, seed, alg=alg, **options), seeds
    )
    splits = one_by_one(lambda seed, alg: tf.random.split(seed, 3, alg=alg), seeds)
    folded = one_by_one(lambda seed, alg: tf.random.fold_in(seed, -7, alg=alg), seeds)

    def draw(seeds):
        shape = [row_shape[0], 64, *row_shape[1:]]
        seeds = random.per_row(seeds)
        parts = [part.seeds for part in random.split(seeds, 3)]
        return seeds.integers(shape), parts, random.fold_in(seeds, -7).seeds

    for numbers, parts, children in in_each_mode(draw, seeds):
        np.testing.assert_array_equal(np.moveaxis(numbers.numpy(), 1, 0), expected)
        np.testing.assert_array_equal(np.stack(parts, axis=1), splits)
        np.testing.assert_array_equal(children, folded)


@pytest.mark.parametrize("jit_compile", [None, True])
def test_rows_of_unknown_number_have_the_same_numbers(jit_compile):
    signature = [tf.TensorSpec([None, 2], tf.int32)]

    @graph(input_signature=signature, jit_compile=jit_compile)
    def draw(seeds):
        uniforms = random.uniform([5, tf.shape(seeds)[0], 7], random.per_row(seeds))
        return uniforms, *(part.seeds for part in random.split(random.per_row(seeds)))

    for size in (0, 1, 4):
        seeds = SEEDS["per-row"].seeds[:size]
        uniforms, first, second = draw(seeds)
        assert (uniforms.shape, first.shape, second.shape) == ((5, size, 7), (size, 2), (size, 2))
        for row in range(size):
            np.testing.assert_array_equal(uniforms[:, row], random.uniform([5, 7], seeds[row]))
            expected = random.split(seeds[row])
            np.testing.assert_array_equal([first[row], second[row]], expected)


def test_rows_of_one_batch_fold_different_integers():
    seeds, numbers = SEEDS["per-row"], tf.constant([5, -1, 0, 2**31 - 1])
    folded = random.fold_in(seeds, numbers)
    for row in range(4):
        expected = random.fold_in(seeds.seeds[row], numbers[row])
        np.testing.assert_array_equal(folded.seeds[row], expected)


@pytest.mark.parametrize("size", [3, 700])
def test_no_rows(size):
    none = random.per_row(tf.zeros([0, 2], tf.int32))
    for draws in in_each_mode(lambda seeds: random.normal([1, 0, size], seeds), none):
        assert draws.shape == (1, 0, size)
    assert all(part.seeds.shape == (0, 2) for part in random.split(none, 3))
    assert random.fold_in(none, 4).seeds.shape == (0, 2)


@pytest.mark.parametrize("kind", SEEDS)
def test_batch_of_unknown_size(kind):
    seed = SEEDS[kind]
    signature = [tf.TensorSpec([None, 3]), SPECS.get(kind, tf.TensorSpec([2], tf.int32))]

    @graph(input_signature=signature)
    def draw(x, seed):
        seed, other = random.split(random.as_seed(seed))
        normals = random.normal([5, *random.shape_of(x)], seed)
        assert normals.shape.as_list() == [5, None, 3]
        return normals, random.uniform([5, *random.shape_of(x)[:1]], random.fold_in(other, 2))

    for size in (4,) if kind == "per-row" else (1, 4):
        first, second = random.split(seed)
        normals, uniforms = draw(tf.zeros([size, 3]), seed)
        np.testing.assert_allclose(normals, random.normal([5, size, 3], first), rtol=1e-5)
        expected = random.uniform([5, size], random.fold_in(second, 2))
        np.testing.assert_array_equal(uniforms, expected)


# Their distribution.


@pytest.mark.parametrize("kind", SEEDS)
def test_uniform_distribution(kind):
    draws = random.uniform([1000, 4, 50], SEEDS[kind]).numpy().astype(np.float64)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert standardised(draws, 1 / 2, 1 / 12) < 5
    assert standardised((draws - 0.5) ** 2, 1 / 12, 1 / 180) < 5
    assert scipy.stats.kstest(draws.ravel(), "uniform").pvalue > 1e-6


@pytest.mark.parametrize("kind", SEEDS)
def test_normal_distribution(kind):
    draws = random.normal([1000, 4, 50], SEEDS[kind]).numpy().astype(np.float64)
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert standardised(draws**power, mean, variance) < 5
    assert scipy.stats.kstest(draws.ravel(), "norm").pvalue > 1e-6
    # Within a tensor, samples, rows and dimensions do not depend on their neighbours.
    for axis in range(3):
        first, second = np.delete(draws, 0, axis), np.delete(draws, -1, axis)
        assert standardised(first * second, 0, 1) < 5


@pytest.mark.parametrize("integer", [0, -1])
def test_the_rarest_normals_are_finite(integer, monkeypatch):
    """All 23 bits 0 or all 1: 5.3 standard deviations, not infinity."""
    monkeypatch.setattr(random, "integers", lambda shape, seed: tf.fill(shape, seed[0]))
    for value in in_each_mode(lambda seed: random.normal([3], seed), tf.fill([2], integer)):
        np.testing.assert_allclose(np.abs(value), -scipy.stats.norm.ppf(2.0**-24), rtol=1e-3)


def test_streams_are_independent():
    """Seeds that were split or folded from one, and their parent."""
    parent = random.as_seed(3)
    family = [parent, *random.split(parent, 3), *(random.fold_in(parent, k) for k in range(3))]
    draws = np.stack([random.normal([100_000], seed).numpy() for seed in family])
    for values in (draws, draws**2):
        correlation = np.corrcoef(values)[np.triu_indices(len(family), 1)]
        assert np.max(np.abs(correlation)) < 5 / np.sqrt(draws.shape[1])


def test_steps_have_seeds_of_their_own():
    """With a stream, a replica and a step folded into the user's seed, as in a model."""
    seeds = {
        tuple(random.fold_in(random.fold_in(random.as_seed(user), stream), step).numpy())
        for user in (0, 1, -1)
        for stream in (0, 1, 2)
        for step in range(30)
    }
    assert len(seeds) == 270


# Kernels that draw with functions of TensorFlow and TFP.


def test_numbered_rows_are_a_plain_seed_to_tensorflow():
    """Equal to themselves, and independent of another part's."""

    def draw(seed):
        first, second = tfp.random.split_seed(seed)
        return tf.random.stateless_normal([10_000], first) + tf.random.stateless_normal([1], second)

    seed = random.as_seed(3)
    for drawn in in_each_mode(draw, random.at_row(seed, 5)):
        assert drawn.shape == (10_000,)
    parts = [draw(random.at_row(seed, first)).numpy() for first in (0, 5)]
    assert abs(np.corrcoef(*parts)[0, 1]) < 5 / np.sqrt(10_000)


def test_a_seed_for_each_row_says_how_to_draw():
    with pytest.raises(TypeError, match=r"`tf_mcvae.random.normal`.*Received: SeedPerRow"):
        tf.random.stateless_normal([4], SEEDS["per-row"])
    with pytest.raises(TypeError, match=r"shape \[B, 2\]. Received: seeds="):
        random.per_row([1, 2])


def test_uniform_draws_are_never_0_or_1(monkeypatch):
    """Whatever the bits: a logarithm or a comparison would meet infinity, or a certain event."""
    for bits, expected in ((0, 2.0**-24), (-1, 1.0 - 2.0**-24)):
        monkeypatch.setattr(random, "integers", lambda shape, seed, b=bits: tf.fill(shape, b))
        draws = random.uniform([3], random.as_seed(1)).numpy()
        np.testing.assert_array_equal(draws, np.full(3, expected, np.float32))
