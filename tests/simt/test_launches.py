"""What a launch may ask for, the errors where it asks for more, and what a program is made of."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from models import emulation
from models.emulation import EMULATOR, compile_program

TOO_LARGE = "too many threads for a cooperative launch"


def test_errors_of_launches_and_ranks_in_clusters(tmp_path):
    program = compile_program(Path(__file__).with_name("launches.cu"), tmp_path)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines == [*["invalid argument"] * 4, *[TOO_LARGE] * 2, "no error", "0", "11", "2", "13"]
    assert "simt: launch: the clusters do not divide the grid" in done.stderr
    assert "at most 16384 threads run at once, and 32768 are to" in done.stderr


def test_variables_may_have_the_names_of_what_is_built_in(tmp_path):
    program = compile_program(Path(__file__).with_name("names.cu"), tmp_path)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "0", "1", "2", "100", "101", "102", "14"]


def test_the_emulator_is_compiled_once_where_no_build_has_it(tmp_path, monkeypatch):
    compiled = []

    def run(command, what):
        compiled.append(what)
        Path(command[-1]).touch()

    monkeypatch.setattr(emulation, "_run", run)
    monkeypatch.setattr(emulation, "CHECKOUT", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    objects = emulation._emulator_objects(["g++"])
    assert sorted(compiled) == [f"compiling {path}" for path in sorted(EMULATOR.glob("*.cpp"))]
    assert emulation._emulator_objects(["g++"]) == objects
    assert len(compiled) == len(objects)


def test_a_build_serves_until_the_source_changes(tmp_path, monkeypatch):
    sources = sorted(EMULATOR.glob("*.cpp"))
    monkeypatch.setattr(emulation, "CHECKOUT", tmp_path)
    assert emulation._built(sources) == []
    platform = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    folder = tmp_path / "build" / platform / "simt"
    folder.mkdir(parents=True)
    for source in sources:
        (folder / f"{source.stem}.o").touch()
    assert [path.stem for path in emulation._built(sources)] == [path.stem for path in sources]
    os.utime(folder / "machine.o", (0, 0))
    assert emulation._built(sources) == []
