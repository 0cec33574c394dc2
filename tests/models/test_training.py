"""Training: resuming gives the same bits, accumulation the same step, divergence an error."""

import contextlib

import numpy as np
import pytest

import minitorch as mt
from minitorch.backend import device_of
from minitorch.errors import CheckpointError
from minitorch.kernels.cuda.extension import is_available
from models import checkpoints
from models.config import TrainConfig
from models.corpus import prepare
from models.display import Plain
from models.optimization import build_optimizer, build_schedule
from models.recipes.loop import Stopped, fit
from models.recipes.recipe import DivergenceError
from models.runlog import RunLog
from models.training import Run
from tests.cuda import cupy_of_numpy

from .conftest import TINY

TIMINGS = {"tokens_per_second", "elapsed", "peak_memory"}


def make(text_file, **changes):
    config = TrainConfig(**{**TINY, "data": str(text_file), **changes})
    return Run(config, prepare(config))


class Silent:
    def __getattr__(self, _):
        return lambda *_: None


def train(run, out, stop=lambda: False):
    out.mkdir(exist_ok=True)
    with RunLog(out, run.step) as log:
        with contextlib.suppress(Stopped):
            fit(run, log, out / "checkpoints", Silent(), stop)
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in log.rows]


def assert_same(one, two):
    """All that a later step depends on, and the history, are the same bits."""
    assert one.losses == two.losses
    assert one.loader.state_dict() == two.loader.state_dict()
    pairs = [
        (one.model.state_dict(), two.model.state_dict()),
        (one.optimizer.state_dict()["state"], two.optimizer.state_dict()["state"]),
    ]
    if one.ema is not None:
        pairs.append((one.ema.state_dict(), two.ema.state_dict()))
    for ours, theirs in pairs:
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            np.testing.assert_array_equal(np.asarray(value), np.asarray(theirs[name]), name)


@pytest.mark.parametrize(
    ("stop_at", "changes"),
    [
        (1, {}),
        (2, {}),
        (3, {"dropout": 0.2, "bias": False, "ema_decay": 0.9, "optimizer": "adamw"}),
        (3, {"gradient_accumulation": 3, "optimizer": "lion", "schedule": "wsd"}),
        (5, {"optimizer": "adafactor", "tokenizer": "bpe", "vocab_size": 260}),
        (5, {"optimizer": "sgd", "tokenizer": "byte", "grad_clip": 0.0, "schedule": "constant"}),
    ],
)
def test_a_resumed_run_is_the_run_that_never_stopped(text_file, tmp_path, stop_at, changes):
    whole = make(text_file, **changes)
    rows = train(whole, tmp_path / "whole")
    random_state = mt.random.get_rng_state()

    first = make(text_file, **changes)
    train(first, tmp_path / "parts", stop=lambda: first.step == stop_at)
    assert first.step == stop_at
    mt.manual_seed(999)
    second = make(text_file, **changes)
    second.restore(checkpoints.load(checkpoints.newest(tmp_path / "parts")))
    assert_same(first, second)
    assert train(second, tmp_path / "parts") == rows
    assert_same(whole, second)
    assert mt.random.get_rng_state() == random_state


def test_stopping_during_an_evaluation_loses_no_row(text_file, tmp_path):
    rows = train(make(text_file), tmp_path / "whole")
    first = make(text_file)
    # The evaluation after step 2 is entered without stop() being true, and then it is.
    answers = iter([False, False, True])
    train(first, tmp_path / "parts", stop=lambda: next(answers, True) if first.step == 2 else False)
    assert first.step == 2
    second = make(text_file)
    second.restore(checkpoints.load(checkpoints.newest(tmp_path / "parts")))
    assert train(second, tmp_path / "parts") == rows


def test_the_best_and_the_newest_checkpoints_stay(text_file, tmp_path):
    run = make(text_file, steps=12, keep_checkpoints=1)
    losses = iter([3.0, 1.0, 2.0, 2.5, 1.5, 1.2])
    run.evaluate = lambda stop: {"val_loss": next(losses)}
    train(run, tmp_path)
    kept = [path.name for path in checkpoints.steps(tmp_path / "checkpoints")]
    assert kept == ["step-00000004", "step-00000012"]
    best = checkpoints.model_folder(tmp_path, best=True)
    assert best.name == "step-00000004"
    assert checkpoints.model_folder(tmp_path).name == "step-00000012"


def test_evaluation_changes_nothing(text_file):
    one, two = make(text_file, dropout=0.3), make(text_file, dropout=0.3)
    mt.manual_seed(3)
    one.train_step()
    mt.manual_seed(3)
    two.evaluate()
    two.train_step()
    two.evaluate()
    assert_same(one, two)


def test_the_average_of_the_weights_is_what_is_evaluated_and_exported(text_file, tmp_path):
    run = make(text_file, ema_decay=0.99)
    for _ in range(3):
        run.train_step()
    raw = run.model.wte.weight.data.copy()
    with run.ema.applied():
        averaged = run.model.wte.weight.data.copy()
    run.export(tmp_path)
    exported = type(run.model).from_pretrained(tmp_path).wte.weight.data
    np.testing.assert_array_equal(exported, averaged)
    np.testing.assert_array_equal(run.model.wte.weight.data, raw)
    assert (raw != averaged).any()


def test_accumulation_is_one_large_batch(text_file):
    one = make(text_file, batch_size=8, gradient_accumulation=1)
    two = make(text_file, batch_size=2, gradient_accumulation=4)
    losses = np.array([[run.train_step()["loss"] for _ in range(4)] for run in (one, two)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert one.history["grad_norm"] == pytest.approx(two.history["grad_norm"], rel=1e-3)


def test_the_gradient_is_clipped_to_its_norm(text_file):
    run = make(text_file, optimizer="sgd", beta1=0.0, grad_clip=0.01, weight_decay=0.0)
    before = {name: p.data.copy() for name, p in run.model.named_parameters()}
    lr = run.learning_rate
    run.train_step()
    moved = [p.data - before[name] for name, p in run.model.named_parameters()]
    assert run.history["grad_norm"][-1] > 0.01
    assert sum((m**2).sum() for m in moved) ** 0.5 == pytest.approx(0.01 * lr, rel=1e-2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion", "adafactor", "sgd"])
def test_vectors_are_not_decayed(text_file, optimizer):
    run = make(text_file, optimizer=optimizer, weight_decay=0.3, muon_weight_decay=0.2)
    groups = build_optimizer(run.config, run.model).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(run.model.parameters()))
    for group in groups:
        for param in group["params"]:
            decay = 0.2 if group.get("name") == "matrices" else 0.3
            assert group["weight_decay"] == (decay if param.ndim == 2 else 0.0)


@pytest.mark.parametrize(
    ("schedule", "at_end"), [("cosine", 0.25), ("linear", 0.25), ("wsd", 0.25), ("constant", 1.0)]
)
def test_schedules_rise_and_fall(schedule, at_end):
    config = TrainConfig(steps=100, warmup_fraction=0.1, final_fraction=0.25, schedule=schedule)
    factor = build_schedule(config)
    assert 0 < factor(0) < factor(5) < factor(10) == 1
    assert factor(99) == pytest.approx(at_end, abs=0.05)
    assert factor(100) == pytest.approx(at_end)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, at the infinity
def test_divergence_stops_before_the_weights_are_spoilt(text_file):
    run = make(text_file)
    run.train_step()
    with mt.no_grad():
        run.model.ln_f.weight.fill_(float("inf"))
    before = run.model.wte.weight.data.copy()
    with pytest.raises(DivergenceError, match="step 2: the loss is nan"):
        run.train_step()
    assert run.step == 1
    np.testing.assert_array_equal(run.model.wte.weight.data, before)
    with pytest.raises(DivergenceError, match="step 1: the validation loss is nan"):
        run.evaluate()


def test_another_text_is_not_gone_on_with(text_file, tmp_path):
    train(make(text_file), tmp_path / "out")
    text_file.write_text(text_file.read_text().replace("plus", "PLUS"))
    run = make(text_file)
    with pytest.raises(CheckpointError, match="the text has changed since"):
        run.restore(checkpoints.load(checkpoints.newest(tmp_path / "out")))


def test_the_model_learns(text_file):
    run = make(text_file, steps=100, n_embd=32)
    first = run.evaluate()["val_loss"]
    for _ in range(100):
        run.train_step()
    assert first == pytest.approx(np.log(run.corpus.tokenizer.vocab_size), abs=0.3)
    assert run.evaluate()["val_loss"] < 1.8


def test_plain_progress_is_a_line_for_each_evaluation(capsys):
    from rich.console import Console

    show = Plain(Console(), 0, 100, Run.columns)
    show.step(1, {"train_loss": 3.0}, 100.0)
    show.evaluated(
        {
            "step": 2,
            "train_loss": 3.0,
            "val_loss": 2.5,
            "bits_per_byte": 3.6,
            "tokens_per_second": 1234.5,
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["step      2  train 3.0000  val 2.5000  3.600 bits/byte  1,234 tok/s"]


needs_emulator = pytest.mark.skipif(
    not is_available("simt"), reason="minitorch._simt was not built: no C++20 compiler"
)


@needs_emulator
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_on_the_device_has_the_losses_of_the_cpu(text_file, tmp_path, precision):
    changes = {"optimizer": "adamw", "ema_decay": 0.9, "precision": precision}
    runs = {device: make(text_file, **changes, device=device) for device in ("cpu", "simt")}
    for device, run in runs.items():
        mt.manual_seed(run.config.seed)
        train(run, tmp_path / device)
    on_device = runs["simt"]
    assert {p.device for p in on_device.model.parameters()} == {"simt"}
    assert {device_of(x) for x in on_device.ema.averages} == {"simt"}
    moments = [x for state in on_device.optimizer.state.values() for x in state.values()]
    assert {device_of(x) for x in moments if hasattr(x, "dtype")} == {"simt"}
    tolerance = 1e-5 if precision == "float32" else 5e-3
    np.testing.assert_allclose(on_device.losses, runs["cpu"].losses, rtol=tolerance)


@needs_emulator
@pytest.mark.parametrize("order", [("cpu", "simt"), ("simt", "cpu")], ids="-".join)
def test_a_run_goes_on_on_another_device(text_file, tmp_path, order):
    changes = {"optimizer": "muon", "ema_decay": 0.9}
    whole = make(text_file, **changes)
    train(whole, tmp_path / "whole")
    first = make(text_file, **changes, device=order[0])
    train(first, tmp_path / "parts", stop=lambda: first.step == 3)
    second = make(text_file, **changes, device=order[1])
    second.restore(checkpoints.load(checkpoints.newest(tmp_path / "parts")))
    train(second, tmp_path / "parts")
    assert {p.device for p in second.model.parameters()} == {order[1]}
    np.testing.assert_allclose(second.losses, whole.losses, rtol=1e-5)


@needs_emulator
@pytest.mark.parametrize("changes", [{"optimizer": "muon"}, {"dropout": 0.1}])
def test_a_captured_run_is_the_run_that_is_not(text_file, tmp_path, changes):
    changes = {"optimizer": "adamw", "n_layer": 1, "device": "cuda", **changes}
    with cupy_of_numpy.installed():
        one = make(text_file, **changes, cuda_graph=False)
        rows = train(one, tmp_path / "one")
        two = make(text_file, **changes)
        assert train(two, tmp_path / "two", stop=lambda: two.step == 4) != rows
        three = make(text_file, **changes)
        three.restore(checkpoints.load(checkpoints.newest(tmp_path / "two")))
        assert train(three, tmp_path / "two") == rows
        assert_same(three, one)
