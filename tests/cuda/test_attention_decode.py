"""Attention to a long past, to pages and to latents, in the emulator's check build."""

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
    (2, 2, 1, 300, 64, 64, None, False, LAST),
    (4, 1, 3, 267, 40, 24, "float", True, {"causal": True, "softcap": 2.0, "lower_right": True}),
    (8, 2, 7, 260, 128, 96, "keys", True, {"window": (70, 0), "lower_right": True}),
    (3, 1, 1, 261, 192, 128, None, False, {"scale": 0.3}),
    (1, 1, 1, 270, 256, 256, None, True, LAST),
    (20, 1, 2, 258, 64, 72, None, False, LAST),
]
DTYPES = ["bfloat16", "float16"]


@pytest.fixture
def called(monkeypatch):
    """The names of the kernels that were called, and how many blocks shared the keys."""
    names = []

    def call(name, *arguments):
        names.append((name, len(arguments[11]) if name == "attention_decode" else None))
        return run(name, *arguments)

    run = attention.call
    monkeypatch.setattr(attention, "call", call)
    return names


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_few_queries(case, order, dtype, called):
    arrays, _ = inputs(case, dtype)
    with checked(*order):
        out, lse = compiled("scaled_dot_product_attention")(*map(simt, arrays), **case[-1])
    expected, exact_lse = reference.scaled_dot_product_attention(*map(wide, arrays), **case[-1])
    assert called == [("attention_decode", 2)]
    close(out, expected, dtype)
    close(lse, exact_lse, dtype)


def test_queries_that_see_nothing():
    query, key = np.ones((1, 1, 3, 8), np.float16), np.ones((1, 1, 256, 8), np.float16)
    options = {"window": (-1, 0), "lower_right": True}
    mask = np.zeros((3, 256), bool)
    mask[1] = True
    with checked():
        out, lse = compiled("scaled_dot_product_attention")(
            *map(simt, (query, key, key, mask)), **options
        )
    assert out[0, 0, :, 0].tolist() == [0, 1, 0]
    assert np.isposinf(lse[0, 0]).tolist() == [True, False, True]


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("order", ORDERS)
def test_pages(kind, order):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(getattr(mt, kind))  # noqa: E731
    query, sinks = draw(3, 4, 2, 16), draw(4)
    pool = np.full((2, 24, 2, 16, 16), np.nan, np.float32).astype(query.dtype)
    table = rng.permutation(24).reshape(3, 8).astype(np.int64)
    lengths = np.array([128, 2, 71])
    for pages, length in zip(table, lengths, strict=True):
        for t in range(length):
            pool[:, pages[t // 16], :, t % 16] = draw(2, 2, 16)
    arrays = [query, *pool, sinks, table, lengths]
    with checked(*order):
        out = compiled("paged_attention")(*map(simt, arrays), **LAST, window=(90, 0))
    expected = reference.paged_attention(
        *map(wide, arrays[:4]), table, lengths, **LAST, window=(90, 0)
    )
    close(out, expected, kind)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "value_dim", "time"), [(288, 256, 70), (576, 512, 37)])
def test_latents(dtype, dim, value_dim, time, called):
    rng = np.random.default_rng(1)
    query, latents = (
        rng.standard_normal((2, heads, t, dim)).astype(getattr(mt, dtype))
        for heads, t in ((18, 2), (1, time))
    )
    value = latents[..., :value_dim]
    with checked("random", 2):
        given = query.view(mt.backend.SimtArray), simt(latents)
        out, _ = compiled("scaled_dot_product_attention")(*given, given[1][..., :value_dim], **LAST)
    assert [name for name, _ in called] == ["attention_decode"]
    exact = reference.scaled_dot_product_attention(*map(wide, (query, latents, value)), **LAST)
    close(out, exact[0], dtype)


def test_latent_attention_of_a_model_reads_its_cache_as_it_is(called):
    """The operation is given a cache and a part of it, and the kernel sees that they are one."""
    rng = np.random.default_rng(2)
    latents = mt.tensor(rng.standard_normal((1, 1, 40, 288)), dtype=mt.bfloat16).to("simt")
    query = mt.tensor(rng.standard_normal((1, 4, 1, 288)), dtype=mt.bfloat16).to("simt")
    with checked():
        out = F.scaled_dot_product_attention(
            query, latents, latents[..., :256], is_causal=True, align="lower_right", enable_gqa=True
        )
    assert [name for name, _ in called] == ["attention_decode"]
    exact = [x.to("cpu", mt.float64) for x in (query, latents, latents[..., :256])]
    expected = F.scaled_dot_product_attention(
        *exact, is_causal=True, align="lower_right", enable_gqa=True
    )
    close(out.to("cpu", mt.float64).numpy(), expected.numpy(), "bfloat16")
