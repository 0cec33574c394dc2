"""Products of 8-bit floats with scales for blocks, against the reference and a bound in float64."""

import ml_dtypes
import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels, nn, optim
from minitorch.backend import SimtArray
from minitorch.errors import ShapeError
from minitorch.kernels.cuda.extension import checked
from minitorch.kernels.cuda.ladder import matmul_step
from minitorch.kernels.reference.scaled_mm import BLOCK, LARGEST
from minitorch.nn import functional as F
from tests.cuda.conftest import ORDERS, wide

E4M3 = ml_dtypes.float8_e4m3fn


def device(name):
    return kernels.lookup(name, "simt")


def numbers(rng, dtype, *shape):
    """Of very different sizes, from block to block."""
    x = (
        rng.standard_normal(shape)
        * 10.0
        ** rng.integers(-4, 5, (shape[0], -(-shape[1] // BLOCK)))[:, np.arange(shape[1]) // BLOCK]
    )
    return x.astype(getattr(mt, dtype))


def step_of(x, rows):
    """How far, at most, x is from q scale: half a unit of e4m3's last place."""
    scales = kernels.lookup("quantize_blocks", "cpu")(x, rows=rows)[1].astype(np.float64)
    scales = scales.repeat(rows, 0)[: len(x)].repeat(BLOCK, 1)[:, : x.shape[1]]
    return np.maximum(np.abs(wide(x)) * 2.0**-4, scales * 2.0**-10)


@pytest.mark.parametrize("rows", [1, BLOCK])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_quantize(hold, dtype, rows):
    """The same bits as by ml_dtypes; numbers that are none stay none."""
    x = numbers(np.random.default_rng(0), dtype, 3 if rows == 1 else 130, 150)
    x[1] = 0
    hold("quantize_blocks", x, rows=rows)
    hold("quantize_blocks", np.asfortranarray(x), rows=rows)


def test_the_largest_number_is_the_end_of_the_range():
    """Whatever is left of the division by the scale; nothing becomes NaN, of which e4m3 has two."""
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((200, 8)) * 10.0 ** rng.uniform(-44, 38, (200, 1))).astype(np.float32)
    x[:, 3] = np.where(rng.random(200) < 0.5, -1, 1) * np.abs(x).max(1) * np.float32(1.5)
    x[0] = 0
    x[np.isinf(x)] = np.finfo(np.float32).max
    for rows in (1, BLOCK):
        with checked("random"):
            q, scales = device("quantize_blocks")(x.view(SimtArray), rows=rows)
        values = np.asarray(q).view(E4M3).astype(np.float64)
        assert np.isfinite(values).all()
        blocks = np.abs(values).max(1) if rows == 1 else np.abs(values[:BLOCK]).max()
        normal = np.asarray(scales)[:, 0] > np.finfo(np.float32).tiny
        assert (blocks[normal] == LARGEST).all() if rows == 1 else blocks == LARGEST
    q = device("quantize_blocks")(np.float32([[np.nan, 1, -448, 0.3]]).view(SimtArray))[0]
    np.testing.assert_array_equal(
        np.asarray(q).view(E4M3).astype(np.float32), [[np.nan, 1, -448, 0.3125]]
    )


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (70, 130, 300)])
def test_product(hold, m, n, k):
    """Of any bits, the scales given."""
    rng = np.random.default_rng(2)
    a, b = bits(rng, m, k), bits(rng, n, k)
    left, right = (
        rng.uniform(1, 2, (rows, -(-k // BLOCK))).astype(np.float32) for rows in (m, -(-n // BLOCK))
    )
    hold("scaled_mm", a, b, left, right, like=mt.float32)


def test_product_of_columns_with_scales_of_their_own(hold):
    """As in the gradient of a weight."""
    rng = np.random.default_rng(8)
    a, b = bits(rng, 70, 150), bits(rng, 130, 150)
    left, right = (rng.uniform(1, 2, (n, 2)).astype(np.float32) for n in (70, 130))
    hold("scaled_mm", a, b, left, right, like=mt.float32)


def test_an_affine_map_and_its_gradients(hold):
    """Of rows that are no multiple of anything, and of sizes that change from block to block."""
    rng = np.random.default_rng(9)
    x, weight, bias, grad = (
        rng.standard_normal(shape).astype(mt.bfloat16)
        for shape in ((2, 65, 12), (20, 12), (20,), (2, 65, 20))
    )
    x[1] *= np.asarray(100, x.dtype)
    hold("scaled_linear", x, weight, bias)
    hold("scaled_linear_backward", grad, x, weight, needs=(True, True, True))


def test_the_gradient_of_a_weight_within_its_bound():
    """In float64: half a unit of the last place of each operand, along the tokens."""
    rng = np.random.default_rng(10)
    grad, x = (numbers(rng, "float32", n, 260).T.copy() for n in (40, 24))
    with checked("random", 4):
        _, found, _ = device("scaled_linear_backward")(
            *(a.view(SimtArray) for a in (grad, x, np.zeros((40, 24), np.float32))),
            needs=(False, True, False),
        )
    left, right = np.abs(wide(grad.T)), np.abs(wide(x))
    left_step, right_step = step_of(grad.T, 1), step_of(x.T, 1).T
    bound = left_step @ right + (left + left_step) @ right_step
    assert (
        np.abs(wide(found) - wide(grad).T @ wide(x)) <= 1.01 * bound + 1e-6 * left @ right
    ).all()


@pytest.mark.parametrize("place", ["cpu", "simt"])
def test_a_net_learns_as_in_bfloat16(place):
    """By the NumPy reference, and by the kernels: the curve of the loss."""

    def losses(precision):
        mt.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 4)).to(place)
        optimizer = optim.AdamW(model.parameters(), 0.02)
        x = mt.randn(40, 12, generator=mt.Generator(0))
        target = x[:, :4].argmax(-1).to(device=place)
        found = []
        for _ in range(6):
            optimizer.zero_grad()
            with mt.autocast(precision):
                loss = F.cross_entropy(model(x.to(device=place)), target)
            loss.backward()
            assert model[0].weight.grad.dtype == mt.float32
            optimizer.step()
            found.append(loss.item())
        return np.array(found)

    full, scaled = losses("bfloat16"), losses("float8")
    assert full[-1] < 0.7 * full[0]
    assert 0 < np.abs(scaled - full).max() < 0.02


def bits(rng, *shape):
    """Of any e4m3 but NaN."""
    return rng.integers(0, 127, shape, np.uint8) | rng.integers(0, 2, shape, np.uint8) << 7


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_groups(hold, dtype):
    """One of them empty, none a multiple of a tile; rows of the next one are not written."""
    rng = np.random.default_rng(6)
    x, weight = bits(rng, 140, 150), bits(rng, 3, 130, 150)
    left, right = rng.uniform(1, 2, (140, 2)), rng.uniform(1, 2, (3, 2, 2))
    scales = left.astype(np.float32), right.astype(np.float32)
    kind = getattr(mt, dtype)
    hold("grouped_scaled_mm", x, weight, *scales, np.array([9, 9, 140]), like=kind, dtype=kind)


def test_a_batch(hold):
    rng = np.random.default_rng(7)
    a, b = bits(rng, 2, 5, 40), bits(rng, 2, 20, 40)
    left, right = (rng.uniform(1, 2, (2, n, 1)).astype(np.float32) for n in (5, 1))
    hold("scaled_mm", a, b, left, right, like=mt.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_last_step_of_the_ladder(dtype):
    """Every result within what the rounding of its terms allows, in float64; zeros remain zeros."""
    rng = np.random.default_rng(3)
    a, b = numbers(rng, "float32", 70, 260), rng.standard_normal((260, 40))
    a[5] = 0
    a, b = ((x / np.abs(x).max()).astype(getattr(mt, dtype)) for x in (a, b))
    bias = rng.standard_normal(40).astype(getattr(mt, dtype))
    with matmul_step("scaled"), checked(*ORDERS["random"]):
        out = device("matmul")(a.view(SimtArray), b.view(SimtArray), bias=bias.view(SimtArray))
    left, right = np.abs(wide(a)), np.abs(wide(b))
    left_step, right_step = step_of(a, 1), step_of(b.T, BLOCK).T
    bound = left_step @ right + (left + left_step) @ right_step
    expected = wide(a) @ wide(b) + wide(bias)
    last = np.abs(expected) * (2.0**-8 if dtype == "bfloat16" else 2.0**-11)
    assert (np.abs(wide(out) - expected) <= 1.01 * (bound + last)).all()
    np.testing.assert_array_equal(out[5], bias)


def test_scales_of_their_own_help():
    """With one scale for all, what is a thousand times smaller would be lost."""
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal((8, 2 * BLOCK)).astype(np.float32) for _ in range(2))
    a[:4] *= 1e-6
    (q, scales), (w, w_scales) = (
        device("quantize_blocks")(x.view(SimtArray), rows=rows) for x, rows in ((a, 1), (b, BLOCK))
    )
    with checked():
        out = device("scaled_mm")(q, w, scales, w_scales, dtype=mt.bfloat16)
    exact = wide(a) @ wide(b).T
    errors = np.abs(wide(out) - exact).max(1) / np.abs(exact).max(1)
    assert errors.max() < 0.1


def test_on_older_devices_the_reference():
    rng = np.random.default_rng(5)
    a, b = (rng.integers(0, 127, (4, 20), np.uint8).view(SimtArray) for _ in range(2))
    scales = np.ones((4, 1), np.float32), np.ones((1, 1), np.float32)
    with checked(capability=80):
        old = device("scaled_mm")(a, b, *scales)
    np.testing.assert_allclose(old, device("scaled_mm")(a, b, *scales), rtol=1e-6)


def test_what_they_do_not_take():
    x = np.zeros((4, 8), np.float32).view(SimtArray)
    with pytest.raises(ShapeError, match="blocks of 1 or 128 rows; got 64"):
        device("quantize_blocks")(x, rows=64)
    q, scales = device("quantize_blocks")(x)
    with pytest.raises(ShapeError, match=r"scaled_mm: expected a \(m, k\), b \(n, k\)"):
        device("scaled_mm")(q, q, scales, scales[:2])
    with pytest.raises(ShapeError, match=r"grouped_scaled_mm: expected x \(rows, k\), weight"):
        device("grouped_scaled_mm")(q, q[None], scales, scales, np.array([4]))
    many = np.zeros((2, 8, 8), np.float16).view(SimtArray)
    with matmul_step("scaled"), pytest.raises(ValueError, match="expected one product of bfloat16"):
        device("matmul")(many, many)
