"""What accesses cost, as the rules of the hardware say, on kernels that can be counted on paper."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from minitorch import kernels
from minitorch.backend import SimtArray
from minitorch.kernels.cuda.extension import is_available
from minitorch.kernels.cuda.ladder import LADDER, matmul_step
from minitorch.kernels.cuda.traffic import Traffic, counted, parse_traffic
from models.commands.simt import simt
from models.emulation import compile_program

SOURCE = Path(__file__).with_name("counts.cu")
COSTS = re.compile(r"// costs (shared|global) (\d+) of (\d+)")


def expected():
    """Name of a kernel -> [(line, memory, transfers, least)], as its lines are marked."""
    marks, name = {}, ""
    for number, line in enumerate(SOURCE.read_text().splitlines(), 1):
        if found := re.search(r"__global__ void (\w+)\(", line):
            name = found[1]
        if found := COSTS.search(line):
            memory, transfers, least = found.groups()
            marks.setdefault(name, []).append((number, memory, int(transfers), int(least)))
    return {name: lines for name, lines in marks.items() if name}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compile_program(SOURCE, tmp_path_factory.mktemp("counts"))


@pytest.mark.parametrize("order", ["forward", "reversed", "random"])
@pytest.mark.parametrize("name", expected())
def test_every_line_costs_what_the_rules_say(program, tmp_path, name, order):
    path = tmp_path / "counts.json"
    environment = os.environ | {"SIMT_COUNTS": str(path), "SIMT_ORDER": order}
    subprocess.run([program, name], env=environment, check=True, timeout=60)
    traffic = parse_traffic(path.read_text())
    assert {row.kernel for row in traffic} == {name}
    assert {row.file for row in traffic} == {str(SOURCE)}
    found = [(row.line, row.memory, row.transfers, row.least) for row in traffic]
    assert found == expected()[name]


def test_requests_and_lanes_of_a_line(program, tmp_path):
    path = tmp_path / "counts.json"
    subprocess.run([program, "misaligned"], env=os.environ | {"SIMT_COUNTS": str(path)}, check=True)
    read = parse_traffic(path.read_text())[0]
    assert (read.access, read.bytes, read.requests) == ("read", 4, 1)
    assert read.lanes == tuple(range(4, 132, 4))
    assert read.efficiency == 0.8
    assert read.conflicts == 0


def test_the_command_prints_a_table_and_writes_json(tmp_path):
    path = tmp_path / "found.json"
    command = ["run", str(SOURCE), "--counts", "--json", str(path), "--", "transpose_shared"]
    done = CliRunner().invoke(simt, command)
    assert done.exit_code == 0, done.output
    number, _, transfers, least = expected()["transpose_shared"][2]
    row = next(line for line in done.output.splitlines() if f"counts.cu:{number} " in line)
    assert row.split() == [
        *("transpose_shared", f"counts.cu:{number}", "read", "shared,", "4", "B"),
        *("32", f"{transfers:,}", f"{transfers - least}", "3.1%"),
    ]
    written = json.loads(path.read_text())
    assert written["findings"] == []
    assert [row["transfers"] for row in written["traffic"]] == [128, 32, 1024, 128]


def test_a_program_in_which_something_is_found_is_counted_all_the_same(tmp_path):
    path = tmp_path / "found.json"
    zoo = str(SOURCE.with_name("zoo.cu"))
    command = ["run", zoo, "--counts", "--json", str(path), "--", "missing_barrier", "wrong"]
    assert CliRunner().invoke(simt, command).exit_code == 1
    written = json.loads(path.read_text())
    assert {finding["kind"] for finding in written["findings"]} == {"race", "uninitialised"}
    assert {row["kernel"] for row in written["traffic"]} == {"missing_barrier<wrong>"}


def test_there_are_no_counts_without_the_checks():
    done = CliRunner().invoke(simt, ["run", str(SOURCE), "--counts", "--unchecked"])
    assert done.exit_code == 2
    assert "leave out --unchecked" in done.output


needs_emulator = pytest.mark.skipif(
    not is_available("simt"), reason="minitorch._simt was not built"
)


def product(step, m, n, k):
    a, b = (np.ones(shape, np.float32).view(SimtArray) for shape in ((m, k), (k, n)))
    with matmul_step(step), counted() as traffic:
        kernels.lookup("matmul", "simt")(a, b)
    return traffic


def total(traffic, memory, access):
    return sum(row.transfers for row in traffic if (row.memory, row.access) == (memory, access))


@needs_emulator
def test_counts_of_the_projects_kernels():
    """At each of 32 steps each of 32 warps reads a column of A, 32 sectors, and a number of B."""
    naive = product("naive", 32, 32, 32)
    assert {row.kernel for row in naive} == {"naive<float, float>"}
    assert {Path(row.file).name for row in naive} == {"matmul.cu", "product.h"}
    assert total(naive, "global", "read") == 32 * 32 * (32 + 1)
    assert total(naive, "global", "write") == 32 * 32
    coalesced = product("coalesced", 32, 32, 32)
    assert total(coalesced, "global", "read") == 32 * 32 * (1 + 4)
    assert total(coalesced, "global", "write") == 32 * 4
    shared = product("shared", 32, 32, 32)
    assert total(shared, "global", "read") == 2 * 32 * 4
    assert total(shared, "shared", "read") == 2 * 32 * 32
    assert sum(row.conflicts for row in shared) == 0


@needs_emulator
@pytest.mark.parametrize("step", LADDER["matmul"])
def test_products_have_no_bank_conflicts(step):
    traffic = product(step, 128, 128, 32)
    assert [row for row in traffic if row.conflicts] == []


@needs_emulator
def test_nothing_is_counted_that_was_not_asked_for():
    product("naive", 8, 8, 8)
    with counted() as traffic:
        pass
    assert traffic == []


@needs_emulator
def test_copies_of_lanes_are_counted():
    """cp.async: kDepth = 8 rows of B, 64 numbers each, 16 bytes a lane; A's number by number."""
    buffered = product("buffered", 64, 64, 8)
    copies = [row for row in buffered if row.access == "read" and row.memory == "global"]
    assert [(row.bytes, row.requests, row.transfers) for row in copies] == [
        (16, 4, 64),
        (4, 16, 64),
    ]


def test_conflicts_are_of_shared_memory_alone():
    row = Traffic("k", "f", 1, "global", "read", 4, 1, 32, 4, (None,) * 32)
    assert (row.conflicts, row.efficiency) == (0, 0.125)
