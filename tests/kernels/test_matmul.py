"""The compiled matrix product against float64 NumPy."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minitorch as mt
from minitorch import kernels
from minitorch.kernels.reference import matmul as reference

DTYPES = {"float32": 1e-6, "float64": 1e-14, "bfloat16": 8e-3}
SIZE = st.one_of(st.integers(0, 40), st.sampled_from([64, 65, 96, 400, 800]))
FIXTURES = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def matrix(rng, rows, columns, dtype, layout):
    """(rows, columns): contiguous, transposed, or with gaps in both directions."""
    if layout == "transposed":
        return rng.standard_normal((columns, rows)).astype(dtype).T
    if layout == "strided":
        return rng.standard_normal((2 * rows, 3 * columns)).astype(dtype)[::-2, ::3]
    return rng.standard_normal((rows, columns)).astype(dtype)


def wide(array):
    return np.asarray(array, np.float64)


def compiled():
    return kernels.implementations("matmul")["cpu"]


@FIXTURES
@given(
    st.tuples(SIZE, SIZE, SIZE),
    st.sampled_from(sorted(DTYPES)),
    st.tuples(*[st.sampled_from(["plain", "transposed", "strided"])] * 2),
    st.sampled_from([1, 0.5]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_against_numpy(instruction_set, sizes, dtype, layouts, alpha, biased, residual, accumulate):
    m, n, k = sizes
    kind = np.dtype(getattr(mt, dtype))
    rng = np.random.default_rng(m + 41 * n + 1681 * k)
    a, b = matrix(rng, m, k, kind, layouts[0]), matrix(rng, k, n, kind, layouts[1])
    out = rng.standard_normal((m, n)).astype(kind)
    bias = rng.standard_normal(n).astype(kind) if biased else None
    rest = rng.standard_normal((m, n)).astype(kind) if residual else None
    expected = alpha * wide(a) @ wide(b)
    for term in (bias, rest, out if accumulate else None):
        if term is not None:
            expected = expected + wide(term)
    found = compiled()(a, b, out=out, alpha=alpha, accumulate=accumulate, bias=bias, residual=rest)
    assert found is out
    bound = DTYPES[dtype] * (k + 4) ** 0.5 * (1 + np.abs(expected).max(initial=0))
    np.testing.assert_allclose(wide(found), expected, rtol=0, atol=bound)


@FIXTURES
@given(
    st.tuples(SIZE, SIZE, SIZE),
    st.sampled_from(sorted(DTYPES)),
    st.sampled_from(["relu", "silu", "gelu", "gelu_tanh"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_activations(instruction_set, sizes, dtype, activation, keep, residual, accumulate):
    m, n, k = sizes
    kind = np.dtype(getattr(mt, dtype))
    rng = np.random.default_rng(m + 41 * n + 1681 * k)
    a, b = matrix(rng, m, k, kind, "plain"), matrix(rng, k, n, kind, "transposed")
    bias = rng.standard_normal(n).astype(kind)
    rest = rng.standard_normal((m, n)).astype(kind) if residual else None
    out = rng.standard_normal((m, n)).astype(kind)
    pre = np.empty((m, n), kind) if keep else None
    wide_pre, expected = np.empty((m, n)), wide(out)
    reference.matmul(
        wide(a),
        wide(b),
        out=expected,
        accumulate=accumulate,
        bias=wide(bias),
        activation=activation,
        residual=None if rest is None else wide(rest),
        pre=wide_pre,
    )
    compiled()(
        a,
        b,
        out=out,
        accumulate=accumulate,
        bias=bias,
        activation=activation,
        residual=rest,
        pre=pre,
    )
    scale = 1 + max(np.abs(x).max(initial=0) for x in (expected, wide_pre))
    bound = 2 * DTYPES[dtype] * (k + 4) ** 0.5 * scale
    np.testing.assert_allclose(wide(out), expected, rtol=0, atol=bound)
    if pre is not None:
        np.testing.assert_allclose(wide(pre), wide_pre, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shape", [(78, 110, 1300), (110, 78, 4500)])
def test_a_sum_of_several_pieces_of_the_depth(instruction_set, shape, dtype):
    (m, n, k), kind, rng = shape, np.dtype(getattr(mt, dtype)), np.random.default_rng(0)
    a, b = matrix(rng, m, k, kind, "plain"), matrix(rng, k, n, kind, "transposed")
    out, bias = rng.standard_normal((m, n)).astype(kind), rng.standard_normal(n).astype(kind)
    expected = 0.5 * wide(a) @ wide(b) + wide(bias) + wide(out)
    found = compiled()(a, b, out=out, alpha=0.5, accumulate=True, bias=bias)
    bound = DTYPES[dtype] * (k + 4) ** 0.5 * (1 + np.abs(expected).max())
    np.testing.assert_allclose(wide(found), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_a_sum_of_several_parts(instruction_set, dtype, accumulate):
    """Of which out holds the sums before the last."""
    (m, n, k), kind, rng = (50, 65, 8500), np.dtype(getattr(mt, dtype)), np.random.default_rng(0)
    a, b = matrix(rng, m, k, kind, "plain"), matrix(rng, k, n, kind, "transposed")
    wider = np.float32 if dtype == "bfloat16" else kind
    out, bias = rng.standard_normal((m, n)).astype(wider), rng.standard_normal(n).astype(wider)
    expected, before = 0.5 * wide(a) @ wide(b) + wide(bias), out.copy() if accumulate else 0
    options = {"alpha": 0.5, "accumulate": accumulate, "bias": bias, "activation": "relu"}
    pre = np.empty_like(out)
    found = compiled()(a, b, out=out, pre=pre, **options) - before
    bound = DTYPES[np.dtype(wider).name] * (k + 4) ** 0.5 * (1 + np.abs(expected).max())
    np.testing.assert_allclose(pre, expected, rtol=0, atol=bound)
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=0, atol=bound)


@pytest.mark.parametrize("biased", [False, True])
def test_products_of_bfloat16_in_float32(instruction_set, biased):
    rng = np.random.default_rng(0)
    for m, n, k in [(3, 40, 30), (70, 90, 1000), (200, 40, 900)]:
        a, b = (matrix(rng, *s, mt.bfloat16, "plain") for s in ((m, k), (k, n)))
        bias = rng.standard_normal(n).astype(np.float32) if biased else None
        out = compiled()(a, b, out=np.ones((m, n), np.float32), bias=bias, accumulate=True)
        expected = wide(a) @ wide(b) + 1 + (wide(bias) if biased else 0)
        np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6 * k)


@pytest.mark.parametrize(
    "shapes", [((3, 1, 4, 5), (2, 5, 6)), ((7, 4, 3), (3, 2)), ((0, 2, 3), (3, 4))]
)
def test_batches_broadcast(instruction_set, shapes):
    a, b = (np.random.default_rng(i).standard_normal(s) for i, s in enumerate(shapes))
    np.testing.assert_allclose(compiled()(a, b), np.matmul(a, b), atol=1e-13)


def test_nan_and_infinity_go_through(instruction_set):
    a, b = np.ones((20, 30), np.float32), np.ones((30, 40), np.float32)
    a[3, 4], b[7, 8] = np.nan, np.inf
    found = compiled()(a, b)
    assert np.isnan(found[3]).all()
    assert np.isinf(np.delete(found[:, 8], 3)).all()
    assert (np.delete(np.delete(found, 3, 0), 8, 1) == 30).all()


ROUNDING = 2.0**-24
"""The largest relative error of a float32 that is rounded."""


@pytest.mark.parametrize("layouts", [("plain", "plain"), ("transposed", "strided")])
@pytest.mark.parametrize("spread", [0, 30])
@pytest.mark.parametrize(
    ("of_a", "of_b"),
    [(0, 0), (113, -100), (-113, 90), (-96, 90), (-30, -30), (-40, -80), (58, 56)],
)
def test_float32_keeps_its_digits(instruction_set, of_a, of_b, spread, layouts):
    """Relative to the sum of the products' magnitudes, however large these are."""
    rng, (m, n, k) = np.random.default_rng(0), (86, 110, 600)

    def numbers(rows, columns, scale, layout):
        x = matrix(rng, rows, columns, np.float32, layout).copy()
        x *= 2.0 ** (scale + rng.uniform(-spread, 0, x.shape))
        return x if layout == "plain" else x.T.copy().T

    a, b = numbers(m, k, of_a, layouts[0]), numbers(k, n, of_b, layouts[1])
    if not spread:  # errors of one sign, with as large a third piece as can be
        a[...], b = 2.0**of_a * (1 + 2.0**-9 + 0.98 * 2.0**-17), np.abs(b)
    error = np.abs(compiled()(a, b) - wide(a) @ wide(b))
    lost = 1e-43 * k  # of numbers too small to be normal
    bound = 2 * k**0.5 * ROUNDING * (np.abs(wide(a)) @ np.abs(wide(b)))
    assert (error <= bound + lost).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_no_number_stays_in_its_row_and_column(instruction_set, dtype):
    rng = np.random.default_rng(0)
    for m, n, k in [(86, 110, 600), (300, 63, 290)]:
        a, b = (rng.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n)))
        a[3, 5], a[40, 7], a[60, 1], b[80, 55], b[2, 59] = np.inf, np.nan, -np.inf, np.nan, np.inf
        a[41, 11] = np.frombuffer(b"\xff" * a.itemsize, dtype)[0]
        a[66, 3] = np.finfo(dtype).max / 8
        with np.errstate(all="ignore"):
            expected = (wide(a) @ wide(b)).astype(dtype)
        found = compiled()(a, b)
        usual = np.isfinite(expected)
        np.testing.assert_array_equal(found[~usual], expected[~usual])
        sizes = (np.abs(np.where(np.isfinite(x), wide(x), 0)) for x in (a, b))
        bound = k**0.5 * ROUNDING * np.matmul(*sizes)
        assert (np.abs(wide(found[usual]) - expected[usual]) <= bound[usual]).all()


def test_any_number_of_threads_gives_the_same_bits(instruction_set, threads):
    rng = np.random.default_rng(0)
    # The operand that is packed whole takes up to 2 MB but in the last.
    for m, n, k in [(300, 200, 700), (5, 3000, 400), (1000, 75, 96), (90, 90, 90), (900, 950, 650)]:
        a = rng.standard_normal((m, k)).astype(np.float32)
        b = rng.standard_normal((n, k)).astype(np.float32).T
        results = []
        for count in (1, 2, 5):
            threads(count)
            results.append(compiled()(a, b))
        assert (results[0] == results[1]).all()
        assert (results[0] == results[2]).all()


@FIXTURES
@given(
    st.lists(st.integers(0, 20), min_size=2, max_size=4),
    st.integers(0, 40),
    st.sampled_from(sorted(DTYPES)),
    st.sampled_from(["plain", "transposed", "strided"]),
    st.booleans(),
    st.sampled_from(["none", "contiguous", "strided"]),
)
def test_linear(instruction_set, shape, features, dtype, layout, gaps, biased):
    kind = np.dtype(getattr(mt, dtype))
    rng = np.random.default_rng(features)
    x = rng.standard_normal((*shape[:-1], 2 * shape[-1])).astype(kind)
    x = x[..., ::2] if gaps else np.ascontiguousarray(x[..., ::2])
    weight = matrix(rng, features, shape[-1], kind, layout)
    bias = rng.standard_normal(3 * features).astype(kind)
    bias = {"none": None, "contiguous": bias[:features], "strided": bias[::3]}[biased]
    found = kernels.implementations("linear")["cpu"](x, weight, bias)
    expected = reference.linear(wide(x), wide(weight), None if bias is None else wide(bias))
    assert (found.dtype, found.shape) == (kind, (*shape[:-1], features))
    bound = DTYPES[dtype] * (shape[-1] + 4) ** 0.5 * (1 + np.abs(expected).max(initial=0))
    np.testing.assert_allclose(wide(found), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("needs", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "wide bfloat16"])
def test_gradients_of_linear(instruction_set, dtype, needs, gaps, residual):
    """Wide: of bfloat16 arrays, but not rounded to it."""
    kind, needs = np.dtype(getattr(mt, dtype.split()[-1])), tuple(map(bool, needs))
    made = np.dtype(np.float32) if "wide" in dtype else kind
    rng = np.random.default_rng(1)
    x, weight, grad, rest = (
        rng.standard_normal((*s[:-1], 2 * s[-1])).astype(kind)[..., ::2]
        for s in ((2, 50, 33), (70, 33), (2, 50, 70), (2, 50, 33))
    )
    if not gaps:
        x, weight, grad, rest = map(np.ascontiguousarray, (x, weight, grad, rest))
    found = kernels.implementations("linear_backward")["cpu"](
        grad,
        x,
        weight,
        needs=needs,
        residual=rest if residual else None,
        wide=("wide" in dtype,) * 3,
    )
    g, rows = wide(grad).reshape(100, 70), wide(x).reshape(100, 33)
    to_x = (g @ wide(weight)).reshape(x.shape) + (wide(rest) if residual else 0)
    for one, other, need in zip(found, (to_x, g.T @ rows, g.sum(0)), needs, strict=True):
        assert (one is not None) == need
        if need:
            assert (one.dtype, one.shape) == (made, other.shape)
            np.testing.assert_allclose(
                wide(one), other, rtol=0, atol=12 * DTYPES[made.name] * np.abs(other).max()
            )


def test_the_gradient_of_a_bias_alone(instruction_set):
    """Made without the weight's, which no memory holds."""
    n = 1 << 23
    row = np.arange(n, dtype=np.float32)[None]
    endless = np.broadcast_to(np.float32(1), (n, n))
    dx, dweight, dbias = kernels.lookup("linear_backward")(
        row, row, endless, needs=(False, False, True)
    )
    assert dx is None
    assert dweight is None
    np.testing.assert_array_equal(dbias, row[0])


def test_what_does_not_fit_is_refused():
    a, b = np.ones((2, 3)), np.ones((3, 5))
    for function in (compiled(), reference.matmul):
        with pytest.raises(ValueError, match="matmul"):
            function(a, np.ones((4, 5)))
        with pytest.raises(ValueError, match=r"activation|expected"):
            function(a, b, activation="tanh")
    with pytest.raises(ValueError, match="out has"):
        compiled()(a, b, out=np.ones((5, 2)))
    fixed = np.zeros((2, 5))
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        compiled()(a, b, out=fixed)
    assert not fixed.any()
    with pytest.raises(ValueError, match="pre has to be"):
        compiled()(a, b, pre=np.ones((2, 5), np.float32))
