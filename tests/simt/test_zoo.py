"""The emulator finds what is wrong with each kernel of the zoo, and nothing about its twin."""

import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from models.emulation import compile_program

ZOOS = [Path(__file__).with_name(name) for name in ("zoo.cu", "async.cu", "flags.cu")]
SCHEDULES = [("forward", 0), ("reversed", 0), ("random", 1), ("random", 2)]
KERNEL = re.compile(r"__global__ void (\w+)(<false>)?\(")


def expected(zoo):
    """Name of a kernel -> the findings that its lines are marked with, (kind, line)."""
    marks, name = {}, ""
    for number, line in enumerate(zoo.read_text().splitlines(), 1):
        if found := KERNEL.search(line):
            name = found[1]
        if "// finds " in line and name:
            kinds = line.split("// finds ")[1]
            for kind in re.findall(
                "race|uninitialised|out of bounds|misaligned|divergent barrier|deadlock|"
                "wrong mask|wrong barrier|missing fence|double arrival|absent warp",
                kinds,
            ):
                marks.setdefault(name, set()).add((kind, number))
    return marks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    compiled = cache(lambda zoo: compile_program(zoo, folder))

    def run(zoo, name, version, order, seed):
        path = folder / "findings.json"
        path.unlink(missing_ok=True)
        environment = os.environ | {
            "SIMT_ORDER": order,
            "SIMT_SEED": str(seed),
            "SIMT_JSON": str(path),
        }
        done = subprocess.run([compiled(zoo), name, version], env=environment, timeout=60)
        findings = json.loads(path.read_text())
        assert done.returncode == (1 if findings else 0)
        return findings

    return run


CASES = [pytest.param(zoo, name, id=name) for zoo in ZOOS for name in expected(zoo)]


@pytest.mark.parametrize(("zoo", "name"), CASES)
def test_each_fault_is_found_at_its_line(run, zoo, name):
    for order, seed in SCHEDULES:
        findings = run(zoo, name, "wrong", order, seed)
        found = {(f["kind"], f["line"]) for f in findings}
        assert found & expected(zoo)[name], f"{order} {seed}: {findings}"
        assert found <= expected(zoo)[name], f"{order} {seed}: {findings}"
        assert all(f["file"] == str(zoo) for f in findings)


@pytest.mark.parametrize(("zoo", "name"), CASES)
def test_nothing_is_found_in_its_twin(run, zoo, name):
    for order, seed in SCHEDULES:
        assert run(zoo, name, "right", order, seed) == []
