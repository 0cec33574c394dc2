"""Ranks that are in different calls at once; what is found when their steps are less careful."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from models.emulation import compile_program

PROGRAM = Path(__file__).with_name("ranks.cu")
COLLECTIVES = Path(__file__).parents[2] / "csrc" / "cuda" / "collectives.cu"
SCHEDULES = [("forward", 1), ("reversed", 2), *(("random", seed) for seed in range(3, 9))]

MUTANTS = {
    "a flag that is not a release": (
        "ptx::store_release(&flags(other).from[spaces_.rank], number_)",
        "*static_cast<volatile uint32_t*>(&flags(other).from[spaces_.rank]) = number_",
    ),
    "a flag of the last call": (
        "int32_t(ptx::load_acquire(theirs) - number_) < 0",
        "ptx::load_acquire(theirs) == 0",
    ),
    "one half": ("(number_ + ahead) % 2", "0 * ahead"),
    "buffers that move with the number of blocks": (
        "2 * blockIdx.x + (number_",
        "2 * (gridDim.x - 1 - blockIdx.x) + (number_",
    ),
    "a ring that begins with a meeting of neighbours": ("bool first = true", "bool first = false"),
}


def run(program, folder, order, seed):
    """What the program prints, and what the emulator finds."""
    path = folder / "findings.json"
    environment = os.environ | {
        "SIMT_ORDER": order,
        "SIMT_SEED": str(seed),
        "SIMT_JSON": str(path),
    }
    command = [program, str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.stdout.strip(), json.loads(path.read_text())


def test_ranks_in_different_calls(tmp_path):
    program = compile_program(PROGRAM, tmp_path)
    for order, seed in SCHEDULES:
        assert run(program, tmp_path, order, seed) == ("right", [])


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_less_careful_steps_are_found_out(name, tmp_path):
    before, after = MUTANTS[name]
    source = COLLECTIVES.read_text()
    assert source.count(before) == 1
    mutant, copy = tmp_path / "mutant.cu", tmp_path / "ranks.cu"
    headers = [line.split('"')[1] for line in source.splitlines() if line.startswith('#include "')]
    for header in headers:
        source = source.replace(f'"{header}"', f'"{COLLECTIVES.with_name(header)}"')
    mutant.write_text(source.replace(before, after))
    copy.write_text(PROGRAM.read_text().replace('"../../csrc/cuda/collectives.cu"', f'"{mutant}"'))
    program = compile_program(copy, tmp_path)
    results = [run(program, tmp_path, order, seed) for order, seed in SCHEDULES]
    assert any(findings for _, findings in results)
