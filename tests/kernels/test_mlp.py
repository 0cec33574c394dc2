"""The feed-forward layer as one operation, against its parts, and what it keeps."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import debug, kernels
from minitorch.errors import ConfigError, DtypeError, ShapeError
from minitorch.nn import functional as F

TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-13, mt.bfloat16: 3e-2}
ACTIVATIONS = ["relu", "silu", "gelu", "gelu_tanh"]
SHAPES = [(2, 3, 5), (70, 33), (5,), (0, 4)]


def tensors(shape, biased, dtype=np.float64, hidden=37, out=9):
    rng = np.random.default_rng([*shape, hidden])
    arrays = [
        rng.standard_normal(shape),
        rng.standard_normal((hidden, shape[-1])),
        rng.standard_normal((out, hidden)),
        rng.standard_normal(hidden) if biased else None,
        rng.standard_normal(out) if biased else None,
    ]
    rounded = [a if a is None else a.astype(dtype) for a in arrays]
    return [a if a is None else mt.tensor(a, requires_grad=True) for a in rounded]


def parts(x, weight_1, weight_2, bias_1, bias_2, activation):
    f = F.gelu if activation.startswith("gelu") else getattr(F, activation)
    options = {"approximate": "tanh"} if activation == "gelu_tanh" else {}
    return F.linear(f(F.linear(x, weight_1, bias_1), **options), weight_2, bias_2)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_the_composition(instruction_set, activation, shape, biased, dtype):
    check(tensors(shape, biased, dtype), activation, dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_a_hidden_layer_that_is_made_in_parts(instruction_set, dtype):
    check(tensors((4, 800, 5), True, dtype, hidden=1100), "gelu_tanh", dtype)


@pytest.mark.parametrize("wide", [(True,) * 5, (True, False, True, False, True), (False,) * 5])
def test_gradients_that_may_be_wide(instruction_set, wide):
    shapes = (7, 9), (7, 5), (37, 5), (9, 37), (7, 37)
    given = [np.random.default_rng(0).standard_normal(s).astype(mt.bfloat16) for s in shapes]
    found = kernels.implementations("mlp_backward")["cpu"](
        *given, activation="silu", needs=(True,) * 5, wide=wide
    )
    assert [g.dtype == np.float32 for g in found] == list(wide)
    exact = kernels.implementations("mlp_backward")["numpy"](
        *(a.astype(np.float64) for a in given), activation="silu", needs=(True,) * 5
    )
    for one, other in zip(found, exact, strict=True):
        bound = TOLERANCE[mt.bfloat16] * (1 + np.abs(other).max())
        np.testing.assert_allclose(one.astype(np.float64), other, rtol=0, atol=bound)


def check(given, activation, dtype):
    exact = [t if t is None else t.detach().double().requires_grad_() for t in given]
    expected = parts(*exact, activation)
    found = F.mlp(*given, activation)
    assert found.dtype == dtype
    v = np.random.default_rng(0).standard_normal(expected.shape).astype(dtype)
    expected.backward(mt.tensor(v.astype(np.float64)))
    found.backward(mt.tensor(v))
    pairs = [(found.detach(), expected.detach())]
    pairs += [(a.grad, b.grad) for a, b in zip(given, exact, strict=True) if a is not None]
    for one, other in pairs:
        scale = 1 + np.abs(other.numpy()).max(initial=0)
        np.testing.assert_allclose(
            one.numpy().astype(np.float64), other.numpy(), rtol=0, atol=TOLERANCE[dtype] * scale
        )


def test_it_keeps_one_array_of_the_hidden_width():
    inputs = tensors((400, 8), True, hidden=64, out=8)
    kept = [debug.saved(f(*inputs, "gelu")).total for f in (F.mlp, parts)]
    assert kept[1] - kept[0] == 400 * 64 * 8


def test_no_gradient_is_computed_that_nobody_wants(monkeypatch):
    x, weight_1, weight_2, *_ = tensors((4, 3), False)
    weight_1.requires_grad_(False)
    F.mlp(x, weight_1, weight_2).backward(mt.ones(4, 9, dtype=mt.float64))
    assert weight_1.grad is None
    x.requires_grad_(False)
    weight_2.grad = None
    F.mlp(x, weight_1, weight_2).backward(mt.ones(4, 9, dtype=mt.float64))
    assert weight_2.grad is not None
    run = kernels.lookup("mlp_backward")
    arrays = [t.numpy() for t in (x, weight_1)] + [weight_2.detach().numpy()]
    pre = arrays[0] @ arrays[1].T
    needs = (False, False, False, True, False)
    gradients = run(np.ones((4, 9)), *arrays, pre, activation="relu", needs=needs)
    assert [gradient is not None for gradient in gradients] == list(needs)


@pytest.mark.parametrize("bias", ["bias_1", "bias_2"])
def test_the_gradient_of_a_bias_alone(instruction_set, bias):
    """Made without that of its weight, which no memory holds."""
    n = 1 << 23
    one, many = np.ones((1, 1), np.float32), np.arange(-4, n - 4, dtype=np.float32)[None]
    endless = np.broadcast_to(one, (n, n))
    first = bias == "bias_1"
    given = (one, many, endless, many, many) if first else (many, one, many.T, endless, many)
    found = kernels.lookup("mlp_backward")(
        *given, activation="relu", needs=(False, False, first, False, not first)
    )
    assert [gradient is not None for gradient in found] == [False, False, first, False, not first]
    np.testing.assert_array_equal(
        found[2 if first else 4], np.maximum(many, 0)[0] if first else many[0]
    )


def test_autocast():
    inputs = tensors((6, 5), True, np.float32)
    with mt.autocast():
        assert F.mlp(*inputs).dtype == mt.bfloat16


def test_what_does_not_fit():
    x, weight_1, weight_2, bias_1, bias_2 = tensors((4, 3), True)
    with pytest.raises(ConfigError, match="among relu, silu, gelu, gelu_tanh; got 'tanh'"):
        F.mlp(x, weight_1, weight_2, activation="tanh")
    with pytest.raises(ShapeError, match=r"expected x \(\.\.\., in\)"):
        F.mlp(x, weight_2, weight_1)
    with pytest.raises(ShapeError, match=r"bias_2 \(out,\); got"):
        F.mlp(x, weight_1, weight_2, bias_2, bias_1)
    with pytest.raises(DtypeError, match="got float32, float64; convert them"):
        F.mlp(x.float(), weight_1, weight_2)
    with mt.autocast(), pytest.raises(DtypeError, match="got bfloat16, float64; convert them"):
        F.mlp(x.float(), weight_1, weight_2)
