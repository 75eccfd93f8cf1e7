"""Splits by the names that people give them: taken as such or refused, never mixed or dropped."""

import numpy as np
import pytest
import tensorflow as tf

from tf_mcvae.datasets import load, write_records
from tf_mcvae.datasets.split_names import find_splits

IMAGES = np.random.default_rng(0).integers(2, 256, (60, 4, 4, 1), np.uint8)
SIZES = (20, 7, 6)


def write_images(folder, count, pattern="{}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / pattern.format(i)).write_bytes(tf.io.encode_png(IMAGES[i]).numpy())


def write_named_records(folder, name, count):
    write_records(IMAGES[:count], folder / "made", num_files=1)
    (folder / "made/train-00000-of-00001.tfrecord").rename(folder / name)
    (folder / "made").rmdir()


def make(kind, root, names):
    """Makes a source of splits of `SIZES` examples with these names, and returns its path."""
    root.mkdir()
    if kind == "keys":
        np.savez(root / "x.npz", **{n: IMAGES[:c] for n, c in zip(names, SIZES, strict=True)})
        return root / "x.npz"
    for name, count in zip(names, SIZES, strict=True):
        if kind == "folders":
            write_images(root / name, count)
        elif kind == "folders of records":
            write_records(IMAGES[:count], root / name, num_files=1)
        else:
            write_named_records(root, f"birds-{name}.tfrecord-0-of-1", count)
    return root


def sizes(source):
    spec = load(source).spec
    return spec.num_train, spec.num_validation, spec.num_test


TAKEN = [
    ("train", "val", "test"),
    ("training", "valid", "testing"),
    ("Train", "dev", "Test"),
    ("TRAIN", "VALIDATION", "TEST"),
    ("train2017", "val2017", "test2017"),
    ("train_images", "val-images", "test_images"),
    ("X_train", "x_valid", "xTest"),
]


CASES = [
    *(("folders", names) for names in TAKEN),
    *((kind, TAKEN[1]) for kind in ("keys", "folders of records", "records")),
    *(pytest.param("keys", names, marks=pytest.mark.slow) for names in TAKEN if names != TAKEN[1]),
]


@pytest.mark.parametrize(("kind", "names"), CASES)
def test_splits_are_taken(kind, names, tmp_path):
    assert sizes(make(kind, tmp_path / "data", names)) == SIZES


REFUSED = [
    (("train", "eval", "test"), "unclear which split.*'eval'"),
    (("train", "val", "validation"), "Two .*'val' and 'validation'"),
    (("train", "val", "test_hard"), "unclear which split.*'test_hard'"),
]


@pytest.mark.parametrize("kind", ["folders", "keys"])
@pytest.mark.parametrize(("names", "message"), REFUSED)
def test_unclear_names_are_refused(kind, names, message, tmp_path):
    path = make(kind, tmp_path / "data", names)
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize("name", ["birds-eval.tfrecord", "train-val.tfrecord", "birds.tfrecord"])
def test_records_of_an_unclear_split_are_refused(name, tmp_path):
    write_named_records(tmp_path, "birds-train.tfrecord", 20)
    write_named_records(tmp_path, name, 6)
    with pytest.raises(ValueError, match=r"Received: '.*tfrecord'"):
        load(tmp_path)


def test_records_in_and_beside_folders_are_refused(tmp_path):
    write_records(IMAGES, tmp_path / "train")
    write_records(IMAGES, tmp_path, "test")
    with pytest.raises(ValueError, match=r"in folders of splits, or none.*beside train"):
        load(tmp_path)


@pytest.mark.parametrize("pattern", ["{}/0.png", "{}_0.png"])
def test_splits_below_the_folder_are_refused(pattern, tmp_path):
    for i, split in enumerate(("train", "val")):
        path = tmp_path / "all" / pattern.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(IMAGES[i]).numpy())
    with pytest.raises(ValueError, match=r"several splits lie in one folder.*train.* and .*val"):
        load(tmp_path)


def test_classes_whose_names_contain_a_split_are_classes(tmp_path):
    for name in ("test_tube", "dog", "latest"):
        write_images(tmp_path / name, 10)
    assert sum(sizes(tmp_path)) == 30


def test_a_class_called_train_is_not_taken_for_the_only_split(tmp_path):
    for name in ("train", "car"):
        write_images(tmp_path / name, 10)
    with pytest.raises(ValueError, match=r"class.*Received: 'car' beside 'train'"):
        load(tmp_path)


def test_labels_are_not_images(tmp_path):
    labels = {"y_train": np.zeros(20), "y_test": np.zeros(6), "test_ids": np.zeros(6)}
    np.savez(tmp_path / "x.npz", x_train=IMAGES[:20], x_val=IMAGES[:7], x_test=IMAGES[:6], **labels)
    assert sizes(tmp_path / "x.npz") == SIZES


def test_unsplit_images_beside_a_test_split_are_for_training(tmp_path):
    np.savez(tmp_path / "x.npz", images=IMAGES, x_test=IMAGES[:6])
    assert sizes(tmp_path / "x.npz") == (54, 6, 6)


HIDDEN = ("._0.png", ".ipynb_checkpoints/1.png", "__MACOSX/._2.png", "@eaDir/3.png", ".val/4.png")


@pytest.mark.parametrize("below", ["", "train"])
def test_hidden_files_are_not_read(below, tmp_path):
    write_images(tmp_path / below, 10)
    for name in HIDDEN:
        for folder in (tmp_path, tmp_path / below):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"no image")
    assert sum(sizes(tmp_path)) == 10


def test_images_that_are_left_out_are_named(tmp_path):
    for name in ("train", "test"):
        write_images(tmp_path / name, 10)
    assert sum(sizes(tmp_path)) == 20  # Without a warning, which would be an error here.
    for name in ("0.gif", "1.GIF", "labels.csv", "deeper/2.webp"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"3 images are left out.*Received: \.gif, \.webp in"):
        assert sum(sizes(tmp_path)) == 20
    for path in (tmp_path / "train").rglob("*.*"):
        if path.suffix != ".png":
            path.unlink()
    write_images(tmp_path / "unlabelled" / "below", 3)
    write_images(tmp_path, 1)
    (tmp_path / "readme.txt").write_text("")
    with pytest.warns(UserWarning, match=r"left out.*Received: '0.png', 'unlabelled' in"):
        assert sum(sizes(tmp_path)) == 20


def test_hidden_records_are_not_read(tmp_path):
    write_records(IMAGES, tmp_path, num_files=1)
    (tmp_path / "._train-00000-of-00001.tfrecord").write_bytes(b"no records")
    assert sum(sizes(tmp_path)) == 60


@pytest.mark.parametrize("kind", ["file", "record"])
def test_16_bit_png_is_refused(kind, tmp_path):
    levels = np.arange(2000, 2016, dtype=np.uint16).reshape(4, 4, 1)
    for i in range(30):
        (tmp_path / f"{i}.png").write_bytes(tf.io.encode_png(levels + i).numpy())
    if kind == "record":
        with tf.io.TFRecordWriter(str(tmp_path / "x.tfrecord")) as writer:
            for path in tmp_path.glob("*.png"):
                value = tf.train.Feature(bytes_list=tf.train.BytesList(value=[path.read_bytes()]))
                example = tf.train.Example(features=tf.train.Features(feature={"image": value}))
                writer.write(example.SerializeToString())
    with pytest.raises(ValueError, match=r"8 bits a channel.*Received: "):
        load(tmp_path)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_integers_0_and_1_are_black_and_white(dtype):
    x = np.random.default_rng(0).integers(0, 2, (40, 4, 4)).astype(dtype)
    assert set(np.unique(np.concatenate(list(load(x).train)))) == {0.0, 1.0}


def test_other_splits_of_tfds_are_left_out():
    found = find_splits(["train", "val", "extra"], "split", "svhn")
    assert found == {"train": "train", "validation": "val"}
