"""What is said where there are no compiled kernels, since pip hides what a build prints."""

import importlib
import json
import sys

import pytest

from models import machine


@pytest.fixture
def no_kernels(monkeypatch):
    monkeypatch.setitem(sys.modules, "minitorch._cpu", None)  # what an import of it finds
    monkeypatch.delenv("MT_KERNELS", raising=False)


@pytest.mark.usefixtures("no_kernels")
def test_without_a_compiler_the_remedy_is_one(monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    assert "no C++20 compiler; get g++ or clang++" in machine.why_not_compiled()


@pytest.mark.usefixtures("no_kernels")
def test_with_a_compiler_the_remedy_is_to_ask_the_build(monkeypatch):
    monkeypatch.setattr(machine, "_compiles_cpp20", lambda: True)
    assert "MT_BUILD=1" in machine.why_not_compiled()


def test_kernels_that_do_not_load_say_why(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol: cosf")

    monkeypatch.setattr(importlib, "import_module", broken)
    assert "do not load: undefined symbol: cosf; install" in machine.why_not_compiled()


def test_with_kernels_nothing_is_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "minitorch._cpu", machine)
    assert machine.why_not_compiled() is None
    machine.note_missing_kernels()
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("no_kernels")
def test_train_and_sample_say_it_once_on_stderr(cli, tiny, tmp_path):
    trained = cli(*tiny, "--out", tmp_path / "run", "--json")
    assert trained.stderr.count("note: no compiled kernels") == 1
    json.loads(trained.stdout)
    sampled = cli("sample", "--checkpoint", tmp_path / "run", "--max-tokens", 3)
    assert sampled.stderr.count("note: no compiled kernels") == 1
    assert "note:" not in sampled.stdout
    assert "error" in (wrong := cli("sample", "--checkpoint", tmp_path / "nothing")).stderr
    assert "note:" not in wrong.stderr


@pytest.mark.usefixtures("no_kernels")
def test_who_asks_for_numpy_is_not_told(capsys, monkeypatch):
    monkeypatch.setenv("MT_KERNELS", "numpy")
    machine.note_missing_kernels()
    assert capsys.readouterr().err == ""
