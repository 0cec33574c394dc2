"""The gated product on tensor cores, in the check build, against its formula in float64."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import SimtArray
from minitorch.kernels.cuda.extension import checked
from minitorch.kernels.cuda.ladder import LADDER, matmul_step, pick_gated
from tests.cuda.conftest import ORDERS, placed

TOLERANCE = {"float32": 4e-3, "bfloat16": 1e-2, "float16": 2e-3}
STEPS = [LADDER[kernel][-1] for kernel in ("matmul_mma", "matmul_wgmma")]
CASES = [
    *((STEPS[0], dtype) for dtype in TOLERANCE),
    *((STEPS[1], dtype) for dtype in ("bfloat16", "float16")),
]


def run(*arrays, **options):
    return kernels.lookup("linear_swiglu", "simt")(*arrays, **options)


def operands(dtype, rows, features, hidden, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (rows, features), (hidden, features), (hidden, features)
    return [rng.standard_normal(shape).astype(getattr(mt, dtype)) for shape in shapes]


def on_device(x, length=None, turned=False):
    """The same numbers in lines of `length` (whole 16 bytes, unless given), along either side."""
    if turned:
        return on_device(np.ascontiguousarray(x.T), length).T
    n = 16 // x.itemsize
    longer = np.full((len(x), length or -(-x.shape[-1] // n) * n), np.nan, x.dtype)
    longer[:, : x.shape[1]] = x
    return longer[:, : x.shape[1]].view(SimtArray)


def formula(x, gate, up):
    g, u = (np.float64(x) @ np.float64(weight).T for weight in (gate, up))
    return g / (1 + np.exp(-g)) * u, g, u


def close(found, exact, dtype):
    bound = TOLERANCE[dtype] * (1 + np.abs(exact).max())
    np.testing.assert_allclose(np.float64(found), exact, rtol=0, atol=bound)


def hold(arrays, dtype, keep, **layout):
    """What the kernel makes, and keeps if it is to, is what the formula says."""
    found = run(*(on_device(x, **layout) for x in arrays), keep=keep)
    for one, exact in zip(found, formula(*arrays), strict=True):
        assert (one is None) == (not keep and one is not found[0])
        if one is not None:
            assert type(one) is SimtArray
            assert one.dtype == arrays[0].dtype
            close(one, exact, dtype)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("step", "dtype"), CASES)
def test_each_step(step, dtype, keep, order):
    """Three tiles of k, and sides that are no multiples of a tile's."""
    with matmul_step(step), checked(*order):
        hold(operands(dtype, 71, 130, 139), dtype, keep)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("sides", [(1, 8, 1), (3, 72, 40), (130, 9, 64), (65, 64, 200)])
@pytest.mark.parametrize(("step", "dtype"), CASES)
def test_sides_and_layouts(step, dtype, sides, turned):
    """Results that the tensor memory accelerator can write, and others."""
    for keep in (False, True):
        with matmul_step(step), checked("random", 3):
            hold(operands(dtype, *sides), dtype, keep, turned=turned)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("turned", [False, True])
def test_lines_that_begin_anywhere(dtype, turned):
    arrays = operands(dtype, 21, 70, 37)
    found = []
    with matmul_step("staged"), checked("random", 3):
        for x in arrays:
            length = (x.shape[0] if turned else x.shape[1]) + 1
            found.append(on_device(x, length, turned))
        out, *_ = run(*found)
    close(out, formula(*arrays)[0], dtype)


@pytest.mark.parametrize("hidden", [264, 257])
@pytest.mark.parametrize("step", STEPS)
def test_large_tiles(step, hidden):
    """Fifteen of 128 x 128 or more: each of wgmma's blocks, two to a cluster, has several."""
    arrays = operands("bfloat16", 520 if step == "ordered" else 3400, 24, hidden)
    for keep in (False, True):
        with matmul_step(step):
            hold(arrays, "bfloat16", keep)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_large_tiles_of_clusters(order):
    arrays = operands("bfloat16", 390, 72, 264)
    with matmul_step("ordered"), checked(*order):
        hold(arrays, "bfloat16", True)


@pytest.mark.parametrize("step", STEPS)
def test_on_the_device(device, step):
    """Also on a GPU, where there is one; and the gradients."""
    arrays = operands("bfloat16", 136, 200, 264)
    given = [placed(x, device) for x in arrays]
    with matmul_step(step):
        found = kernels.lookup("linear_swiglu", device)(*given)
    exact = formula(*arrays)
    for one, other in zip(found, exact, strict=True):
        close(placed(one, "cpu"), other, "bfloat16")
    grad = np.random.default_rng(3).standard_normal(exact[0].shape).astype(mt.bfloat16)
    gradients = kernels.lookup("linear_swiglu_backward", device)(
        placed(grad, device), *given, *found[1:], needs=(True, True, True)
    )
    wide = [np.float64(x) for x in (grad, *arrays)]
    expected = kernels.implementations("linear_swiglu_backward")["numpy"](
        *wide, *exact[1:], needs=(True, True, True)
    )
    for one, other in zip(gradients, expected, strict=True):
        close(placed(one, "cpu"), other, "bfloat16")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_without_tensor_cores(dtype):
    arrays = operands(dtype, 9, 20, 33)
    with checked("random", 1):
        found = run(*map(on_device, arrays))
    for one, exact in zip(found, formula(*arrays), strict=True):
        np.testing.assert_allclose(one, exact, rtol=0, atol=1e-5 if dtype == "float32" else 1e-12)


def test_which_kernel():
    x, gate, up = (on_device(x) for x in operands("bfloat16", 64, 64, 64))
    out = np.empty((64, 64), mt.bfloat16)

    def chosen(up=up):
        picked = pick_gated(x, gate.T, up.T, out)
        return picked and picked[0]

    assert chosen() == "linear_swiglu_mma"
    assert chosen(on_device(np.ascontiguousarray(up), 72)) is None
    for step, kernel in zip(STEPS, ("linear_swiglu_mma", "linear_swiglu_wgmma"), strict=True):
        with matmul_step(step):
            assert chosen() == kernel
    for step in ("naive", "tensor", "clustered", "scaled"):
        with matmul_step(step):
            assert chosen() is None
    large = np.zeros((768, 768), mt.bfloat16).view(SimtArray)
    assert pick_gated(large, large.T, large.T, large)[0] == "linear_swiglu_wgmma"


def test_few_tiles_of_a_long_product_are_split_along_k_instead():
    arrays = operands("bfloat16", 9, 1024, 8)
    x, gate, up = map(on_device, arrays)
    assert pick_gated(x, gate.T, up.T, np.empty((9, 8), mt.bfloat16)) is None
    out, *_ = run(x, gate, up)
    close(out, formula(*arrays)[0], "bfloat16")
