"""The CUDA attention in the emulator's check build, against the float64 reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import SimtArray
from minitorch.errors import ShapeError
from minitorch.gradcheck import gradcheck
from minitorch.kernels.cuda.extension import checked
from minitorch.kernels.reference import attention as reference
from minitorch.nn import functional as F

TOLERANCE = {"float64": 1e-13, "float32": 2e-6, "bfloat16": 1.5e-2, "float16": 2e-3}
ORDERS = [("forward", 0), ("reversed", 0), ("random", 7)]
# heads, kv_heads, time_q, time_k, dim, value_dim, mask, sinks, options
CASES = [
    (1, 1, 1, 1, 1, 1, None, False, {}),
    (2, 2, 19, 35, 8, 5, None, False, {"causal": True, "lower_right": True}),
    (4, 2, 18, 18, 16, 16, "float", True, {"causal": True, "softcap": 2.0}),
    (3, 1, 17, 40, 6, 33, "bool", True, {"window": (5, 3), "scale": 0.3}),
    (2, 1, 35, 12, 40, 7, "keys", False, {"causal": True, "lower_right": True}),
    (2, 2, 3, 70, 4, 4, None, True, {"window": (2, 0), "lower_right": True}),
]


def compiled(name):
    return kernels.lookup(name, "simt")


def simt(x):
    return None if x is None else x.view(SimtArray)


def wide(x):
    return x if x is None or x.dtype == bool else np.asarray(x, np.float64)


def close(found, expected, dtype, factor=1):
    bound = factor * TOLERANCE[dtype] * (1 + np.abs(expected).max(initial=0))
    np.testing.assert_allclose(wide(found), expected, rtol=0, atol=bound)


def inputs(case, dtype):
    heads, kv_heads, time_q, time_k, dim, value_dim, masked, with_sinks, _ = case
    kind = getattr(mt, dtype)
    compute = np.float64 if dtype == "float64" else np.float32
    rng = np.random.default_rng(time_k)
    query = rng.standard_normal((2, time_q, heads, dim)).astype(kind).transpose(0, 2, 1, 3)
    key = rng.standard_normal((2, kv_heads, time_k, dim)).astype(kind)
    value = rng.standard_normal((2, kv_heads, time_k, value_dim)).astype(kind)
    mask = {
        None: None,
        "bool": rng.random((time_q, time_k)) < 0.6,
        "float": rng.standard_normal((2, 1, time_q, time_k)).astype(compute),
        "keys": rng.standard_normal((heads, 1, time_k)).astype(compute),
    }[masked]
    sinks = rng.standard_normal(heads).astype(kind) if with_sinks else None
    grad = rng.standard_normal((2, heads, time_q, value_dim)).astype(kind)
    return [query, key, value, mask, sinks], grad


@pytest.mark.parametrize(
    ("dtype", "order"),
    [
        *(("float32", order) for order in ORDERS),
        *((d, ORDERS[2]) for d in TOLERANCE if d != "float32"),
    ],
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_directions(case, dtype, order):
    arrays, grad = inputs(case, dtype)
    options, exact = case[-1], [wide(x) for x in arrays]
    needs_mask = case[6] in ("float", "keys")
    with checked(*order):
        out, lse = compiled("scaled_dot_product_attention")(*map(simt, arrays), **options)
        found = compiled("scaled_dot_product_attention_backward")(
            *map(simt, (grad, *arrays)), out, lse, needs_mask=needs_mask, **options
        )
    expected, expected_lse = reference.scaled_dot_product_attention(*exact, **options)
    close(out, expected, dtype)
    assert (np.isfinite(lse) == np.isfinite(expected_lse)).all()
    close(lse[np.isfinite(lse)], expected_lse[np.isfinite(lse)], dtype)
    gradients = reference.scaled_dot_product_attention_backward(
        wide(grad), *exact, expected, expected_lse, needs_mask=needs_mask, **options
    )
    for one, exactly in zip(found, gradients, strict=True):
        assert (one is None) == (exactly is None)
        if one is not None:
            assert type(one) is SimtArray
            close(one, exactly, dtype, factor=8)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_sequences_of_any_lengths(dtype):
    kind, rng = getattr(mt, dtype), np.random.default_rng(0)
    starts_q, starts_k = np.array([0, 3, 3, 20, 37]), np.array([0, 5, 9, 9, 42])
    query = rng.standard_normal((37, 4, 8)).astype(kind)
    key, value = (rng.standard_normal((42, 2, 8)).astype(kind) for _ in range(2))
    sinks = rng.standard_normal(4).astype(kind)
    options = {"causal": True, "lower_right": True}
    arrays = [query, key, value, sinks, starts_q, starts_k]
    exact = [*map(wide, arrays[:4]), starts_q, starts_k]
    grad = rng.standard_normal(query.shape).astype(kind)
    with checked("random", 1):
        out, lse = compiled("varlen_attention")(*map(simt, arrays), **options)
        found = compiled("varlen_attention_backward")(
            *map(simt, (grad, *arrays)), out, lse, **options
        )
    expected, expected_lse = reference.varlen_attention(*exact, **options)
    close(out, expected, dtype)
    gradients = reference.varlen_attention_backward(
        wide(grad), *exact, expected, expected_lse, **options
    )
    for one, exactly in zip(found, gradients, strict=True):
        close(one, exactly, dtype, factor=8)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_packed(dtype):
    kind, rng = getattr(mt, dtype), np.random.default_rng(1)
    qkv = rng.standard_normal((2, 18, (4 + 2 * 2) * 8)).astype(kind)
    grad = rng.standard_normal((2, 18, 4 * 8)).astype(kind)
    sinks = rng.standard_normal(4).astype(kind)
    options = {"heads": 4, "kv_heads": 2, "causal": True}
    with checked("reversed"):
        out, by_head, lse = compiled("attention_qkvpacked")(simt(qkv), simt(sinks), **options)
        packed, dsinks = compiled("attention_qkvpacked_backward")(
            simt(grad), simt(qkv), simt(sinks), by_head, lse, **options
        )
    expected, *rest = reference.attention_qkvpacked(wide(qkv), wide(sinks), **options)
    close(out, expected, dtype)
    exactly = reference.attention_qkvpacked_backward(
        wide(grad), wide(qkv), wide(sinks), *rest, **options
    )
    close(packed, exactly[0], dtype, factor=8)
    close(dsinks, exactly[1], dtype, factor=8)


def test_keys_in_a_part_of_a_cache():
    rng = np.random.default_rng(2)
    query = rng.standard_normal((1, 2, 1, 8)).astype(np.float32)
    cache = np.full((2, 1, 2, 64, 8), np.nan, np.float32)
    cache[..., :37, :] = rng.standard_normal((2, 1, 2, 37, 8))
    key, value = cache[..., :37, :]
    with checked():
        out, _ = compiled("scaled_dot_product_attention")(*map(simt, (query, key, value)))
    close(out, reference.scaled_dot_product_attention(query, key, value)[0], "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_widest_heads_and_wider_ones(dtype):
    rng, most = np.random.default_rng(3), 256 if dtype == "float32" else 128
    for dim in (most, most + 1):
        query, key, value, grad = (rng.standard_normal((1, 3, dim)).astype(dtype) for _ in range(4))
        with checked():
            out, lse = compiled("scaled_dot_product_attention")(*map(simt, (query, key, value)))
            found = compiled("scaled_dot_product_attention_backward")(
                *map(simt, (grad, query, key, value, None, None)), out, lse
            )
        exact = [wide(x) for x in (query, key, value)]
        rest = reference.scaled_dot_product_attention(*exact)
        close(out, rest[0], dtype)
        gradients = reference.scaled_dot_product_attention_backward(
            wide(grad), *exact, None, None, *rest
        )
        for one, exactly in zip(found[:3], gradients, strict=False):
            close(one, exactly, dtype, factor=8)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_gradients_of_rows_that_a_finite_mask_hides(dtype, causal):
    """Of some rows all keys, of others all but some that do not count; and of none."""
    rng, time = np.random.default_rng(0), 9
    kind = getattr(mt, dtype)
    query, key, value, grad = (rng.standard_normal((2, 3, time, 16)).astype(kind) for _ in range(4))
    mask = np.zeros((2, 1, time, time), np.float64 if dtype == "float64" else np.float32)
    mask[0, 0, 3] = mask[1, 0, 7] = np.finfo(np.float32).min
    mask[1, 0, 7, 2:4] = -np.inf
    mask[1, 0, 5, 1:] = np.finfo(np.float32).min
    options = {"causal": causal, "scale": 0.25}
    arrays = query, key, value, mask, None
    with checked():
        out, lse = compiled("scaled_dot_product_attention")(*map(simt, arrays), **options)
        found = compiled("scaled_dot_product_attention_backward")(
            *map(simt, (grad, *arrays)), out, lse, needs_mask=True, **options
        )
    exact = [wide(x) for x in arrays]
    expected = reference.scaled_dot_product_attention(*exact, **options)
    gradients = reference.scaled_dot_product_attention_backward(
        wide(grad), *exact, *expected, needs_mask=True, **options
    )
    for one, exactly in zip(found[:4], gradients[:4], strict=True):
        close(one, exactly, dtype, factor=8)


def test_the_same_bits_in_every_order():
    arrays, grad = inputs(CASES[3], "float32")
    seen = set()
    for order in ORDERS:
        with checked(*order):
            out, lse = compiled("scaled_dot_product_attention")(*map(simt, arrays))
            found = compiled("scaled_dot_product_attention_backward")(
                *map(simt, (grad, *arrays)), out, lse
            )
        seen.add(b"".join(np.asarray(x).tobytes() for x in (out, lse, *found[:3], found[4])))
    assert len(seen) == 1


def test_gradients_through_the_operation():
    rng = np.random.default_rng(4)
    query, key, value = (
        mt.from_numpy(rng.standard_normal((1, heads, 3, 4))).to("simt").requires_grad_()
        for heads in (2, 1, 1)
    )
    with checked():
        assert gradcheck(
            lambda *t: F.scaled_dot_product_attention(*t, is_causal=True, enable_gqa=True),
            (query, key, value),
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_wide_heads_of_halves(dtype):
    """Wider than the kernel takes: the formula in float32, on the device, forward and backward."""
    rng, results = np.random.default_rng(0), []
    arrays = [rng.standard_normal((1, 2, 3, 300)) for _ in range(4)]
    for where, kind in (("cpu", "float64"), ("simt", dtype)):
        *leaves, grad = (mt.Tensor(x).to(where, getattr(mt, kind)).detach() for x in arrays)
        for leaf in leaves:
            leaf.requires_grad_()
        out = F.scaled_dot_product_attention(*leaves, is_causal=True)
        out.backward(grad)
        found = [out.detach(), *(leaf.grad for leaf in leaves)]
        assert {(x.device, str(x.dtype)) for x in found} == {(where, kind)}
        results.append([x.to("cpu", mt.float64).numpy() for x in found])
    bound = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}[dtype]
    for exact, ours in zip(*results, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=0, atol=bound * np.abs(exact).max())


def test_wide_heads_on_a_gpu(stand_in):
    query = mt.zeros(1, 2, 3, 300).to("cuda")
    with pytest.raises(ShapeError, match=r"at most 256 features.* got \(1, 2, 3, 300\) float32"):
        F.scaled_dot_product_attention(query, query, query)
