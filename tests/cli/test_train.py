"""The training command: what parses, what a run writes, and that an interrupted run continues."""

import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_mcvae
from tf_mcvae.cli import building, callbacks, environment, run_data, training
from tf_mcvae.datasets import DataSpec
from tf_mcvae.files import write_json
from tf_mcvae_commands import train as cli
from tf_mcvae_commands.run_folder import RunFolder
from tf_mcvae_commands.training_settings import RunConfig

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = DataSpec("digits", (8, 8, 1), "bernoulli", 1350, 150, 297)
# Three short epochs of a small model on 4 batches of 20 images, and no scores or export.
TINY = (
    "--net_type fc --hidden_dim 2 --K 2 --batch_size 20 --limit_train_batches 4 "
    "--limit_val_batches 1 --max_epochs 3 --no-score --no-export "
)


def run(line, output_dir):
    return cli.main([*shlex.split(line), "--output-dir", str(output_dir)])


def settings(line):
    return RunConfig(**vars(cli.make_parser().parse_args(shlex.split(line))))


# Command lines of the reference: that of its README, and one of each kind from its scripts.
REFERENCE = {
    "--model L-MCVAE --dataset mnist --act_func gelu --binarize True --hidden_dim 64 "
    "--batch_size 100 --net_type conv --num_samples 1 --max_epochs 1 --step_size 0.01 --K 1 "
    "--limit_train_batches 20 --use_cloned_decoder True": {
        "model": "L-MCVAE",
        "dataset": "mnist",
        "activation": "gelu",
        "binarize": True,
        "latent_dim": 64,
        "batch_size": 100,
        "architecture": "conv",
        "num_samples": 1,
        "epochs": 1,
        "step_size": 0.01,
        "num_transitions": 1,
        "limit_train_batches": 20,
        "cloned_decoder": True,
    },
    "--model VAE --dataset mnist --act_func gelu --binarize True --hidden_dim 64 --batch_size 100 "
    "--net_type conv --num_samples 1 --max_epochs 1 --gpus 1": {"model": "VAE"},
    "--model IWAE --dataset cifar --binarize False --hidden_dim 128 --batch_size 50 "
    "--net_type conv --num_samples 50 --max_epochs 100 --gpus 1": {
        "model": "IWAE",
        "dataset": "cifar",
        "binarize": False,
        "num_samples": 50,
    },
    "--model AMCVAE --dataset mnist --binarize True --hidden_dim 64 --batch_size 100 "
    "--num_samples 5 --max_epochs 1 --gpus 1 --step_size 0.01 --K 3 "
    "--variance_sensitive_step True --use_barker False --acceptance_rate_target 0.8 "
    "--use_alpha_annealing True --annealing_scheme sigmoidal --grad_clip_val 50": {
        "model": "A-MCVAE",
        "num_transitions": 3,
        "variance_sensitive_step": True,
        "barker": False,
        "target_acceptance": 0.8,
        "alpha_annealing": True,
        "schedule": "sigmoidal",
        "gradient_clip": 50.0,
    },
    "--model LMCVAE --dataset celeba --binarize False --hidden_dim 128 --batch_size 50 "
    "--max_epochs 100 --gpus 1 --step_size 0.01 --K 10 --variance_sensitive_step True "
    "--acceptance_rate_target 0.9 --annealing_scheme all_learnable --grad_clip_val 50 "
    "--ula_skip_threshold 0.1 --limit_train_batches 0.1 --limit_val_batches 0.1": {
        "model": "L-MCVAE",
        "dataset": "celeba",
        "skip_threshold": 0.1,
        "schedule": "all_learnable",
        "limit_train_batches": 0.1,
        "limit_validation_batches": 0.1,
    },
    "--model IWAE --dataset mnist --binarize True --hidden_dim 100 --batch_size 100 "
    "--net_type fc --num_samples 50 --max_epochs 100 --gpus 1 --specific_likelihood gaussian "
    "--sigma 0.1": {"architecture": "dense", "likelihood": "gaussian", "sigma": 0.1},
    "--model A-MCVAE --val_batch_size 10 --use_barker yes --learnable_transitions t "
    "--use_cloned_decoder 1 --n_leapfrogs 4 --use_score_matching False --use_transforms no "
    "--num_flows 1 --grad_skip_val 0.0 --binarize n --act_func logsigmoid": {
        "validation_batch_size": 10,
        "barker": True,
        "learnable_transitions": True,
        "cloned_decoder": True,
        "binarize": False,
        "activation": "logsigmoid",
        "ais_leapfrogs": 4,
        "learned_drift": False,
        "gradient_skip": 0.0,
    },
    "--model VAE_with_flows --dataset mnist --binarize True --hidden_dim 64 --batch_size 100 "
    "--net_type conv --num_samples 1 --max_epochs 100 --gpus 1 --num_flows 5": {
        "model": "FlowVAE",
        "num_flows": 5,
        "flow_type": "realnvp",
        "gpus": 1,
    },
    "--model LMCVAE --use_score_matching True --use_reverse_kernel y --grad_skip_val 1000": {
        "learned_drift": True,
        "learned_reverse": True,
        "gradient_skip": 1000.0,
    },
    "--model lmcvae --use_transforms True --use_reverse_kernel False": {
        "learned_drift": True,
        "learned_reverse": False,
    },
}


@pytest.mark.parametrize("line", REFERENCE)
def test_command_lines_of_the_reference_mean_what_they_did(line):
    config = settings(line)
    assert {name: getattr(config, name) for name in REFERENCE[line]} == REFERENCE[line]


def test_without_flags_it_is_the_main_job():
    config = settings("")
    assert config == RunConfig()
    assert (config.dataset, config.model) == ("digits", "L-MCVAE")
    assert config.num_transitions == 5


def test_flags_are_found_by_either_name_with_hyphens_or_underscores():
    lines = ("--latent-dim 3", "--latent_dim=3", "--hidden_dim 3", "--hidden-dim=3")
    assert {settings(line) for line in lines} == {RunConfig(latent_dim=3)}
    assert settings("--num_transitions 7") == settings("--K=7")
    assert settings("--jit") == settings("--jit True")
    assert settings("--no-score --no_export") == settings("--score f --export 0")


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("1.0", 1.0), ("20", 20), ("0.1", 0.1), ("1e-1", 0.1)]
)
def test_a_limit_with_a_point_is_a_fraction_and_without_one_a_count(text, value):
    limit = settings(f"--limit_train_batches {text}").limit_train_batches
    assert limit == value
    assert type(limit) is type(value)


def test_limits_count_batches():
    config = settings("--batch_size 100 --limit_train_batches 0.5 --limit_val_batches 1")
    _, data = run_data.load_data(config)
    assert (len(data.train), len(data.validation)) == (6, 1)
    assert len(list(data.train)) == 6
    _, data = run_data.load_data(settings("--limit_train_batches 1.0 --limit_val_batches 99"))
    assert (len(data.train), len(data.validation)) == (27, 3)


WRONG = {
    "--K 0": "--K",
    "--num-transitions 2.5": "--K",
    "--step_size -0.1": "--step-size",
    "--step_size nan": "--step-size",
    "--learning-rate 0": "--learning-rate",
    "--max_epochs 0": "--max_epochs",
    "--seed -1": "--seed",
    "--acceptance_rate_target 1": "--acceptance_rate_target",
    "--limit_train_batches 1.5": "--limit-train-batches",
    "--limit_val_batches 0": "--limit_val_batches",
    "--binarize maybe": "--binarize",
    "--model GAN": "--model",
    "--net_type resnet": "--net_type",
    "--annealing_scheme cosine": "--annealing_scheme",
    "--act_func swoosh": "swoosh",
    "--dataset imagenet": "imagenet",
    "--hidden_dims 3": "did you mean --hidden_dim?",
    "--batch_size": "--batch-size",
    "--num_flows 0": "--num-flows",
    "--flow-type spline": "--flow-type",
    "--grad_skip_val -1": "--grad_skip_val",
    "--gpus -1": "--gpus",
    "--nll-every -1": "--nll-every",
    # For schedules, the form is checked first, then the class, then its arguments.
    "--lr-schedule cosine": "by name and written out",
    "--lr-schedule 'CosineDecay(100)'": "by name and written out",
    "--lr-schedule 'CosineDecay(decay_steps=open(\"x\"))'": "by name and written out",
    "--lr-schedule 'CosineDecay(decay_steps=3'": "by name and written out",
    "--lr-schedule 'schedules.CosineDecay(decay_steps=3)'": "by name and written out",
    "--lr-schedule 'Sawtooth(decay_steps=3)'": "no learning-rate schedule Sawtooth; it has Cosine",
    "--lr-schedule 'LearningRateSchedule()'": "no learning-rate schedule",
    "--lr-schedule 'CosineDecay(steps=3)'": "'steps'",
    "--lr-schedule 'CosineDecay(**{\"decay_steps\": 3})'": "'**'",
    "--lr-schedule 'CosineDecay()'": "'decay_steps'",
    "--lr-schedule 'CosineDecay(decay_steps=0)'": "do not fit CosineDecay(",
    "--lr-schedule 'ExponentialDecay(decay_steps=\"x\", decay_rate=1)'": "do not fit",
    "--lr-schedule 'PiecewiseConstantDecay(boundaries=[3], values=[1.0])'": "do not fit",
    "--learnable_transitions True --step_size 0": "step size",
    "--step_size 0": "within its limits",
    "--published_acceptance True --step_size 0.6": "0.001 and 0.5",
    "--resume nothing": "nothing",
    "--resume": "no such run",
    "--data-dir nowhere --dataset mnist --resume x": "x",
}


@pytest.mark.parametrize("line", WRONG)
def test_mistakes_are_answered_in_one_line_and_leave_nothing(line, tmp_path, capsys):
    assert run(line, tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert WRONG[line] in error
    assert not list(tmp_path.iterdir())


def test_debug_shows_where_an_error_arose(tmp_path):
    with pytest.raises(ValueError, match="imagenet"):
        run("--dataset imagenet --debug", tmp_path)


def test_the_output_folder_is_checked_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "run", lambda *args: pytest.fail("started"))
    (tmp_path / "file").write_text("")
    assert run("", tmp_path / "file") == 2
    error = capsys.readouterr().err
    assert "choose another --output-dir. Received: " in error
    assert str(tmp_path / "file") in error


def test_flags_of_other_models_are_pointed_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "run", lambda *args: None)
    assert run("--model VAE --K 3 --use_barker True --hidden_dim 3", tmp_path) == 0
    error = capsys.readouterr().err
    assert "--num-transitions changes nothing for VAE" in error
    assert "--barker" in error
    assert "--latent-dim" not in error
    line = "--model FlowVAE --num_flows 3 --use_score_matching True --use_reverse_kernel True"
    assert run(f"{line} --nll-every 2", tmp_path) == 0
    error = capsys.readouterr().err
    assert "--learned-drift changes nothing for FlowVAE" in error
    assert "--learned-reverse changes nothing for FlowVAE" in error
    assert "--num-flows" not in error
    assert "--nll-every changes nothing without --logdir" in error
    assert run("--model A-MCVAE --num_flows 3 --flow-type iaf --logdir x", tmp_path) == 0
    error = capsys.readouterr().err
    assert "--num-flows changes nothing for A-MCVAE" in error
    assert "--flow-type changes nothing for A-MCVAE" in error
    assert "--logdir" not in error


def test_help_of_the_script_groups_the_flags_and_shows_defaults():
    result = subprocess.run(
        [sys.executable, "train_keras.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0
    text = result.stdout
    for field in dataclasses.fields(RunConfig):
        assert f"--{field.name.replace('_', '-')}" in text
    for name in ("--hidden_dim", "--K", "--use_transforms", "--n_leapfrogs", "--num-flows"):
        assert name in text
    for title in ("L-MCVAE only:", "A-MCVAE only:", "FlowVAE only:", "training:"):
        assert f"\n{title}\n" in text
    assert "FlowVAE (VAE_with_flows) (default: L-MCVAE)" in " ".join(text.split())


# Models from settings.


def build(line, steps_per_epoch=10):
    config = run_data.complete(settings(line), DIGITS)
    return building.build_model(config, DIGITS, steps_per_epoch)


@pytest.mark.parametrize(
    ("side", "line", "expected"),
    [
        (8, "", ("dense", 3e-3)),
        (28, "", ("conv", 1e-3)),
        (8, "--net_type conv --learning_rate 0.01", ("conv", 0.01)),
    ],
)
def test_defaults_suit_the_size_of_the_images(side, line, expected):
    spec = DataSpec("some", (side, side, 1), "bernoulli", 100, 100, 100)
    config = run_data.complete(settings(line), spec)
    assert (config.architecture, config.learning_rate) == expected


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("", "acceptance"),
        ("--published-acceptance", "published_acceptance"),
        ("--variance_sensitive_step True", "variance"),
        ("--variance_sensitive_step True --learnable_transitions True", "learned"),
    ],
)
def test_the_flags_of_step_sizes_choose_the_rule(line, rule):
    step_size = build(f"{line} --step_size 0.02 --acceptance_rate_target 0.8").step_size
    assert (step_size.rule, step_size.target_acceptance) == (rule, 0.8)
    np.testing.assert_allclose(step_size.values(), 0.02, rtol=1e-6)


def test_flags_reach_the_model():
    model = build("--model A-MCVAE --use_barker True --K 3 --annealing_scheme sigmoidal")
    assert (model.acceptance, model.num_transitions) == ("barker", 3)
    assert type(model.schedule).__name__ == "SigmoidalSchedule"
    model = build(
        "--ula_skip_threshold 0.1 --use_cloned_decoder True --grad_clip_val 50 --jit --recompute"
    )
    assert (model.skip_threshold, model.cloned_decoder, model.recompute) == (0.1, True, True)
    assert model.optimizer.global_clipnorm == 50
    assert model.jit_compile
    model = build("--model VAE --likelihood gaussian --sigma 0.1 --act_func relu")
    assert float(model.likelihood.scale) == pytest.approx(0.1)
    assert model.optimizer.global_clipnorm is None
    assert model.encoder.get_config()["activation"] == "relu"
    model = build("--model VAE --likelihood discretized_logistic_mixture")
    assert type(model.likelihood).__name__ == "DiscretizedLogisticMixture"


@pytest.mark.parametrize(
    ("name", "step_size", "rule"),
    [
        ("UHA", 0.1, "acceptance"),
        ("DAIS", 0.1, "learned"),
        ("LDVI", 0.1, "acceptance"),
        ("MCD", 0.01, "acceptance"),
        ("CMCD", 0.01, "acceptance"),
        ("HVAE", 0.1, "learned"),
    ],
)
def test_every_annealed_model_has_a_name(name, step_size, rule):
    model = build(f"--model {name} --K 3 --gradient dreg")
    assert type(model) is getattr(tf_mcvae, name if name == "HVAE" else f"{name}VAE")
    assert (model.num_transitions, model.gradient) == (3, "dreg")
    assert model.step_size.rule == rule
    np.testing.assert_allclose(model.step_size.values(), step_size, rtol=1e-6)
    assert type(build(f"--model {type(model).__name__}")) is type(model)


def test_gradients_are_also_of_iwae_and_change_nothing_for_a_vae():
    assert build("--model IWAE --gradient dreg").gradient == "dreg"
    assert type(build("--model VAE --gradient dreg")) is tf_mcvae.VAE


def test_flags_of_hamiltonian_models_reach_them():
    model = build("--model UHA --num-leapfrog-steps 2 --momentum-persistence 0.5 --learn-momentum")
    assert model.num_leapfrog_steps == 2
    assert float(model.momentum.persistence()) == pytest.approx(0.5)
    assert model.momentum.learn_mass
    assert build("--model HVAE --tempering free").tempering.scheme == "free"


@pytest.mark.parametrize("line", ["", "--model VAE", "--grad_skip_val 0"])
def test_features_are_off_without_their_flags(line):
    model = build(line)
    assert model.skip_gradient_norm is None
    assert model.optimizer.global_clipnorm is None
    assert not [weight for weight in model.weights if "learned" in weight.path]


@pytest.mark.parametrize(
    ("name", "count", "kind"), [("realnvp", 5, "RealNVP"), ("iaf", 2, "IAF"), ("bnaf", 1, "BNAF")]
)
def test_the_flags_of_flows_reach_the_model(name, count, kind):
    model = build(f"--model VAE_with_flows --num_flows {count} --flow-type {name}")
    assert type(model).__name__ == "FlowVAE"
    assert [type(flow).__name__ for flow in model.flow.flows] == [kind] * count


def test_learned_drifts_reverse_kernels_and_skipping_reach_the_model():
    sizes = {
        line: build(line).count_params()
        for line in ("", "--use_score_matching True", "--use_reverse_kernel True")
    }
    assert build("--use_transforms True").get_config()["learned_drift"]
    assert build("--use_reverse_kernel True").get_config()["learned_reverse"]
    assert len(set(sizes.values())) == 3
    assert build("--grad_skip_val 7").skip_gradient_norm == 7.0


def test_the_reference_schedule_quarters_the_rate_at_epochs_10_20_and_30():
    rate = build("--lr_schedule reference --learning_rate 0.01").optimizer._learning_rate
    epochs = [0, 9, 10, 19, 20, 29, 30, 50]
    first = [float(rate(10 * epoch)) for epoch in epochs]
    last = [float(rate(10 * epoch + 9)) for epoch in epochs]
    expected = [0.01 * 0.25 ** min(epoch // 10, 3) for epoch in epochs]
    np.testing.assert_allclose(first, expected, rtol=1e-6)
    np.testing.assert_allclose(last, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("side", "line", "expected"),
    [
        (28, "--model L-MCVAE", "reference"),
        (16, "--model A-MCVAE", "reference"),
        (28, "--model VAE", "constant"),
        (28, "--model IWAE", "constant"),
        (28, "--model FlowVAE", "constant"),
        (8, "--model L-MCVAE", "constant"),
        (8, "--model A-MCVAE --lr-schedule Reference", "reference"),
        (28, "--model A-MCVAE --lr-schedule constant", "constant"),
    ],
)
def test_the_rate_decays_by_default_where_it_did_in_the_reference(side, line, expected):
    spec = DataSpec("some", (side, side, 1), "bernoulli", 100, 100, 100)
    assert run_data.complete(settings(line), spec).lr_schedule == expected


STEPS = np.array([0, 1, 30, 99, 100, 250])
SCHEDULES = {
    "CosineDecay(decay_steps=100, alpha=0.1)": 0.02
    * (0.1 + 0.45 * (1.0 + np.cos(np.pi * np.minimum(STEPS / 100, 1.0)))),
    "CosineDecay(decay_steps=100, initial_learning_rate=0.0, warmup_target=0.5, "
    "warmup_steps=1000)": 0.5 * STEPS / 1000,
    " ExponentialDecay(decay_steps=50, decay_rate=0.5, staircase=True) ": 0.02
    * 0.5 ** (STEPS // 50),
    "InverseTimeDecay(decay_steps=10, decay_rate=2)": 0.02 / (1.0 + STEPS / 5),
    "PolynomialDecay(decay_steps=200, end_learning_rate=0.01)": 0.01
    + 0.01 * (1.0 - np.minimum(STEPS / 200, 1.0)),
    "CosineDecayRestarts(first_decay_steps=1000000)": 0.02 * np.ones(6),
    "PiecewiseConstantDecay(boundaries=[50], values=[0.3, 0.1])": np.where(STEPS > 50, 0.1, 0.3),
}


@pytest.mark.parametrize("text", SCHEDULES)
def test_schedules_of_keras_are_written_as_calls(text):
    config = settings(f"--learning-rate 0.02 --lr-schedule '{text}'")
    rate = building.learning_rate(config, steps_per_epoch=10)
    np.testing.assert_allclose([float(rate(t)) for t in STEPS], SCHEDULES[text], rtol=1e-5)


def test_gpus_are_hidden_and_a_lack_is_noted(monkeypatch, capsys):
    visible = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["first", "second"])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *call: visible.append(call))
    for count in (None, 0, 1, 2):
        environment.show_gpus(count)
    assert visible == [([], "GPU"), (["first"], "GPU"), (["first", "second"], "GPU")]
    assert capsys.readouterr().err == ""
    environment.show_gpus(3)
    assert capsys.readouterr().err == "note: --gpus 3, but TensorFlow finds 2\n"


@pytest.mark.parametrize(
    ("channels", "line", "likelihood", "binarize"),
    [
        (1, "", "bernoulli", True),
        (1, "--binarize False", "bernoulli", False),
        (1, "--likelihood gaussian", "gaussian", False),
        (1, "--likelihood gaussian --binarize True", "gaussian", True),
        (1, "--likelihood continuous_bernoulli", "continuous_bernoulli", False),
        (3, "", "gaussian", False),
        (3, "--likelihood bernoulli", "bernoulli", True),
    ],
)
def test_pixels_are_binarised_where_the_likelihood_is_bernoulli(
    channels, line, likelihood, binarize, tmp_path
):
    images = np.linspace(0.2, 0.8, 40 * 64 * channels).reshape(40, 8, 8, channels)
    np.save(tmp_path / "images.npy", images)
    config, data = run_data.load_data(settings(f"--dataset {tmp_path / 'images.npy'} {line}"))
    assert (config.likelihood, config.binarize) == (likelihood, binarize)
    x = next(iter(data.train)).numpy()
    assert np.isin(x, [0.0, 1.0]).all() == binarize


@pytest.mark.parametrize(
    ("shape", "line", "count"),
    [
        ((8, 8, 1), "", 297),
        ((28, 28, 1), "", 31),
        ((28, 28, 1), "--score-examples 0", 10_000),
        ((28, 28, 1), "--score-examples 20000", 10_000),
        ((512, 512, 3), "", 1),
    ],
)
def test_as_many_examples_are_scored_as_take_a_minute(shape, line, count):
    num_test = 297 if shape == (8, 8, 1) else 10_000
    spec = DataSpec("some", shape, "bernoulli", 100, 100, num_test)
    assert run_data._score_examples(settings(line), spec) == count


# Runs.


def contents(folder):
    return {path.name for path in folder.iterdir()}


def test_a_run_writes_its_folder(tmp_path, capsys):
    line = (
        "--model VAE --net_type fc --hidden_dim 2 --limit_train_batches 3 --epochs 2 --name first "
        "--score-examples 20 --iwae-samples 7 --ais-temperatures 5 --ais-chains 2"
    )
    assert run(line, tmp_path) == 0
    folder = tmp_path / "first"
    assert contents(folder) == {
        "config.json",
        "history.csv",
        "metrics.json",
        "images.png",
        "model.keras",
        "serving",
    }
    assert (folder / "serving/1/saved_model.pb").exists()

    saved = json.loads((folder / "config.json").read_text())
    assert saved["settings"] == {
        **dataclasses.asdict(settings(line)),
        "binarize": True,
        "step_size": 0.01,
        "learning_rate": 0.003,
        "likelihood": "bernoulli",
        "lr_schedule": "constant",
        "num_samples": 1,
        "output_dir": str(tmp_path),
    }
    assert saved["versions"]["keras"] == keras.__version__

    metrics = json.loads((folder / "metrics.json").read_text())
    scores = metrics["scores"]
    assert [scores[key]["method"] for key in scores] == ["VAE bound", "ELBO", "IWAE-7", "AIS-5"]
    for result in scores.values():
        assert result["settings"]["num_examples"] == 20
        assert -80.0 < result["mean"] < -20.0  # 64 pixels of probability 1/2: -44.4.
        assert 0.0 < result["standard_error"] < 5.0

    rows = callbacks.read_history(folder / "history.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert metrics["last_epoch"] == rows[-1]
    model = keras.models.load_model(folder / "model.keras")
    assert int(model.step) == 6

    output = capsys.readouterr().out
    assert "epoch 2/2  bound" in output
    rows = {line.split()[0]: " ".join(line.split()) for line in output.splitlines() if "±" in line}
    assert rows["IWAE-7"].startswith(f"IWAE-7 {scores['iwae']['mean']:.3f} ± ")
    assert "latent dimensions active" in output
    assert "Written to" in output
    assert max(map(len, output.splitlines())) < 200

    before = contents(folder), (folder / "history.csv").read_bytes()
    assert run(line, tmp_path) == 2
    assert "another --name" in capsys.readouterr().err
    assert run("--resume first", tmp_path) == 2
    assert "finished" in capsys.readouterr().err
    assert (contents(folder), (folder / "history.csv").read_bytes()) == before


def interrupt(monkeypatch, callback, epoch, error=KeyboardInterrupt):
    """Makes a callback raise an error at the end of an epoch, before its own work."""
    original = callback.on_epoch_end

    def on_epoch_end(self, current, logs=None):
        if current + 1 == epoch:
            raise error
        original(self, current, logs)

    monkeypatch.setattr(callback, "on_epoch_end", on_epoch_end)


def raise_interrupt(*args):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "line",
    [
        "--model IWAE --num_samples 2 --grad_clip_val 5",
        *[
            pytest.param(line, marks=pytest.mark.slow)
            for line in (
                "--model L-MCVAE --grad_clip_val 5 --variance_sensitive_step True",
                "--model A-MCVAE --num_samples 2 --use_alpha_annealing 1 --lr-schedule reference",
                "--model FlowVAE --num_flows 2 --lr-schedule 'CosineDecay(decay_steps=12)' "
                "--grad_skip_val 26",
                "--use_score_matching True --use_reverse_kernel True",
            )
        ],
    ],
)
def test_a_resumed_run_ends_exactly_like_an_uninterrupted_one(line, tmp_path, capsys, monkeypatch):
    line = f"{TINY} {line} --epochs 4"
    assert run(f"{line} --name whole", tmp_path) == 0
    with monkeypatch.context() as patch:
        # After the third row of the history, before the third checkpoint.
        interrupt(patch, callbacks.Checkpoint, epoch=3)
        assert run(f"{line} --name parts", tmp_path) == 130
    assert f"--resume {tmp_path / 'parts'}" in capsys.readouterr().err
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert contents(parts) == {"config.json", "history.csv", "checkpoint.keras"}
    assert len(callbacks.read_history(parts / "history.csv")) == 3
    assert run(f"{line} --name parts", tmp_path) == 2
    assert "--resume parts" in capsys.readouterr().err

    assert run("--resume", tmp_path) == 0
    assert "Resuming after epoch 2 of 4" in capsys.readouterr().out
    assert contents(parts) == contents(whole)
    assert (parts / "history.csv").read_bytes() == (whole / "history.csv").read_bytes()
    models = [keras.models.load_model(folder / "model.keras") for folder in (whole, parts)]
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(*(model.optimizer.variables for model in models), strict=True):
        np.testing.assert_array_equal(one, other)


def test_updates_are_skipped_and_counted(tmp_path, capsys):
    line = f"{TINY} --model VAE --max_epochs 2 --grad_skip_val 1e-3 --name run"
    assert run(line, tmp_path) == 0
    assert "skipped 4" in capsys.readouterr().out
    rows = callbacks.read_history(tmp_path / "run/history.csv")
    assert [row["skipped"] for row in rows] == [4, 4]
    # Nothing was learned, and validation draws are equal in all epochs.
    assert rows[0]["val_bound"] == rows[1]["val_bound"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_history_and_another_seed_another(tmp_path):
    histories = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(f"{TINY} --model VAE --epochs 2 --name {name} --seed {seed}", tmp_path) == 0
        histories.append((tmp_path / name / "history.csv").read_bytes())
    assert histories[0] == histories[1]
    assert histories[0] != histories[2]


@pytest.mark.slow
def test_a_run_can_be_interrupted_in_its_first_epoch_and_after_its_last(
    tmp_path, capsys, monkeypatch
):
    line = f"{TINY} --model VAE --epochs 2 --name run"
    with monkeypatch.context() as patch:
        interrupt(patch, callbacks.EpochLine, epoch=1)
        assert run(line, tmp_path) == 130
    with monkeypatch.context() as patch:
        # Now after the last epoch.
        patch.setattr(training, "save_model", raise_interrupt)
        assert run(f"--resume {tmp_path / 'run'}", "elsewhere") == 130
    assert run(f"--resume {tmp_path / 'run'}", "elsewhere") == 0
    assert "Resuming after epoch 2 of 2" in capsys.readouterr().out
    assert len(callbacks.read_history(tmp_path / "run/history.csv")) == 2
    assert "model.keras" in contents(tmp_path / "run")


@pytest.fixture(scope="module")
def interrupted_once(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, callbacks.EpochLine, epoch=2)
        assert run(f"{TINY} --model VAE --name run", output_dir) == 130
    return output_dir / "run"


@pytest.fixture
def interrupted(interrupted_once, tmp_path):
    return pathlib.Path(shutil.copytree(interrupted_once, tmp_path / "run"))


@pytest.mark.parametrize("name", ["checkpoint.keras", "config.json", "history.csv"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_truncated_file_is_named(name, share, interrupted, capsys):
    content = (interrupted / name).read_bytes()
    (interrupted / name).write_bytes(content[: int(share * len(content))])
    capsys.readouterr()
    assert run("--resume run", interrupted.parent) == 2
    error = capsys.readouterr().err
    assert str(interrupted / name) in error
    assert "Traceback" not in error


@pytest.mark.parametrize("text", ["epoch,loss\n1,x\n", "epoch,loss\n1\n", "\0", "a\n1\n", '"'])
def test_a_damaged_history_is_named_and_can_be_removed(text, tmp_path):
    path = tmp_path / "history.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"history.*damaged.*remove it.*history\.csv'"):
        callbacks.HistoryWriter(path, initial_epoch=1)
    path.unlink()
    assert callbacks.HistoryWriter(path, initial_epoch=1).rows == []


def test_a_history_takes_metrics_that_are_new(tmp_path):
    path = tmp_path / "history.csv"
    callbacks.HistoryWriter(path).on_epoch_end(0, {"loss": 1.0})
    callbacks.HistoryWriter(path, 1).on_epoch_end(1, {"loss": 2.0, "grad_norm": 3.0})
    rows = callbacks.read_history(path)
    assert [row["loss"] for row in rows] == [1.0, 2.0]
    assert np.isnan(rows[0]["grad_norm"])


@pytest.mark.parametrize("change", [{"prior": "vamp"}, {"model": "HMCVAE2"}])
def test_settings_of_a_later_version_are_named(change, interrupted, capsys):
    saved = json.loads((interrupted / "config.json").read_text())
    saved["versions"]["tf_mcvae"] = "9.1.0"
    write_json(interrupted / "config.json", {**saved, "settings": {**saved["settings"], **change}})
    capsys.readouterr()
    assert run("--resume run", interrupted.parent) == 2
    error = capsys.readouterr().err
    assert "tf_mcvae 9.1.0" in error
    assert next(iter(change)) in error


def test_the_record_keeps_all_versions_that_trained_a_model(tmp_path, capsys):
    config = tmp_path / "config.json"
    now = environment.versions()
    assert environment.versions_of_run(config) == {"versions": now}
    for keras_version in ("3.6.0", "3.7.0"):
        earlier = (
            json.loads(config.read_text()).get("earlier_versions", []) if config.exists() else []
        )
        write_json(
            config, {"versions": {**now, "keras": keras_version}, "earlier_versions": earlier}
        )
        write_json(config, environment.versions_of_run(config))
    record = environment.versions_of_run(config)
    assert record["versions"] == now
    assert [version["keras"] for version in record["earlier_versions"]] == ["3.6.0", "3.7.0"]
    assert f"keras 3.7.0 (now {keras.__version__})" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "level", "error"),
    [
        ("tensorflow", {}, ""),
        ("no_such_module", {}, "no_such_module"),
        pytest.param("tensorflow", {"TF_CPP_MIN_LOG_LEVEL": "3"}, "", marks=pytest.mark.slow),
        pytest.param("tensorflow, no_such_module", {}, "no_such_module", marks=pytest.mark.slow),
    ],
)
def test_start_up_messages_of_tensorflow_are_hidden_and_errors_are_not(module, level, error):
    code = "from tf_mcvae_commands.quiet import quiet_start\nwith quiet_start():\n import "
    unset = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-c", code + module]
    done = subprocess.run(command, capture_output=True, text=True, env=unset | level)
    assert (error in done.stderr) if error else (done.stderr == "")


def test_the_level_of_messages_is_that_of_the_environment():
    unset = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    # The messages themselves differ between versions of TensorFlow.
    code = "import os\nfrom tf_mcvae_commands.quiet import quiet_start\n"
    code += "with quiet_start():\n os.write(2, b'start-up')"
    for level, shown in (("3", ""), ("0", "start-up")):
        environment = unset | {"TF_CPP_MIN_LOG_LEVEL": level}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
        assert done.stderr == shown


@pytest.mark.filterwarnings("ignore:The picture of the images could not be made")
def test_a_picture_that_cannot_be_drawn_does_not_end_a_run(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such colour")

    monkeypatch.setattr(training, "draw_images", fail)
    assert run(f"{TINY} --model VAE --epochs 1 --name run", tmp_path) == 0
    assert contents(tmp_path / "run") == {
        "config.json",
        "history.csv",
        "metrics.json",
        "model.keras",
    }


@pytest.mark.slow
def test_only_what_leaves_training_alone_can_be_changed_on_resuming(interrupted, capsys):
    assert run("--resume run --epochs 9 --hidden_dim 3", interrupted.parent) == 2
    assert "--epochs, --latent-dim" in capsys.readouterr().err
    line = "--score --score-examples 4 --iwae-samples 2 --ais-temperatures 2 --ais-leapfrogs 1"
    assert run(f"--resume run {line}", interrupted.parent) == 0
    metrics = json.loads((interrupted / "metrics.json").read_text())
    assert metrics["scores"]["iwae"]["settings"]["num_examples"] == 4


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_weights(tmp_path, capsys):
    assert run(f"{TINY} --model VAE --learning-rate 1e30 --name run", tmp_path) == 2
    assert "--learning-rate" in capsys.readouterr().err
    assert "model.keras" not in contents(tmp_path / "run")


# Pieces.


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_times_are_written_in_units_that_suit_them(seconds, text):
    assert callbacks.format_seconds(seconds) == text


def test_default_names_hold_data_set_and_model():
    assert cli.default_name(settings("--dataset a/b.npy --model VAE")).startswith("b-VAE-2")


def test_the_latest_interrupted_run_is_resumed(tmp_path):
    for name, finished in (("a", False), ("b", False), ("c", True)):
        folder = RunFolder(tmp_path / name)
        with folder.claimed():
            write_json(folder.config, {})
            if finished:
                write_json(folder.metrics, {})
    assert RunFolder.find("", str(tmp_path)).path.name == "b"
    assert RunFolder.find("a", str(tmp_path)).path.name == "a"
