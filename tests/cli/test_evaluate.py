"""The evaluation command: what it prints and writes, and that it continues where it was stopped."""

import dataclasses
import json
import pathlib
import shlex
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tf_mcvae import VAE, Decoder, Encoder, FlowVAE, evaluation, load_model
from tf_mcvae.cli import run_data
from tf_mcvae.evaluation import chunks, suite
from tf_mcvae_commands import evaluate
from tf_mcvae_commands import train as cli
from tf_mcvae_commands.run_folder import RunFolder
from tf_mcvae_commands.training_settings import RunConfig

PACKAGE = pathlib.Path(evaluate.__file__).parent
# An evaluation that takes a second.
QUICK = (
    "--examples 7 --elbo-samples 4 --iwae-samples 5 --chains 3 --temperatures 4 --leapfrogs 1 "
    "--step-size 3.0 --seed 2 --chunk-size 9 "
)
AIS = {"num_chains": 3, "num_temperatures": 4, "num_leapfrog_steps": 1, "step_size": 3.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on binarised digits; it saw the first 2 of 3 validation batches."""
    output_dir = tmp_path_factory.mktemp("runs")
    line = "--model VAE --hidden_dim 2 --limit_train_batches 3 --limit_val_batches 2"
    line += f" --epochs 1 --no-score --no-export --name run --seed 4 --output-dir {output_dir}"
    assert cli.main(line.split()) == 0
    return output_dir / "run"


@pytest.fixture(scope="module")
def whole(run):
    """The file of an evaluation of this run that was not interrupted."""
    path = run.parent / "new/whole.json"
    assert call(f"{run} {QUICK}", "--json", path) == 0
    return path


def call(line, *words):
    return evaluate.main([*shlex.split(line), *map(str, words)])


def numbers(path):
    """The contents of a file without times and settings."""

    def timeless(values):
        if isinstance(values, dict):
            return {key: timeless(value) for key, value in values.items() if key != "seconds"}
        return values

    values = timeless(json.loads(path.read_text()))
    values.pop("settings")
    return values


# Output.


def test_table_and_file_hold_what_the_functions_give(run, tmp_path, capsys):
    path = tmp_path / "new/scores.json"
    assert call(f"{run} {QUICK} --gap 3", "--json", path) == 0
    captured = capsys.readouterr()
    _, _, digits = run_data.load_split(RunFolder(run).load_config(), "test", 7)
    model, common = load_model(run / "model.keras"), {"seed": 2, "chunk_size": 9}
    expected = {
        "elbo": evaluation.estimate_elbo(model, digits, 4, **common),
        "iwae": evaluation.estimate_iwae(model, digits, 5, **common),
        "ais": evaluation.estimate_log_likelihood(model, digits, **AIS, **common),
    }
    gap = evaluation.bidirectional_gap(model, 3, **AIS, **common)
    latents = evaluation.latent_statistics(model, digits)

    values = json.loads(path.read_text())
    for result in [*values["estimates"].values(), values["gap"]]:
        assert result.pop("seconds") > 0.0
    for key, result in expected.items():
        assert values["estimates"][key] == json.loads(result.to_json())
    assert values["gap"] == gap.to_dict(examples=True)
    assert values["latents"] == latents.to_dict()
    assert values["data"]["num_available"] == 297
    assert values["settings"]["num_temperatures"] == 4
    assert values["versions"].keys() >= {"tensorflow", "tf_mcvae", "numpy"}

    lines = captured.out.splitlines()
    assert captured.err == ""
    assert lines[1].startswith("the first 7 of 297 test images of digits (--examples 0: all), 8x8")
    rows = {line.split()[0]: line for line in lines if " ± " in line}
    for result in expected.values():
        row = rows[result.method]
        assert f" {result.mean:.3f} ± {result.standard_error:.3f} " in row
        assert f" {result.monte_carlo_error:.3f} " in row
        assert f" {result.chain_spread:.3f} " in row
        assert " {:.1f}/{:.1f} ".format(*result.effective_sample_size) in row
    assert " {:.2f}/{:.2f} ".format(*expected["ais"].acceptance) in rows["AIS-4"]
    assert max(map(len, lines[2:-1])) <= 100  # Two other lines hold a path.
    plain = " ".join(captured.out.split())
    assert str(latents) in plain
    assert f"gap {gap.gap:.3f} ± {gap.standard_error:.3f}" in plain
    warnings = [*expected["ais"].warnings, *expected["iwae"].warnings]
    warnings += [*gap.lower.warnings, *gap.upper.warnings]
    assert warnings
    assert all(text in plain for text in warnings)


def make_scores(**changes):
    result = evaluation.LogLikelihoodEstimate(
        "AIS-10000", -12345.678, 123.456, 12.345, 123.456, (1.0, 4999.9), (0.12, 0.99), {}, (), None
    )
    estimates = {"ais": dataclasses.replace(result, **changes)}
    latents = evaluation.LatentStatistics(np.ones(64), np.ones(64), 64, 2)
    return suite.Scores(estimates, {"ais": 99999.9}, latents, None)


def test_a_table_of_long_numbers_fits_in_100_columns():
    lines = suite.table(make_scores()).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 100


def test_warnings_come_last_and_what_is_not_known_is_a_dash():
    words = "the weights are worth little " * 6
    unknown = {"monte_carlo_error": np.nan, "acceptance": None, "effective_sample_size": None}
    text = suite.report(make_scores(warnings=(words.strip(),), **unknown))
    assert "nan" not in text
    assert suite.table(make_scores(**unknown)).splitlines()[1].split().count("-") == 3
    last = text[text.index("warning: ") :]
    assert " ".join(last.split()) == f"warning: AIS-10000: {words.strip()}"
    assert max(map(len, text.splitlines())) <= 100


def test_bits_per_dimension_are_shown_for_levels_of_pixels():
    scores = make_scores()
    assert "bits" not in suite.report(scores)
    in_bits = scores._replace(num_dimensions=784)
    # 12345.678 nats / (784 log 2).
    assert "AIS-10000: 22.7182 ± 0.227 bits per dimension" in suite.report(in_bits)


def test_bars_are_shown_if_asked_for(run, capsys):
    for flag, shown in (("--progress", True), ("", False)):
        assert call(f"{run} {QUICK} --no-ais --iwae-samples 0 {flag}") == 0
        assert ("7/7" in capsys.readouterr().out) is shown


def test_estimates_can_be_left_out(run, tmp_path, capsys):
    path = tmp_path / "scores.json"
    line = f"{run} {QUICK} --iwae-samples 0 --no-ais --preset quick --json {path}"
    assert call(line) == 0
    values = json.loads(path.read_text())
    assert list(values["estimates"]) == ["elbo"]
    assert values["gap"] is None
    captured = capsys.readouterr()
    assert "AIS" not in captured.out
    assert "--preset changes nothing" in captured.err
    # The gap still takes the settings of AIS.
    assert call(f"{line} --gap 2") == 0
    assert json.loads(path.read_text())["gap"]["lower"]["settings"]["num_temperatures"] == 4
    assert capsys.readouterr().err == ""


# Settings.


def ais_settings(line):
    given = evaluate.make_parser().parse(["run", *line.split()])
    given.pop("run")
    return evaluate.EvaluationConfig.from_flags(given).annealing


@pytest.mark.parametrize("name", evaluation.PRESETS)
def test_presets_are_those_of_the_library(name):
    assert ais_settings(f"--preset {name}") == evaluation.PRESETS[name]
    preset = evaluation.PRESETS[name]
    number = [preset.num_chains, preset.num_temperatures, preset.num_leapfrog_steps]
    text = " ".join(evaluate.make_parser().format_help().split())
    assert f"{name} ({{}} chains, {{}} temperatures, {{}} leapfrog steps".format(*number) in text


def test_single_settings_go_before_the_preset():
    assert ais_settings("") == evaluation.PRESETS["standard"]
    line = "--preset reference_quick --schedule sigmoid --step-size 0.2 --start prior"
    assert dataclasses.asdict(ais_settings(f"{line} --chains 2 --target-acceptance 0.8")) == {
        "num_chains": 2,
        "num_temperatures": 4,
        "num_leapfrog_steps": 3,
        "schedule": "sigmoid",
        "step_size": 0.2,
        "target_acceptance": 0.8,
        "start": "prior",
    }


def test_help_lists_all_settings():
    command = [sys.executable, "-m", "tf_mcvae_commands.evaluate", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.startswith("usage: python -m tf_mcvae_commands.evaluate RUN")
    fields = dataclasses.fields(evaluate.EvaluationConfig)
    for field in (*fields, *dataclasses.fields(evaluation.AISSettings)):
        assert field.name == "annealing" or f"--{field.name.replace('_', '-')}" in done.stdout
    for name in ("--chains", "--temperatures", "--leapfrogs", "--no-ais", "--debug"):
        assert name in done.stdout


# Data.


def test_a_file_with_its_data_gives_what_its_run_gives(run, tmp_path, capsys, monkeypatch):
    line = f"{QUICK} --no-ais --iwae-samples 0 --json"
    assert call(f"{run} {line}", tmp_path / "run.json") == 0
    assert call(f"{run / 'model.keras'} --data digits {line}", tmp_path / "file.json") == 0
    assert numbers(tmp_path / "run.json") == numbers(tmp_path / "file.json")
    assert call(f"{run} --binarize False {line}", tmp_path / "grey.json") == 0
    grey, drawn = (numbers(tmp_path / f"{name}.json") for name in ("grey", "run"))
    assert (grey["data"]["binarize"], drawn["data"]["binarize"]) == (False, True)
    assert grey["estimates"]["elbo"]["mean"] != drawn["estimates"]["elbo"]["mean"]
    monkeypatch.setattr(RunConfig, "output_dir", str(run.parent))
    assert call(f"run {line}", tmp_path / "name.json") == 0
    assert numbers(tmp_path / "name.json") == numbers(tmp_path / "run.json")


def test_a_gaussian_likelihood_keeps_grey_values_of_your_own_images(tmp_path):
    images = np.random.default_rng(1).uniform(0.2, 0.8, [40, 6, 6, 1])
    np.save(tmp_path / "own.npy", images)
    model = VAE(
        Encoder(latent_dim=2, architecture="dense"),
        Decoder(output_shape=(6, 6, 1), architecture="dense"),
        likelihood="gaussian",
    )
    model.build((None, 6, 6, 1))
    model.save(tmp_path / "own.keras")
    line = f"{tmp_path / 'own.keras'} --data {tmp_path / 'own.npy'} {QUICK} --no-ais --examples 0"
    assert call(line, "--json", tmp_path / "scores.json") == 0
    values = numbers(tmp_path / "scores.json")
    assert values["data"] == {
        "name": "own",
        "split": "test",
        "num_examples": 4,
        "num_available": 4,
        "image_shape": [6, 6, 1],
        "binarize": False,
    }


@pytest.mark.parametrize(("split", "count"), [("validation", 150), ("train", 1350)])
def test_splits_are_whole_whatever_the_limits_of_the_run(run, split, count):
    # With batches of 40 images, training would leave out a last batch of 30.
    config = dataclasses.replace(RunFolder(run).load_config(), batch_size=40)
    _, spec, images = run_data.load_split(config, split)
    assert len(images) == count
    assert getattr(spec, f"num_{split}") == count


def test_training_images_are_in_the_order_of_the_first_epoch(run):
    config = dataclasses.replace(RunFolder(run).load_config(), binarize=False)
    _, _, images = run_data.load_split(config, "train", 30)
    _, data = run_data.load_data(config)
    np.testing.assert_array_equal(images, next(iter(data.train))[:30])


# Interruptions.


def stop_after(monkeypatch, count):
    """Interrupts an evaluation when it has kept the results of `count` chunks."""
    add, calls = chunks.Progress.add, []

    def add_and_stop(self, *args):
        add(self, *args)
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt

    monkeypatch.setattr(chunks.Progress, "add", add_and_stop)


def test_an_interrupted_evaluation_goes_on_to_the_same_numbers(
    run, whole, tmp_path, monkeypatch, capsys
):
    kept, path = tmp_path / "kept", tmp_path / "parts.json"
    words = [str(run), *QUICK.split(), "--checkpoint", str(kept), "--json", str(path)]
    # Chunks: 4 of the ELBO, 7 of IWAE-5, 3 of AIS. Stopped at the 2nd, the 6th and the 12th.
    for count, files in ((2, ["elbo"]), (4, ["elbo", "iwae"]), (6, ["ais", "elbo", "iwae"])):
        with monkeypatch.context() as patch:
            stop_after(patch, count)
            assert evaluate.main(words) == 130
        error = capsys.readouterr().err
        assert f"Continue with: python -m tf_mcvae_commands.evaluate {shlex.join(words)}\n" in error
        assert sorted(file.stem for file in kept.iterdir()) == files
        assert not path.exists()
    assert evaluate.main(words) == 0
    assert numbers(path) == numbers(whole)
    with monkeypatch.context() as patch:
        # Nothing is left to be scored.
        patch.setattr(chunks.Progress, "add", None)
        assert evaluate.main(words) == 0
    assert numbers(path) == numbers(whole)
    capsys.readouterr()
    assert evaluate.main([*words, "--elbo-samples", "6"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_without_a_checkpoint_nothing_is_kept(run, tmp_path, monkeypatch, capsys):
    stop_after(monkeypatch, 1)
    assert call(f"{run} {QUICK}") == 130
    assert "--checkpoint DIR would keep" in capsys.readouterr().err


# Mistakes.

WRONG = {
    "": "RUN",
    "nowhere": "no such run",
    "nowhere.keras": "give --data, or the folder of the run",
    "nowhere.keras --data digits": "no such file",
    "{run} more": "more is not expected",
    "{run} --data imagenet": "imagenet",
    "{run} --split dev": "--split",
    "{run} --preset best": "--preset",
    "{run} --exampels 3": "did you mean --examples?",
    "{run} --examples -1": "--examples",
    "{run} --elbo-samples 0": "--elbo-samples",
    "{run} --iwae-samples x": "--iwae-samples",
    "{run} --temperatures 1": "--temperatures",
    "{run} --chains 0": "--chains",
    "{run} --step-size 0": "--step-size",
    "{run} --target-acceptance 1": "--target-acceptance",
    "{run} --start middle": "--start",
    "{run} --schedule cosine": "--schedule",
    "{run} --binarize maybe": "--binarize",
    "{run} --chunk-size 0": "--chunk-size",
    "{run} --gap -1": "--gap",
    "{run} --image-size 10": "shape (297, 10, 10, 1)",
    "{run} --json {tmp}": "a file is needed",
    "{run} --json {run}/config.json/scores.json": "--json cannot be made or written to",
    "{run} --checkpoint {run}/config.json": "--checkpoint cannot be made or written to",
}


@pytest.mark.parametrize("line", WRONG)
def test_mistakes_are_answered_in_one_line(line, run, tmp_path, capsys):
    assert call(line.format(run=run, tmp=tmp_path)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert WRONG[line] in error


def test_a_run_that_is_not_finished_says_how_to_go_on(run, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    assert call(str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert "--resume" in error
    assert "checkpoint.keras and --data" in error


def test_debug_shows_where_an_error_arose():
    with pytest.raises(ValueError, match="no such run"):
        call("nowhere --debug")


def test_a_flow_without_inverse_is_found_before_the_work(tmp_path, capsys):
    model = FlowVAE(
        Encoder(latent_dim=2, architecture="dense"),
        Decoder(output_shape=(8, 8, 1), architecture="dense"),
        flow="bnaf",
    )
    model.build((None, 8, 8, 1))
    model.save(tmp_path / "flow.keras")
    line = f"{tmp_path / 'flow.keras'} --data digits {QUICK} --iwae-samples 0 --no-ais --gap 2"
    assert call(line) == 2
    captured = capsys.readouterr()
    assert "--start prior" in captured.err
    assert "ELBO" not in captured.out
    assert call(f"{line} --start prior") == 0
    assert "nats per simulated example" in capsys.readouterr().out


def test_too_little_memory_is_answered_with_a_remedy(run, monkeypatch, capsys):
    def estimate_elbo(*args, **kwargs):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(suite, "estimate_elbo", estimate_elbo)
    assert call(f"{run} {QUICK}") == 2
    assert "smaller --chunk-size. Received: --chunk-size 9" in capsys.readouterr().err
