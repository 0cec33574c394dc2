"""`minitorch bench`: what it writes. Its figures are its own business."""

import json

import pytest
from click.testing import CliRunner

from minitorch.kernels.cuda.extension import is_available
from minitorch.kernels.cuda.ladder import STEPS
from models.bench import ladder
from models.bench.step import SIZES
from models.cli import main
from models.families import FAMILIES
from tests.benchmarks import families, peer
from tests.cuda import cupy_of_numpy


def test_memory_of_a_step(tmp_path):
    arguments = ["bench", "memory", "--peers", "", "--only", "nano float32"]
    done = CliRunner().invoke(main, [*arguments, "--json", str(tmp_path / "memory.json")])
    assert done.exit_code == 0, done.output
    assert "peak of a process" in done.output
    (result,) = json.loads((tmp_path / "memory.json").read_text())["results"]
    assert result["case"] == "nano float32"
    weights = 4 * SIZES["nano"][0].num_parameters()  # each with a gradient and two moments
    assert 4 * weights < result["bytes"]["minitorch"] < 40 * weights


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["memory", "--device", "cuda"], "among attention, norms, step; got memory"),
        (["--device", "simt"], "the emulator's time says nothing of a GPU's"),
    ],
)
def test_devices_that_cannot_be_timed(arguments, message):
    done = CliRunner().invoke(main, ["bench", *arguments])
    assert done.exit_code == 1
    assert message in done.output


def test_a_suite_on_the_device(tmp_path):
    pytest.importorskip("minitorch._simt", reason="no C++20 compiler at installation")
    arguments = ["norms", "--device", "cuda", "--peers", "", "--only", "silu 768x128"]
    with cupy_of_numpy.installed():
        done = CliRunner().invoke(main, ["bench", *arguments, "--rounds", "1"])
    assert done.exit_code == 0, done.output
    assert "silu 768x128" in done.output


@pytest.mark.skipif(not is_available("simt"), reason="minitorch._simt was not built")
def test_the_ladder_in_the_emulator(monkeypatch):
    monkeypatch.setitem(ladder._SIZES, "simt", 16)
    done = CliRunner().invoke(main, ["bench", "matmul", "--ladder"])
    assert done.exit_code == 0, done.output
    steps = [line.split()[0] for line in done.output.splitlines() if "float" in line]
    assert steps == list(STEPS)


@pytest.mark.parametrize("script", [families, peer], ids=lambda script: script.__name__)
def test_benchmarks_of_models_run_in_small(script, tmp_path, monkeypatch):
    target = tmp_path / "result.json"
    monkeypatch.setattr("sys.argv", ["-m", "--quick", "--rounds", "1", "--json", str(target)])
    for name in script.QUICK.keys() & vars(script).keys():
        monkeypatch.setattr(script, name, getattr(script, name))  # to be put back
    script.main()
    content = json.loads(target.read_text())
    assert content["command"].startswith(f"python -m {script.__name__}")
    assert all(row["seconds"]["minitorch"] > 0 for row in content["results"])
    if script is families:
        assert content["scores"].keys() == FAMILIES.keys()
        assert content["scores"]["gpt2"]["score"] == 1
    else:
        assert all(row["memory"]["minitorch"]["held"] > 0 for row in content["results"])


def test_the_ladder_is_of_matrix_products():
    done = CliRunner().invoke(main, ["bench", "norms", "--ladder"])
    assert done.exit_code == 1
    assert "say bench matmul --ladder" in done.output
