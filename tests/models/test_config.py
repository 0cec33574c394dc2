"""The configuration: where values come from, what is refused and how it is said."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from minitorch.errors import ConfigError
from models.config import PRESETS, TrainConfig
from models.options import parse_assignment


def test_later_sources_win(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("n_layer = 3\nbatch_size = 5\nlearning_rate = 1\n")
    config = TrainConfig.resolve("baby", file, {"batch_size": "7"})
    assert config.batch_size == 7  # --set
    assert config.n_layer == 3  # the file
    assert config.learning_rate == 1.0
    assert type(config.learning_rate) is float
    assert config.n_embd == 384  # the preset
    assert config.weight_decay == TrainConfig().weight_decay  # the default


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_written_is_read_back(preset, tmp_path):
    config = TrainConfig.resolve(
        preset, overrides={"data": 'a "text"\\with é', "learning_rate": "1.5e-2"}
    )
    config.save(tmp_path / "config.toml")
    assert TrainConfig.resolve(file=tmp_path / "config.toml") == config
    written = tomllib.loads((tmp_path / "config.toml").read_text(encoding="utf-8"))
    assert list(written) == [field.name for field in dataclasses.fields(TrainConfig)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stepz": "10"}, "--set: unknown 'stepz'; did you mean 'steps'?"),
        ({"steps": "ten"}, "--set: steps: expected an integer; got 'ten'"),
        ({"steps": "1.5"}, "--set: steps: expected an integer; got '1.5'"),
        ({"steps": True}, "--set: steps: expected an integer; got True"),
        ({"bias": "maybe"}, "--set: bias: expected true or false; got 'maybe'"),
        ({"data": 3}, "--set: data: expected a text; got 3"),
        ({"steps": "0"}, "steps: expected at least 1; got 0"),
        ({"dropout": "1"}, "dropout: expected at least 0, less than 1; got 1.0"),
        ({"learning_rate": "nan"}, "learning_rate: expected a finite number; got nan"),
        ({"learning_rate": "inf"}, "learning_rate: expected a finite number; got inf"),
        ({"optimizer": "adamv"}, "optimizer: unknown 'adamv'; did you mean 'adamw'?"),
        ({"optimizer": "?"}, "optimizer: unknown '?'; there are adamw"),
        ({"n_head": "5"}, "5 heads do not divide n_embd = 128; n_head could be 4"),
        ({"schedule": "wsd", "decay_fraction": "0.95"}, "0.95 and warmup_fraction = 0.1 are more"),
    ],
)
def test_bad_values_are_named(overrides, message):
    with pytest.raises(ConfigError) as error:
        TrainConfig.resolve(overrides=overrides)
    assert message in str(error.value)


def test_an_unknown_preset_is_suggested():
    with pytest.raises(ConfigError, match="preset: unknown 'nanno'; did you mean 'nano'"):
        TrainConfig.resolve("nanno")


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration file"):
        TrainConfig.resolve(file=tmp_path / "absent.toml")
    bad = tmp_path / "bad.toml"
    for content in (b"steps = ", b"\xff\xfe"):
        bad.write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad\.toml: not a TOML file"):
            TrainConfig.resolve(file=bad)
    bad.write_text("[train]\nsteps = 1\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: unknown 'train'"):
        TrainConfig.resolve(file=bad)


def test_assignments():
    assert parse_assignment("batch-size = 3") == ("batch_size", "3")
    assert parse_assignment("data=a=b") == ("data", "a=b")
    with pytest.raises(ConfigError, match="expected key=value"):
        parse_assignment("steps")


def test_a_run_goes_on_with_other_steps_but_not_with_another_model():
    before = TrainConfig.resolve()
    assert before.resumed(before, {"steps": "2000"}).steps == 2000
    assert before.resumed(TrainConfig.resolve(overrides={"weight_decay": 0}), {}).weight_decay == 0
    with pytest.raises(ConfigError, match="n_layer: this run has 4 and cannot be resumed with 5"):
        before.resumed(before, {"n_layer": "5"})


def test_every_key_is_described_with_what_the_presets_change():
    rows = {key: rest for key, *rest in TrainConfig.describe()}
    assert list(rows) == [field.name for field in dataclasses.fields(TrainConfig)]
    assert rows["n_layer"] == ["4", "6", "12", "number of transformer blocks"]
    assert rows["seed"][1:3] == ["", ""]


def test_the_table_in_the_documentation_is_this_one():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    cells = [
        (f"`{key}`", *(f"`{value}`" if value else "" for value in values), meaning)
        for key, *values, meaning in TrainConfig.describe()
    ]
    expected = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    assert expected in page, f"put this into docs/training.md:\n{expected}"
