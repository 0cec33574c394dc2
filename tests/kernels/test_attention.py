"""The compiled attention against its reference in float64."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minitorch as mt
from minitorch import kernels
from minitorch.kernels import reference
from minitorch.nn import functional as F

TOLERANCE = {"float32": 3e-5, "float64": 1e-12, "bfloat16": 4e-2}
TIME = st.one_of(st.integers(1, 20), st.sampled_from([32, 33, 97, 130]))
FIXTURES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def wide(x):
    return x if x is None or x.dtype == bool else np.asarray(x, np.float64)


@FIXTURES
@given(
    st.sampled_from([(1, 1), (4, 2), (3, 3), (4, 1)]),
    TIME,
    TIME,
    st.sampled_from([1, 4, 16, 33, 64]),
    st.sampled_from([1, 16, 40]),
    st.sampled_from(sorted(TOLERANCE)),
    st.booleans(),
    st.sampled_from([None, "bool", "float"]),
)
def test_both_directions(
    instruction_set, heads, time_q, time_k, dim, value_dim, dtype, causal, masked
):
    kind, tolerance = np.dtype(getattr(mt, dtype)), TOLERANCE[dtype]
    rng = np.random.default_rng(time_q + 131 * time_k)
    query = rng.standard_normal((2, time_q, heads[0], dim)).astype(kind).transpose(0, 2, 1, 3)
    key = rng.standard_normal((2, heads[1], time_k, dim)).astype(kind)
    value = rng.standard_normal((2, heads[1], time_k, value_dim)).astype(kind)
    mask = None
    if masked == "bool":
        mask = rng.random((time_q, time_k)) < 0.6
    elif masked == "float":
        mask = rng.standard_normal((2, 1, time_q, time_k)).astype(
            np.float64 if dtype == "float64" else np.float32
        )
    forward = kernels.implementations("scaled_dot_product_attention")["cpu"]
    backward = kernels.implementations("scaled_dot_product_attention_backward")["cpu"]
    exact = [wide(x) for x in (query, key, value, mask)]
    expected, lse = reference.scaled_dot_product_attention(*exact, causal=causal)
    found, found_lse = forward(query, key, value, mask, causal=causal)
    np.testing.assert_allclose(wide(found), expected, rtol=0, atol=tolerance)
    assert (np.isfinite(found_lse) == np.isfinite(lse)).all()
    grad = rng.standard_normal(found.shape).astype(kind)
    gradients = reference.scaled_dot_product_attention_backward(
        wide(grad), *exact, expected, lse, causal=causal
    )
    ours = backward(grad, query, key, value, mask, found, found_lse, causal=causal)
    for one, other in zip(ours, gradients, strict=True):
        assert one.dtype == kind
        bound = 2 * tolerance * (1 + np.abs(other).max())
        np.testing.assert_allclose(wide(one), other, rtol=0, atol=bound)


def test_threads_do_not_change_a_bit(instruction_set, threads):
    q, k, v, grad = np.random.default_rng(0).standard_normal((4, 3, 4, 100, 24), np.float32)
    results = []
    for count in (1, 2, 3):
        threads(count)
        out, lse = kernels.lookup("scaled_dot_product_attention")(q, k, v, causal=True)
        back = kernels.lookup("scaled_dot_product_attention_backward")
        results.append([out, lse, *back(grad, q, k, v, None, out, lse, causal=True)])
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            assert (one == other).all()


def test_a_query_that_sees_nothing_gets_zeros(instruction_set):
    q = np.ones((1, 1, 3, 8), np.float32)
    mask = np.array([[True] * 3, [False] * 3, [True, False, False]])
    out, lse = kernels.lookup("scaled_dot_product_attention")(q, q, q, mask)
    assert not out[0, 0, 1].any()
    assert np.isposinf(lse[0, 0, 1])
    gradients = kernels.lookup("scaled_dot_product_attention_backward")(q, q, q, q, mask, out, lse)
    assert not gradients[0][0, 0, 1].any()
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("time", [1, 40])
def test_nan_reaches_the_queries_that_see_it(instruction_set, time):
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 1, time, 8), np.float32)
    k = np.concatenate([k, np.full((1, 1, 1, 8), np.nan, np.float32)], axis=2)
    v = np.concatenate([v, np.zeros((1, 1, 1, 8), np.float32)], axis=2)
    forward = kernels.lookup("scaled_dot_product_attention")
    assert np.isnan(forward(q, k, v)[0]).all()
    assert np.isfinite(forward(q, k, v, causal=True)[0]).all()


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_packed_is_the_same_as_taken_apart(kv_heads):
    mt.manual_seed(0)
    x = mt.randn(2, 9, (4 + 2 * kv_heads) * 5, dtype=mt.float64, requires_grad=True)
    v = mt.randn(2, 9, 20, dtype=mt.float64)
    packed = F.attention_qkvpacked(x, 4, kv_heads, is_causal=True)
    (first,) = mt.autograd.grad(packed, x, v)
    by_head = x.reshape(2, 9, 4 + 2 * kv_heads, 5).transpose(1, 2)
    q, k, w = by_head.split([4, kv_heads, kv_heads], 1)
    apart = F.scaled_dot_product_attention(q, k, w, is_causal=True)
    apart = apart.transpose(1, 2).reshape(2, 9, 20)
    (second,) = mt.autograd.grad(apart, x, v)
    np.testing.assert_allclose(packed.detach().numpy(), apart.detach().numpy(), atol=1e-13)
    np.testing.assert_allclose(first.numpy(), second.numpy(), atol=1e-12)


def test_a_width_that_does_not_divide_is_refused():
    with pytest.raises(mt.errors.ShapeError, match="attention_qkvpacked: expected"):
        F.attention_qkvpacked(mt.ones(1, 2, 10), 3)
