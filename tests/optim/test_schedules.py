"""Schedules at the steps where they are easily off by one."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitorch.errors import CheckpointError, ConfigError
from minitorch.nn import Parameter
from minitorch.optim import SGD, LRScheduler
from minitorch.optim.schedules import constant, cosine, inverse_sqrt, linear, wsd

ALL = [
    constant(warmup_steps=4),
    linear(20, warmup_steps=4),
    cosine(20, warmup_steps=4),
    wsd(20, warmup_steps=4, decay_steps=5),
    inverse_sqrt(warmup_steps=4),
]


@pytest.mark.parametrize("schedule", ALL)
def test_warmup_starts_above_zero_and_reaches_one(schedule):
    assert [schedule(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert schedule(5) <= 1.0


def test_what_follows():
    assert constant(4)(10**6) == 1.0
    assert linear(20, 4)(12) == pytest.approx(0.5)
    assert linear(20, 4, final=0.5)(12) == pytest.approx(0.75)
    assert cosine(20, 4, final=0.1)(12) == pytest.approx(0.55)
    assert cosine(20, 4, final=0.1)(8) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    stable = wsd(20, 4, decay_steps=5)
    assert [stable(step) for step in (14, 15, 16, 19)] == pytest.approx([1.0, 1.0, 0.8, 0.2])
    assert inverse_sqrt(4)(19) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("schedule", "final"), [(linear(20, 4), 0.0), (cosine(20, 4), 0.1), (wsd(20, 4, 5, 0.2), 0.2)]
)
def test_the_end_is_final_and_stays(schedule, final):
    assert [schedule(step) for step in (20, 21, 1000)] == pytest.approx([final] * 3)
    assert schedule(19) > final


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.floats(0, 1))
def test_always_between_zero_and_one_and_falling_after_the_warmup(warmup, decay, rest, final):
    total = warmup + decay + rest
    for schedule in (
        linear(total, warmup, final),
        cosine(total, warmup, final),
        wsd(total, warmup, decay, final),
    ):
        factors = [schedule(step) for step in range(total + 3)]
        assert factors[0] > 0 or final == 0
        assert all(0 <= factor <= 1 for factor in factors)
        falling = factors[warmup:]
        assert all(b <= a + 1e-12 for a, b in itertools.pairwise(falling))


def test_wsd_can_be_prolonged():
    """Up to the decay, two runs of different length are the same."""
    short, long = wsd(100, 10, 20), wsd(1000, 10, 20)
    assert [short(step) for step in range(81)] == [long(step) for step in range(81)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: linear(5, warmup_steps=6),
        lambda: wsd(5, 3, 3),
        lambda: cosine(5, -1),
        lambda: cosine(5, final=1.5),
        lambda: linear(5, final=float("nan")),
        lambda: inverse_sqrt(-1),
    ],
)
def test_bad_schedules_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def optimizer():
    one, two = Parameter(np.zeros(2)), Parameter(np.zeros(2))
    return SGD([{"params": [one]}, {"params": [two], "lr": 2.0}], lr=1.0)


def lrs(opt):
    return [group["lr"] for group in opt.param_groups]


def test_scheduler_scales_every_group_from_its_own_lr():
    opt = optimizer()
    scheduler = LRScheduler(opt, cosine(10, 3))
    for step in range(12):
        assert lrs(opt) == scheduler.get_last_lr()
        assert lrs(opt) == pytest.approx([cosine(10, 3)(step), 2 * cosine(10, 3)(step)])
        scheduler.step()


@pytest.mark.parametrize("optimizer_first", [True, False])
def test_a_resumed_scheduler_is_at_the_same_step(optimizer_first):
    opt = optimizer()
    scheduler = LRScheduler(opt, wsd(10, 3, 3))
    for _ in range(4):
        scheduler.step()
    saved, opt_saved = json.loads(json.dumps(scheduler.state_dict())), opt.state_dict()

    other = optimizer()
    if optimizer_first:
        other.load_state_dict(opt_saved)
    resumed = LRScheduler(other, wsd(10, 3, 3))
    resumed.load_state_dict(saved)
    if not optimizer_first:
        other.load_state_dict(opt_saved)
    for _ in range(6):
        assert lrs(other) == lrs(opt)
        scheduler.step()
        resumed.step()
    assert lrs(other) == lrs(opt) == pytest.approx([0.0, 0.0])


def test_scheduler_of_another_optimizer_is_refused():
    opt = optimizer()
    scheduler = LRScheduler(opt, constant())
    with pytest.raises(CheckpointError, match="expected 2 groups"):
        scheduler.load_state_dict({"last_step": 3, "base_lrs": [1.0]})
    opt.add_param_group({"params": [Parameter(np.zeros(2))]})
    with pytest.raises(ConfigError, match="after adding"):
        scheduler.step()
