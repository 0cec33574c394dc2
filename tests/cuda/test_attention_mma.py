"""Attention on tensor cores, in the emulator's check build, against the float64 reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.kernels.cuda import attention
from minitorch.kernels.cuda.extension import checked
from minitorch.kernels.reference import attention as reference
from minitorch.nn import functional as F
from tests.cuda.test_attention import ORDERS, close, compiled, inputs, simt, wide

LAST = {"causal": True, "lower_right": True}
# heads, kv_heads, time_q, time_k, dim, value_dim, mask, sinks, options
CASES = [
    (1, 1, 1, 1, 8, 8, None, False, {}),
    (2, 1, 150, 75, 64, 64, None, False, LAST),
    (2, 2, 19, 140, 40, 24, "float", True, {"causal": True, "softcap": 2.0}),
    (3, 1, 17, 70, 96, 96, "bool", True, {"window": (5, 3), "scale": 0.3}),
    (2, 1, 35, 70, 128, 128, None, True, {"window": (40, 0), "lower_right": True}),
    (1, 1, 18, 40, 192, 128, "keys", False, {"causal": True}),
    (2, 1, 7, 33, 72, 192, None, False, LAST),
]
DTYPES = ["bfloat16", "float16"]


@pytest.fixture(autouse=True)
def without_warpgroups():
    with attention.attention_kernel("attention_mma"):
        yield


@pytest.fixture
def called(monkeypatch):
    """The names of the kernels that were called."""
    names = []

    def call(name, *arguments):
        names.append(name)
        return run(name, *arguments)

    run = attention.call
    monkeypatch.setattr(attention, "call", call)
    return names


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_directions(case, order, dtype, called):
    (arrays, grad), options = inputs(case, dtype), case[-1]
    with checked(*order):
        out, lse = compiled("scaled_dot_product_attention")(*map(simt, arrays), **options)
        found = compiled("scaled_dot_product_attention_backward")(
            *map(simt, (grad, *arrays)), out, lse, **options
        )
    assert called == ["attention_mma", "attention_mma_backward"]
    exact = [wide(x) for x in arrays]
    expected, exact_lse = reference.scaled_dot_product_attention(*exact, **options)
    close(out, expected, dtype)
    seen = np.isfinite(exact_lse)
    assert (np.isfinite(lse) == seen).all()
    close(lse[seen], exact_lse[seen], dtype)
    gradients = reference.scaled_dot_product_attention_backward(
        wide(grad), *exact, expected, exact_lse, **options
    )
    for one, exactly in zip(found, gradients, strict=True):
        assert (one is None) == (exactly is None)
        if one is not None:
            close(one, exactly, dtype, factor=2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sequences_of_any_lengths(dtype, called):
    kind, rng = getattr(mt, dtype), np.random.default_rng(0)
    starts = np.array([0, 3, 3, 140, 157]), np.array([0, 5, 9, 9, 42])
    query, grad = (rng.standard_normal((157, 4, 16)).astype(kind) for _ in range(2))
    key, value = (rng.standard_normal((42, 2, 16)).astype(kind) for _ in range(2))
    sinks = rng.standard_normal(4).astype(kind)
    arrays = [query, key, value, sinks]
    with checked("random", 1):
        given = [simt(x) for x in (*arrays, *starts)]
        out, lse = compiled("varlen_attention")(*given, **LAST)
        found = compiled("varlen_attention_backward")(simt(grad), *given, out, lse, **LAST)
    assert called == ["attention_mma", "attention_mma_backward"]
    exact = [*map(wide, arrays), *starts]
    expected = reference.varlen_attention(*exact, **LAST)
    close(out, expected[0], dtype)
    gradients = reference.varlen_attention_backward(wide(grad), *exact, *expected, **LAST)
    for one, exactly in zip(found, gradients, strict=True):
        close(one, exactly, dtype, factor=2)


def test_packed(called):
    rng = np.random.default_rng(3)
    qkv = rng.standard_normal((2, 70, (4 + 2 * 2) * 16)).astype(np.float16)
    grad = rng.standard_normal((2, 70, 4 * 16)).astype(np.float16)
    options = {"heads": 4, "kv_heads": 2, "causal": True}
    with checked("reversed"):
        out, *rest = compiled("attention_qkvpacked")(simt(qkv), None, **options)
        packed, _ = compiled("attention_qkvpacked_backward")(
            simt(grad), simt(qkv), None, *rest, **options
        )
    assert called == ["attention_mma", "attention_mma_backward"]
    expected, *rest = reference.attention_qkvpacked(wide(qkv), None, **options)
    close(out, expected, "float16")
    exactly = reference.attention_qkvpacked_backward(wide(grad), wide(qkv), None, *rest, **options)
    close(packed, exactly[0], "float16", factor=2)


def test_the_same_bits_in_every_order():
    (arrays, grad), seen = inputs(CASES[1], "bfloat16"), set()
    for order in ORDERS:
        with checked(*order):
            out, lse = compiled("scaled_dot_product_attention")(*map(simt, arrays))
            found = compiled("scaled_dot_product_attention_backward")(
                *map(simt, (grad, *arrays)), out, lse
            )
        seen.add(b"".join(np.asarray(x).tobytes() for x in (out, lse, *found[:3])))
    assert len(seen) == 1


def test_gradients_through_the_operation():
    """Of bfloat16 tensors, against the same numbers in float64 on the CPU."""
    rng, results = np.random.default_rng(4), []
    arrays = [rng.standard_normal((1, heads, 20, 16)) for heads in (2, 1, 1, 2)]
    rounded = [x.astype(mt.bfloat16).astype(np.float64) for x in arrays]
    for where, kind in (("cpu", mt.float64), ("simt", mt.bfloat16)):
        *leaves, grad = (mt.Tensor(x).to(where, kind).detach() for x in rounded)
        for leaf in leaves:
            leaf.requires_grad_()
        out = F.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=True)
        out.backward(grad)
        found = [out.detach(), *(leaf.grad for leaf in leaves)]
        results.append([x.to("cpu", mt.float64).numpy() for x in found])
    for exact, ours in zip(*results, strict=True):
        close(ours, exact, "bfloat16", factor=2)


def test_rows_that_cannot_be_copied_by_16_bytes(called):
    rng = np.random.default_rng(1)
    whole = rng.standard_normal((3, 1, 1, 5, 9)).astype(np.float16)
    arrays = whole[..., 1:]  # 8 features, 9 apart
    with checked():
        out, _ = compiled("scaled_dot_product_attention")(*map(simt, arrays))
    assert called == ["attention"]
    close(out, reference.scaled_dot_product_attention(*map(wide, arrays))[0], "float16")


@pytest.mark.parametrize("size", [30.0, 300.0])
def test_scores_of_any_size(size):
    """The exponential is taken of differences from the maximum, in float32."""
    rng = np.random.default_rng(2)
    query, key, value = (rng.standard_normal((1, 1, 70, 16)).astype(mt.bfloat16) for _ in range(3))
    arrays = (query * mt.bfloat16.type(size)).astype(mt.bfloat16), key, value
    with checked():
        out, _ = compiled("scaled_dot_product_attention")(*map(simt, arrays))
    close(out, reference.scaled_dot_product_attention(*map(wide, arrays))[0], "bfloat16")
