"""The toy studies as a user runs them, their true values, and their measures."""

import csv
import importlib
import runpy
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import tensorflow as tf

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def study(name):
    """Imports a module from the studies' folder, which is not a package."""
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXPERIMENTS))


toy, posterior_ring = study("toy"), study("posterior_ring")
parameter_recovery = study("parameter_recovery")


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.slow
def test_posterior_ring_as_a_user_runs_it(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "new"
    line = f"posterior_ring.py --quick --seeds 1 --models L-MCVAE --output {folder}"
    monkeypatch.setattr(sys, "argv", line.split())
    runpy.run_path(str(EXPERIMENTS / "posterior_ring.py"), run_name="__main__")
    truth, trained = rows_of(folder / "quick-posterior_ring.csv")
    assert (truth["model"], trained["model"], trained["seed"]) == ("Truth", "L-MCVAE", "0")
    # After five steps the model is still far from the truth.
    assert 0.0 < 3 * float(truth["energy_distance"]) < float(trained["energy_distance"])
    assert 0.0 < float(trained["angle_coverage"]) < float(truth["angle_coverage"]) < 1.0
    assert is_png(folder / "quick-posterior_ring.png")
    assert len(list(folder.iterdir())) == 2  # No temporary files.
    *_, first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("mean")
    assert second.startswith("Truth")
    assert third.startswith("L-MCVAE")
    assert f"{float(trained['energy_distance']):.3f}" in third


@pytest.mark.slow
def test_parameter_recovery_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    line = f"--quick --models VAE IWAE --dimensions 3 --output {tmp_path}"
    parameter_recovery.main(line.split())
    path = tmp_path / "quick-parameter_recovery.csv"
    rows = rows_of(path)
    assert [(row["model"], row["latent_dim"]) for row in rows] == [("VAE", "3"), ("IWAE", "3")]
    for row in rows:
        alpha, beta, error = (float(row[key]) for key in ("alpha", "beta", "error"))
        np.testing.assert_allclose(error, (alpha - 2 * np.pi) ** 2 + (beta - 2) ** 2, rtol=1e-4)
        # Both start at exp(2) and decrease.
        assert 6.0 < alpha < np.exp(2.0)
        assert 6.0 < beta < np.exp(2.0)
    assert is_png(tmp_path / "quick-parameter_recovery.png")
    assert "mean error" in capsys.readouterr().out

    toy.write_rows(path, rows[:1])  # As after an interruption.
    trained = []
    run_model = parameter_recovery.run_model

    def counted(inputs):
        trained.append((inputs["model"], inputs["latent_dim"]))
        return run_model(inputs)

    monkeypatch.setattr(parameter_recovery, "run_model", counted)
    parameter_recovery.main(line.split())
    assert trained == [("IWAE", 3)]
    assert without_seconds(rows_of(path)) == without_seconds(rows)  # Equal seeds.


def test_rows_of_other_settings_stay_and_are_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(
        parameter_recovery, "run_model", lambda inputs: {"error": inputs["epochs"], "seconds": 0.0}
    )
    parser = toy.arguments(None, epochs=1, learning_rate=0.1, seeds=2)
    parser.add_argument("--observations", type=int, default=10)
    path = tmp_path / "rows.csv"
    results = []
    for epochs in (1, 2):
        options = parser.parse_args(["--models", "VAE", "--epochs", str(epochs)])
        options.dimensions, options.flow_epochs = [2, 5], 0
        rows = parameter_recovery.run_all(parameter_recovery.list_inputs(options), path)
        results.append(parameter_recovery.errors(rows, "VAE", 5).tolist())
    assert results == [[1.0, 1.0], [2.0, 2.0]]
    assert len(rows_of(path)) == 8


def test_a_flow_has_its_further_epochs():
    options = toy.arguments(None, epochs=21, learning_rate=0.01, seeds=1).parse_args([])
    options.dimensions, options.flow_epochs, options.observations = [2], 10, 100
    epochs = {run["model"]: run["epochs"] for run in parameter_recovery.list_inputs(options)}
    assert epochs == {"VAE": 21, "IWAE": 21, "RealNVP": 31, "A-MCVAE": 21, "L-MCVAE": 21}


@pytest.mark.parametrize("name", toy.MODELS)
def test_every_model_can_be_made_and_has_the_generator_as_its_decoder(name):
    x = toy.observations(50, 2, seed=0)
    model = toy.make_model(name, x, toy.ShellDecoder(), 2, 0, toy.Settings(4, 6, 2, 2))
    assert model.log_weights(x, seed=0).shape == (
        {"IWAE": 6, "A-MCVAE": 5}.get(name, 1),
        50,
    )
    np.testing.assert_allclose(model.decode([[3.0, 4.0]]), [[2 * np.pi * 7.0]], rtol=1e-6)


def test_observations_have_the_generators_moments():
    """Mean and variance of 20,000 within 5 standard errors: false alarm 1e-6."""
    x = toy.observations(20_000, 2, seed=3)
    assert x.shape == (20_000, 1)
    rayleigh = scipy.stats.rayleigh()  # The length of a normal vector in the plane.
    mean = 2 * np.pi * (rayleigh.mean() + 2.0)
    variance = (2 * np.pi) ** 2 * rayleigh.var() + 1.0
    centred = np.square(x.astype(float) - mean)
    assert abs(x.mean() - mean) < 5 * np.sqrt(variance / len(x))
    assert abs(centred.mean() - variance) < 5 * centred.std() / np.sqrt(len(x))


def test_decoder_has_finite_derivatives_at_zero_and_right_ones_elsewhere():
    decoder = toy.ShellDecoder(learned=True)
    z = tf.constant([[0.0, 0.0], [3.0, 4.0]])
    with tf.GradientTape() as outer:
        outer.watch(z)
        with tf.GradientTape() as inner:
            inner.watch(z)
            mean = decoder(z)
        gradient = inner.gradient(mean, z)
    second = outer.batch_jacobian(gradient, z).numpy()
    assert np.all(np.isfinite(gradient))
    assert np.all(np.isfinite(second))
    unit = np.array([0.6, 0.8])
    np.testing.assert_allclose(gradient[1], 2 * np.pi * unit, rtol=1e-5)
    expected = 2 * np.pi * (np.eye(2) - np.outer(unit, unit)) / 5.0
    np.testing.assert_allclose(second[1], expected, rtol=1e-4, atol=1e-6)


def test_decoder_survives_saving(tmp_path):
    model = keras.Sequential([keras.Input([2]), toy.ShellDecoder(3.0, 0.5, learned=True)])
    model.layers[0].log_beta.assign(np.log(0.25))
    model.save(tmp_path / "model.keras")
    decoder = keras.models.load_model(tmp_path / "model.keras").layers[0]
    np.testing.assert_allclose(decoder.values(), (3.0, 0.25), rtol=1e-6)
    assert len(decoder.trainable_variables) == 2
    assert not toy.ShellDecoder().trainable_variables


def test_radial_distribution_is_that_of_the_density():
    def density(radius):
        return radius * np.exp(-0.5 * (radius**2 + (8 * np.pi - 2 * np.pi * (radius + 2)) ** 2))

    total, part = (
        scipy.integrate.quad(density, 0.0, end, points=[1.5, 2.0], epsabs=1e-12)[0]
        for end in (6.0, 2.05)
    )
    cdf = posterior_ring.radial_cdf(np.array([0.0, 2.05, 6.0]))
    np.testing.assert_allclose(cdf, [0.0, part / total, 1.0], atol=1e-6)


@pytest.mark.slow
def test_truth_agrees_with_quadrature():
    """Kolmogorov's test of the radius and of the angle; either fails once in 10,000."""
    z = posterior_ring.sample_truth(4000, seed=5)
    radius = posterior_ring.radial_cdf(np.hypot(*z.T))
    assert posterior_ring.kolmogorov_statistic(radius) < 2.23
    assert posterior_ring.kolmogorov_statistic(posterior_ring.angle(z)) < 2.23


def test_kolmogorov_statistic_is_scipys():
    values = np.random.default_rng(0).uniform(size=300)
    expected = np.sqrt(300) * scipy.stats.kstest(values, "uniform").statistic
    np.testing.assert_allclose(posterior_ring.kolmogorov_statistic(values), expected, rtol=1e-12)


def test_energy_distance_is_scipys_in_one_dimension():
    rng = np.random.default_rng(1)
    y, z = rng.normal(size=[700, 1]), 1.0 + 2.0 * rng.normal(size=[1100, 1])
    expected = scipy.stats.energy_distance(y[:, 0], z[:, 0])
    np.testing.assert_allclose(posterior_ring.energy_distance(y, z), expected, rtol=1e-10)


def test_energy_distance_of_points_in_the_plane():
    points = np.zeros([3, 2]), np.tile([[3.0, 4.0]], [2, 1])
    np.testing.assert_allclose(posterior_ring.energy_distance(*points), np.sqrt(10.0), rtol=1e-12)
    assert posterior_ring.energy_distance(points[0], points[0]) == 0.0


def test_measures_of_draws_that_are_known():
    turns = 2 * np.pi * (np.arange(3600) + 0.5) / 3600
    ring = 2.0 * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    half = ring[ring[:, 1] > 0]
    whole, part = posterior_ring.measure(ring, ring), posterior_ring.measure(half, ring)
    expected = {"energy_distance": 0.0, "angle_coverage": 1.0, "radius_mean": 2.0, "radius_sd": 0.0}
    assert whole == pytest.approx(expected, abs=1e-6)
    assert part["angle_coverage"] == pytest.approx(0.5)
    assert part["energy_distance"] > 0.3
