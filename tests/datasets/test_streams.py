"""Image folders and TFRecords that do not fit in memory: what is read, when, and in which order.

Small ones stand for large ones: here, images of any size are streamed.
"""

import os

import memory
import numpy as np
import pytest
import tensorflow as tf
from recorder import recorded

from tf_mcvae.datasets import DataSpec, load, skip_epochs, sources, write_records
from tf_mcvae.datasets.streams import permuted
from tf_mcvae.random import as_seed
from tf_mcvae_commands import train as cli

NUM = 60


def stack(dataset):
    """All the examples of one pass."""
    return np.concatenate([batch.numpy() for batch in dataset])


def rows(images):
    return [image.tobytes() for image in images]


def numbers(images):
    """The numbers of `IMAGES`, which are their first pixels."""
    return np.round(images[:, 0, 0, 0] * 255).astype(int)


IMAGES = np.random.default_rng(0).integers(0, 256, (NUM, 6, 5, 3), np.uint8)
IMAGES[:, 0, 0, 0] = np.arange(NUM)


def write_files(folder, images=IMAGES):
    for i, image in enumerate(images):
        path = folder / f"class_{i // 10}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(image).numpy())


def write_tfds(folder):
    import tensorflow_datasets as tfds

    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name="birds",
        version="1.0.0",
        data_dir=folder,
        features=tfds.features.FeaturesDict(
            {"image": tfds.features.Image(shape=(None, None, 3)), "label": np.int64}
        ),
        split_datasets={
            "train": tf.data.Dataset.from_tensor_slices({"image": IMAGES, "label": np.arange(NUM)})
        },
    )
    return builder.data_path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("streams")
    write_files(base / "files")
    # Each file holds what lies together, as in data that were written class by class.
    (base / "parts").mkdir()
    for i in range(6):
        write_records(IMAGES[10 * i : 10 * i + 10], base / f"{i}", num_files=1)
        (path,) = (base / f"{i}").iterdir()
        path.rename(base / "parts" / f"train-{i}.tfrecord")
    return {"files": base / "files", "records": base / "parts", "tfds": write_tfds(base)}


@pytest.fixture(autouse=True)
def streamed(monkeypatch):
    monkeypatch.setattr(sources, "_MOST_HELD_BYTES", 0)
    monkeypatch.setattr(sources.Held, "__init__", lambda *_: pytest.fail("held in memory"))


class TestPermuted:
    @pytest.mark.parametrize("count", [1, 2, 3, 10, 1000])
    def test_is_a_permutation_and_depends_on_the_seed(self, count):
        first, again, other = (
            permuted(tf.range(count), as_seed(seed), count).numpy() for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(np.sort(first), np.arange(count))
        np.testing.assert_array_equal(first, again)
        if count >= 10:
            assert np.any(first != other)

    def test_neighbours_come_far_apart(self):
        # 20 equally probable distances at each of 4 lags: by chance, chi-square with 19 degrees of
        # freedom is above 60 once in 2e5, and one of the four once in 5e4.
        count = 100_000
        order = permuted(tf.range(count), as_seed(3), count).numpy()
        for lag in (1, 2, 8, 1024):
            distances = (order[lag:] - order[:-lag]) % count
            found = np.bincount(distances * 20 // count, minlength=20)
            expected = len(distances) / 20
            assert np.sum((found - expected) ** 2 / expected) < 60


TFDS = pytest.param("tfds", marks=pytest.mark.slow)  # Read as other records are.


@pytest.mark.parametrize("kind", ["files", "records", "tfds"])
def test_every_image_is_in_one_split(folders, kind):
    data = load(folders[kind], batch_size=1)
    name = {"files": "files", "records": "parts", "tfds": "birds"}[kind]
    assert data.spec == DataSpec(name, (6, 5, 3), "gaussian", 49, 5, 6)
    assert [len(part) for part in data[:3]] == [49, 5, 6]
    found = np.concatenate([stack(part) for part in data[:3]])
    assert sorted(rows(found)) == sorted(rows(IMAGES.astype(np.float32) / 255))


@pytest.mark.parametrize("kind", [pytest.param("files", marks=pytest.mark.slow), "records", TFDS])
class TestKinds:
    def test_splits_do_not_depend_on_the_seed(self, folders, kind):
        first, second = (load(folders[kind], seed=seed, batch_size=7) for seed in (0, 1))
        for part in ("validation", "test"):
            np.testing.assert_array_equal(stack(getattr(first, part)), stack(getattr(second, part)))

    def test_order_is_a_function_of_seed_and_pass_and_resumes(self, folders, kind):
        options = {"batch_size": 7, "binarize": "dynamic"}
        train = load(folders[kind], seed=1, **options).train
        whole = [stack(train) for _ in range(3)]
        resumed = load(folders[kind], seed=1, **options).train
        skip_epochs(resumed, 1)
        iter(resumed)  # It reads nothing, so it is not a pass.
        np.testing.assert_array_equal([stack(resumed) for _ in range(2)], whole[1:])
        other = stack(load(folders[kind], seed=2, **options).train)
        assert all(np.any(a != b) for a, b in ((whole[0], whole[1]), (whole[0], other)))

    def test_tensorflows_own_seed_may_be_set(self, folders, kind):
        def run():
            tf.random.set_seed(0)  # TensorFlow treats this seed differently from all others.
            return stack(load(folders[kind], batch_size=7).train)

        np.testing.assert_array_equal(run(), run())

    def test_passes_have_other_orders(self, folders, kind):
        train = load(folders[kind], batch_size=49).train
        first, second = (numbers(stack(train)) for _ in range(2))
        assert np.any(first != second)
        np.testing.assert_array_equal(np.sort(first), np.sort(second))

    def test_batches_mix_what_lies_together(self, folders, kind):
        # 14 of 49 images. The chance that a random choice has fewer than 3 of 6 tens: 1e-5 a batch.
        for batch in load(folders[kind], batch_size=14).train:
            assert len(set(numbers(batch.numpy()) // 10)) >= 3

    def test_what_is_drawn_once_stays(self, folders, kind):
        small = load(folders[kind], binarize="static", batch_size=2, seed=0)
        large = load(folders[kind], binarize="static", batch_size=49, seed=1)
        for part in ("validation", "test"):
            first = stack(getattr(small, part))
            assert set(np.unique(first)) == {0.0, 1.0}
            np.testing.assert_array_equal(first, stack(getattr(large, part)))
        first, second = stack(large.train), stack(large.train)
        assert np.any(first != second)
        assert sorted(rows(first)) == sorted(rows(second))

    def test_images_are_resized(self, folders, kind):
        found = load(folders[kind], image_size=(3, 2), batch_size=1).test
        whole = np.concatenate([stack(p) for p in load(folders[kind], batch_size=1)[2:3]])
        cropped = whole[:, :, :4]  # 6x5 has to lose a column: the last.
        expected = cropped.reshape(-1, 3, 2, 2, 2, 3).mean(axis=(2, 4))
        np.testing.assert_allclose(stack(found) * 255, expected * 255, atol=0.51)


def test_fit_takes_one_pass_an_epoch(folders):
    train = load(folders["records"], batch_size=7).train
    expected = [stack(train) for _ in range(2)]
    seen = recorded(load(folders["records"], batch_size=7).train, epochs=2)
    np.testing.assert_array_equal(seen, np.concatenate(expected))


class TestFiles:
    def test_with_splits(self, tmp_path):
        for part, images in (("train", IMAGES[:40]), ("validation", IMAGES[40:]), ("test", IMAGES)):
            write_files(tmp_path / part, images)
        data = load(tmp_path)
        assert (data.spec.num_train, data.spec.num_validation, data.spec.num_test) == (40, 20, NUM)
        np.testing.assert_array_equal(numbers(stack(data.test)), np.arange(NUM))

    def test_grey_among_colour_becomes_colour(self, tmp_path):
        write_files(tmp_path)
        save(tmp_path / "class_0/001.png", IMAGES[1][..., :1])
        found = np.concatenate([stack(part) for part in load(tmp_path, batch_size=1)[:3]])
        expected = np.repeat(IMAGES[1][..., :1], 3, axis=-1).astype(np.float32) / 255
        assert expected.tobytes() in rows(found)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda path: path.write_bytes(path.read_bytes()[:90]), "cannot be decoded"),
            (lambda path: path.write_bytes(b""), "cannot be decoded"),
            (lambda path: path.unlink(), "cannot be decoded"),
            (lambda path: save(path, IMAGES[1, 1:]), r"`image_size`.* of \(5, 5\)"),
        ],
        ids=["cut off", "empty", "removed", "other size"],
    )
    def test_the_error_names_the_file(self, tmp_path, damage, message):
        write_files(tmp_path)
        path = tmp_path / "class_0/001.png"  # Not one of the files that `load` reads.
        data = load(tmp_path, batch_size=1)
        damage(path)
        with pytest.raises(tf.errors.InvalidArgumentError, match=message) as error:
            [stack(part) for part in data[:3]]
        assert str(path) in str(error.value)

    def test_the_command_line_names_the_file_in_a_sentence(self, tmp_path, capsys):
        write_files(tmp_path / "images")
        (tmp_path / "images/class_0/001.png").write_bytes(b"")
        line = "--net_type fc --hidden_dim 2 --model VAE --batch_size 4 --no-score --dataset"
        words = [*line.split(), str(tmp_path / "images"), "--output-dir", str(tmp_path / "runs")]
        assert cli.main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: This image cannot be decoded as a PNG, JPEG or BMP ")
        assert error.endswith("001.png'\n")

    def test_colour_among_grey_is_refused(self, tmp_path):
        write_files(tmp_path, IMAGES[..., :1])
        save(tmp_path / "class_0/001.png", IMAGES[1])
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"in colour.*001\.png"):
            [stack(part) for part in load(tmp_path, batch_size=1)[:3]]

    def test_sizes_that_differ_are_seen_at_once(self, tmp_path):
        write_files(tmp_path)
        save(tmp_path / "class_5/059.png", IMAGES[1, 1:])
        with pytest.raises(ValueError, match=r"`image_size`.*\(6, 5\) in .*000\.png.*059\.png"):
            load(tmp_path)


def save(path, image):
    path.write_bytes(tf.io.encode_png(image).numpy())


def write_example(path, encoded_images):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image in encoded_images:
            values = tf.train.BytesList(value=[image])
            features = tf.train.Features(feature={"image": tf.train.Feature(bytes_list=values)})
            writer.write(tf.train.Example(features=features).SerializeToString())


class TestRecords:
    def test_write_and_load(self, tmp_path):
        images = tf.data.Dataset.from_tensor_slices(IMAGES[:40])
        assert write_records(images, tmp_path / "birds", num_files=3) == 40
        assert write_records(iter(IMAGES[40:]), tmp_path / "birds", "test", num_files=1) == 20
        assert len(list((tmp_path / "birds").iterdir())) == 4
        data = load(tmp_path / "birds", batch_size=1)
        assert data.spec == DataSpec("birds", (6, 5, 3), "gaussian", 36, 4, 20)
        np.testing.assert_array_equal(numbers(stack(data.test)), np.arange(40, 60))

    def test_splits_by_folder(self, tmp_path):
        for part in ("train", "test"):
            write_records(IMAGES, tmp_path / part)
        assert load(tmp_path).spec.num_test == NUM

    def test_jpegs_of_others(self, tmp_path):
        image = tf.io.encode_jpeg(np.full([8, 8, 3], 99, np.uint8)).numpy()
        write_example(tmp_path / "flowers.tfrecord", [image] * 10)
        np.testing.assert_allclose(stack(load(tmp_path).test) * 255, 99, atol=1)

    def test_the_error_names_file_and_record(self, tmp_path):
        write_records(IMAGES, tmp_path, num_files=2)
        with tf.io.TFRecordWriter(str(tmp_path / "train-99.tfrecord")) as writer:
            for _ in range(20):
                writer.write(b"no example")
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"train-99\.tfrecord, record \d"):
            # The files are read 16 records at a time; the first 16 are looked at.
            [stack(part) for part in load(tmp_path, batch_size=1)[:3]]

    def test_files_that_are_cut_off(self, tmp_path):
        write_records(IMAGES, tmp_path, num_files=2)
        path = tmp_path / "train-00001-of-00002.tfrecord"
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(ValueError, match=r"not a whole.*Received: '.*00001-of-00002"):
            load(tmp_path)

    def test_without_training_records(self, tmp_path):
        write_records(IMAGES, tmp_path, "test")
        with pytest.raises(ValueError, match="must hold train/ too"):
            load(tmp_path)

    @pytest.mark.parametrize(
        ("images", "options", "message"),
        [
            (IMAGES, {"split": "training"}, "`split`.*'training'"),
            (IMAGES, {"num_files": 0}, "`num_files`.*num_files=0"),
            (IMAGES / 255, {}, r"`uint8`.*float64 of shape \(6, 5, 3\) as number 0"),
            (IMAGES[0], {}, r"of shape \(5, 3\)"),
            (["bird.png"], {}, "Received: str"),
        ],
    )
    def test_what_cannot_be_written(self, tmp_path, images, options, message):
        with pytest.raises(ValueError, match=message):
            write_records(images, tmp_path, **options)
        assert not list(tmp_path.iterdir())

    def test_files_are_not_replaced(self, tmp_path):
        write_records(IMAGES, tmp_path)
        with pytest.raises(ValueError, match=r"already.*Received: '"):
            write_records(IMAGES, tmp_path, num_files=3)

    def test_tfds_data_without_images(self, tmp_path):
        import tensorflow_datasets as tfds

        builder = tfds.dataset_builders.store_as_tfds_dataset(
            name="sounds",
            version="1.0.0",
            data_dir=tmp_path,
            features=tfds.features.FeaturesDict({"pitch": np.float32}),
            split_datasets={"train": tf.data.Dataset.from_tensor_slices({"pitch": [1.0, 2.0]})},
        )
        with pytest.raises(ValueError, match=r"(?s)feature 'image'.*Received: .*sounds"):
            load(builder.data_path)


MEASURE = """
from tf_mcvae import datasets

small, *large = sys.argv[1:]
for part in datasets.load(small, batch_size=2)[:3]:
    for _ in part: pass
print(peak())
for folder in large:
    data = datasets.load(folder, batch_size=2)
    print(data.spec.num_train + data.spec.num_validation + data.spec.num_test)
    for part in data[:3]:
        for batch in part: assert batch.shape[1:] == data.spec.image_shape
    print(peak())
"""


def peaks(*folders):
    """Peak memory in MiB after a small folder and after each large one, and counts of images."""
    first, *others = map(float, memory.printed(MEASURE, *folders))
    return [first, *others[1::2]], others[::2]


@pytest.mark.slow
@memory.on_linux
def test_memory_stays_below_that_of_the_images(tmp_path):
    """600 images of 480 kB, in files and in records: holding either would add 275 MB or more."""
    image = tf.io.encode_png(np.zeros([400, 400, 3], np.uint8)).numpy()
    write_files(tmp_path / "small", np.zeros([60, 8, 8, 3], np.uint8))
    (tmp_path / "files").mkdir()
    (tmp_path / "files/0.png").write_bytes(image)
    for i in range(1, 600):
        os.link(tmp_path / "files/0.png", tmp_path / f"files/{i}.png")
    (tmp_path / "records").mkdir()
    write_example(tmp_path / "records/train.tfrecord", [image] * 600)
    found, counts = peaks(tmp_path / "small", tmp_path / "files", tmp_path / "records")
    assert counts == [600, 600]
    assert found[-1] - found[0] < 110


@memory.on_linux
@pytest.mark.slow
def test_memory_of_half_a_million_files(tmp_path):
    """Each adds only its name: 500,000 files take at most 60 MB more than 25,000."""
    save(tmp_path / "one.png", np.zeros([64, 64, 3], np.uint8))
    for name, count in (("small", 25_000), ("large", 500_000)):
        for i in range(count):
            folder = tmp_path / name / f"{i // 1000:03}"
            if i % 1000 == 0:
                folder.mkdir(parents=True)
            if i % 50_000 == 0:  # File systems limit the links to a file.
                source = tmp_path / f"{name}{i}.png"
                source.write_bytes((tmp_path / "one.png").read_bytes())
            os.link(source, folder / f"{i:06}.png")
    found, counts = peaks(tmp_path / "small", tmp_path / "large")
    assert counts == [500_000]
    assert found[1] - found[0] < 60
