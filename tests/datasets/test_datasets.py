"""All sources of data, without a network and without prepared data.

TFDS writes small data sets of random images into a temporary folder. Tests that need the real data
sets say so when they are skipped.
"""

import itertools
import os
import pathlib
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from recorder import recorded

from tf_mcvae.checks import plain_errors
from tf_mcvae.datasets import Data, DataSpec, load, skip_epochs, sources
from tf_mcvae_commands import train as cli

REAL = pathlib.Path(
    os.environ.get("TFDS_DATA_DIR")
    or pathlib.Path(__file__).parents[3] / "shared/data/tensorflow_datasets"
)
STORED = {
    "mnist": {"train": 40, "test": 12},
    "fashion_mnist": {"train": 40, "test": 12},
    "binarized_mnist": {"train": 30, "validation": 11, "test": 12},
    "omniglot": {"train": 20, "test": 12},
    "cifar10": {"train": 20, "test": 12},
    "celeb_a": {"train": 30, "validation": 11, "test": 12},
}


def stack(dataset):
    """All the examples of one pass."""
    return np.concatenate([batch.numpy() for batch in dataset])


def passes(dataset, num):
    return [stack(dataset) for _ in range(num)]


def rows(images):
    return {image.tobytes() for image in images}


def save_image(path, image, encode=tf.io.encode_png):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(image).numpy())


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), np.uint8)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    rng = np.random.default_rng(1)

    def examples(info, num, binary):
        zeros = tf.nest.map_structure(lambda x: tf.zeros([num, *x.shape], x.tf_dtype), info)
        shape = zeros["image"].shape
        return zeros | {"image": rng.integers(0, 2 if binary else 256, shape, np.uint8)}

    for name, sizes in STORED.items():
        builder = tfds.builder(name, data_dir=folder)
        features = builder.info.features
        info = features.get_tensor_info()
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version=str(builder.version),
            data_dir=folder,
            features=features,
            split_datasets={
                part: tf.data.Dataset.from_tensor_slices(
                    examples(info, num, binary=name == "binarized_mnist")
                )
                for part, num in sizes.items()
            },
        )
    return folder


class TestDigits:
    def test_spec_and_batches(self):
        data = load("digits", batch_size=100, validation_batch_size=64)
        assert isinstance(data, Data)
        assert data.spec == DataSpec("digits", (8, 8, 1), "bernoulli", 1350, 150, 297)
        assert data.spec.channels == 1
        assert (len(data.train), len(data.validation), len(data.test)) == (13, 3, 5)
        assert data.train.element_spec == tf.TensorSpec([100, 8, 8, 1], tf.float32)
        assert {len(batch) for batch in data.train} == {100}
        assert [len(batch) for batch in data.validation] == [64, 64, 22]

    def test_file_is_that_of_sklearn(self):
        from sklearn.datasets import load_digits

        with np.load(pathlib.Path(sources.__file__).with_name("digits.npz")) as stored:
            np.testing.assert_array_equal(stored["images"], load_digits().images)
            assert stored["images"].dtype == np.uint8

    def test_pixels_are_those_of_sklearn_each_in_one_split(self):
        from sklearn.datasets import load_digits

        data = load("digits", batch_size=1)
        parts = [stack(part) for part in data[:3]]
        found = np.sort(np.concatenate(parts).reshape(-1, 64), axis=0)
        np.testing.assert_array_equal(found, np.sort(load_digits().data / 16.0, axis=0))
        assert len(rows(np.concatenate(parts))) == len(rows(load_digits().images))
        assert not any(rows(a) & rows(b) for a, b in zip(parts, parts[1:] + parts[:1], strict=True))

    def test_is_the_default(self):
        assert load().spec.name == "digits"

    def test_the_end_of_an_epoch_waits_for_no_tuning(self):
        """TensorFlow would wait for its autotuning thread, which sleeps for seconds."""
        for part in load()[:3]:
            assert not part.options().autotune.enabled

    def test_splits_do_not_depend_on_the_seed_or_the_fraction(self):
        first, second = load(seed=0), load(seed=1, validation_fraction=0.2)
        np.testing.assert_array_equal(stack(first.test), stack(second.test))
        assert len(stack(second.validation)) == 300
        np.testing.assert_array_equal(stack(first.validation), stack(load(seed=1).validation))

    def test_can_be_enlarged(self):
        small, large = load(), load(image_size=28)
        assert large.spec.image_shape == (28, 28, 1)
        np.testing.assert_allclose(
            stack(large.test).mean(), stack(small.test).mean(), atol=2e-3
        )  # A bilinear resize weighs all pixels equally, except at the border.


@pytest.mark.parametrize("binarize", ["none", "dynamic", "static"])
class TestOrder:
    def test_is_a_function_of_the_seed_and_the_pass(self, binarize):
        options = {"batch_size": 50, "binarize": binarize}
        first = passes(load(seed=3, **options).train, 3)
        np.testing.assert_array_equal(first, passes(load(seed=3, **options).train, 3))
        other = passes(load(seed=4, **options).train, 1)
        assert all(np.any(a != b) for a, b in [*itertools.pairwise(first), (first[0], *other)])

    def test_skipped_epochs_resume_the_run(self, binarize):
        options = {"batch_size": 50, "binarize": binarize, "seed": 5}
        whole = passes(load(**options).train, 5)
        resumed = load(**options).train
        skip_epochs(resumed, 2)
        np.testing.assert_array_equal(passes(resumed, 3), whole[2:])

    def test_unread_iterators_do_not_count_and_cut_passes_do(self, binarize):
        options = {"batch_size": 50, "binarize": binarize}
        whole = passes(load(**options).train, 3)
        train = load(**options).train
        iter(train)
        np.testing.assert_array_equal(stack(train.take(2)), whole[0][:100])
        iter(train)
        np.testing.assert_array_equal(stack(train.take(2)), whole[1][:100])
        repeated = train.repeat()
        np.testing.assert_array_equal(stack(repeated.take(27))[:1350], whole[2])


class TestKeras:
    def fit(self, data, epochs):
        return recorded(data.train, epochs, validation_data=data.validation)

    def test_fit_takes_one_pass_an_epoch_and_resumes(self):
        options = {"batch_size": 270, "binarize": "dynamic", "seed": 1}
        expected = np.concatenate(passes(load(**options).train, 4))
        np.testing.assert_array_equal(self.fit(load(**options), 4), expected)
        resumed = load(**options)
        skip_epochs(resumed.train, 3)
        np.testing.assert_array_equal(self.fit(resumed, 1), expected[3 * 1350 :])


class TestBinarize:
    def grey(self):
        pixels = np.linspace(0.0, 1.0, 25, dtype=np.float32).reshape(1, 5, 5)
        return np.repeat(pixels, 500, axis=0), pixels[0, ..., np.newaxis]

    def test_dynamic_draws_have_the_pixel_as_mean(self):
        # 25 pixels, 10 x 405 draws each: |z| < 5 fails by chance once in 7e4 runs at most.
        x, mean = self.grey()
        draws = np.concatenate(passes(load(x, binarize="dynamic", batch_size=405).train, 10))
        assert len(draws) == 4050
        assert set(np.unique(draws)) == {0.0, 1.0}
        deviation = np.sqrt(mean * (1 - mean) / len(draws))
        assert np.all(np.abs(draws.mean(axis=0) - mean) <= 5 * deviation + 1e-6)

    def test_dynamic_draws_are_independent_between_examples_and_passes(self):
        # Two independent draws agree with probability p^2 + (1-p)^2. 23 pixels off 0 and 1, two
        # comparisons: |z| < 5 fails by chance once in 4e4 runs.
        x, mean = self.grey()
        first, second = passes(load(x, binarize="dynamic", batch_size=405).train, 2)
        agree = mean**2 + (1 - mean) ** 2
        for a, b in ((first, second), (first[:404:2], first[1:404:2])):
            deviation = np.sqrt(agree * (1 - agree) / len(a))
            assert np.all(np.abs((a == b).mean(axis=0) - agree) <= 5 * deviation + 1e-6)

    def test_draws_made_once_differ_between_examples_and_splits(self):
        # 64 fair pixels an image: two of 500 are equal by chance once in 1e14 runs.
        data = load(np.full((500, 8, 8), 0.5), binarize="static", batch_size=1)
        assert len(rows(np.concatenate([stack(part) for part in data[:3]]))) == 500

    @pytest.mark.parametrize("binarize", ["dynamic", "static"])
    def test_evaluation_is_drawn_once(self, binarize):
        small = load(binarize=binarize, validation_batch_size=7, seed=0)
        large = load(binarize=binarize, validation_batch_size=297, seed=1)
        grey = load(validation_batch_size=297)
        for part in ("validation", "test"):
            first, second = passes(getattr(small, part), 2)
            assert set(np.unique(first)) == {0.0, 1.0}
            np.testing.assert_array_equal(first, second)
            np.testing.assert_array_equal(first, stack(getattr(large, part)))
            # False alarms: once in 1.7e6 runs at |z| < 5.
            p = stack(getattr(grey, part)).astype(np.float64)
            z = (first - p).sum() / np.sqrt((p * (1 - p)).sum())
            assert abs(z) < 5
            assert np.all(first[p == 0] == 0)
            assert np.all(first[p == 1] == 1)

    def test_static_training_images_are_the_same_in_every_pass(self):
        first, second = passes(load(binarize="static", batch_size=1350).train, 2)
        assert np.any(first != second)
        assert sorted(x.tobytes() for x in first) == sorted(x.tobytes() for x in second)

    def test_leaves_binary_pixels_alone(self):
        x = np.random.default_rng(0).random((40, 5, 5)) < 0.5
        for binarize in ("none", "dynamic", "static"):
            train = load(x, binarize=binarize, batch_size=4).train
            assert rows(stack(train)) <= rows(x[..., np.newaxis].astype(np.float32))


class TestArrays:
    @pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "float16", "bool"])
    def test_are_scaled_to_the_unit_interval(self, dtype):
        x = np.random.default_rng(0).integers(0, 256, (30, 4, 3))
        x = {"uint8": x, "bool": x > 99}.get(dtype, x / 256.0).astype(dtype)
        data = load(x, batch_size=1)
        assert data.spec == DataSpec("array", (4, 3, 1), "bernoulli", 24, 3, 3)
        found = np.concatenate([stack(part) for part in data[:3]])
        assert found.dtype == np.float32
        expected = (x[..., np.newaxis] / (255.0 if dtype == "uint8" else 1.0)).astype(np.float32)
        assert rows(np.round(found, 6)) == rows(np.round(expected, 6))

    def test_in_colour_suit_a_gaussian(self, images):
        assert load(images).spec.likelihood == "gaussian"

    def test_of_one_batch_keep_all_examples(self, images):
        data = load(images, batch_size=64)
        assert [len(batch) for batch in data.train] == [32]

    def test_are_cropped_centrally_and_shrunk_by_area(self):
        x = np.zeros((10, 4, 8), np.uint8)
        x[:, :2, 2:4], x[:, :, :2] = 200, 255  # The outer quarters are cropped.
        x[:, 0, 2] = 100
        found = stack(load(x, image_size=2).test)[0, ..., 0]
        np.testing.assert_allclose(found * 255, [[175, 0], [0, 0]], atol=1e-4)

    def test_can_have_another_height_than_width(self, images):
        assert load(images, image_size=(4, 6)).spec.image_shape == (4, 6, 3)

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (np.zeros((9, 4, 4), np.int64), r"Convert pixels to uint8.*dtype=int64"),
            (np.full((9, 4, 4), 1.5), r"must be in \[0, 1\].*maximum=1.5"),
            (np.full((9, 4, 4), -0.5), r"must be in \[0, 1\].*minimum=-0.5"),
            (np.full((9, 4, 4), np.nan), "NaN.*Received: array with shape"),
            (np.full((9, 4, 4), np.inf), "maximum=inf"),
            (np.zeros((9, 3, 8, 8), np.uint8), r"np\.moveaxis\(x, 1, -1\).*shape=\(9, 3, 8, 8\)"),
            (np.zeros((0, 4, 4), np.uint8), r"not empty.*shape=\(0, 4, 4\)"),
            (np.zeros((9, 16), np.uint8), r"\[N, H, W\].*shape=\(9, 16\)"),
            (np.zeros((1, 4, 4), np.uint8), "Too few.*for test.*Received: 1 examples"),
            (np.zeros((2, 4, 4), np.uint8), "Too few.*for validation.*Received: 1 examples"),
        ],
    )
    def test_that_are_no_images_are_refused(self, x, message):
        with pytest.raises(ValueError, match=message):
            load(x)


class TestFiles:
    def test_npy(self, images, tmp_path):
        np.save(tmp_path / "cats.npy", images)
        data = load(tmp_path / "cats.npy")
        assert data.spec == DataSpec("cats", (6, 5, 3), "gaussian", 32, 4, 4)
        np.testing.assert_array_equal(stack(data.test), stack(load(images).test))

    @pytest.mark.parametrize("prefix", ["", "x_"])
    def test_npz_with_splits(self, images, tmp_path, prefix):
        parts = {"train": images[:20], "validation": images[20:33], "test": images[33:]}
        path = tmp_path / "cats.npz"
        np.savez(path, **{prefix + part: x for part, x in parts.items()}, labels=[1, 2])
        data = load(str(path))
        assert (data.spec.num_train, data.spec.num_validation, data.spec.num_test) == (20, 13, 7)
        np.testing.assert_allclose(stack(data.validation) * 255, images[20:33], rtol=1e-6)
        np.testing.assert_allclose(stack(data.test) * 255, images[33:], rtol=1e-6)

    def test_npz_without_validation_takes_it_from_training(self, images, tmp_path):
        np.savez(tmp_path / "cats.npz", x_train=images[:20], x_test=images[20:])
        data = load(tmp_path / "cats.npz", validation_fraction=0.25, batch_size=1)
        assert (data.spec.num_train, data.spec.num_validation, data.spec.num_test) == (15, 5, 20)
        assert rows(stack(data.test)) == rows(images[20:].astype(np.float32) / 255)

    def test_npz_with_one_array(self, images, tmp_path):
        np.savez(tmp_path / "cats.npz", x=images)
        assert load(tmp_path / "cats.npz").spec.num_train == 32

    def test_npz_without_a_known_key(self, images, tmp_path):
        np.savez(tmp_path / "cats.npz", pictures=images)
        with pytest.raises(ValueError, match=r"'x_train'.*with keys \['pictures'\]"):
            load(tmp_path / "cats.npz")

    def test_splits_of_different_shapes(self, images, tmp_path):
        np.savez(tmp_path / "cats.npz", train=images, test=images[:, 1:])
        with pytest.raises(ValueError, match=r"one shape.*\(5, 5, 3\)"):
            load(tmp_path / "cats.npz")
        assert load(tmp_path / "cats.npz", image_size=4).spec.image_shape == (4, 4, 3)

    def test_object_arrays_are_not_unpickled(self, tmp_path):
        np.save(tmp_path / "cats.npy", np.array([{}, []], object))
        with pytest.raises(ValueError, match=r"NumPy cannot read.*pickle.*Received: '.*cats\.npy'"):
            load(tmp_path / "cats.npy")

    @pytest.mark.parametrize("suffix", ["npy", "npz"])
    def test_damaged_file(self, tmp_path, suffix):
        for content in (b"", b"no numbers", b"PK\x03\x04"):
            path = tmp_path / f"cats.{suffix}"
            path.write_bytes(content)
            with pytest.raises(ValueError, match="NumPy cannot read"):
                load(path)

    def test_missing_file(self, tmp_path):
        with pytest.raises(ValueError, match=r"no such folder.*Received: '.*dogs\.npz'"):
            load(tmp_path / "dogs.npz")


class TestFolders:
    @pytest.fixture(autouse=True, params=[sources._MOST_HELD_BYTES, 0], ids=["held", "streamed"])
    def most_held(self, request, monkeypatch):
        """Runs all tests with images held in memory, and streamed."""
        monkeypatch.setattr(sources, "_MOST_HELD_BYTES", request.param)

    @pytest.mark.parametrize("kind", ["png", "bmp", "PNG"])
    def test_of_images(self, images, tmp_path, kind):
        for i, image in enumerate(images[:10]):
            path = tmp_path / "cats" / ("black" if i % 2 else "white") / f"{i}.{kind}"
            save_image(path, image) if kind != "bmp" else save_bmp(path, image)
        (tmp_path / "cats" / "notes.txt").write_text("not an image")
        data = load(tmp_path / "cats", batch_size=1)
        assert data.spec == DataSpec("cats", (6, 5, 3), "gaussian", 8, 1, 1)
        found = np.concatenate([stack(part) for part in data[:3]])
        assert rows(found) == rows(images[:10].astype(np.float32) / 255)

    def test_with_splits(self, images, tmp_path):
        for i, image in enumerate(images):
            part = "train" if i < 20 else "validation" if i < 33 else "test"
            save_image(tmp_path / part / "all" / f"{i:02}.png", image)
        data = load(tmp_path)
        assert (data.spec.num_train, data.spec.num_validation, data.spec.num_test) == (20, 13, 7)
        np.testing.assert_allclose(stack(data.test) * 255, images[33:], rtol=1e-6)

    def test_jpeg(self, tmp_path):
        smooth = np.tile(np.arange(0, 240, 15, dtype=np.uint8)[:, None, None], (1, 16, 3))
        for i in range(4):
            save_image(tmp_path / f"{i}.jpg", smooth, tf.io.encode_jpeg)
        np.testing.assert_allclose(stack(load(tmp_path).test)[0] * 255, smooth, atol=4)

    def test_grey_images_have_one_channel(self, images, tmp_path):
        for i, image in enumerate(images[:5]):
            save_image(tmp_path / f"{i}.png", image[..., :1])
        assert load(tmp_path).spec.image_shape == (6, 5, 1)
        assert load(tmp_path).spec.likelihood == "bernoulli"

    def test_grey_becomes_colour_beside_colour_and_transparency_is_dropped(self, images, tmp_path):
        alpha = np.full((6, 5, 1), 7, np.uint8)
        save_image(tmp_path / "train/0.png", images[0])
        save_image(tmp_path / "train/1.png", np.concatenate([images[1], alpha], axis=-1))
        save_image(tmp_path / "test/0.png", np.concatenate([images[2][..., :1], alpha], axis=-1))
        save_image(tmp_path / "test/1.png", images[3])
        data = load(tmp_path, batch_size=1)
        expected = np.stack([np.repeat(images[2][..., :1], 3, axis=-1), images[3]])
        np.testing.assert_allclose(stack(data.test) * 255, expected, rtol=1e-6)
        assert rows(np.concatenate([stack(data.train), stack(data.validation)])) == rows(
            images[:2].astype(np.float32) / 255
        )

    def test_of_different_sizes_need_a_size(self, images, tmp_path):
        for i, image in enumerate(images[:6]):
            save_image(tmp_path / f"{i}.png", image[i:] if i > 3 else image)
        with pytest.raises(ValueError, match=r"`image_size`.*\(6, 5\) in .*0\.png.*4\.png"):
            load(tmp_path)
        assert load(tmp_path, image_size=4).spec.image_shape == (4, 4, 3)

    def test_without_images(self, tmp_path):
        with pytest.raises(ValueError, match=r"No \.png.*Received"):
            load(tmp_path)

    def test_without_training_images(self, images, tmp_path):
        save_image(tmp_path / "test" / "0.png", images[0])
        with pytest.raises(ValueError, match="must hold train/ too"):
            load(tmp_path)

    def test_with_a_damaged_image(self, tmp_path):
        (tmp_path / "0.png").write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"cannot be decoded .* Received: '.*0\.png'"):
            load(tmp_path)

    def test_grey_becomes_colour_where_it_is_not_looked_at(self, images, tmp_path):
        for i, image in enumerate(images):
            save_image(tmp_path / f"test/{i:02}.png", image if i != 1 else image[..., :1])
            save_image(tmp_path / f"train/{i:02}.png", image)
        images[1] = images[1][..., :1]
        np.testing.assert_allclose(stack(load(tmp_path).test) * 255, images, rtol=1e-6)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"no image", r"This image cannot be decoded .* Received: "),
            (b"", r"This image cannot be decoded .* Received: "),
            (np.zeros([6, 5, 3], np.uint8), "grey, and this one is in colour; convert it"),
            (
                np.zeros([6, 4, 1], np.uint8),
                r"`image_size`.*Most have \(6, 5\). Received: .*\(6, 4\)",
            ),
        ],
        ids=["damaged", "empty", "in colour", "of another size"],
    )
    def test_the_error_names_an_image_that_is_not_looked_at(
        self, images, tmp_path, content, message
    ):
        folder = tmp_path / "all [grey] 'ü'"
        for i, image in enumerate(images):
            save_image(folder / f"{i:02}.png", image[..., :1])
        if isinstance(content, bytes):
            (folder / "01.png").write_bytes(content)
        else:
            save_image(folder / "01.png", content)
        with pytest.raises(ValueError, match=message) as error, plain_errors():
            [stack(part) for part in load(folder)[:3]]
        assert f"'{folder / '01.png'}'" in str(error.value)


def save_bmp(path, image):
    """Writes BMP, which TensorFlow only reads: 24 bits per pixel, rows from below, BGR."""
    height, width = image.shape[:2]
    padding = np.zeros((height, -3 * width % 4), np.uint8)
    body = np.concatenate([image[::-1, :, ::-1].reshape(height, -1), padding], axis=1).tobytes()
    fields = ([54 + len(body), 0, 54, 40, width, height], [1, 24], [0, len(body), 0, 0, 0, 0])
    header = b"".join(
        np.array(values, kind).tobytes()
        for values, kind in zip(fields, ("<i4", "<i2", "<i4"), strict=True)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"BM" + header + body)


class TestTfds:
    @pytest.mark.parametrize(
        ("name", "shape", "likelihood", "sizes"),
        [
            ("mnist", (28, 28, 1), "bernoulli", (36, 4, 12)),
            ("fashion_mnist", (28, 28, 1), "bernoulli", (36, 4, 12)),
            ("binarized_mnist", (28, 28, 1), "bernoulli", (30, 11, 12)),
            ("omniglot", (28, 28, 1), "gaussian", (18, 2, 12)),
            ("cifar10", (32, 32, 3), "gaussian", (18, 2, 12)),
            ("celeba", (64, 64, 3), "gaussian", (30, 11, 12)),
        ],
    )
    def test_names(self, tfds_dir, name, shape, likelihood, sizes):
        data = load(name, data_dir=tfds_dir, batch_size=8)
        assert data.spec == DataSpec(name, shape, likelihood, *sizes)
        for part, num in zip(data[:3], (sizes[0] // 8 * 8, *sizes[1:]), strict=True):
            x = stack(part)
            assert x.shape == (num, *shape)
            assert x.dtype == np.float32
            assert x.min() >= 0.0
            assert 0.4 < x.max() <= 1.0

    @pytest.mark.parametrize(
        ("spelling", "name"),
        [
            ("fashionmnist", "fashion_mnist"),
            ("Fashion-MNIST", "fashion_mnist"),
            ("cifar", "cifar10"),
        ],
    )
    def test_other_spellings(self, tfds_dir, spelling, name):
        assert load(spelling, data_dir=tfds_dir).spec.name == name

    def test_folder_from_the_environment(self, tfds_dir, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
        assert load("mnist").spec.num_test == 12

    def test_validation_comes_from_training(self, tfds_dir):
        import tensorflow_datasets as tfds

        builder = tfds.builder("mnist", data_dir=tfds_dir)
        stored = {
            part: np.stack([x["image"] for x in tfds.as_numpy(builder.as_dataset(split=part))])
            for part in ("train", "test")
        }
        data = load("mnist", data_dir=tfds_dir, batch_size=1, validation_fraction=0.25)
        held_in = np.concatenate([stack(data.train), stack(data.validation)])
        assert data.spec.num_validation == 10
        assert rows(held_in) == rows(stored["train"].astype(np.float32) / 255)
        np.testing.assert_allclose(stack(data.test) * 255, stored["test"], rtol=1e-6)

    def test_binarized_mnist_stays_as_it_is(self, tfds_dir):
        options = {"data_dir": tfds_dir, "batch_size": 30}
        grey = [stack(part) for part in load("binarized_mnist", **options)[:3]]
        assert set(np.unique(grey[2])) == {0.0, 1.0}
        for binarize in ("dynamic", "static"):
            drawn = load("binarized_mnist", binarize=binarize, **options)
            for found, expected in zip(drawn[:3], grey, strict=True):
                np.testing.assert_array_equal(stack(found), expected)

    def test_omniglot_is_inverted_and_can_keep_its_size(self, tfds_dir):
        import tensorflow_datasets as tfds

        builder = tfds.builder("omniglot", data_dir=tfds_dir)
        stored = np.stack([x["image"] for x in tfds.as_numpy(builder.as_dataset(split="test"))])
        large = load("omniglot", data_dir=tfds_dir, image_size=105).test
        np.testing.assert_allclose(stack(large) * 255, 255 - stored[..., :1], rtol=1e-6)
        # 105 = 3.75 * 28: pixels that straddle a border count in part.
        pixel, cell = np.arange(105), 3.75 * np.arange(28)[:, np.newaxis]
        overlap = np.minimum(pixel + 1, cell + 3.75) - np.maximum(pixel, cell)
        weights = np.maximum(overlap, 0.0) / 3.75
        small = stack(load("omniglot", data_dir=tfds_dir).test)[..., 0]
        expected = weights @ (255 - stored[..., 0].astype(np.float64)) @ weights.T
        np.testing.assert_allclose(small * 255, expected, atol=0.51)

    @pytest.mark.slow
    def test_celeba_is_streamed(self, tfds_dir, monkeypatch):
        monkeypatch.setattr(sources.Held, "__init__", lambda *_: pytest.fail("held in memory"))
        options = {"data_dir": tfds_dir, "binarize": "dynamic", "seed": 2}
        whole = passes(load("celeba", batch_size=15, **options).train, 3)
        assert whole[0].shape == (30, 64, 64, 3)
        assert np.any(whole[0] != whole[1])
        resumed = load("celeba", batch_size=15, **options)
        skip_epochs(resumed.train, 2)
        np.testing.assert_array_equal(stack(resumed.train), whole[2])
        first, second = passes(resumed.test, 2)
        np.testing.assert_array_equal(first, second)
        other = load("celeba", batch_size=5, **options | {"seed": 3})
        np.testing.assert_array_equal(first, stack(other.test))

    def test_celeba_is_the_central_square(self, tfds_dir):
        import tensorflow_datasets as tfds

        builder = tfds.builder("celeb_a", data_dir=tfds_dir)
        stored = np.stack([x["image"] for x in tfds.as_numpy(builder.as_dataset(split="test"))])
        found = stack(load("celeba", data_dir=tfds_dir, image_size=89).test)
        halves = stored[:, 20:198].reshape(-1, 89, 2, 89, 2, 3).mean(axis=(2, 4))
        np.testing.assert_allclose(found * 255, halves, atol=0.51)


class TestDownload:
    def test_unreachable_host_fails_at_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sources.urllib.request, "getproxies", dict)
        monkeypatch.setattr(sources.socket, "create_connection", refuse)
        with pytest.raises(ValueError, match=r"'mnist'.*cannot be reached") as error:
            load("mnist", data_dir=tmp_path)
        for hint in (str(tmp_path), "mnist/3.", "TFDS_DATA_DIR", "'digits' needs no", "Received"):
            assert hint in str(error.value)

    def test_silent_host_fails_after_the_limit(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sources.urllib.request, "getproxies", dict)
        monkeypatch.setattr(sources, "_CONNECT_SECONDS", 0.05)
        monkeypatch.setattr(sources.socket, "create_connection", hang)
        with pytest.raises(ValueError, match=r"drive\.google\.com cannot be reached"):
            load("celeba", data_dir=tmp_path)

    def test_failed_download(self, tmp_path, monkeypatch):
        import tensorflow_datasets as tfds

        monkeypatch.setattr(sources, "_answers", lambda *_: True)
        monkeypatch.setattr(
            tfds.core.DatasetBuilder, "download_and_prepare", lambda _: refuse("quota exceeded")
        )
        with pytest.raises(ValueError, match=r"'celeb_a'.*ConnectionRefusedError: quota exceeded"):
            load("celeba", data_dir=tmp_path)

    def test_downloads_what_is_not_there(self, tmp_path, tfds_dir, monkeypatch):
        import tensorflow_datasets as tfds

        def download(builder):
            (tmp_path / "mnist").symlink_to(tfds_dir / "mnist")
            builder.info.read_from_directory(builder.data_path)

        monkeypatch.setattr(sources, "_answers", lambda *_: True)
        monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download)
        assert load("mnist", data_dir=tmp_path).spec.num_train == 36


class TestMissingPackages:
    @pytest.fixture(autouse=True)
    def without_extras(self, monkeypatch):
        for name in ("sklearn", "matplotlib", "PIL", "tensorflow_datasets", "importlib_resources"):
            monkeypatch.setitem(sys.modules, name, None)

    @pytest.mark.slow
    def test_the_first_command_needs_none(self, tmp_path):
        line = "--net_type fc --hidden_dim 2 --model VAE --batch_size 700 --score-examples 4"
        assert cli.main([*line.split(), "--max_epochs", "1", "--output-dir", str(tmp_path)]) == 0
        assert {path.name for path in tmp_path.glob("*/*")} >= {"images.png", "serving"}

    def test_tfds_is_asked_for_by_its_extra(self, tmp_path):
        (tmp_path / "dataset_info.json").touch()
        for source in ("mnist", tmp_path):
            with pytest.raises(ImportError, match=r"pip install 'tf_mcvae\[tfds\]'\. Received: "):
                load(source)


def refuse(message, *_):
    raise ConnectionRefusedError(message)


def hang(*_):
    time.sleep(0.5)
    raise TimeoutError


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 0}, "`batch_size`.*Received: batch_size=0"),
            ({"batch_size": 2.0}, "`batch_size`"),
            ({"batch_size": None}, "`batch_size`"),
            ({"validation_batch_size": -1}, "`validation_batch_size`"),
            ({"binarize": True}, "`binarize` must be 'none'.*Received: binarize=True"),
            ({"image_size": 0}, "`image_size`.*Received: image_size=0"),
            ({"image_size": (8, 8, 1)}, "`image_size`"),
            ({"validation_fraction": 0.0}, "`validation_fraction`.*Received"),
            ({"validation_fraction": 1}, "`validation_fraction`"),
            ({"validation_fraction": 0.9999}, "Too few examples.*for validation"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            load("digits", **options)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match=r"did you mean 'mnist'\?.*digits, mnist.*'mnits'"):
            load("mnits")
        with pytest.raises(ValueError, match="no data set of this name, and no such") as error:
            load("zebra")
        assert "did you mean" not in str(error.value)

    def test_source_of_another_type(self):
        with pytest.raises(TypeError, match=r"a name, a path or a NumPy array.*type list"):
            load([[0.5]])

    def test_seed(self):
        with pytest.raises(TypeError, match="`seed`"):
            load(seed=0.5)

    @pytest.mark.parametrize("num_epochs", [-1, 1.0, None])
    def test_skip_epochs(self, num_epochs):
        with pytest.raises(ValueError, match=r"`num_epochs`.*Received"):
            skip_epochs(load().train, num_epochs)


class TestRealData:
    @pytest.mark.parametrize(
        ("name", "mean", "dark"),
        [
            ("mnist", 0.1307, 0.8),
            pytest.param("omniglot", 0.08, 0.75, marks=pytest.mark.slow),
        ],
    )
    def test_strokes_are_light_on_dark(self, name, mean, dark):
        if not (REAL / name).is_dir():
            pytest.skip(f"needs {name} prepared by TFDS in TFDS_DATA_DIR or {REAL}")
        data = load(name, data_dir=REAL, batch_size=1000)
        x = stack(data.train)
        assert abs(x.mean() - mean) < 0.005
        assert (x < 0.1).mean() > dark
        assert x.max() == 1.0
