"""Grouped products of 8-bit floats in all three directions, against the reference and float64."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels, optim
from minitorch.backend import SimtArray
from minitorch.kernels.cuda.extension import checked
from minitorch.kernels.reference.scaled_mm import BLOCK
from minitorch.nn import functional as F
from models.blocks.context import Context
from models.blocks.experts import MixtureOfExperts
from models.blocks.routing import RouterConfig

ENDS = [
    np.array([9, 9, 140]),  # one of them empty
    np.array([128, 256]),  # whole blocks
    np.array([0, 300, 300, 301]),
]


def numbers(rng, dtype, rows, columns):
    """Rows of sizes from 0.01 to 100."""
    x = rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-2, 3, (rows, 1))
    return x.astype(getattr(mt, dtype))


@pytest.mark.parametrize("ends", ENDS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_quantize(hold, dtype, ends):
    x = numbers(np.random.default_rng(0), dtype, ends[-1], 37)
    hold("quantize_groups", x, ends)
    hold("quantize_groups", np.asfortranarray(x), ends)


@pytest.mark.parametrize("ends", ENDS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gradient_of_weights(hold, dtype, ends):
    """Of any bits, the scales given."""
    rng, blocks = np.random.default_rng(1), ends[-1] // BLOCK + len(ends)
    x, grad = (
        rng.integers(0, 127, (n, blocks * BLOCK), np.uint8)
        | rng.integers(0, 2, (n, blocks * BLOCK), np.uint8) << 7
        for n in (70, 130)
    )
    scales = [rng.uniform(1, 2, (n, blocks)).astype(np.float32) for n in (70, 130)]
    kind = getattr(mt, dtype)
    hold("grouped_scaled_outer", x, grad, *scales, ends, like=kind, dtype=kind)


@pytest.mark.parametrize("ends", ENDS, ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_of_floats(hold, dtype, ends):
    rng = np.random.default_rng(2)
    x, grad = (numbers(rng, dtype, ends[-1], n) for n in (20, 34))
    weight = rng.standard_normal((len(ends), 20, 34)).astype(x.dtype)
    hold("scaled_grouped_mm", x, weight, ends)
    hold("scaled_grouped_mm", grad, weight.swapaxes(1, 2), ends)
    hold("scaled_grouped_outer", x, grad, ends)


def step_of(x, rows=1):
    """How far, at most, x is from what it is rounded to: half a unit of e4m3's last place."""
    scales = kernels.lookup("quantize_blocks", "cpu")(x, rows=rows)[1].astype(np.float64)
    scales = scales.repeat(rows, 0)[: len(x)].repeat(BLOCK, 1)[:, : x.shape[1]]
    return np.maximum(np.abs(np.float64(x)) * 2.0**-4, scales * 2.0**-10)


def bounded(found, left, right, right_rows):
    """found is left rightᵀ within what the rounding of both allows, in float64."""
    one, other = step_of(left), step_of(right, right_rows)
    left, right = np.float64(left), np.float64(right)
    bound = one @ np.abs(right).T + (np.abs(left) + one) @ other.T
    rest = 1e-5 * np.abs(left) @ np.abs(right).T
    assert (np.abs(np.float64(found) - left @ right.T) <= 1.01 * bound + rest).all()


def test_within_their_bounds():
    """The three products of a layer, through the engine; groups do not see each other's sizes."""
    rng, ends = np.random.default_rng(3), np.array([40, 40, 200, 290])
    x, grad = (numbers(rng, "float32", 290, n) for n in (24, 40))
    x[40:] *= 1e3
    weight = rng.standard_normal((4, 24, 40)).astype(np.float32)
    leaves = [mt.Tensor(a.view(SimtArray)).requires_grad_() for a in (x, weight)]
    with checked("random", 4):
        out = F.grouped_mm(*leaves, mt.Tensor(ends.view(SimtArray)), scaled=True)
        out.backward(mt.Tensor(grad.view(SimtArray)))
    dx, dweight = (np.asarray(leaf.grad.data) for leaf in leaves)
    out = np.asarray(out.detach().data)
    for e, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        rows = slice(begin, end)
        if begin == end:
            assert not dweight[e].any()
            continue
        bounded(out[rows], x[rows], weight[e].T, BLOCK)
        bounded(dx[rows], grad[rows], weight[e], BLOCK)
        bounded(dweight[e], x[rows].T, grad[rows].T, 1)


@pytest.mark.parametrize("place", ["cpu", "simt"])
def test_a_mixture_learns_as_in_bfloat16(place, monkeypatch):
    """By the NumPy reference, and by the kernels; and it is those that multiply."""
    products = []
    name = "minitorch.kernels.cuda.scaled_experts.call"
    if place == "simt":
        from minitorch.kernels.cuda.scaled_experts import call

        monkeypatch.setattr(name, lambda kind, *rest: (products.append(kind), call(kind, *rest)))

    def losses(precision):
        mt.manual_seed(0)
        model = MixtureOfExperts(16, 24, RouterConfig(num_experts=4, k=2)).to(place)
        optimizer = optim.AdamW(model.parameters(), 0.02)
        x = mt.randn(2, 20, 16, generator=mt.Generator(0))
        target = (x.flip(-1) * x).to(device=place)
        context, found = Context(np.arange(20)[None], np.arange(20)[None], 20, place), []
        for _ in range(6):
            optimizer.zero_grad()
            with mt.autocast(precision):
                out = model(x.to(device=place), context)
            loss = F.mse_loss(out.float(), target)
            loss.backward()
            assert model.experts.down_proj.grad.dtype == mt.float32
            optimizer.step()
            found.append(loss.item())
        return np.array(found)

    full = losses("bfloat16")
    assert not products
    scaled = losses("float8")
    assert full[-1] < 0.9 * full[0]
    assert 0 < np.abs(scaled / full - 1).max() < 0.02
    if place == "simt":
        assert products.count("grouped_scaled_outer_wgmma") == 6 * 2


@pytest.mark.parametrize("scale", [False, True])
def test_with_a_shared_expert(scale):
    """In 8 bits, too: near the sum in float32, and not that of bfloat16."""
    rng = np.random.default_rng(5)
    shapes = (12, 32), (12, 2), (4, 80, 32), (4, 32, 40), (24, 32), (24, 32), (32, 24), (1, 32)
    arrays = [rng.standard_normal(shape).astype(np.float32) / 4 for shape in shapes]
    x, weights, gate_up, down, *shared, factor = (mt.tensor(a, requires_grad=True) for a in arrays)
    places = mt.tensor(rng.permutation(24).reshape(12, 2))
    inputs = x, weights, gate_up, down, places, mt.tensor([5, 5, 20, 24])
    options = {"shared": tuple(shared), "shared_scale": factor if scale else None}
    exact = F.moe_swiglu(*inputs, **options)
    found = {}
    for precision in ("bfloat16", "float8"):
        with mt.autocast(precision):
            found[precision] = F.moe_swiglu(*inputs, **options).float()
    errors = {name: float((out - exact).abs().max().item()) for name, out in found.items()}
    assert errors["bfloat16"] < errors["float8"] < 0.15 * exact.abs().max().item()
    found["float8"].backward(mt.ones(12, 32))
    for leaf in (x, weights, gate_up, down, *shared):
        assert leaf.grad.numpy().any()
    assert (factor.grad is not None) == scale
