"""Attention by warpgroups, in the emulator's check build, against the float64 reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import ConfigError
from minitorch.kernels.cuda import attention
from minitorch.kernels.cuda.extension import checked
from minitorch.kernels.reference import attention as reference
from tests.cuda.test_attention import ORDERS, close, compiled, inputs, simt, wide

LAST = {"causal": True, "lower_right": True}
# heads, kv_heads, time_q, time_k, dim, value_dim, mask, sinks, options
CASES = [
    (2, 1, 66, 300, 64, 64, None, False, LAST),
    (1, 1, 150, 75, 40, 24, None, True, {"causal": True, "lower_right": True}),
    (2, 2, 70, 290, 128, 128, None, True, {"window": (140, 0), "lower_right": True}),
    (1, 1, 65, 140, 192, 128, None, False, {"scale": 0.3}),
    (1, 1, 65, 200, 256, 256, None, False, {}),
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


@pytest.mark.parametrize(
    ("dtype", "order"), [*(("bfloat16", order) for order in ORDERS), ("float16", ORDERS[2])]
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case, dtype, order, called):
    arrays = [x if x is None or x.ndim < 4 else x[:1] for x in inputs(case, dtype)[0]]
    with checked(*order):
        out, lse = compiled("scaled_dot_product_attention")(*map(simt, arrays), **case[-1])
    expected, exact_lse = reference.scaled_dot_product_attention(*map(wide, arrays), **case[-1])
    assert called == ["attention_wgmma"]
    close(out, expected, dtype)
    seen = np.isfinite(exact_lse)
    assert (np.isfinite(lse) == seen).all()
    close(lse[seen], exact_lse[seen], dtype)


@pytest.mark.parametrize("seed", range(4))
def test_sequences_of_any_lengths(seed, called):
    """In orders of threads and copies of which each seed gives another."""
    rng = np.random.default_rng(0)
    starts = np.array([0, 3, 3, 140, 157]), np.array([0, 5, 9, 9, 42])
    query = rng.standard_normal((157, 2, 16)).astype(mt.bfloat16)
    key, value = (rng.standard_normal((42, 1, 16)).astype(mt.bfloat16) for _ in range(2))
    with checked("random", seed):
        given = [simt(x) for x in (query, key, value, None, *starts)]
        out, _ = compiled("varlen_attention")(*given, **LAST)
    assert called == ["attention_wgmma"]
    expected = reference.varlen_attention(*map(wide, (query, key, value)), None, *starts, **LAST)
    close(out, expected[0], "bfloat16")


def test_which_kernel():
    query = np.zeros((1, 2, 65, 8), np.float16).view(mt.backend.SimtArray)
    few = query[:, :, :64]
    assert attention._suit_hopper(query, query, query)
    assert not attention._suit_hopper(few, query, query)
    with attention.attention_kernel("attention"):
        assert attention._kernel_for([query], 1.0) == "attention"
    assert attention._kernel_for([query], 1.0) == "attention_mma"
    with (
        pytest.raises(ConfigError, match="expected one of attention, attention_mma"),
        attention.attention_kernel("flash"),
    ):
        pass
