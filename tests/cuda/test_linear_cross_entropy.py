"""The head and its loss in chunks on the device, in the check build, against the reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import to_device
from minitorch.errors import ShapeError
from minitorch.kernels.cuda import linear_cross_entropy as wrapper
from minitorch.nn import functional as F

EVERYTHING = (True, True, True)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(wrapper._DEVICE, "least_rows", 4)
    monkeypatch.setattr(wrapper._DEVICE, "chunk_bytes", 0)


def sample(dtype, rows=11, classes=9, features=6):
    rng = np.random.default_rng(0)
    x, weight, bias = (
        rng.standard_normal(shape).astype(getattr(mt, dtype))
        for shape in ((rows, features), (classes, features), (classes,))
    )
    target = rng.integers(0, classes, rows)
    target[[0, 6]] = -100
    return x, weight, target, bias


def given(arrays):
    return [x for x in arrays if x is not None]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_against_the_reference(hold, monkeypatch, dtype, reduction):
    x, weight, target, bias = sample(dtype)
    ahead = EVERYTHING if reduction != "none" else (False,) * 3
    options = {"reduction": reduction, "label_smoothing": 0.1, "z_loss": 0.01}
    reference = kernels.implementations("linear_cross_entropy")["numpy"]
    run = kernels.lookup("linear_cross_entropy", "simt")

    def flattened(function):
        def call(*arrays, **options):
            loss, log_normaliser, gradients = function(*arrays, **options)
            return loss, log_normaliser, *given(gradients)

        return call

    monkeypatch.setitem(
        kernels.table._table,
        "linear_cross_entropy",
        {
            "numpy": flattened(reference),
            "simt": flattened(run),
            "cuda": flattened(run.__wrapped__),
        },
    )
    kernels.lookup.cache_clear()
    loss, log_normaliser, *_ = hold(
        "linear_cross_entropy", x, weight, target, bias, ahead=ahead, **options
    )
    assert loss.dtype == x.dtype
    grad = (np.random.default_rng(1).random(loss.shape) + 0.5).astype(x.dtype)
    arrays = grad, x, weight, target, bias, log_normaliser
    hold("linear_cross_entropy_backward", *arrays, needs=EVERYTHING, **options)
    monkeypatch.undo()
    kernels.lookup.cache_clear()


def test_a_model_of_the_device_against_the_cpu():
    results = []
    for device in ("cpu", "simt"):
        x, weight, target, bias = (mt.Tensor(a).to(device) for a in sample("float32"))
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        with mt.autocast("bfloat16"):
            loss = F.linear_cross_entropy(leaves[0], leaves[1], target, leaves[2])
        (2 * loss).backward()
        assert {loss.device, *(t.grad.device for t in leaves)} == {device}
        results.append([loss.detach().numpy(), *(t.grad.numpy() for t in leaves)])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.01)


def test_a_target_that_is_no_class():
    x, weight, target, _ = (to_device(a, "simt") for a in sample("float32"))
    with pytest.raises(ShapeError, match="expected targets in"):
        kernels.lookup("linear_cross_entropy", "simt")(x, weight, target + 9)


def test_all_rows_ignored():
    x, weight, target, _ = (to_device(a, "simt") for a in sample("float32"))
    target[...] = -100
    loss, _, (dx, _, _) = kernels.lookup("linear_cross_entropy", "simt")(
        x, weight, target, ahead=EVERYTHING
    )
    assert np.isnan(loss)
    assert not np.asarray(dx).any()
