"""Attention on tensor cores, in the emulator's check build, against the float64 reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.kernels.cuda import attention
from minitorch.kernels.cuda.extension import checked
from minitorch.kernels.reference import attention as reference
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
def test_forward(case, order, dtype, called):
    arrays, _ = inputs(case, dtype)
    with checked(*order):
        out, lse = compiled("scaled_dot_product_attention")(*map(simt, arrays), **case[-1])
    expected, exact_lse = reference.scaled_dot_product_attention(*map(wide, arrays), **case[-1])
    assert called == ["attention_mma"]
    close(out, expected, dtype)
    seen = np.isfinite(exact_lse)
    assert (np.isfinite(lse) == seen).all()
    close(lse[seen], exact_lse[seen], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sequences_of_any_lengths(dtype, called):
    kind, rng = getattr(mt, dtype), np.random.default_rng(0)
    starts = np.array([0, 3, 3, 140, 157]), np.array([0, 5, 9, 9, 42])
    query = rng.standard_normal((157, 4, 16)).astype(kind)
    key, value = (rng.standard_normal((42, 2, 16)).astype(kind) for _ in range(2))
    sinks = rng.standard_normal(4).astype(kind)
    arrays = [query, key, value, sinks]
    with checked("random", 1):
        out, _ = compiled("varlen_attention")(*map(simt, (*arrays, *starts)), **LAST)
    assert called == ["attention_mma"]
    close(out, reference.varlen_attention(*map(wide, arrays), *starts, **LAST)[0], dtype)


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
