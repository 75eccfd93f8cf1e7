"""The comparison with TFP's annealing runs, its normalisers are exact, and it finds the bias."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "experiments/tfp_annealing.py"


@pytest.fixture(scope="module")
def comparison():
    spec = importlib.util.spec_from_file_location("tfp_annealing", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["normal", "scaled", "ppca"])
def test_normaliser_is_the_integral_of_the_target(comparison, name):
    problem = comparison.PROBLEMS[name]()
    axis = np.linspace(-8.0, 8.0, 401)
    grid = np.stack(np.meshgrid(*[axis] * problem.dim, indexing="ij"), -1)
    states = grid.reshape(-1, 1, problem.dim).astype(np.float32)
    density = np.exp(np.asarray(problem.target_log_prob_fn(states), np.float64))
    integral = density.sum() * (axis[1] - axis[0]) ** problem.dim
    assert np.log(integral) == pytest.approx(problem.log_normaliser, abs=1e-4)


def test_tfp_is_biased_unless_bootstrapped_and_this_package_is_not(comparison):
    """Two checks at 5 standard errors: a false alarm in 0.9 million, with a fixed seed.

    TFP is expected 18 standard errors below 1.
    """
    rows = comparison.compare("normal", "HMC", [20], chains=10_000, seed=3)
    errors = {row["implementation"]: (row["ratio"] - 1.0) / row["ratio_error"] for row in rows}
    assert abs(errors["tf_mcvae"]) < 5
    assert abs(errors["tfp-bootstrapped"]) < 5
    assert errors["tfp"] < -5
    assert all(row["ratio_error"] < 0.03 for row in rows)
    # The log of an average is below the log of the mean, slightly if proposals are accepted.
    by_name = {row["implementation"]: row for row in rows}
    assert -0.3 < by_name["tf_mcvae"]["log_bias"] < 0.0
    assert by_name["tfp"]["last_acceptance"] < 0.6 < 0.9 < by_name["tf_mcvae"]["last_acceptance"]


@pytest.mark.slow
def test_the_command_writes_the_same_numbers_again_and_a_figure(comparison, tmp_path, capsys):
    words = "--problems ppca --kernels MALA --steps 2 3 --chains 64 --seed 1"
    for folder in ("first", "second"):
        comparison.main([*words.split(), "--output", str(tmp_path / folder)])
    first, second = (tmp_path / name / "tfp_annealing.csv" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    with first.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2
    assert {row["num_chains"] for row in rows} == {"32"}  # In two dimensions.
    numbers = ("ratio", "ratio_error", "log_bias", "log_bias_error", "last_acceptance")
    assert np.all(np.isfinite([[float(row[key]) for key in numbers] for row in rows]))
    assert first.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.suffix for path in first.parent.iterdir()) == [".csv", ".png"]
    assert "tfp-bootstrapped" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["--steps 1", "--chains 16", "--problems unknown"])
def test_what_cannot_be_run_is_refused(comparison, words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        comparison.main([*words.split(), "--output", str(tmp_path)])
    assert words.split()[0] in capsys.readouterr().err
