"""The CUDA softmax in the emulator's check build, against the float64 reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import to_device
from minitorch.kernels.cuda.extension import checked
from minitorch.kernels.reference import softmax as reference

TOLERANCE = {"float64": 1e-14, "float32": 4e-7, "bfloat16": 8e-3, "float16": 1e-3}
SHAPES = [((3, 5), -1), ((1, 1), 1), ((2, 3, 40), 1), ((4, 1030), -1)]


@pytest.mark.parametrize("order", [("forward", 0), ("reversed", 0), ("random", 7)])
@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_against_the_reference(dtype, shape, dim, order):
    rng = np.random.default_rng(0)
    x, grad = (rng.standard_normal(shape).astype(getattr(mt, dtype)) for _ in range(2))
    with checked(*order):
        out = kernels.lookup("softmax", "simt")(to_device(x, "simt"), dim=dim, scale=0.7)
        dx = kernels.lookup("softmax_backward", "simt")(
            to_device(grad, "simt"), out, dim=dim, scale=0.7
        )
    wide = reference.softmax(x.astype(np.float64), dim=dim, scale=0.7)
    np.testing.assert_allclose(np.float64(out), wide, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    expected = reference.softmax_backward(
        grad.astype(np.float64), out.astype(np.float64), dim=dim, scale=0.7
    )
    np.testing.assert_allclose(
        np.float64(dx), expected, atol=4 * TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_log_softmax_and_logsumexp(hold, dtype, shape, dim):
    rng = np.random.default_rng(0)
    x, grad = (rng.standard_normal(shape).astype(getattr(mt, dtype)) for _ in range(2))
    out = hold("log_softmax", x, dim=dim)
    hold("log_softmax_backward", grad, out, dim=dim)
    out = hold("logsumexp", x, dim=dim, keepdim=True)
    hold(
        "logsumexp_backward",
        np.asarray(grad).max(dim, keepdims=True),
        x,
        out,
        dim=dim,
        keepdim=True,
    )
    both = tuple(range(len(shape)))
    out = hold("logsumexp", x, dim=both)
    hold("logsumexp_backward", out, x, out, dim=both)


def test_infinities(hold):
    inf = np.inf
    x = np.float32([[-inf, -inf, -inf], [-inf, 0, 1], [inf, 0, -inf], [np.nan, 0, 1]])
    out = hold("logsumexp", x)
    hold("logsumexp_backward", np.ones(2, np.float32), x[:2], out[:2])
    hold("log_softmax", x[[0, 1, 3]])


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_gradcheck(name):
    x = to_device(np.random.default_rng(0).standard_normal((3, 4)), "simt")
    assert mt.gradcheck(lambda x: getattr(mt, name)(x, dim=-1), mt.Tensor(x, requires_grad=True))
