"""`AISSettings` is the only source of the AIS settings of both commands and the library."""

import dataclasses
import typing

import pytest

from tf_mcvae.evaluation import PRESETS, AISSettings
from tf_mcvae_commands import ais, evaluate, train
from tf_mcvae_commands.groups import SCORING
from tf_mcvae_commands.options import Kind
from tf_mcvae_commands.training_settings import FREE_ON_RESUME, OF_THE_MACHINE, SETTINGS, RunConfig

FIELDS = dataclasses.fields(AISSettings)
ALIASES = {"chains", "temperatures", "leapfrogs"}


def plain(text):
    return " ".join(text.split())


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_flags_of_the_evaluation_command_are_the_fields(field):
    action = evaluate.make_parser()._option_string_actions[f"--{field.name.replace('_', '-')}"]
    assert action.dest == field.name
    assert action.type is field.metadata["kind"]
    assert action.help == f"{field.metadata['help']} (default: that of --preset)"
    assert {f"--{name}" for name in field.metadata["names"]} < set(action.option_strings)


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_flags_of_the_training_command_are_of_the_fields(name):
    (field,) = [field for field in FIELDS if name in field.metadata["names"]]
    action = train.make_parser()._option_string_actions[f"--ais-{name}"]
    assert action.type is field.metadata["kind"]
    default = getattr(PRESETS["quick"], field.name)
    assert action.help.endswith(f": {field.metadata['help']} (default: {default})")
    assert getattr(RunConfig(), f"ais_{name}") == default
    config = RunConfig(**{f"ais_{name}": 29})
    assert config.annealing == PRESETS["quick"].updated(**{field.name: 29})


def test_presets_and_defaults():
    assert RunConfig().annealing == PRESETS["quick"]
    assert AISSettings() == PRESETS["paper"]
    text = plain(evaluate.make_parser().format_help())
    for name, preset in PRESETS.items():
        assert f"{name} ({preset.summary()}" in text


def test_overrides_are_the_fields_with_their_types():
    assert typing.get_type_hints(ais.AISOverrides) == typing.get_type_hints(AISSettings)
    for field in FIELDS:
        kind, types = field.metadata["kind"], typing.get_type_hints(AISSettings)[field.name]
        assert isinstance(kind, Kind)
        assert field.default is None or kind.accepts(field.default)
        if typing.get_origin(types) is typing.Literal:
            assert kind.wanted == " or ".join(map(repr, typing.get_args(types)))


def test_settings_are_checked_however_they_are_made():
    for make in (
        lambda: AISSettings(num_chains=0),
        lambda: AISSettings().updated(num_chains=0),
        lambda: dataclasses.replace(AISSettings(), num_chains=0),
    ):
        with pytest.raises(ValueError, match=r"positive integer.*Received: num_chains=0"):
            make()
    with pytest.raises(ValueError, match=r"Received: num_chains=True"):
        AISSettings(num_chains=True)
    with pytest.raises(TypeError, match=r"did you mean `step_size`\?\).*Received: stepsize=1"):
        AISSettings().updated(stepsize=1)


def test_what_may_differ_by_machine_may_change_on_resuming():
    assert OF_THE_MACHINE < FREE_ON_RESUME
    assert {"cores", "data_dir", "gpus", "strategy"} < OF_THE_MACHINE
    scoring = {name for name, field in SETTINGS.items() if field.metadata["group"] == SCORING}
    assert scoring | {"export", "export_onnx", "export_tflite"} < FREE_ON_RESUME
    assert not {"model", "seed", "batch_size", "epochs"} & FREE_ON_RESUME
