"""`minitorch bench`: what it writes. Its figures are its own business."""

import json

from click.testing import CliRunner

from models.bench.step import SIZES
from models.cli import main


def test_memory_of_a_step(tmp_path):
    arguments = ["bench", "memory", "--peers", "", "--only", "nano float32"]
    done = CliRunner().invoke(main, [*arguments, "--json", str(tmp_path / "memory.json")])
    assert done.exit_code == 0, done.output
    assert "peak of a process" in done.output
    (result,) = json.loads((tmp_path / "memory.json").read_text())["results"]
    assert result["case"] == "nano float32"
    weights = 4 * SIZES["nano"][0].num_parameters()  # each with a gradient and two moments
    assert 4 * weights < result["bytes"]["minitorch"] < 40 * weights
