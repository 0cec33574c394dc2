"""The emulator finds what is wrong with each kernel of the zoo, and nothing about its twin."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from models.emulation import compile_program

ZOO = Path(__file__).with_name("zoo.cu")
SCHEDULES = [("forward", 0), ("reversed", 0), ("random", 1), ("random", 2)]
SOURCE = ZOO.read_text().splitlines()
KERNEL = re.compile(r"__global__ void (\w+)(<false>)?\(")


def expected():
    """Name of a kernel -> the findings that its lines are marked with, (kind, line)."""
    marks, name = {}, ""
    for number, line in enumerate(SOURCE, 1):
        if found := KERNEL.search(line):
            name = found[1]
        if "// finds " in line and name:
            kinds = line.split("// finds ")[1]
            for kind in re.findall(
                "race|uninitialised|out of bounds|misaligned|divergent barrier|deadlock|"
                "wrong mask|wrong barrier|missing fence|double arrival",
                kinds,
            ):
                marks.setdefault(name, set()).add((kind, number))
    return marks


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    program = compile_program(ZOO, folder)

    def run(name, version, order, seed):
        path = folder / "findings.json"
        path.unlink(missing_ok=True)
        environment = os.environ | {
            "SIMT_ORDER": order,
            "SIMT_SEED": str(seed),
            "SIMT_JSON": str(path),
        }
        done = subprocess.run([program, name, version], env=environment, timeout=60)
        findings = json.loads(path.read_text())
        assert done.returncode == (1 if findings else 0)
        return findings

    return run


@pytest.mark.parametrize("name", expected())
def test_each_fault_is_found_at_its_line(zoo, name):
    for order, seed in SCHEDULES:
        findings = zoo(name, "wrong", order, seed)
        found = {(f["kind"], f["line"]) for f in findings}
        assert found & expected()[name], f"{order} {seed}: {findings}"
        assert found <= expected()[name], f"{order} {seed}: {findings}"
        assert all(f["file"] == str(ZOO) for f in findings)


@pytest.mark.parametrize("name", expected())
def test_nothing_is_found_in_its_twin(zoo, name):
    for order, seed in SCHEDULES:
        assert zoo(name, "right", order, seed) == []
