"""The linear-Gaussian study runs, and its numbers agree with closed forms."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from tf_mcvae import VAE

SCRIPT = Path(__file__).parents[1] / "experiments/linear_gaussian.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("linear_gaussian", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_evidence_is_that_of_the_marginal_normal(study):
    problem = study.make_problem(7, 3, 5, seed=0)
    covariance = problem.weights @ problem.weights.T + 0.01 * np.eye(7)
    normal = scipy.stats.multivariate_normal(np.zeros(7), covariance)
    np.testing.assert_allclose(problem.log_evidence, normal.logpdf(problem.x), rtol=1e-9)


def test_bias_of_the_vae_is_its_divergence(study):
    """`KL(q | posterior) = (sum_d log P_dd - log det P) / 2`, P the posterior's precision.

    At 5 standard errors: a false alarm in 1.7 million, fixed seeds.
    """
    problem = study.make_problem(20, 10, 10, seed=1)
    model = study.make_model(problem, VAE, {}, seed=0)
    bias = np.array(study.repeat(model, problem, 400, seed=0))[:, 0]
    precision = np.eye(10) + problem.weights.T @ problem.weights / 0.01
    divergence = np.sum(np.log(np.diag(precision))) - np.linalg.slogdet(precision)[1]
    error = bias.std(ddof=1) / np.sqrt(len(bias))
    assert abs(bias.mean() + 0.5 * divergence) < 5 * error
    assert 0.5 * divergence > 10 * error


@pytest.mark.slow
def test_the_command_writes_numbers_and_figure(study, tmp_path, capsys, monkeypatch):
    names = ("VAE", "L reverse K=1", "A K=5 S=10")  # Each of them is compiled.
    monkeypatch.setattr(study, "CASES", {name: study.CASES[name] for name in names})
    sizes = "--repeats 3 --batch-size 2 --num-pixels 12 --latent-dim 3 --reverse-steps 5"
    study.main([*sizes.split(), "--output", str(tmp_path)])
    with (tmp_path / "linear_gaussian.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(study.CASES)
    assert np.all(np.isfinite([[float(row["bias"]), float(row["gradient"])] for row in rows]))
    assert (tmp_path / "linear_gaussian.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed for name in study.CASES)
