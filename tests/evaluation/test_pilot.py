"""The pilot run of annealed importance sampling reaches its target at nearly every temperature."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tf_mcvae.evaluation import AISSettings
from tf_mcvae.evaluation.pilot import tuned

PATH = Path(__file__).parents[2] / "experiments" / "pilot_acceptance.py"
SPEC = importlib.util.spec_from_file_location("pilot_acceptance", PATH)
study = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(study)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("number", [50, *map(slow, (20, 100, 300, 1000))])
@pytest.mark.parametrize("start", ["prior", slow("encoder")])
@pytest.mark.parametrize("leapfrogs", [3, slow(10)])
@pytest.mark.parametrize("name", ["D = 3 stiff", slow("D = 30")])
def test_transitions_accept_near_the_target(name, leapfrogs, start, number):
    settings = AISSettings(num_temperatures=number, num_leapfrog_steps=leapfrogs, start=start)
    rates = study.acceptance_of_seeds(study.make_model(study.SCALES[name]), settings, seed=0)
    assert np.mean(np.abs(rates - settings.target_acceptance) < study.TOLERANCE) >= 0.9


@pytest.mark.parametrize(
    ("count", "runs"), [(1, 31), (3, 31), (19, 16), (99, 4), (299, 2), (301, 1), (999, 1)]
)
def test_step_sizes_are_found_in_as_few_runs(count, runs):
    """With curvatures that differ a millionfold, and noise as of 160 chains."""
    rng = np.random.default_rng(0)
    curvature = np.linspace(1.0, 1e6, count) if count > 1 else np.array([4.0])
    best = (1.0 + 0.5 * np.linspace(0.0, 1.0, count)) / np.sqrt(curvature)
    calls = []

    def acceptance(step, best):  # 0.65 for the best step size.
        return 0.65 ** ((step / best) ** 2)

    def follow(logs, gains, number):
        calls.append(number)
        used, accepted, log_step = [], [], logs[0]
        for k in range(count):
            if k:
                log_step += logs[k] - logs[k - 1] + gains[k] * (accepted[-1] - 0.65)
            used.append(np.exp(log_step))
            accepted.append(acceptance(used[-1], best[k]) + rng.normal(scale=0.03))
        return np.array(used), np.array(accepted)

    found = tuned(curvature, follow, 0.65)
    assert calls == list(range(runs))
    assert np.mean(np.abs(acceptance(found, best) - 0.65) < 0.1) > 0.9


@pytest.mark.parametrize("curvature", [0.0, -1.0, np.nan, np.inf])
def test_step_sizes_are_finite_where_the_curvature_is_not_known(curvature):
    curvatures = np.array([1.0, curvature, 4.0])
    found = tuned(curvatures, lambda logs, gains, number: (np.exp(logs), np.full(3, 0.65)), 0.65)
    np.testing.assert_allclose(found[[0, 2]], [0.5, 0.25])
    assert 0.0 < found[1] < np.inf


@pytest.mark.slow
def test_the_study_prints_its_table(tmp_path, capsys):
    study.main(["--output", str(tmp_path), "--temperatures", "3", "--leapfrogs", "3"])
    assert "\n| T = 3 | " in capsys.readouterr().out
    assert len(json.loads((tmp_path / "pilot_acceptance.json").read_text())) == 4
