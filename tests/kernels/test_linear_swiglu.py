"""The gated product against its formula in float64, on the CPU; on devices: tests/cuda."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import debug
from minitorch.errors import ShapeError
from minitorch.nn import functional as F

TOLERANCE = {mt.float64: 1e-13, mt.float32: 3e-6, mt.bfloat16: 2e-2, mt.float16: 3e-3}


def tensors(shape, hidden, dtype=mt.float64):
    rng = np.random.default_rng(0)
    shapes = shape, (hidden, shape[-1]), (hidden, shape[-1])
    return [
        mt.tensor(rng.standard_normal(s).astype(dtype), dtype=dtype, requires_grad=True)
        for s in shapes
    ]


def wide(tensor):
    return tensor.detach().double().numpy()


def formula(x, gate, up, grad):
    """The result, and grad's products with the three Jacobians, written out."""
    g, u = x @ gate.T, x @ up.T
    s = 1 / (1 + np.exp(-g))
    dg, du = grad * u * s * (1 + g * (1 - s)), grad * g * s
    rows, dg_rows, du_rows = (a.reshape(-1, a.shape[-1]) for a in (x, dg, du))
    return g * s * u, dg @ gate + du @ up, dg_rows.T @ rows, du_rows.T @ rows


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(5,), (1, 3), (2, 7, 5), (0, 4), (300, 33)])
def test_both_directions(shape, dtype, recompute):
    given = tensors(shape, 19, dtype)
    out = F.linear_swiglu(*given, recompute)
    assert out.dtype == dtype
    grad = np.random.default_rng(1).standard_normal(out.shape).astype(dtype)
    out.backward(mt.tensor(grad))
    expected = formula(*map(wide, given), np.float64(grad))
    for found, exact in zip([out, *(t.grad for t in given)], expected, strict=True):
        bound = TOLERANCE[dtype] * (1 + np.abs(exact).max(initial=0))
        np.testing.assert_allclose(wide(found), exact, rtol=0, atol=bound)


def test_what_is_kept():
    """Both products, unless they are to be made again; nothing, where no gradient is wanted."""
    given = tensors((400, 8), 64)
    kept = [debug.saved(F.linear_swiglu(*given, again)).total for again in (False, True)]
    assert kept[0] - kept[1] == 2 * 400 * 64 * 8
    with mt.no_grad():
        assert not F.linear_swiglu(*given).requires_grad


def test_no_gradient_is_computed_that_nobody_wants():
    x, gate, up = tensors((4, 3), 6)
    gate.requires_grad_(False)
    F.linear_swiglu(x, gate, up).backward(mt.ones(4, 6, dtype=mt.float64))
    assert gate.grad is None
    assert x.grad is not None
    assert up.grad is not None


@pytest.mark.parametrize(("precision", "bound"), [("bfloat16", 2e-2), ("float8", 0.3)])
def test_autocast(precision, bound):
    given = tensors((6, 128), 32, np.float32)
    with mt.autocast(precision):
        out = F.linear_swiglu(*given)
    assert out.dtype == mt.bfloat16
    exact = formula(*map(wide, given), np.ones((6, 32)))[0]
    assert np.abs(wide(out) - exact).max() < bound * np.abs(exact).max()


def test_other_dtypes_are_promoted_as_by_linear():
    x, gate, up = tensors((4, 3), 6)
    out = F.linear_swiglu(x.float(), gate, up)
    assert out.dtype == mt.float64
    np.testing.assert_allclose(wide(out), formula(*map(wide, (x, gate, up)), 1)[0], rtol=1e-5)


def test_what_does_not_fit():
    x, gate, up = tensors((4, 3), 6)
    with pytest.raises(ShapeError, match=r"expected x \(\.\.\., in\)"):
        F.linear_swiglu(x, gate.mT, up.mT)
    with pytest.raises(ShapeError, match=r"got \(4, 3\), \(6, 3\) and \(5, 3\)"):
        F.linear_swiglu(x, gate, up[:5])
