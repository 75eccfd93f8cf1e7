"""The TensorBoard callback: its event files are read back and checked."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_mcvae
from tf_mcvae.cli.callbacks import Checkpoint, read_history
from tf_mcvae.integrations.pictures import tile_images
from tf_mcvae.integrations.tensorboard import TensorBoardLogger
from tf_mcvae_commands import train as cli

X = np.random.default_rng(0).random((40, 8, 8, 1), np.float32)
HELD_OUT = np.random.default_rng(1).random((35, 8, 8, 1), np.float32)


def make_model(learning_rate=0.01, channels=1, name="L-MCVAE"):
    keras.utils.set_random_seed(0)
    networks = (
        tf_mcvae.Encoder(3, architecture="dense"),
        tf_mcvae.Decoder((8, 8, channels), architecture="dense"),
    )
    if name == "VAE":
        model = tf_mcvae.VAE(*networks)
    else:
        rule = tf_mcvae.StepSize(0.02, rule="variance")
        model = tf_mcvae.LMCVAE(*networks, num_transitions=2, step_size=rule)
    model.build((None, 8, 8, channels))
    # XLA's compilation of two steps takes longer than the steps.
    model.compile(keras.optimizers.Adam(learning_rate, global_clipnorm=0.1), jit_compile=False)
    return model


def fit(model, logger, epochs=3, validation=HELD_OUT, **arguments):
    callbacks = [] if logger is None else [logger]
    arguments = {"epochs": epochs, "batch_size": 20, "shuffle": False, "verbose": 0, **arguments}
    return model.fit(X, validation_data=validation, callbacks=callbacks, **arguments).history


def read(folder):
    """All written values, `{tag: {step: value}}`. Values of a repeated step must be equal."""
    found = {}
    for path in sorted(folder.iterdir()):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                content = getattr(value, kind)
                content = content.encoded_image_string if kind == "image" else content
                steps = found.setdefault(value.tag, {})
                assert steps.setdefault(event.step, content) == content
    return {tag: dict(sorted(steps.items())) for tag, steps in found.items()}


def picture(content):
    return tf.io.decode_png(content).numpy()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model after three epochs with a falling learning rate, its history, and the events."""
    folder = tmp_path_factory.mktemp("logs")
    model = make_model(keras.optimizers.schedules.ExponentialDecay(0.01, 2, 0.5))
    logger = TensorBoardLogger(folder, HELD_OUT, nll_every=3, seed=5)
    history = fit(model, logger)
    return model, history, read(folder / "train"), read(folder / "validation")


def test_every_metric_is_written_at_every_epoch(trained):
    _, history, training, validation = trained
    for name in ("loss", "bound", "grad_norm", "clipped", "acceptance_1", "acceptance_2"):
        assert name in training
    for name in ("loss", "bound", "acceptance_1", "acceptance_2"):
        assert name in validation
    for name, values in history.items():
        events = validation if name.startswith("val_") else training
        written = events[name.removeprefix("val_")]
        assert list(written) == [1, 2, 3]
        np.testing.assert_allclose(list(written.values()), values, rtol=1e-6)
    assert len({*training, *validation}) < len(history) + 6


def test_step_sizes_are_medians_over_the_latent_dimensions(trained):
    model, _, training, _ = trained
    values = model.step_size.values().numpy()
    assert values.shape == (2, 3)
    for k in (0, 1):
        written = training[f"step_size_{k + 1}"]
        assert len(set(written.values())) == len(written) == 3
        np.testing.assert_allclose(written[3], sorted(values[k])[1], rtol=1e-6)


def test_learning_rates_are_those_at_the_start_of_the_epochs(trained):
    written = trained[2]["learning_rate"]
    # There are two batches in an epoch, after which the rate is halved.
    np.testing.assert_allclose([written[n] for n in (1, 2, 3)], [0.01, 0.005, 0.0025], rtol=1e-6)


def test_nll_is_the_quick_estimate_and_near_the_thorough_one(trained):
    model, _, _, validation = trained
    assert list(validation["nll"]) == [3]
    quick = tf_mcvae.estimate_log_likelihood(
        model, HELD_OUT, num_chains=10, num_temperatures=4, num_leapfrog_steps=3, seed=5
    )
    assert quick.settings["num_examples"] == len(HELD_OUT)
    assert validation["nll"][3] == pytest.approx(quick.nll, rel=1e-6)
    thorough = tf_mcvae.estimate_iwae(model, HELD_OUT, num_samples=2000)
    assert validation["nll"][3] == pytest.approx(thorough.nll, abs=0.5)


def test_pictures_show_samples_and_reconstructions(trained):
    model, _, training, validation = trained
    assert list(training["samples"]) == list(validation["reconstructions"]) == [1, 2, 3]
    samples = picture(training["samples"][3])
    np.testing.assert_array_equal(samples, tile_images(model.sample(64, seed=5)))
    assert samples.shape == (64, 64, 1)
    pairs = picture(validation["reconstructions"][3])
    assert pairs.shape == (64, 64, 1)
    reconstructed = model.reconstruct(HELD_OUT).numpy()
    # The second row of pictures begins with the fifth image.
    for row, column, image in ((0, 0, HELD_OUT[0]), (0, 1, reconstructed[0]), (1, 0, HELD_OUT[4])):
        cell = pairs[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        np.testing.assert_allclose(cell / 255.0, image, atol=0.51 / 255)


def test_latents_of_the_samples_stay_the_same(tmp_path):
    fit(make_model(learning_rate=0.0, name="VAE"), TensorBoardLogger(tmp_path / "still"), epochs=2)
    still = read(tmp_path / "still/train")["samples"]
    assert still[1] == still[2]
    fit(make_model(name="VAE"), TensorBoardLogger(tmp_path / "moving"), epochs=2)
    moving = read(tmp_path / "moving/train")["samples"]
    assert moving[1] != moving[2]


@pytest.mark.slow
def test_training_is_the_same_with_and_without(trained):
    model = make_model(keras.optimizers.schedules.ExponentialDecay(0.01, 2, 0.5))
    assert fit(model, None) == trained[1]


def test_a_training_that_goes_on_appends_its_steps(tmp_path):
    model = make_model(name="VAE")
    data = tf.data.Dataset.from_tensor_slices((HELD_OUT, HELD_OUT)).batch(10)
    first = fit(model, TensorBoardLogger(tmp_path, data, nll_every=0), epochs=2)
    logger = TensorBoardLogger(tmp_path, data, nll_every=0)
    second = fit(model, logger, epochs=4, initial_epoch=2)
    third = fit(model, logger, epochs=5, initial_epoch=4)
    written = read(tmp_path / "train")["loss"]
    assert list(written) == [1, 2, 3, 4, 5]
    values = first["loss"] + second["loss"] + third["loss"]
    np.testing.assert_allclose(list(written.values()), values, rtol=1e-6)
    assert "nll" not in read(tmp_path / "validation")


def test_without_validation_data_there_is_no_such_run(tmp_path):
    fit(make_model(name="VAE"), TensorBoardLogger(tmp_path), epochs=1, validation=None)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_images_of_two_channels_have_pictures(tmp_path):
    x = np.repeat(X, 2, axis=-1)
    model = make_model(channels=2, name="VAE")
    logger = TensorBoardLogger(tmp_path, x, nll_every=0)
    model.fit(x, validation_data=x, callbacks=[logger], verbose=0)
    assert "samples" in read(tmp_path / "train")
    assert set(read(tmp_path / "validation")) == {"loss", "bound", "reconstructions"}


def test_a_record_that_fails_does_not_end_training(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("no such colour")

    monkeypatch.setattr(TensorBoardLogger, "_record", fail)
    with pytest.warns(RuntimeWarning, match=r"TensorBoard's record of epoch 1 could not"):
        TensorBoardLogger(tmp_path).on_epoch_end(0)


def test_mistakes_are_answered(tmp_path):
    with pytest.raises(ValueError, match="Received: nll_every=-1"):
        TensorBoardLogger(tmp_path, nll_every=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="choose another"):
        fit(make_model(name="VAE"), TensorBoardLogger(tmp_path / "file"))
    other = keras.Sequential([keras.layers.Dense(1)])
    other.compile("sgd", "mse")
    with pytest.raises(TypeError, match="Received: Sequential"):
        other.fit(np.ones([2, 1]), np.ones([2, 1]), callbacks=[TensorBoardLogger(tmp_path)])


def test_tiles_lie_row_by_row():
    images = np.arange(3.0).reshape(3, 1, 1, 1) / 2.0 * np.ones([1, 2, 3, 1])
    tiles = tile_images(images, columns=2)[..., 0]
    expected = np.block(
        [
            [np.full([2, 3], 0), np.full([2, 3], 128)],
            [np.full([2, 3], 255), np.zeros([2, 3])],
        ]
    )
    np.testing.assert_array_equal(tiles, expected)
    np.testing.assert_array_equal(tile_images(np.full([1, 1, 1, 3], 1.7), 1), [[[255] * 3]])
    np.testing.assert_array_equal(tile_images(np.full([1, 1, 1, 1], np.nan), 1), [[[0]]])


@pytest.mark.slow
def test_the_command_line_writes_what_the_history_says(tmp_path, monkeypatch):
    """The interruption comes after the third epoch is written, but before it is saved."""
    line = (
        "--model VAE --net_type fc --hidden_dim 2 --limit_train_batches 2 --max_epochs 4 "
        f"--no-score --no-export --name run --nll-every 2 --logdir {tmp_path / 'logs'}"
    )
    with monkeypatch.context() as patch:
        original = Checkpoint.on_epoch_end

        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt
            original(self, epoch, logs)

        patch.setattr(Checkpoint, "on_epoch_end", on_epoch_end)
        assert cli.main([*line.split(), "--output-dir", str(tmp_path)]) == 130
    assert cli.main(["--resume", "run", "--output-dir", str(tmp_path)]) == 0
    history = read_history(tmp_path / "run/history.csv")
    assert sorted(os.listdir(tmp_path / "logs/run")) == ["train", "validation"]
    training, validation = (read(tmp_path / "logs/run" / name) for name in ("train", "validation"))
    for events, name in ((training, "bound"), (training, "grad_norm"), (validation, "val_bound")):
        written = events[name.removeprefix("val_")]
        assert list(written) == [row["epoch"] for row in history] == [1, 2, 3, 4]
        np.testing.assert_allclose(list(written.values()), [row[name] for row in history])
    assert list(validation["nll"]) == [2, 4]
