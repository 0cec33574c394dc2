"""The CUDA matrix products in the emulator's check build, against the float64 reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import SimtArray, to_device
from minitorch.errors import ConfigError
from minitorch.gradcheck import gradcheck
from minitorch.kernels.cuda.extension import checked
from minitorch.kernels.cuda.ladder import LADDER, matmul_step
from minitorch.kernels.reference import matmul as reference

TOLERANCE = {"float64": 1e-13, "float32": 3e-6, "bfloat16": 8e-3, "float16": 1e-3}
STEPS = LADDER["matmul"]
ORDERS = [("forward", 0), ("reversed", 0), ("random", 7)]


def compiled(name):
    return kernels.lookup(name, "simt")


def simt(x):
    """x on the device, with the strides that it has."""
    return None if x is None else x.view(SimtArray)


def wide(x):
    return None if x is None else np.asarray(x, np.float64)


def close(found, expected, dtype, factor=1):
    bound = factor * TOLERANCE[dtype] * (1 + np.abs(expected).max(initial=0))
    np.testing.assert_allclose(wide(found), expected, rtol=0, atol=bound)


def numbers(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(getattr(mt, dtype))


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order[0])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("step", STEPS)
def test_each_step(step, dtype, order):
    rng = np.random.default_rng(0)
    a, b = numbers(rng, dtype, 35, 19), numbers(rng, dtype, 19, 70)
    with matmul_step(step), checked(*order):
        out = compiled("matmul")(simt(a), simt(b))
    assert type(out) is SimtArray
    assert out.dtype == a.dtype
    close(out, wide(a) @ wide(b), dtype)


@pytest.mark.parametrize(
    ("step", "dtype"),
    [("vectorised", "bfloat16"), ("vectorised", "float32"), ("buffered", "float32")],
)
def test_enough_products_for_large_tiles(step, dtype):
    rng = np.random.default_rng(7)
    a, b = numbers(rng, dtype, 128, 2, 5), numbers(rng, dtype, 5, 6)
    with matmul_step(step), checked("random", 5):
        out = compiled("matmul")(simt(a), simt(b))
    close(out, wide(a) @ wide(b), dtype)


def laid_out(x, layout):
    """The same numbers: in rows, in columns, or every second one of something longer."""
    if layout == "columns":
        return np.ascontiguousarray(x.mT).mT
    if layout == "apart":
        longer = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
        longer[..., ::2] = x
        return longer[..., ::2]
    return x


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(16, 24, 64), (17, 9, 66)])
@pytest.mark.parametrize("left", ["rows", "columns", "apart"])
@pytest.mark.parametrize("right", ["rows", "columns", "apart"])
def test_layouts(left, right, shape, dtype):
    m, k, n = shape
    rng = np.random.default_rng(m)
    a, b = numbers(rng, dtype, m, k), numbers(rng, dtype, k, n)
    with checked("random", 3):
        out = compiled("matmul")(simt(laid_out(a, left)), simt(laid_out(b, right)))
    close(out, wide(a) @ wide(b), dtype)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((1, 1), (1, 1)),
        ((1, 30), (30, 1)),
        ((3, 0), (0, 5)),
        ((0, 4), (4, 5)),
        ((2, 3, 5, 4), (2, 3, 4, 6)),
        ((3, 5, 4), (4, 6)),
        ((2, 1, 5, 4), (3, 4, 6)),
        ((0, 5, 4), (4, 6)),
    ],
)
@pytest.mark.parametrize("step", ["naive", "shared", "vectorised", "buffered"])
def test_batches_and_edges(step, left, right):
    rng = np.random.default_rng(1)
    a, b = numbers(rng, "float32", *left), numbers(rng, "float32", *right)
    with matmul_step(step), checked("random", 1):
        out = compiled("matmul")(simt(a), simt(b))
    expected = wide(a) @ wide(b)
    assert out.shape == expected.shape
    close(out, expected, "float32")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_epilogue(activation, dtype):
    rng = np.random.default_rng(2)
    a, b = numbers(rng, dtype, 2, 9, 12), numbers(rng, dtype, 12, 68)
    bias, residual, before = (numbers(rng, dtype, *s) for s in ((68,), (9, 68), (2, 9, 68)))
    expected = reference.matmul(
        wide(a), wide(b), alpha=0.5, bias=wide(bias), activation=activation, residual=wide(residual)
    )
    expected += wide(before)
    out, pre = simt(before.copy()), simt(np.zeros_like(before))
    with checked("reversed"):
        found = compiled("matmul")(
            *(simt(a), simt(b)),
            out=out,
            alpha=0.5,
            accumulate=True,
            bias=simt(bias),
            activation=activation,
            residual=simt(residual),
            pre=pre,
        )
    assert found is out
    close(out, expected, dtype)
    close(pre, 0.5 * (wide(a) @ wide(b)) + wide(bias), dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_products_of_16_bits_added_up_in_float32(dtype):
    rng = np.random.default_rng(3)
    a, b = numbers(rng, dtype, 9, 40), numbers(rng, dtype, 40, 12)
    out = simt(np.ones((9, 12), np.float32))
    with checked():
        compiled("matmul")(simt(a), simt(b), out=out, accumulate=True)
    close(out, 1 + wide(a) @ wide(b), "float32")


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order[0])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [(2, 5), (1,), (0,)])
def test_linear(rows, dtype, order):
    rng = np.random.default_rng(4)
    x, grad = numbers(rng, dtype, *rows, 12), numbers(rng, dtype, *rows, 35)
    weight, bias = numbers(rng, dtype, 35, 12), numbers(rng, dtype, 35)
    rest = numbers(rng, dtype, *rows, 12)
    with checked(*order):
        out = compiled("linear")(simt(x), simt(weight), simt(bias))
        found = compiled("linear_backward")(
            simt(grad), simt(x), simt(weight), needs=(True, True, True), residual=simt(rest)
        )
    close(out, reference.linear(wide(x), wide(weight), wide(bias)), dtype)
    dx, *others = reference.linear_backward(
        wide(grad), wide(x), wide(weight), needs=(True, True, True)
    )
    expected = dx + wide(rest), *others
    for one, exact in zip(found, expected, strict=True):
        assert type(one) is SimtArray
        assert one.dtype == x.dtype
        close(one, exact, dtype)


def test_sums_of_columns_over_several_pieces():
    grad = np.random.default_rng(5).standard_normal((1100, 3)).astype(np.float32)
    with checked("random", 2):
        *_, dbias = compiled("linear_backward")(
            simt(grad), simt(grad[:, :2]), simt(np.zeros((3, 2), "f4")), needs=(False, False, True)
        )
    close(dbias, wide(grad).sum(0), "float32")


def test_gradients_through_the_operation():
    rng = np.random.default_rng(6)
    x, weight, bias = (
        mt.from_numpy(rng.standard_normal(shape)).to("simt").requires_grad_()
        for shape in ((3, 4), (5, 4), (5,))
    )
    with checked():
        assert gradcheck(lambda *t: mt.nn.functional.linear(*t) @ t[1], (x, weight, bias))


def test_what_does_not_fit_is_said():
    a = to_device(np.zeros((3, 4), np.float32), "simt")
    with pytest.raises(ValueError, match=r"matmul: expected \(\.\.\., m, k\)"):
        compiled("matmul")(a, a)
    with pytest.raises(ValueError, match="matmul: out has to be"):
        compiled("matmul")(a, a.T, out=a)
    with pytest.raises(ConfigError, match="matmul_step: expected one of naive"), matmul_step("x"):
        pass
