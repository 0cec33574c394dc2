"""The proof experiments: that they run and judge, and that what was committed still says so."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from models.experiments import NAMES, RESULTS, load
from models.experiments.__main__ import main
from models.experiments.experiment import Claim, Experiment, record

SILENT = Console(quiet=True)


def numbers(value: object) -> list[float]:
    """All numbers in nested rows."""
    if isinstance(value, dict):
        return [x for part in value.values() for x in numbers(part)]
    if isinstance(value, list):
        return [x for part in value for x in numbers(part)]
    return [value] if isinstance(value, int | float) else []


def run_cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_small_and_its_picture_can_be_drawn(name: str, tmp_path: Path) -> None:
    target, picture = tmp_path / "result.json", tmp_path / "result.png"
    result = run_cli(name, "--quick", "--seed", 3, "--json", target, "--picture", picture)
    assert result.exit_code == 0, result.output
    content = json.loads(target.read_text())
    assert content["experiment"] == name
    assert content["seed"] == 3
    assert content["setup"] == dataclasses.asdict(load(name).quick)
    assert content["claims"] == []
    assert all(math.isfinite(number) for number in numbers(content["rows"]))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_seed_decides_everything() -> None:
    experiment = load("recall")
    first, again, other = (experiment.run(experiment.quick, seed, SILENT) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_result_is_of_this_setup_and_says_what_its_rows_say(name: str) -> None:
    experiment = load(name)
    content = json.loads((RESULTS / f"{name}.json").read_text())
    assert content["setup"] == dataclasses.asdict(experiment.setup)
    assert content["date"]
    assert content["processor"]
    assert name in content["command"]
    claims = experiment.claims(content["rows"])
    assert [{**dataclasses.asdict(c), "holds": c.holds} for c in claims] == content["claims"]
    assert all(claim.holds for claim in claims)


@pytest.mark.parametrize("name", NAMES)
def test_there_is_a_negative_control(name: str) -> None:
    content = json.loads((RESULTS / f"{name}.json").read_text())
    assert any(claim.control for claim in load(name).claims(content["rows"]))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_all_claims_hold(name: str) -> None:
    experiment = load(name)
    claims = experiment.claims(experiment.run(experiment.setup, 0, SILENT))
    assert [claim for claim in claims if not claim.holds] == []


@pytest.mark.parametrize(
    ("value", "relation", "holds"),
    [(1.0, "<=", True), (1.1, "<=", False), (1.0, ">=", True), (math.nan, "<=", False),
     (math.nan, ">=", False)],
)  # fmt: skip
def test_a_claim_is_an_inequality_and_nothing_holds_of_nan(value, relation, holds) -> None:
    assert Claim("", value, relation, 1.0).holds is holds


def measuring(value: float) -> Experiment:
    """An experiment that measures `value` and claims that it is at most 1."""
    return dataclasses.replace(
        load("recall"),
        run=lambda setup, seed, console: [{"variant": "only", "value": value}],
        claims=lambda rows: [Claim("value", rows[0]["value"], "<=", 1.0, control=True)],
    )


@pytest.mark.parametrize(("value", "code"), [(0.5, 0), (1.5, 1), (math.nan, 1)])
def test_a_claim_that_fails_is_exit_code_1_and_is_written_all_the_same(
    value: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.experiments.__main__.load", lambda name: measuring(value))
    target = tmp_path / "result.json"
    result = run_cli("recall", "--json", target)
    assert result.exit_code == code
    assert ("holds" if code == 0 else "fails") in result.output
    content = json.loads(target.read_text())
    assert content["claims"][0]["holds"] is (code == 0)
    assert content["rows"][0]["value"] == (None if math.isnan(value) else value)


def test_a_record_says_when_where_and_how() -> None:
    experiment = measuring(0.5)
    rows = experiment.run(experiment.setup, 7, SILENT)
    claims = experiment.claims(rows)
    content = record(experiment, experiment.setup, 7, rows, claims, "python -m ...")
    assert content["seed"] == 7
    assert content["command"] == "python -m ..."
    assert set(content["versions"]) == {"minitorch", "python"}
    assert content["date"].endswith("+00:00")


def test_without_a_name_all_are_listed() -> None:
    result = run_cli()
    assert result.exit_code == 0
    assert all(name in result.output for name in NAMES)


def test_help_has_an_example() -> None:
    assert "Example: python -m models.experiments" in run_cli("--help").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such"], "context_extension"),
        (["recall", "--seed", "-1"], "--seed"),
        (["recall", "--json", "no/such/folder/result.json"], "folder that exists"),
    ],
)
def test_a_command_line_that_cannot_be_understood_is_refused_before_it_runs(
    arguments, message
) -> None:
    result = run_cli(*arguments)
    assert result.exit_code == 2
    assert message in result.output
