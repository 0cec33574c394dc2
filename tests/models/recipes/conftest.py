"""A base model too small to know anything, and the command line."""

import contextlib
import json

import numpy as np
import pytest

from minitorch.random import Generator
from minitorch.tokenizers import CharTokenizer
from models import checkpoints
from models.families import FAMILIES
from models.recipes.loop import Stopped, fit
from models.runlog import RunLog
from tests.models.conftest import run_cli

ALPHABET = "abcdefghijklmnopqrstuvwxyz =+-0123456789\nABCDEF"
TIMINGS = {"tokens_per_second", "elapsed", "peak_memory"}


def write_base(folder, family="llama", alphabet=ALPHABET, positions=32, seed=1):
    sizes = FAMILIES[family].sized(
        vocab_size=len(alphabet), layers=1, heads=2, width=16, positions=positions
    )
    sizes.build(np.float32, Generator(seed)).save_pretrained(folder)
    CharTokenizer(sorted(alphabet)).save(folder / "tokenizer.json")
    return folder


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_lines(path):
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def cli():
    return run_cli


class Silent:
    def __getattr__(self, _):
        return lambda *_: None


def train(recipe, out, stop=lambda: False):
    """Run to the end or to where stop() says; the rows of the log, without what a clock says."""
    out.mkdir(exist_ok=True)
    with RunLog(out, recipe.step, recipe.best_by, recipe.higher_is_better) as log:
        with contextlib.suppress(Stopped):
            fit(recipe, log, out / "checkpoints", Silent(), stop)
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in log.rows]


def assert_going_on_changes_nothing(make, folder, stop_at=3):
    """A run that was stopped and went on is, to the bit, one that never was."""
    whole = make()
    rows = train(whole, folder / "whole")
    first = make()
    train(first, folder / "parts", stop=lambda: first.step == stop_at)
    assert first.step == stop_at
    second = make()
    second.restore(checkpoints.load(checkpoints.newest(folder / "parts")))
    assert train(second, folder / "parts") == rows
    assert second.history == whole.history
    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value.numpy(), theirs[name].numpy(), name)
    return whole


@pytest.fixture(scope="session")
def answering(tmp_path_factory):
    """A base that knows the special tokens of a template, and nothing else."""
    folder = tmp_path_factory.mktemp("answering")
    sizes = FAMILIES["llama"].sized(
        vocab_size=len(ALPHABET) + 1, layers=1, heads=2, width=16, positions=32
    )
    sizes.build(np.float32, Generator(2)).save_pretrained(folder)
    CharTokenizer(sorted(ALPHABET), ["<|endoftext|>"]).save(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="session")
def preferences(tmp_path_factory):
    """Words with an "a" are preferred to those without."""
    draw = np.random.default_rng(0)
    rows = [
        {
            "prompt": f"{i}=",
            "chosen": "a" + "".join(draw.choice(list("bcd"), 2)),
            "rejected": "".join(draw.choice(list("bcd"), int(draw.integers(2, 6)))),
            "margin": float(draw.integers(0, 3)),
        }
        for i in range(40)
    ]
    return write_rows(tmp_path_factory.mktemp("preferences") / "rows.jsonl", rows)
