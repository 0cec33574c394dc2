"""The command line as a whole: help, suggestions, exit codes, `doctor`."""

import json
import os
import subprocess
import sys

import click
import numpy as np
import pytest

from minitorch.errors import DataError
from models import machine
from models.cli import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(cli, name):
    result = cli(name, "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"minitorch {name}" in result.stdout


def test_help_lists_every_command_and_imports_none(cli):
    listed = cli("--help").stdout
    for name, (module, _) in COMMANDS.items():
        assert f"  {name} " in listed
        assert module.startswith("models.")
    program = (
        "import sys; from click.testing import CliRunner; from models.cli import main; "
        "CliRunner().invoke(main, ['--help']); "
        "print([m for m in sys.modules if m.startswith(('models.commands', 'matplotlib'))])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_a_mistyped_command_is_suggested(cli):
    result = cli("doktor")
    assert result.exit_code == 2
    assert "error: no such command 'doktor'; did you mean 'doctor'?" in result.stderr
    assert "there are train, " in cli("xyz").stderr


@pytest.mark.parametrize(
    ("raised", "code", "printed"),
    [
        (DataError("the text is short"), 1, "error: the text is short\n"),
        (FileNotFoundError(2, "No such file or directory", "x.txt"), 1, "error: [Errno 2] No such"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (click.Abort(), 130, "interrupted\n"),
        (click.BadParameter("too large"), 2, "too large\n"),
    ],
)
def test_what_went_wrong_decides_the_exit_code(cli, monkeypatch, raised, code, printed):
    @click.command()
    def failing():
        raise raised

    monkeypatch.setattr(type(main), "get_command", lambda *_: failing)
    result = cli("doctor")
    assert result.exit_code == code
    assert printed in result.stderr


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m models.cli doctor | head -c 1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr


def test_doctor_answers_in_json_what_the_table_shows(cli):
    report = json.loads(cli("doctor", "--json").stdout)
    table = cli("doctor").stdout
    for section, answers in report.items():
        assert section in table
        for question in answers:
            assert question.split()[0] in table
    assert report["packages"]["numpy"] == np.__version__
    assert report["processor"]["cores"] == os.cpu_count()


def test_doctor_never_fails(monkeypatch, cli):
    def broken(*_, **__):
        raise OSError("broken")

    monkeypatch.setattr(machine, "_run", broken)
    monkeypatch.setattr(machine, "_cpuinfo", broken)
    monkeypatch.setattr(machine, "_kernels", broken)
    monkeypatch.setattr(machine.importlib.metadata, "requires", broken)
    result = cli("doctor", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["compiler"]["C++"] is None
    assert report["processor"]["instruction sets"] is None
    assert cli("doctor").exit_code == 0
