"""Attention by warpgroups, in the emulator's check build, against the float64 reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.backend import SimtArray
from minitorch.errors import ConfigError
from minitorch.kernels.cuda import attention
from minitorch.kernels.cuda.extension import checked
from minitorch.kernels.reference import attention as reference
from tests.cuda.test_attention import ORDERS, close, compiled, inputs, simt, wide

LAST = {"causal": True, "lower_right": True}
# heads, kv_heads, time_q, time_k, dim, value_dim, mask, sinks, options
CASES = [
    (2, 1, 66, 140, 64, 64, None, False, LAST),
    (1, 1, 150, 75, 40, 24, None, True, LAST),
    (1, 1, 70, 290, 128, 128, None, True, {"window": (140, 0), "lower_right": True}),
    (1, 1, 66, 70, 96, 96, None, False, {"scale": 0.3}),
]
# Of a mask, of a cap, and of wide heads.
FURTHER = [
    (1, 1, 66, 140, 128, 128, "float", True, {"causal": True, "softcap": 2.0}),
    (1, 1, 130, 70, 64, 64, "bool", False, {"window": (60, 3)}),
    (2, 1, 66, 40, 192, 128, "keys", True, LAST),
    (1, 1, 65, 70, 256, 256, None, False, {"softcap": 2.0}),
]


SEEN = {}
"""What the first seed gave."""


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


def first_batch(arrays):
    return [x if x is None or x.ndim < 4 else x[:1] for x in arrays]


def forward(arrays, dtype, options):
    """The kernel's out and log-normaliser, held against the reference's, which are returned too."""
    out, lse = compiled("scaled_dot_product_attention")(*map(simt, arrays), **options)
    expected, exact_lse = reference.scaled_dot_product_attention(*map(wide, arrays), **options)
    close(out, expected, dtype)
    seen = np.isfinite(exact_lse)
    assert (np.isfinite(lse) == seen).all()
    close(lse[seen], exact_lse[seen], dtype)
    return out, lse, expected, exact_lse


RUNS = [
    *((CASES[0], "bfloat16", order) for order in ORDERS),
    *((case, "bfloat16", ORDERS[2]) for case in (*CASES[1:], *FURTHER)),
    (CASES[1], "float16", ORDERS[1]),
]


@pytest.mark.parametrize(("case", "dtype", "order"), RUNS, ids=str)
def test_both_directions(case, dtype, order, called):
    given, grad = inputs(case, dtype)
    arrays, grad = first_batch(given), grad[:1]
    with checked(*order):
        out, lse, *expected = forward(arrays, dtype, case[-1])
        found = compiled("scaled_dot_product_attention_backward")(
            *map(simt, (grad, *arrays)), out, lse, **case[-1]
        )
    assert called == ["attention_wgmma", "attention_wgmma_backward"]
    gradients = reference.scaled_dot_product_attention_backward(
        *map(wide, (grad, *arrays)), *expected, **case[-1]
    )
    for one, exactly in zip(found, gradients, strict=True):
        assert (one is None) == (exactly is None)
        if one is not None:
            close(one, exactly, dtype, factor=2)


@pytest.mark.parametrize("seed", range(2))
def test_sequences_of_any_lengths(seed, called):
    """In orders of threads and copies of which each seed gives another: the same bits."""
    rng = np.random.default_rng(0)
    starts = np.array([0, 3, 3, 140, 157]), np.array([0, 5, 9, 9, 42])
    query, grad = (rng.standard_normal((157, 2, 16)).astype(mt.bfloat16) for _ in range(2))
    key, value = (rng.standard_normal((42, 1, 16)).astype(mt.bfloat16) for _ in range(2))
    arrays = query, key, value, None, *starts
    with checked("random", seed):
        given = [simt(x) for x in arrays]
        out, lse = compiled("varlen_attention")(*given, **LAST)
        found = compiled("varlen_attention_backward")(simt(grad), *given, out, lse, **LAST)
    assert called == ["attention_wgmma", "attention_wgmma_backward"]
    exact = [*map(wide, arrays[:3]), None, *starts]
    expected = reference.varlen_attention(*exact, **LAST)
    close(out, expected[0], "bfloat16")
    gradients = reference.varlen_attention_backward(wide(grad), *exact, *expected, **LAST)
    for one, exactly in zip(found[:3], gradients[:3], strict=True):
        close(one, exactly, "bfloat16", factor=2)
    bits = b"".join(np.asarray(x).tobytes() for x in (out, lse, *found[:3]))
    assert SEEN.setdefault("bits", bits) == bits


def test_which_kernel():
    """Each row of the table, forward and backward."""

    def chosen(time_q, dim, kind=np.float16, time_k=300, **more):
        query, key = (np.zeros((1, 2, t, dim), kind).view(SimtArray) for t in (time_q, time_k))
        request = attention.Request(query, key, key, (query, key), scale=1.0, **more)
        return [attention._pick(request, backward) for backward in (0, 1)]

    assert chosen(65, 128) == ["attention_wgmma", "attention_wgmma"]
    assert chosen(65, 256) == ["attention_wgmma", "attention_wgmma"]
    assert chosen(65, 64, needs_mask=True) == ["attention_wgmma", "attention"]
    assert chosen(64, 64) == ["attention_decode", "attention_mma"]
    assert chosen(64, 64, packed=True) == ["attention_mma", "attention_mma"]
    assert chosen(64, 12) == ["attention", "attention"]
    assert chosen(65, 64, np.float32) == ["attention", "attention"]
    with attention.attention_kernel("attention"):
        assert chosen(65, 64) == ["attention", "attention"]
    with attention.attention_kernel("attention_mma"):
        assert chosen(65, 64) == ["attention_mma", "attention_mma"]
    with checked(capability=80):
        assert chosen(65, 64) == ["attention_mma", "attention_mma"]
    with (
        pytest.raises(ConfigError, match="expected one of attention, attention_mma"),
        attention.attention_kernel("flash"),
    ):
        pass
