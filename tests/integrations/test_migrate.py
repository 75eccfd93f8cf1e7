"""Models of the reference, as its state dicts hold them, become models of this library.

That the migrated models reproduce the recorded runs, states, weights and gradients, is tested in
`test_fixtures.py`, whose models all come from here.
"""

import ast
import sys

import numpy as np
import pytest
import tensorflow as tf
from reference_weights import CONV_FIXTURES, DENSE_FIXTURES, group, image_shape

import tf_mcvae
from tf_mcvae.integrations.reference import from_state_dict, load_checkpoint

RECORDED = [p for p in DENSE_FIXTURES if not p.stem.startswith("nll")]
SMALL = {path.stem: path for path in RECORDED}


def recorded(path):
    """State dict, settings, image shape, images, and the recorded arrays."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    settings = ast.literal_eval(str(arrays["config"]))
    return (
        group(arrays, "param"),
        settings,
        image_shape(arrays),
        np.moveaxis(arrays["x"], 1, -1),
        arrays,
    )


@pytest.mark.parametrize("path", RECORDED + CONV_FIXTURES, ids=lambda path: path.stem)
def test_outputs_are_the_recorded_ones(path):
    state_dict, settings, shape, x, arrays = recorded(path)
    model = from_state_dict(state_dict, settings, shape)
    loc, scale = model.encode(x)
    num = len(x)  # The batch is repeated for the samples.
    np.testing.assert_allclose(loc, arrays["out/mu"][:num], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scale, np.exp(0.5 * arrays["out/logvar"][:num]), rtol=1e-4)
    if isinstance(model, tf_mcvae.LMCVAE | tf_mcvae.AMCVAE):
        steps = np.reshape(model.step_size.values(), [model.num_transitions, -1])[:, 0]
        recorded_steps = np.reshape(arrays["out/step_sizes_after"], [len(steps), -1])[:, 0]
        np.testing.assert_allclose(steps, recorded_steps, rtol=1e-5)
        np.testing.assert_allclose(
            model.schedule.inverse_temperatures(), arrays["out/betas"], rtol=1e-5, atol=1e-6
        )


def channel_first_networks(channels, size, rng):
    """A state dict of dense networks of the reference, and its own computation of both."""
    pixels = channels * size * size
    shapes = {
        "encoder_net.net.1": (7, pixels),
        "encoder_net.net.3": (6, 7),
        "decoder_net.net.0": (7, 3),
        "decoder_net.net.2": (pixels, 7),
    }
    weights = {}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = rng.normal(size=shape).astype(np.float32)
        weights[f"{name}.bias"] = rng.normal(size=shape[:1]).astype(np.float32)

    def layer(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def encode(x):
        hidden = np.tanh(layer("encoder_net.net.1", x.reshape(len(x), -1)))
        return layer("encoder_net.net.3", hidden)

    def decode(z):
        output = layer("decoder_net.net.2", np.tanh(layer("decoder_net.net.0", z)))
        return output.reshape(-1, channels, size, size)

    return weights, encode, decode


def test_colour_images_of_dense_networks_are_reordered():
    """No recorded run has dense networks on colour images, so NumPy recomputes the reference."""
    rng = np.random.default_rng(0)
    weights, encode, decode = channel_first_networks(3, 4, rng)
    settings = {"model": "VAE", "act_func": "tanh", "dataset": "cifar"}
    model = from_state_dict(weights, settings, (4, 4, 3))
    assert isinstance(model.likelihood, tf_mcvae.Gaussian)
    x, z = rng.uniform(size=[5, 3, 4, 4]).astype(np.float32), rng.normal(size=[5, 3])
    code = model.encoder(np.moveaxis(x, 1, -1))
    np.testing.assert_allclose(code, encode(x), rtol=1e-4, atol=1e-4)
    output = model.decoder(tf.constant(z, tf.float32))
    np.testing.assert_allclose(np.moveaxis(output, -1, 1), decode(z), rtol=1e-4, atol=1e-4)


def test_learned_drifts_on_colour_images_are_reordered():
    rng = np.random.default_rng(1)
    weights, _, _ = channel_first_networks(3, 4, rng)
    first = rng.normal(size=[2, 9, 3 + 48]).astype(np.float32)
    last = rng.normal(size=[2, 3, 9]).astype(np.float32)
    for k in range(2):
        weights[f"transitions.{k}.log_stepsize"] = np.float32(-3.0)
        names = [f"transitions.{k}.add_nn.l1", f"transitions.{k}.add_nn.llast"]
        for name, kernel in zip(names, (first[k], last[k]), strict=True):
            weights |= {f"{name}.weight": kernel, f"{name}.bias": np.zeros(len(kernel), "float32")}
    settings = {"model": "L-MCVAE", "act_func": "tanh", "dataset": "cifar", "K": 2}
    model = from_state_dict(weights, settings, (4, 4, 3))
    z, x = rng.normal(size=[5, 3]), rng.uniform(size=[5, 3, 4, 4])
    inputs = np.concatenate([z, x.reshape(5, -1)], axis=1)
    hidden = inputs @ first[1].T
    expected = np.where(hidden > 0, hidden, 0.01 * hidden) @ last[1].T
    drift = model.drift(
        tf.constant(z[np.newaxis], tf.float32),
        tf.constant(np.moveaxis(x, 1, -1), tf.float32),
        tf.constant(1),
    )
    np.testing.assert_allclose(drift[0], expected, rtol=1e-4, atol=1e-4)


def test_settings_are_read():
    state_dict, settings, shape, x, _ = recorded(SMALL["amcvae_barker_all_learnable_k3_n4"])
    model = from_state_dict(
        state_dict, {**settings, "acceptance_rate_target": 0.8, "use_alpha_annealing": True}, shape
    )
    assert model.acceptance == "barker"
    assert model.alpha_annealing
    assert (model.num_samples, model.num_transitions) == (4, 3)
    assert model.step_size.rule == "learned"
    assert model.step_size.target_acceptance == 0.8
    model.compile("adam", run_eagerly=True)  # A single step: tracing a graph would not pay.
    assert np.isfinite(model.fit(x, verbose=0).history["bound"][0])


VAE = {"model": "VAE", "act_func": "tanh"}


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        ({}, {"model": "GAN"}, "VAE, IWAE, L-MCVAE or A-MCVAE"),
        ({}, {**VAE, "act_func": "sine"}, "act_func"),
        ({}, {**VAE, "dataset": "letters"}, "dataset"),
        ({}, {"model": "LMCVAE", "act_func": "tanh"}, "log_stepsize"),
        ({"encoder_net.net.1.weight": np.zeros([7, 35], np.float32)}, VAE, "do not fit"),
        ({"decoder_net.net.2.bias": np.zeros([72], np.float32)}, VAE, "do not fit"),
        ({"encoder_net.net.1.bias": None}, VAE, "encoder_net.net.1.bias"),
    ],
)
def test_what_cannot_be_migrated_is_refused(change, settings, words):
    weights, _, _ = channel_first_networks(1, 6, np.random.default_rng(2))
    weights |= change
    weights = {name: value for name, value in weights.items() if value is not None}
    with pytest.raises(ValueError, match=rf"(?s){words}.*Received: "):
        from_state_dict(weights, settings, (6, 6, 1))


def test_a_checkpoint_without_networks_is_refused():
    with pytest.raises(ValueError, match=r"no `encoder_net.*Received: "):
        from_state_dict({}, {"model": "VAE"})


class TestCheckpoint:
    """`.ckpt` files need PyTorch, which this library does not require."""

    def write(self, path, **extra):
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        state_dict, settings, shape, x, arrays = recorded(SMALL["lmcvae_linear_k4_n1"])
        tensors = {name: torch.tensor(np.asarray(value)) for name, value in state_dict.items()}
        torch.save({"state_dict": tensors, "epoch": 3, **extra}, path)
        return settings, shape, x, arrays

    def test_gives_the_recorded_outputs(self, tmp_path):
        path = tmp_path / "last.ckpt"
        settings, shape, x, arrays = self.write(path, hyper_parameters={"act_func": "gelu"})
        model = load_checkpoint(path, settings, shape)
        np.testing.assert_allclose(model.encode(x)[0], arrays["out/mu"], rtol=1e-4, atol=1e-5)
        model.save(tmp_path / "migrated.keras")
        loaded = tf_mcvae.load_model(tmp_path / "migrated.keras")
        np.testing.assert_array_equal(loaded.bound(x, seed=1), model.bound(x, seed=1))

    def test_reads_the_settings_that_it_holds(self, tmp_path):
        path = tmp_path / "last.ckpt"
        held = {"model": "L-MCVAE", "act_func": "tanh", "acceptance_rate_target": 0.7}
        _, shape, _, _ = self.write(path, hyper_parameters=held)
        model = load_checkpoint(path, image_shape=shape)
        assert isinstance(model, tf_mcvae.LMCVAE)
        assert model.step_size.target_acceptance == 0.7

    def test_code_in_a_file_is_not_run(self, tmp_path):
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")

        class Harmful:
            def __reduce__(self):
                return (tmp_path.joinpath("ran").touch, ())

        torch.save({"state_dict": {}, "x": Harmful()}, tmp_path / "bad.ckpt")
        with pytest.raises(ValueError, match=r"weights only.*Received: "):
            load_checkpoint(tmp_path / "bad.ckpt", {"model": "VAE"})
        assert not (tmp_path / "ran").exists()

    def test_other_files_are_refused(self, tmp_path):
        pytest.importorskip("torch", reason="PyTorch is not installed")
        (tmp_path / "text.ckpt").write_text("no checkpoint")
        with pytest.raises(ValueError, match=r"not a checkpoint.*Received: "):
            load_checkpoint(tmp_path / "text.ckpt", {"model": "VAE"})


def test_without_pytorch_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install torch.*Received: "):
        load_checkpoint("model.ckpt")
