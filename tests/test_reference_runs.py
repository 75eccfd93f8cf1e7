"""Every command line of the reference's scripts is read, built and trained by this package."""

import csv
import importlib.util
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tf_mcvae.cli import building, callbacks, run_data
from tf_mcvae.datasets import DataSpec
from tf_mcvae_commands import train as cli
from tf_mcvae_commands.training_settings import SETTINGS, RunConfig

PATH = pathlib.Path(__file__).parents[1] / "experiments/reference_runs.py"
SPEC = importlib.util.spec_from_file_location("reference_runs", PATH)
reference_runs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference_runs)

SPECS = {
    "mnist": DataSpec("mnist", (28, 28, 1), "bernoulli", 54_000, 6_000, 10_000),
    "cifar": DataSpec("cifar10", (32, 32, 3), "gaussian", 45_000, 5_000, 10_000),
    "celeba": DataSpec("celeba", (64, 64, 3), "gaussian", 162_770, 19_867, 19_962),
}
ROWS = reference_runs.read_rows()
# The first of equal rows.
DIFFERENT = sorted({tuple(row.items()): number for number, row in reversed(ROWS.items())}.values())
# For each model and data set, a row with the most transitions.
PAIRS = {
    f"{row['model']}-{row['dataset']}": number
    for number, row in sorted(ROWS.items(), key=lambda item: int(item[1].get("K", 0)))
}

MODELS = {"AMCVAE": "A-MCVAE", "LMCVAE": "L-MCVAE", "VAE_with_flows": "FlowVAE"}
# Defaults of the reference.
DEFAULTS = {
    "act_func": "gelu",
    "batch_size": "32",
    "grad_clip_val": "0",
    "hidden_dim": "64",
    "net_type": "conv",
    "num_samples": "1",
    "sigma": "1",
    "val_batch_size": "50",
}
TRANSITIONS = {"annealing_scheme": "linear", "lr_schedule": "reference", "use_barker": "False"}
# The field of each of the reference's flags.
FIELDS = {
    flag: name for name, field in SETTINGS.items() for flag in (name, *field.metadata["names"])
}


def settings(number):
    words = reference_runs.words_of(ROWS[number])
    config = RunConfig(**vars(cli.make_parser().parse_args(words)))
    return run_data.complete(config, SPECS[config.dataset])


def build(number):
    config = settings(number)
    return building.build_model(config, SPECS[config.dataset], steps_per_epoch=100)


def plain(value):
    """Returns a value in the form that rows have."""
    text = {"dense": "fc", **{name: flag for flag, name in MODELS.items()}}.get(value, str(value))
    try:
        return float(text)
    except ValueError:
        return text


def test_the_rows_are_those_of_the_scripts():
    assert (len(ROWS), len(DIFFERENT), len(PAIRS)) == (101, 70, 15)


@pytest.mark.parametrize("number", DIFFERENT)
def test_every_row_means_what_it_did_and_builds(number):
    row, config = ROWS[number], settings(number)
    transitions = "MCVAE" in config.model
    own = TRANSITIONS if transitions else {"lr_schedule": "constant"}
    expected = {**DEFAULTS, **own, **row}
    actual = {flag: plain(getattr(config, FIELDS[flag])) for flag in expected}
    assert actual == {flag: plain(value) for flag, value in expected.items()}
    assert config.likelihood == row.get("specific_likelihood", SPECS[row["dataset"]].likelihood)

    model = build(number)
    assert model.built
    assert (model.event_shape, model.latent_dim, model.num_samples) == (
        SPECS[row["dataset"]].image_shape,
        int(row["hidden_dim"]),
        int(row.get("num_samples", 1)),
    )
    if transitions:
        assert model.step_size.values().shape == (int(row["K"]), int(row["hidden_dim"]))
        assert model.optimizer.global_clipnorm == 50


def check_step(number, step):
    model, config = build(number), settings(number)
    x = np.random.default_rng(0).random((2, *model.event_shape), np.float32)
    x = np.round(x) if config.binarize else x
    before = [weight.numpy() for weight in model.trainable_variables]
    logs = step(model, x)
    assert all(np.isfinite(float(value)) for value in logs.values()), logs
    if config.likelihood == "bernoulli":
        # A new model gives each pixel a probability of about a half.
        assert -float(logs["bound"]) == pytest.approx(x[0].size * np.log(2), rel=0.2)
    pairs = zip(before, model.trainable_variables, strict=True)
    moved = [not np.array_equal(old, new) for old, new in pairs]
    assert np.mean(moved) > 0.6  # A new flow is nearly the identity.
    assert int(model.step) == 1


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, id=pair, marks=[pytest.mark.slow] * ("cifar" not in pair))
        for pair, number in PAIRS.items()
    ],
)
def test_every_model_takes_a_step_on_every_data_set(number):
    check_step(number, lambda model, x: model.train_step(tf.constant(x)))


@pytest.mark.slow
@pytest.mark.parametrize("number", PAIRS.values(), ids=PAIRS)
def test_every_model_trains_in_a_graph_on_every_data_set(number):
    def fit(model, x):
        history = model.fit(x, batch_size=len(x), verbose=0).history
        return {name: values[-1] for name, values in history.items()}

    check_step(number, fit)


# The script, on the digits and with little to score.
TINY = (
    "--dataset digits --net_type fc --hidden_dim 2 --limit_train_batches 2 --max_epochs 2 --gpus 0 "
    "--no-export --score-examples 5 --iwae-samples 2 --ais-temperatures 2 --ais-chains 2"
)


def read_results(folder):
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_row_runs_with_several_seeds_once(tmp_path, capsys, monkeypatch):
    words = ["1", "--seeds", "2", "--output-dir", str(tmp_path), "--", *TINY.split()]
    with monkeypatch.context() as patch:
        # The second seed is interrupted after its first epoch, and continues.
        original = callbacks.Checkpoint.on_epoch_end

        def on_epoch_end(self, epoch, logs=None):
            original(self, epoch, logs)
            if "seed1" in str(self.path):
                raise KeyboardInterrupt

        patch.setattr(callbacks.Checkpoint, "on_epoch_end", on_epoch_end)
        with pytest.raises(SystemExit) as stopped:
            reference_runs.main(words)
        assert stopped.value.code == 130
    assert reference_runs.main(words) == 0
    assert capsys.readouterr().out.count("Resuming after epoch 1 of 2") == 1

    folders = sorted(path.parent for path in tmp_path.glob("*/metrics.json"))
    configs = [json.loads((path / "config.json").read_text())["settings"] for path in folders]
    assert [config["seed"] for config in configs] == [0, 1]
    assert {(config["model"], config["dataset"]) for config in configs} == {("VAE", "digits")}
    assert {config["batch_size"] for config in configs} == {100}
    scores = [json.loads((path / "metrics.json").read_text())["scores"] for path in folders]
    (line,) = read_results(tmp_path)
    for key, sign, method in (("bound", 1, "bound"), ("nll", -1, "ais")):
        values = [sign * score[method]["mean"] for score in scores]
        assert float(line[f"{key}_mean"]) == pytest.approx(np.mean(values), abs=1e-3)
        assert float(line[f"{key}_sd"]) == pytest.approx(np.std(values, ddof=1), abs=1e-3)

    monkeypatch.setattr(cli, "main", lambda words: pytest.fail("ran again"))
    assert reference_runs.main(words) == 0
    assert read_results(tmp_path) == [line]
    printed = capsys.readouterr().out
    assert f"{line['bound_mean']} ± {line['bound_sd']}" in printed
    assert f"{line['nll_mean']} ± {line['nll_sd']}" in printed


def test_rows_are_told_apart_by_what_they_run(tmp_path, monkeypatch):
    """Equal rows share their runs; another row, or further flags, do not."""
    started = []

    def run(words):
        folder = tmp_path / words[words.index("--name") + 1]
        folder.mkdir()
        started.append(words)
        scores = {"bound": {"mean": -2.0}, "ais": {"mean": -1.0}}
        (folder / "metrics.json").write_text(json.dumps({"scores": scores}))
        return 0

    monkeypatch.setattr(cli, "main", run)
    for words in (["87"], ["88", "89"], ["87", "--", "--K", "2"], ["87", "--", "--K", "3"], ["87"]):
        given = [words[0], "--output-dir", str(tmp_path), *words[1:]]
        assert reference_runs.main(given) == 0
    assert len(started) == 5
    assert [line["further_flags"] for line in read_results(tmp_path)].count("") == 3
    first, *others = (number for number in ROWS if ROWS[number] == ROWS[53])
    for number in (first, *others):
        assert reference_runs.main([str(number), "--output-dir", str(tmp_path)]) == 0
    assert len(others) > 1
    assert len(started) == 6
    assert {line["bound_sd"] for line in read_results(tmp_path)} == {""}


def test_the_list_numbers_the_rows(capsys):
    assert reference_runs.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 101
    assert lines[3].startswith("  4  --model AMCVAE --dataset mnist")


@pytest.mark.parametrize("words", [["0"], ["102"], ["1", "--seeds", "0"]])
def test_rows_that_are_not_there_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        reference_runs.main(words)
    assert "rows go from 1 to 101" in capsys.readouterr().err
