"""A run small enough to be trained in a test, and the command line without a process."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from models.cli import main

TEXT = "".join(f"{i} times {i} is {i * i}, and {i} plus {i} is {2 * i}.\n" for i in range(80))
TINY = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 8,
    "batch_size": 4,
    "steps": 6,
    "eval_interval": 2,
    "eval_tokens": 64,
    "checkpoint_interval": 2,
    "sample_tokens": 20,
}


def write_text(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def arguments(text_file: Path) -> list[str]:
    settings = [argument for item in TINY.items() for argument in ("--set", "{}={}".format(*item))]
    return ["train", "--data", str(text_file), *settings]


def run_cli(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    return write_text(tmp_path)


@pytest.fixture
def tiny(text_file: Path) -> list[str]:
    """Arguments of a training run of some milliseconds."""
    return arguments(text_file)


@pytest.fixture
def cli():
    """cli("train", "--set", ...) → click's result: exit_code, stdout, stderr."""
    return run_cli


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert run_cli(*arguments(write_text(folder)), "--out", folder / "run").exit_code == 0
    return folder / "run"


@pytest.fixture
def whole(trained_once: Path, tmp_path: Path) -> Path:
    """The folder of a tiny run that was not interrupted; each test has its own copy."""
    return Path(shutil.copytree(trained_once, tmp_path / "whole"))
