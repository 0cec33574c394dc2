"""Optimizers, clipping and schedules against PyTorch's and transformers'."""

import numpy as np
import pytest

from minitorch import nn, optim
from minitorch.nn import Parameter
from minitorch.optim import schedules
from minitorch.tensor import Tensor

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")

SHAPES = [(5, 7), (7,), (3, 4, 2)]


def start(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def pair(shapes, dtype):
    """The same parameters here and in torch."""
    arrays = [array.astype(dtype) for array in start(shapes)]
    ours = [Parameter(array.copy()) for array in arrays]
    theirs = [torch.nn.Parameter(torch.from_numpy(array.copy())) for array in arrays]
    return ours, theirs


def descend(ours, theirs, optimizers, steps, clip=None, sparse=False):
    """Steps on the gradient of a quartic with noise, the same numbers for both sides.

    Gradients are computed from torch's parameters, so that the two never feed on rounding.
    """
    rng = np.random.default_rng(1)
    for step in range(steps):
        for mine, his in zip(ours, theirs, strict=True):
            weight = his.detach().numpy()
            grad = (weight**3 + 2 * rng.standard_normal(weight.shape)).astype(weight.dtype)
            if sparse and step % 3 == 1 and weight.ndim == 1:
                mine.grad = his.grad = None
                continue
            mine.grad, his.grad = Tensor(grad.copy()), torch.from_numpy(grad.copy())
        if clip is not None:
            norm = optim.clip_grad_norm_(ours, clip).item()
            assert norm == pytest.approx(
                torch.nn.utils.clip_grad_norm_(theirs, clip).item(), rel=1e-6
            )
        for optimizer in optimizers:
            optimizer.step()


def assert_equal(ours, theirs, tolerance):
    for mine, his in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.data, his.detach().numpy(), rtol=tolerance, atol=tolerance)


CASES = [
    ("SGD", {"lr": 0.01}),
    ("SGD", {"lr": 0.01, "momentum": 0.9}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.5}),
    ("Adafactor", {}),
    ("Adafactor", {"lr": 0.3, "weight_decay": 0.1, "d": 2.0, "eps": (1e-4, 1e-2)}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-11), (np.float32, 2e-6)])
def test_hundred_steps(name, options, dtype, tolerance):
    ours, theirs = pair(SHAPES, dtype)
    optimizers = [
        getattr(optim, name)(ours, **options),
        getattr(torch.optim, name)(theirs, **options),
    ]
    descend(ours, theirs, optimizers, steps=100, sparse=True)
    assert_equal(ours, theirs, tolerance)


def test_ten_steps_of_adamw_with_clipping():
    ours, theirs = pair(SHAPES, np.float32)
    options = {"lr": 1e-2, "weight_decay": 0.1}
    optimizers = [optim.AdamW(ours, **options), torch.optim.AdamW(theirs, **options)]
    descend(ours, theirs, optimizers, steps=10, clip=1.0)
    assert_equal(ours, theirs, 1e-6)


@pytest.mark.parametrize("options", [{}, {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"}])
@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)], ids=str)
def test_muon(shape, options, monkeypatch):
    """torch's Newton-Schulz steps are in bfloat16; here they are made to keep their precision."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
    ours, theirs = pair([shape], np.float64)
    optimizers = [
        optim.Muon(ours, lr=0.05, **options),
        torch.optim.Muon(theirs, lr=0.05, **options),
    ]
    descend(ours, theirs, optimizers, steps=20)
    assert_equal(ours, theirs, 1e-9)


def test_muon_is_near_the_one_in_bfloat16():
    ours, theirs = pair([(9, 4)], np.float32)
    optimizers = [optim.Muon(ours, lr=1.0), torch.optim.Muon(theirs, lr=1.0)]
    before = ours[0].data.copy()
    descend(ours, theirs, optimizers, steps=1)
    moved = np.linalg.norm(ours[0].data - before)
    assert np.linalg.norm(ours[0].data - theirs[0].detach().numpy()) < 0.05 * moved


def test_adafactor_is_the_one_of_transformers_too():
    """Where no gradient is near 0, the placement of eps1 makes no difference."""
    transformers = pytest.importorskip(
        "transformers.optimization", reason="peer not installed: pip install -e .[peers]"
    )
    ours, theirs = pair(SHAPES, np.float64)
    optimizers = [
        optim.Adafactor(ours, lr=1e-2),
        transformers.Adafactor(theirs, relative_step=True, scale_parameter=True, lr=None),
    ]
    descend(ours, theirs, optimizers, steps=50)
    assert_equal(ours, theirs, 1e-9)


def torch_factors(make, steps):
    """The learning rates of a torch scheduler over an optimizer of lr 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def test_few_rows_of_a_table_are_torchs_sparse_adam():
    rows, width = 9, 3
    table, theirs = nn.RowEmbedding(rows, width), torch.nn.Embedding(rows, width, sparse=True)
    theirs.weight.data.copy_(torch.from_numpy(table.weight.data.copy()))
    mine = optim.Adam(table.parameters(), lr=0.1, eps=1e-30)  # theirs adds eps elsewhere
    his = torch.optim.SparseAdam(theirs.parameters(), lr=0.1, eps=1e-30)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        indices = rng.integers(0, rows, (2, 2))
        cotangent = rng.standard_normal((2, 2, width)).astype(np.float32)
        mine.zero_grad(), his.zero_grad()
        (table(Tensor(indices)).square() * Tensor(cotangent)).sum().backward()
        found = theirs(torch.from_numpy(indices))
        (found.square() * torch.from_numpy(cotangent)).sum().backward()
        mine.step(), his.step()
    np.testing.assert_allclose(table.weight.data, theirs.weight.detach().numpy(), rtol=1e-4)


def test_cosine_and_linear_are_torchs():
    rates = torch.optim.lr_scheduler
    for schedule, make in [
        (
            schedules.cosine(30, final=0.1),
            lambda opt: rates.CosineAnnealingLR(opt, T_max=30, eta_min=0.1),
        ),
        (
            schedules.linear(30, final=0.2),
            lambda opt: rates.LinearLR(opt, start_factor=1, end_factor=0.2, total_iters=30),
        ),
    ]:
        got = [schedule(step) for step in range(31)]
        np.testing.assert_allclose(got, torch_factors(make, 31), rtol=1e-9)


def test_schedules_are_those_of_transformers_one_step_later_in_the_warmup():
    """Their warm-up of n + 1 steps begins at 0 and is ours of n steps from then on."""
    theirs = pytest.importorskip(
        "transformers.optimization", reason="peer not installed: pip install -e .[peers]"
    )
    warmup, total = 4, 30
    for schedule, make in [
        (
            schedules.linear(total, warmup),
            lambda opt: theirs.get_linear_schedule_with_warmup(opt, warmup + 1, total + 1),
        ),
        (
            schedules.cosine(total, warmup, final=0.0),
            lambda opt: theirs.get_cosine_schedule_with_warmup(opt, warmup + 1, total + 1),
        ),
        (
            schedules.inverse_sqrt(warmup),
            lambda opt: theirs.get_inverse_sqrt_schedule(opt, warmup + 1),
        ),
        (
            schedules.wsd(total, warmup, decay_steps=10),
            lambda opt: theirs.get_wsd_schedule(
                opt,
                num_warmup_steps=warmup + 1,
                num_decay_steps=10,
                num_stable_steps=total - warmup - 10,
                decay_type="linear",
            ),
        ),
    ]:
        factors = torch_factors(make, total + 2)
        assert factors[0] == 0
        got = [schedule(step) for step in range(total + 1)]
        np.testing.assert_allclose(got, factors[1:], rtol=1e-9, atol=1e-12)
