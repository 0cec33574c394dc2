"""The compiled attention against its reference in float64."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minitorch as mt
from minitorch import kernels
from minitorch.kernels.reference import attention as reference
from minitorch.nn import functional as F

TOLERANCE = {"float32": 3e-5, "float64": 1e-12, "bfloat16": 4e-2}
TIME = st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 97, 130, 300]))
DTYPE = st.sampled_from(sorted(TOLERANCE))
LEAST = float(np.finfo(np.float32).min)
EDGE = st.sampled_from([-1, -1, 0, 1, 5, 40])
OPTIONS = st.fixed_dictionaries(
    {
        "causal": st.booleans(),
        "scale": st.sampled_from([None, 0.2]),
        "window": st.tuples(EDGE, EDGE),
        "softcap": st.sampled_from([0.0, 0.0, 2.0]),
        "lower_right": st.booleans(),
    }
)
FIXTURES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def wide(x):
    return x if x is None or x.dtype == bool else np.asarray(x, np.float64)


def compiled(name):
    return kernels.implementations(name)["cpu"]


def close(found, expected, tolerance):
    bound = tolerance * (1 + np.abs(expected).max(initial=0))
    np.testing.assert_allclose(wide(found), expected, rtol=0, atol=bound)


@FIXTURES
@given(
    st.sampled_from([(1, 1), (4, 2), (3, 3), (4, 1)]),
    TIME,
    TIME,
    st.sampled_from([1, 4, 16, 33, 64, 256]),
    st.sampled_from([1, 16, 40, 128]),
    DTYPE,
    OPTIONS,
    st.sampled_from([None, "bool", "float", "float of keys", "float turned"]),
    st.booleans(),
)
def test_both_directions(
    instruction_set, heads, time_q, time_k, dim, value_dim, dtype, options, masked, with_sinks
):
    kind, tolerance = np.dtype(getattr(mt, dtype)), TOLERANCE[dtype]
    compute = np.float64 if dtype == "float64" else np.float32
    rng = np.random.default_rng(time_q + 131 * time_k)
    query = rng.standard_normal((2, time_q, heads[0], dim)).astype(kind).transpose(0, 2, 1, 3)
    key = rng.standard_normal((2, heads[1], time_k, dim)).astype(kind)
    value = rng.standard_normal((2, heads[1], time_k, value_dim)).astype(kind)
    mask = {
        None: None,
        "bool": rng.random((time_q, time_k)) < 0.6,
        "float": rng.standard_normal((2, 1, time_q, time_k)).astype(compute),
        "float of keys": rng.standard_normal((2, 1, 1, time_k)).astype(compute),
        "float turned": rng.standard_normal((heads[0], time_k, time_q)).astype(compute).mT,
    }[masked]
    sinks = rng.standard_normal(heads[0]).astype(kind) if with_sinks else None
    inputs = [query, key, value, mask, sinks]
    exact = [wide(x) for x in inputs]
    expected, lse = reference.scaled_dot_product_attention(*exact, **options)
    found, found_lse = compiled("scaled_dot_product_attention")(*inputs, **options)
    close(found, expected, tolerance)
    assert (np.isfinite(found_lse) == np.isfinite(lse)).all()

    grad = rng.standard_normal(found.shape).astype(kind)
    needs_mask = masked not in (None, "bool")
    gradients = reference.scaled_dot_product_attention_backward(
        wide(grad), *exact, expected, lse, needs_mask=needs_mask, **options
    )
    ours = compiled("scaled_dot_product_attention_backward")(
        grad, *inputs, found, found_lse, needs_mask=needs_mask, **options
    )
    for one, other, x in zip(ours, gradients, inputs, strict=True):
        if other is None:
            assert one is None
        else:
            assert one.dtype == x.dtype
            close(one, other, 2 * tolerance)


@FIXTURES
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 70)), min_size=1, max_size=5),
    st.sampled_from([(2, 2), (4, 2)]),
    st.sampled_from([8, 20]),
    DTYPE,
    OPTIONS,
    st.booleans(),
)
def test_packed_sequences(instruction_set, lengths, heads, dim, dtype, options, with_sinks):
    kind, tolerance = np.dtype(getattr(mt, dtype)), TOLERANCE[dtype]
    starts_q, starts_k = (np.cumsum([0, *n]) for n in zip(*lengths, strict=True))
    rng = np.random.default_rng(len(lengths))
    query = rng.standard_normal((starts_q[-1], heads[0], dim)).astype(kind)
    key, value = rng.standard_normal((2, heads[1], starts_k[-1], dim)).astype(kind).swapaxes(1, 2)
    sinks = rng.standard_normal(heads[0]).astype(kind) if with_sinks else None
    inputs = [query, key, value, sinks]
    exact = [wide(x) for x in inputs]
    expected, lse = reference.varlen_attention(*exact, starts_q, starts_k, **options)
    found, found_lse = compiled("varlen_attention")(*inputs, starts_q, starts_k, **options)
    close(found, expected, tolerance)
    grad = rng.standard_normal(found.shape).astype(kind)
    gradients = reference.varlen_attention_backward(
        wide(grad), *exact, starts_q, starts_k, expected, lse, **options
    )
    ours = compiled("varlen_attention_backward")(
        grad, *inputs, starts_q, starts_k, found, found_lse, **options
    )
    for one, other in zip(ours, gradients, strict=True):
        if other is not None:
            close(one, other, 2 * tolerance)


def test_threads_do_not_change_a_bit(instruction_set, threads):
    rng = np.random.default_rng(0)
    q, k, v, grad = rng.standard_normal((4, 3, 4, 100, 24), np.float32)
    mask, sinks = rng.standard_normal((100, 100), np.float32), rng.standard_normal(4, np.float32)
    one_query = np.ascontiguousarray(q[:, :, :1])
    starts = np.array([0, 1, 70, 70, 100])
    results = []
    for count in (1, 2, 3):
        threads(count)
        found = []
        for bias, options in [(None, {"causal": True}), (mask, {"window": (30, 2)})]:
            out, lse = compiled("scaled_dot_product_attention")(q, k, v, bias, sinks, **options)
            back = compiled("scaled_dot_product_attention_backward")
            found += [out, lse]
            found += back(grad, q, k, v, bias, sinks, out, lse, needs_mask=True, **options)
        found += compiled("scaled_dot_product_attention")(one_query, k, v, None, sinks)
        by_time = [x[0].transpose(1, 0, 2) for x in (q, k, v)]
        found += compiled("varlen_attention")(*by_time, sinks, starts, starts, causal=True)
        results.append([x for x in found if x is not None])
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            assert (one == other).all()


def test_a_query_that_sees_nothing_gets_zeros(instruction_set):
    q = np.ones((1, 1, 3, 8), np.float32)
    mask = np.array([[True] * 3, [False] * 3, [True, False, False]])
    out, lse = kernels.lookup("scaled_dot_product_attention")(q, q, q, mask)
    assert not out[0, 0, 1].any()
    assert np.isposinf(lse[0, 0, 1])
    backward = kernels.lookup("scaled_dot_product_attention_backward")
    *gradients, _, _ = backward(q, q, q, q, mask, None, out, lse)
    assert not gradients[0][0, 0, 1].any()
    assert all(np.isfinite(g).all() for g in gradients)


def test_a_query_of_which_all_is_masked_by_the_least_finite_number_takes_the_mean(instruction_set):
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 1, 40, 8), np.float32)
    mask = np.zeros((40, 40), np.float32)
    mask[3] = LEAST
    out, _ = compiled("scaled_dot_product_attention")(q, k, v, mask)
    np.testing.assert_allclose(out[0, 0, 3], v[0, 0].mean(0), atol=1e-6)


def by_hand(grad, q, k, v, mask, sink):
    """out and all gradients of one head, each row's largest score taken off first: in float64."""
    grad, q, k, v, mask = (wide(x) for x in (grad, q, k, v, mask))
    scores = np.column_stack([q @ k.T + mask, np.full(len(q), sink)])
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    to_sink, weights = weights[:, -1], weights[:, :-1]
    out = weights @ v
    delta = (grad * out).sum(1)
    dscores = weights * (grad @ v.T - delta[:, None])
    return out, dscores @ k, dscores.T @ q, weights.T @ grad, dscores, -(to_sink * delta).sum()


@pytest.mark.parametrize("implementation", ["cpu", "numpy"])
@pytest.mark.parametrize("sink", [-np.inf, -(2.0**100), 0.5])
@pytest.mark.parametrize("least", [LEAST, -(2.0**100)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 4e-2)])
def test_gradients_of_rows_that_are_masked_by_a_finite_number(
    instruction_set, least, sink, implementation, dtype, tolerance
):
    """Beside such a number a float has no digits for the logarithm of a sum."""
    kind = np.dtype(getattr(mt, dtype))
    q, k, v, grad = np.random.default_rng(0).standard_normal((4, 1, 1, 40, 8)).astype(kind)
    mask = np.zeros((40, 40), np.float32)
    mask[3] = mask[17] = least
    mask[17, 5:9] = -np.inf
    mask[21, 1:] = least
    sinks = None if np.isneginf(sink) else np.array([sink], kind)
    inputs, options = (q, k, v, mask, sinks), {"scale": 1.0}
    forward, backward = (
        kernels.implementations(f"scaled_dot_product_attention{name}")[implementation]
        for name in ("", "_backward")
    )
    out, lse = forward(*inputs, **options)
    found = backward(grad, *inputs, out, lse, needs_mask=True, **options)
    expected = by_hand(*(x[0, 0] for x in (grad, q, k, v)), mask, sink)
    for one, other in zip((out, *found), expected, strict=True):
        if one is not None:
            close(np.reshape(one, np.shape(other)), other, tolerance)


@pytest.mark.parametrize("time", [1, 3])
def test_a_sink_takes_what_nothing_else_wants(instruction_set, time):
    """Against a sink alone the output is zero; one at -inf is as good as none."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, time, 8), np.float32)
    forward = kernels.lookup("scaled_dot_product_attention")
    out, lse = forward(q, k, v, np.zeros((time, time), bool), np.array([2, 3], np.float32))
    assert not out.any()
    np.testing.assert_allclose(lse, np.broadcast_to([[2], [3]], (1, 2, time)), rtol=1e-6)
    none = forward(q, k, v, None, np.full(2, -np.inf, np.float32))
    for one, other in zip(none, forward(q, k, v), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("time", [1, 40])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nan_reaches_the_queries_that_see_it(instruction_set, time, bad, dtype):
    kind = np.dtype(getattr(mt, dtype))
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 1, time, 8)).astype(kind)
    k = np.concatenate([k, np.full((1, 1, 1, 8), bad, kind)], axis=2)
    v = np.concatenate([v, np.full((1, 1, 1, 8), bad, kind)], axis=2)
    forward = kernels.lookup("scaled_dot_product_attention")
    with np.errstate(invalid="ignore"):
        expected, _ = reference.scaled_dot_product_attention(wide(q), wide(k), wide(v))
    np.testing.assert_array_equal(np.isnan(forward(q, k, v)[0]), np.isnan(expected))
    assert np.isfinite(forward(q, k, v, causal=True)[0]).all()
    assert np.isnan(forward(q, k, v, causal=True, lower_right=True)[0][0, 0, -1]).any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-4), ("bfloat16", 2e-2)])
def test_scores_far_apart(instruction_set, causal, dtype, tolerance):
    """Weights from 1 down to what no float holds, the largest score in any block of keys."""
    kind = np.dtype(getattr(mt, dtype))
    q, k, v, grad = np.random.default_rng(0).standard_normal((4, 1, 2, 300, 32)).astype(kind)
    inputs = [50 * q, k, v, None, None]
    exact = [wide(x) for x in inputs]
    expected, lse = reference.scaled_dot_product_attention(*exact, causal=causal)
    found, found_lse = compiled("scaled_dot_product_attention")(*inputs, causal=causal)
    close(found, expected, tolerance)
    np.testing.assert_allclose(found_lse, lse, rtol=1e-6, atol=1e-4)
    gradients = reference.scaled_dot_product_attention_backward(
        wide(grad), *exact, expected, lse, causal=causal
    )
    ours = compiled("scaled_dot_product_attention_backward")(
        grad, *inputs, found, found_lse, causal=causal
    )
    for one, other in zip(ours[:3], gradients[:3], strict=True):
        close(one, other, 5 * tolerance)


def test_powers_of_two_of_bfloat16(instruction_set):
    """Of scores 0 and -x the logsumexp is log(1 + exp(-x)), and as exact as the power is."""
    x = np.linspace(0, 8, 2000).astype(mt.bfloat16)
    q, k = np.zeros((1, 1, 2000, 32), mt.bfloat16), np.zeros((1, 1, 2, 32), mt.bfloat16)
    q[..., 0], k[0, 0, 1, 0] = x, -1
    _, lse = compiled("scaled_dot_product_attention")(q, k, k, scale=1.0)
    error = np.expm1(lse[0, 0]) / np.exp(-wide(x)) - 1
    assert np.abs(error[wide(x) < 3]).max() < 1.3e-4
    np.testing.assert_allclose(lse[0, 0], np.log1p(np.exp(-wide(x))), rtol=0, atol=6e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_of_tens_of_thousands(instruction_set, dtype):
    """Beside which the rounding of a score is not small."""
    kind = np.dtype(getattr(mt, dtype))
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 300, 32)).astype(kind)
    inputs = [3000 * q, k, v]
    expected, lse = reference.scaled_dot_product_attention(*(wide(x) for x in inputs))
    found, found_lse = compiled("scaled_dot_product_attention")(*inputs)
    close(found, expected, TOLERANCE["bfloat16"])
    np.testing.assert_allclose(found_lse, lse, rtol=1e-6)


@pytest.mark.parametrize(
    ("of_query", "of_key", "of_value", "of_grad"),
    [
        (34, -34, 0, 0),
        (-34, 34, 0, 0),
        (0, 0, 34, 0),
        (0, 0, -34, 0),
        (0, 0, 0, 34),
        (0, 0, 0, -34),
    ],
)
def test_numbers_of_all_sizes(instruction_set, of_query, of_key, of_value, of_grad):
    """Also of those that tile registers cannot multiply, in one head of two."""
    rng = np.random.default_rng(0)
    query, key, value, grad = rng.standard_normal((4, 1, 2, 170, 40)).astype(np.float32)
    for x, power in ((query, of_query), (key, of_key), (value, of_value), (grad, of_grad)):
        x[:, 1] *= np.float32(10.0**power)
    inputs = [query, key, value, None, None]
    exact = [wide(x) for x in inputs]
    expected, exact_lse = reference.scaled_dot_product_attention(*exact, causal=True)
    found, lse = compiled("scaled_dot_product_attention")(*inputs, causal=True)
    gradients = reference.scaled_dot_product_attention_backward(
        wide(grad), *exact, expected, exact_lse, causal=True
    )
    ours = compiled("scaled_dot_product_attention_backward")(grad, *inputs, found, lse, causal=True)
    for one, other in zip((found, *ours[:3]), (expected, *gradients[:3]), strict=True):
        for head in range(2):
            bound = TOLERANCE["float32"] * np.abs(other[:, head]).max()
            np.testing.assert_allclose(wide(one[:, head]), other[:, head], rtol=0, atol=bound)


def test_all_digits_of_float32(instruction_set):
    """Two pieces of three would leave errors of 1e-5."""
    query, key, value, grad = np.random.default_rng(0).standard_normal((4, 1, 2, 300, 64))
    inputs = [*(x.astype(np.float32) for x in (query, key, value)), None, None]
    exact, grad = [wide(x) for x in inputs], grad.astype(np.float32)
    expected, lse = reference.scaled_dot_product_attention(*exact)
    gradients = reference.scaled_dot_product_attention_backward(wide(grad), *exact, expected, lse)
    found, found_lse = compiled("scaled_dot_product_attention")(*inputs)
    ours = compiled("scaled_dot_product_attention_backward")(grad, *inputs, found, found_lse)
    for one, other in zip((found, *ours[:3]), (expected, *gradients[:3]), strict=True):
        assert np.linalg.norm(one - other) < 1e-6 * np.linalg.norm(other)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["query", "key", "value", "grad"])
def test_gradients_of_what_is_no_number(instruction_set, which, bad):
    """It reaches what it is multiplied with, in its own head alone."""
    names = ["query", "key", "value", "grad"]
    inputs = dict(
        zip(names, np.random.default_rng(0).standard_normal((4, 1, 2, 140, 33)), strict=True)
    )
    inputs[which][0, 1, 139, 5] = bad
    *inputs, grad = (x.astype(np.float32) for x in inputs.values())
    inputs += [None, None]
    with np.errstate(invalid="ignore"):
        out, lse = compiled("scaled_dot_product_attention")(*inputs, causal=True)
        ours = compiled("scaled_dot_product_attention_backward")(
            grad, *inputs, out, lse, causal=True
        )
    for x in ours[:3]:
        assert np.isfinite(x[:, 0]).all()
    assert not all(np.isfinite(x[:, 1]).all() for x in ours[:3])


@pytest.mark.parametrize("time", [70, 140])
@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
def test_a_query_that_sees_one_key_gives_its_scores_no_gradient(instruction_set, dtype, time):
    kind = np.dtype(getattr(mt, dtype))
    q, k, v, grad = np.random.default_rng(0).standard_normal((4, 1, 2, time, 33)).astype(kind)
    inputs, options = [q, k, v, None, None], {"window": (0, 0)}
    out, lse = compiled("scaled_dot_product_attention")(*inputs, **options)
    np.testing.assert_array_equal(out, v)
    backward = compiled("scaled_dot_product_attention_backward")
    dq, dk, dv, *_ = backward(grad, *inputs, out, lse, **options)
    assert not dq.any()
    assert not dk.any()
    close(dv, wide(grad), TOLERANCE[dtype])


def test_memory_is_linear_in_time():
    """What NumPy allocates, which counts results and, if there were one, a matrix of scores."""
    x = mt.randn(1, 1, 4096, 16, requires_grad=True)
    tracemalloc.start()
    F.scaled_dot_product_attention(x, x, x, is_causal=True).backward(mt.ones(1, 1, 4096, 16))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * x.numel() * 4 < 4096 * 4096 * 4


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_packed_is_the_same_as_taken_apart(kv_heads):
    mt.manual_seed(0)
    x = mt.randn(2, 9, (4 + 2 * kv_heads) * 5, dtype=mt.float64, requires_grad=True)
    sinks = mt.randn(4, dtype=mt.float64, requires_grad=True)
    v = mt.randn(2, 9, 20, dtype=mt.float64)
    options = {"is_causal": True, "window_size": (4, 0), "softcap": 3.0, "sinks": sinks}
    packed = F.attention_qkvpacked(x, 4, kv_heads, **options)
    first = mt.autograd.grad(packed, [x, sinks], v)
    by_head = x.reshape(2, 9, 4 + 2 * kv_heads, 5).transpose(1, 2)
    q, k, w = by_head.split([4, kv_heads, kv_heads], 1)
    apart = F.scaled_dot_product_attention(q, k, w, **options)
    apart = apart.transpose(1, 2).reshape(2, 9, 20)
    second = mt.autograd.grad(apart, [x, sinks], v)
    np.testing.assert_allclose(packed.detach().numpy(), apart.detach().numpy(), atol=1e-13)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 2, 0, 4)])
def test_empty_inputs(shape):
    x = np.zeros(shape, np.float32)
    out, lse = compiled("scaled_dot_product_attention")(x, x, x)
    assert out.shape == shape
    gradients = compiled("scaled_dot_product_attention_backward")(
        out, x, x, x, None, None, out, lse
    )
    assert [g.shape for g in gradients[:3]] == [shape] * 3
