"""A result that depends on the schedule is found, and the schedule made as simple as can be."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import minitorch as mt
from minitorch import kernels
from minitorch.backend import SimtArray
from minitorch.kernels.cuda.extension import checked, is_available
from models.commands.simt import simt
from models.emulation import compile_program
from tests.simt.schedules import schedule_that_matters

SOURCE = Path(__file__).with_name("order.cu")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compile_program(SOURCE, tmp_path_factory.mktemp("order"))


def output(program, name, schedule, **more):
    choices = ",".join(map(str, schedule))
    environment = os.environ | {"SIMT_CHOICES": choices} | more
    command = [program, name]
    return subprocess.run(command, env=environment, capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("name", "simplest"),
    [
        ("first_come", [1]),  # thread 1 before thread 0
        ("rounded_sum", [2]),  # 1 before 1e8; after either of them it is lost in both orders
        ("last_block", [3]),  # block 3, the last one to write, first
    ],
)
def test_what_depends_on_the_schedule_is_found_and_shrunk(program, name, simplest):
    """What hypothesis ends with depends on where it began; one choice would do, two are few."""
    found = schedule_that_matters(lambda schedule: output(program, name, schedule))
    assert len(found) <= 2
    for schedule in (found, simplest):
        assert output(program, name, schedule) != output(program, name, [])


@pytest.mark.parametrize("name", ["own_place", "whole_sum"])
def test_what_does_not_depend_on_it_is_left_alone(program, name):
    assert schedule_that_matters(lambda schedule: output(program, name, schedule), tries=20) is None


def turns(program, name, schedule, path, order="forward"):
    output(program, name, schedule, SIMT_TURNS=str(path), SIMT_ORDER=order)
    return [(turn["block"][0], turn["thread"]) for turn in json.loads(path.read_text())]


def test_the_choices_come_first_and_then_the_order(program, tmp_path):
    path = tmp_path / "turns.json"
    forward = [(0, i) for i in range(64)]
    assert turns(program, "first_come", [], path) == forward
    assert turns(program, "first_come", [], path, "reversed") == forward[::-1]
    # The second choice is of those that are left, of which thread 6 is number 5.
    rest = [(0, i) for i in range(64) if i not in (3, 6)]
    assert turns(program, "first_come", [3, 5], path) == [(0, 3), (0, 6), *rest]
    assert turns(program, "first_come", [64 + 3], path)[0] == (0, 3)


def test_blocks_are_chosen_by_the_same_list(program, tmp_path):
    found = turns(program, "last_block", [2, 0], tmp_path / "turns.json")
    assert [block for block, _ in found[::32]] == [2, 0, 1, 3]
    assert [thread for _, thread in found[:4]] == [2, 0, 1, 3]


def test_the_command_takes_choices(capfd):
    done = CliRunner().invoke(simt, ["run", str(SOURCE), "--choices", "2,0", "--", "first_come"])
    assert done.exit_code == 0, done.output
    assert capfd.readouterr().out.startswith("2 0 1 3 4 ")


RNG = np.random.default_rng(0)
X, Y = (RNG.standard_normal(shape).astype(mt.float32) for shape in ((9, 20), (20, 17)))
CALLS = {
    "matmul": ((X, Y), {}),
    "softmax": ((X,), {}),
    "logsumexp": ((X,), {}),
    "embedding_backward": ((X, RNG.integers(0, 4, 9)), {"num_embeddings": 4}),
    "moe_places": ((RNG.integers(0, 3, (9, 2)),), {"num_experts": 3}),
}


@pytest.mark.skipif(not is_available("simt"), reason="minitorch._simt was not built")
@pytest.mark.parametrize("name", CALLS)
def test_the_projects_kernels_do_not_depend_on_the_schedule(name):
    given, options = CALLS[name]
    arrays = [x.view(SimtArray) for x in given]

    def run(schedule):
        with checked(choices=schedule):
            found = kernels.lookup(name, "simt")(*arrays, **options)
        return [x.tobytes() for x in (found if isinstance(found, tuple) else (found,))]

    assert schedule_that_matters(run, tries=12) is None
