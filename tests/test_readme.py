"""What the README promises is what is run: its commands by .ci/run, its Python here."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_commands_are_exactly_those_that_ci_runs():
    commands = [line for block in _blocks("console") for line in block.strip().splitlines()]
    ran = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert len(commands) == 2
    assert [line for line in ran if line.startswith("python3 -m venv")] == commands


def test_the_example_runs_and_prints_what_it_says(capsys):
    (example,) = _blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    promised = [line.split("#", 1)[1].strip() for line in example.splitlines() if "  # " in line]
    assert printed[: len(promised)] == promised


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_command_is_in_the_table():
    from models.cli import COMMANDS

    assert re.findall(r"^\| `minitorch ([\w-]+)`", README, flags=re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("size", ["nano", "baby", "gpt2"])
def test_the_figures_are_those_that_were_measured(size):
    results = {}
    for file in (ROOT / "tests" / "benchmarks" / "results").glob(f"step_{size}*.json"):
        results |= {row["case"]: row["seconds"] for row in json.loads(file.read_text())["results"]}
    costs = []
    for precision in ("float32", "bfloat16"):
        seconds = results[f"{size} {precision}"]
        peers = [value for library, value in seconds.items() if library != "minitorch"]
        costs += [seconds["minitorch"], min(peers)]
    figures = [f"{x:.3g} s" if x >= 1 else f"{1e3 * x:.3g} ms" for x in costs]
    (row,) = re.findall(rf"^\| .*\(`{size}`\) (\|.*)$", README, flags=re.MULTILINE)
    assert row == f"| {' | '.join(figures)} |"
