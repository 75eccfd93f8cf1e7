"""The comparison of the bounds in small: rows, figure, and continuing after an interruption."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(EXPERIMENTS))
    import bound_comparison

    yield bound_comparison
    sys.path.remove(str(EXPERIMENTS))


SMALL = (
    "--dataset digits --images 10 --batch-size 20 --hidden-units 8 --latent-dim 2 --no-jit-compile "
    "--decoder-steps 20 --chains 2 --temperatures 5 --repeats 3 --per-process 0 --seeds 1 "
    "--budgets 2 4 --methods L-MCVAE IWAE"
)


def rows_of(folder):
    with (folder / "bound_comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_small_comparison_continues_and_refuses_other_settings(
    study, tmp_path, monkeypatch, capsys
):
    line = [*SMALL.split(), "--steps", "3", "--output", str(tmp_path)]
    study.main(line)
    rows = rows_of(tmp_path)
    assert [(row["method"], row["num_samples"], row["num_transitions"]) for row in rows] == [
        ("L-MCVAE", "1", "1"),
        ("IWAE", "2", "0"),
        ("L-MCVAE", "1", "3"),
        ("IWAE", "4", "0"),
    ]
    problem, _ = study.load_problem(tmp_path / "bound_comparison.npz")
    for row in rows:
        gap, bound = float(row["gap"]), float(row["bound"])
        np.testing.assert_allclose(gap + bound, np.mean(problem.log_evidence), rtol=1e-4)
        assert float(row["gap_error"]) >= float(row["standard_error"]) > 0.0
        assert min(float(row["seconds_per_step"]), float(row["seconds_per_image"])) > 0.0
    picture = (tmp_path / "bound_comparison.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"bound_comparison.{ending}" for ending in ("csv", "npz", "png")
    }
    assert f"| IWAE | {float(rows[1]['gap']):.3f} (" in capsys.readouterr().out

    study.toy.write_rows(tmp_path / "bound_comparison.csv", rows[:3])  # As after an interruption.
    measured, run_group = [], study.run_group

    def counted(group, path):
        measured.append(group)
        return run_group(group, path)

    monkeypatch.setattr(study, "run_group", counted)
    study.main(line)
    assert measured == [("IWAE", 4, (0,))]
    # Equal seeds: only the times differ.
    assert [row["bound"] for row in rows_of(tmp_path)] == [row["bound"] for row in rows]

    with pytest.raises(ValueError, match=r"steps=4 \(was 3\)"):
        study.main([*SMALL.split(), "--steps", "4", "--output", str(tmp_path)])
    (tmp_path / "bound_comparison.npz").unlink()
    with pytest.raises(ValueError, match="rows without bound_comparison"):
        study.main(line)


def test_the_budget_is_what_samples_and_transitions_cost(study):
    for name, method in study.METHODS.items():
        for budget in study.BUDGETS:
            if not method.can_spend(budget):
                assert (name, budget) == ("UHA, S = 2", 2)
                continue
            sizes = method.sizes(budget)
            assert sizes["num_samples"] * (sizes.get("num_transitions", 0) + 1) == budget
            assert sizes.get("num_transitions", 1) > 0


def test_a_model_has_the_trained_networks_and_a_frozen_decoder(study):
    settings = {"hidden_units": 4, "latent_dim": 2}
    x = np.zeros([1, 4, 4, 1], "float32")
    encoder, decoder = study.make_networks(settings, x.shape[1:])
    study.METHODS["IWAE"].model_class(encoder, decoder).build((None, *x.shape[1:]))
    weights = encoder.get_weights(), decoder.get_weights()
    problem = study.Problem(*weights, x, np.zeros([1]), 0.0)
    model = study.make_model(study.METHODS["DAIS"], 8, 0, problem, settings)
    assert model.decoder.trainable_variables == []
    for network, expected in ((model.encoder, weights[0]), (model.decoder, weights[1])):
        for value, other in zip(network.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(value, other)
    temperatures = model.schedule.inverse_temperatures()
    np.testing.assert_allclose(temperatures, np.linspace(0, 1, len(temperatures)), atol=1e-6)
