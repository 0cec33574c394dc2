"""The matrix products on tensor cores, in the check build, against the float64 reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import SimtArray
from minitorch.errors import ConfigError
from minitorch.kernels.cuda import ladder
from minitorch.kernels.cuda.extension import checked
from minitorch.kernels.cuda.ladder import LADDER, matmul_step
from minitorch.kernels.cuda.traffic import counted
from minitorch.kernels.reference import matmul as reference
from tests.cuda.conftest import placed

TOLERANCE = {"float32": 2e-3, "bfloat16": 8e-3, "float16": 1e-3}
ORDERS = [("forward", 0), ("reversed", 0), ("random", 7)]
TENSOR = LADDER["matmul_mma"] + LADDER["matmul_wgmma"]
LAST = (LADDER["matmul_mma"][-1], LADDER["matmul_wgmma"][-1])


def matmul(*arrays, **options):
    return kernels.lookup("matmul", "simt")(*arrays, **options)


def numbers(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(getattr(mt, dtype))


def wide(x):
    return None if x is None else np.asarray(x, np.float64)


def close(found, expected, tolerance):
    bound = tolerance * (1 + np.abs(expected).max(initial=0))
    np.testing.assert_allclose(wide(found), expected, rtol=0, atol=bound)


def in_rows(x, length=None):
    """The same numbers on the device, in rows of `length`, eightfold unless given."""
    length = length or -(-x.shape[-1] // 8) * 8
    longer = np.full((*x.shape[:-1], length), np.nan, x.dtype)
    longer[..., : x.shape[-1]] = x
    return longer[..., : x.shape[-1]].view(SimtArray)


def in_columns(x):
    return in_rows(np.ascontiguousarray(x.mT)).mT


LAYOUTS = {"rows": in_rows, "columns": in_columns}


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order[0])
@pytest.mark.parametrize("step", TENSOR)
def test_each_step(step, order):
    """Three tiles of k, and sides that are no multiples of a tile's."""
    rng = np.random.default_rng(0)
    a, b = numbers(rng, "bfloat16", 71, 130), numbers(rng, "bfloat16", 130, 139)
    with matmul_step(step), checked(*order):
        out = matmul(in_rows(a), in_columns(b))
    assert type(out) is SimtArray
    assert out.dtype == a.dtype
    close(out, wide(a) @ wide(b), TOLERANCE["bfloat16"])


@pytest.mark.parametrize("step", TENSOR)
def test_each_step_on_the_device(device, step):
    """Also on a GPU, where there is one."""
    rng = np.random.default_rng(10)
    a, b = numbers(rng, "bfloat16", 136, 200), numbers(rng, "bfloat16", 264, 200)
    with matmul_step(step):
        out = kernels.lookup("matmul", device)(placed(a, device), placed(b, device).T)
    close(placed(out, "cpu"), wide(a) @ wide(b).T, TOLERANCE["bfloat16"])


@pytest.mark.parametrize(
    ("step", "dtype"),
    [(LAST[0], "float32"), (LAST[0], "float16"), (LAST[0], "bfloat16"), (LAST[1], "float16")],
)
@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
def test_layouts(left, right, step, dtype):
    rng = np.random.default_rng(1)
    a, b = numbers(rng, dtype, 37, 75), numbers(rng, dtype, 75, 43)
    with matmul_step(step), checked("random", 3):
        out = matmul(LAYOUTS[left](a), LAYOUTS[right](b))
    close(out, wide(a) @ wide(b), TOLERANCE[dtype])


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("step", ["swizzled", "wide", "clustered"])
def test_layouts_of_earlier_steps(step, left, right):
    rng = np.random.default_rng(2)
    a, b = numbers(rng, "bfloat16", 37, 75), numbers(rng, "bfloat16", 75, 43)
    with matmul_step(step), checked("random", 3):
        out = matmul(LAYOUTS[left](a), LAYOUTS[right](b))
    close(out, wide(a) @ wide(b), TOLERANCE["bfloat16"])


@pytest.mark.parametrize("step", LAST)
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((1, 1), (1, 1)),
        ((1, 72), (72, 1)),
        ((3, 5, 8), (3, 8, 16)),
        ((2, 2, 5, 8), (2, 2, 8, 16)),
        ((3, 5, 8), (8, 16)),
        ((5, 8), (3, 8, 16)),
    ],
)
def test_batches_and_edges(step, left, right):
    rng = np.random.default_rng(3)
    a, b = numbers(rng, "bfloat16", *left), numbers(rng, "bfloat16", *right)
    with matmul_step(step), checked("random", 1):
        out = matmul(in_rows(a), in_rows(b))
    close(out, wide(a) @ wide(b), TOLERANCE["bfloat16"])


@pytest.mark.parametrize("step", ["persistent", "clustered", "stored", "ordered"])
def test_more_tiles_than_blocks(step):
    """Nine of 128 x 128, five rows of tiles: more than the emulated device has multiprocessors."""
    rng = np.random.default_rng(4)
    a, b = numbers(rng, "bfloat16", 520, 24), numbers(rng, "bfloat16", 24, 264)
    with matmul_step(step):
        out = matmul(in_rows(a), in_rows(b))
    close(out, wide(a) @ wide(b), TOLERANCE["bfloat16"])


def test_large_tiles_for_many_products():
    rng = np.random.default_rng(5)
    a, b = numbers(rng, "bfloat16", 128, 2, 8), numbers(rng, "bfloat16", 8, 6)
    with matmul_step("staged"):
        out = matmul(in_rows(a), in_rows(b))
    close(out, wide(a) @ wide(b), TOLERANCE["bfloat16"])


@pytest.mark.parametrize(
    ("step", "dtype"), [(LAST[0], "bfloat16"), (LAST[0], "float32"), (LAST[1], "bfloat16")]
)
@pytest.mark.parametrize("columns", [40, 43])
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_epilogue(activation, columns, step, dtype):
    """Results in rows that the accelerator can write, and in others."""
    rng = np.random.default_rng(6)
    a, b = numbers(rng, dtype, 2, 9, 24), numbers(rng, dtype, 24, columns)
    bias, residual, before = (
        numbers(rng, dtype, *shape) for shape in ((columns,), (9, columns), (2, 9, columns))
    )
    exact = 0.5 * (wide(a) @ wide(b)) + wide(bias)
    expected = reference.matmul(
        wide(a), wide(b), alpha=0.5, bias=wide(bias), activation=activation, residual=wide(residual)
    )
    out, pre = before.copy().view(SimtArray), np.zeros_like(before).view(SimtArray)
    with matmul_step(step), checked("reversed"):
        matmul(
            *(in_rows(a), in_rows(b)),
            out=out,
            alpha=0.5,
            accumulate=True,
            bias=bias.view(SimtArray),
            activation=activation,
            residual=residual.view(SimtArray),
            pre=pre,
        )
    close(out, expected + wide(before), TOLERANCE[dtype])
    close(pre, exact, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("step", LAST)
def test_results_in_float32(step, dtype):
    rng = np.random.default_rng(7)
    a, b = numbers(rng, dtype, 9, 40), numbers(rng, dtype, 40, 12)
    out = np.ones((9, 12), np.float32).view(SimtArray)
    with matmul_step(step), checked():
        matmul(in_rows(a), in_rows(b), out=out, accumulate=True)
    close(out, 1 + wide(a) @ wide(b), 3e-6)


def test_no_step_of_k_and_no_result():
    out = matmul(in_rows(np.zeros((3, 0), mt.bfloat16)), in_rows(np.zeros((0, 8), mt.bfloat16)))
    np.testing.assert_array_equal(wide(out), np.zeros((3, 8)))


def test_swizzled_tiles_have_no_bank_conflicts():
    rng = np.random.default_rng(8)
    a, b = numbers(rng, "bfloat16", 64, 64), numbers(rng, "bfloat16", 64, 64)
    conflicts = {}
    for step in ("tensor", "swizzled"):
        with matmul_step(step), counted() as rows:
            matmul(in_rows(a), in_columns(b))
        conflicts[step] = sum(row.conflicts for row in rows)
    assert conflicts["tensor"] > conflicts["swizzled"] == 0


@pytest.mark.parametrize("columns", [40, 43])
def test_a_bias_alone(columns):
    """The accelerator writes what has no more added to it, where its lines are aligned."""
    rng = np.random.default_rng(11)
    a, b, bias = (numbers(rng, "bfloat16", *s) for s in ((70, 8), (8, columns), (columns,)))
    with matmul_step("ordered"), checked("random", 2):
        out = matmul(in_rows(a), in_rows(b), bias=bias.view(SimtArray), alpha=0.5)
    close(out, 0.5 * wide(a) @ wide(b) + wide(bias), TOLERANCE["bfloat16"])


def anywhere(x):
    """The same numbers on the device, in rows that begin anywhere."""
    return in_rows(x, x.shape[-1] + 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("left", [in_rows, anywhere, lambda x: anywhere(x.mT).mT])
@pytest.mark.parametrize("right", [in_rows, anywhere, lambda x: anywhere(x.mT).mT])
def test_lines_that_begin_anywhere(left, right, dtype):
    rng = np.random.default_rng(12)
    a, b = numbers(rng, dtype, 21, 70), numbers(rng, dtype, 70, 13)
    with matmul_step("staged"), checked("random", 3):
        out = matmul(left(a), right(b))
    close(out, wide(a) @ wide(b), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("columns", [8, 6])
def test_few_tiles_are_split_along_k(dtype, columns):
    rng = np.random.default_rng(13)
    a, b = numbers(rng, dtype, 9, 1024), numbers(rng, dtype, 1024, columns)
    bias, before = numbers(rng, dtype, columns), numbers(rng, dtype, 9, columns)
    assert ladder.parts(in_rows(a), in_rows(b), before) == 2
    for left, right in ((in_rows(a), in_rows(b)), (in_columns(a), in_columns(b))):
        out, pre = before.copy().view(SimtArray), np.zeros_like(before).view(SimtArray)
        options = {"bias": bias.view(SimtArray), "activation": "relu", "pre": pre}
        with checked("random", 3):
            matmul(left, right, out=out, alpha=0.5, accumulate=True, **options)
        exact = 0.5 * wide(a) @ wide(b) + wide(bias)
        close(pre, exact, TOLERANCE[dtype])
        close(out, np.maximum(exact, 0) + wide(before), TOLERANCE[dtype])


def chosen(a, b, dtype=None):
    return ladder.pick(a, b, np.empty((*a.shape[:-1], b.shape[-1]), dtype or a.dtype))[0]


def test_the_table():
    small, large = (in_rows(np.zeros((n, n), mt.bfloat16)) for n in (64, 768))
    odd = np.zeros((64, 65), mt.bfloat16)[:, :64].view(SimtArray)
    halves = in_rows(np.zeros((6, 64, 16), mt.float16)).reshape(2, 3, 64, 16)
    assert chosen(small, small) == "matmul_mma"
    assert chosen(large, large.T) == "matmul_wgmma"
    assert chosen(halves.mT, halves) == "matmul_mma"
    assert chosen(odd, small) == "matmul_mma"
    assert chosen(small[::2, ::2], small[:32]) == "matmul"
    assert chosen(wide(small).view(SimtArray), wide(small).view(SimtArray)) == "matmul"
    with checked(capability=80):
        assert chosen(large, large) == "matmul_mma"
    with checked(capability=75):
        assert chosen(large, large) == "matmul"


def test_tf32_where_it_was_asked_for():
    rng = np.random.default_rng(9)
    a, b = (in_rows(numbers(rng, "float32", 16, 16)) for _ in range(2))
    assert mt.get_float32_matmul_precision() == "highest"
    assert chosen(a, b) == "matmul"
    mt.set_float32_matmul_precision("high")
    try:
        assert chosen(a, b) == "matmul_mma"
        out = matmul(a, b)
    finally:
        mt.set_float32_matmul_precision("highest")
    rounded = [
        ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
        for x in (np.ascontiguousarray(a), np.ascontiguousarray(b))
    ]
    close(out, wide(rounded[0]) @ wide(rounded[1]), 1e-6)
    with pytest.raises(ConfigError, match="set_float32_matmul_precision: expected one of highest"):
        mt.set_float32_matmul_precision("medium")


def test_what_a_step_does_not_take_is_said():
    a = in_rows(np.zeros((8, 8), mt.float16))
    with matmul_step("tensor"), pytest.raises(ValueError, match="the step tensor expected bfloat"):
        matmul(a, a)
    odd = np.zeros((8, 17), mt.bfloat16)[:, 1::2].view(SimtArray)
    with matmul_step("ordered"), pytest.raises(ValueError, match="take a step of naive"):
        matmul(odd, odd)
