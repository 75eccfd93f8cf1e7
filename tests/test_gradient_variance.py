"""The study of gradient variances runs, and its measures are those of their definitions."""

import csv
import importlib
import pathlib
import sys

import numpy as np
import pytest
from reference import within

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        return importlib.import_module("gradient_variance")
    finally:
        sys.path.remove(str(EXPERIMENTS))


def by_definition(rows):
    """The trace of the covariance, and the mean of `g_n . g_m` over pairs."""
    num = len(rows)
    pairs = [rows[n] @ rows[m] for n in range(num) for m in range(num) if n != m]
    return np.sum(np.var(rows, axis=0, ddof=1)), np.mean(pairs)


def test_moments_of_all_rows_and_without_each(study):
    rows = np.random.default_rng(0).normal(1.0, 2.0, size=[6, 4])
    variances, norms = study.moments(rows)
    parts = [rows, *(np.delete(rows, n, axis=0) for n in range(6))]
    expected = np.array([by_definition(part) for part in parts])
    np.testing.assert_allclose(variances, expected[:, 0], rtol=1e-10)
    np.testing.assert_allclose(norms, expected[:, 1], rtol=1e-10)


def test_relative_variances_and_their_errors(study):
    """Over 300 studies of two estimators of one mean, the second of which varies more.

    At 5 standard errors: a false alarm in 1.7 million for each of 2 numbers.
    """
    rng = np.random.default_rng(1)
    mean, scales = np.linspace(-1.0, 2.0, 50), {"a": 0.5, "b": 3.0}
    exact = {name: 50 * scale**2 / (mean @ mean) for name, scale in scales.items()}
    values = {"a": [], "b": []}
    for _ in range(300):
        gradients = {n: mean + s * rng.normal(size=[40, 50]) for n, s in scales.items()}
        for name, result in study.relative_variances(gradients).items():
            values[name].append(result)
    for name, results in values.items():
        found, errors = np.array(results).T
        assert within(found, exact[name])
        np.testing.assert_allclose(np.mean(errors), np.std(found), rtol=0.15)
    assert np.mean(values["a"]) < 0.1 * np.mean(values["b"])


def test_a_mean_that_cannot_be_told_from_zero_has_no_relative_variance(study):
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert np.isnan(study.relative_variances({"a": rows})["a"][0])


def test_estimators_with_one_bound_share_its_gradient(study):
    expectations = {name: case.expectation for name, case in study.CASES.items()}
    assert len({expectations[f"A K=3 S={s} {g}"] for s in (1, 5) for g in study.CHOICES}) == 1
    assert expectations["IWAE S=5 dreg"] == expectations["IWAE S=5 plain"]
    assert expectations["IWAE S=5 stl"] != expectations["IWAE S=5 plain"]
    assert expectations["L K=5 S=1 plain"] != expectations["L K=5 S=5 plain"]


@pytest.mark.slow
def test_the_command_writes_numbers_and_figure(study, tmp_path, capsys, monkeypatch):
    names = [f"A K=3 S=1 {gradient}" for gradient in study.CHOICES]
    names += ["IWAE S=5 dreg", "UHA K=5 S=5 plain"]
    monkeypatch.setattr(study, "CASES", {name: study.CASES[name] for name in names})
    sizes = "--repeats 30 --timings 2 --batch-size 4 --num-pixels 12 --latent-dim 3"
    images = "--data digits --hidden-units 16 --image-latents 3 --epochs 1 --step-size 0.5"
    study.main([*sizes.split(), *images.split(), "--output", str(tmp_path)])
    with (tmp_path / "gradient_variance.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * len(names)
    evaluations = {row["case"]: float(row["evaluations"]) for row in rows}
    assert list(evaluations.values()) == [4.0, 8.0, 5.0, 30.0]
    plain, coupled = (
        float(row["variance"])
        for row in rows
        if (row["problem"], row["part"]) == ("digits", "decoder") and row["case"] in names[:2]
    )
    assert 0.0 < 3.0 * coupled < plain
    assert all(float(row["seconds"]) > 0.0 for row in rows)
    assert (tmp_path / "gradient_variance.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed for name in names)


def test_missing_images_are_left_out_with_a_reason(study, capsys):
    missing = ["--data", "/no/such/images.npy"]
    options = study.parse(["--num-pixels", "12", "--latent-dim", "3", *missing])
    assert [problem.name for problem in study.make_problems(options)] == ["linear-Gaussian"]
    assert "LEFT OUT: /no/such/images.npy" in capsys.readouterr().out
