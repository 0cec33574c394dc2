"""Embedding, its transpose, and rotary positions, compiled, against references and formulas."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minitorch as mt
from minitorch import kernels
from minitorch.errors import ShapeError

DTYPES = [np.dtype(np.float32), np.dtype(np.float64), mt.bfloat16]
FIXTURES = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def draw(shape, dtype, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


@FIXTURES
@given(
    st.tuples(st.integers(1, 40), st.sampled_from([1, 7, 16, 33, 300])),
    st.sampled_from([(), (1,), (0,), (5, 3), (300,), (2, 0)]),
    st.sampled_from(DTYPES),
    st.sampled_from([np.int64, np.int32, np.uint8]),
    st.booleans(),
)
def test_embedding(hold, table, index, dtype, kind, transposed):
    """Indices that repeat (every one of them where the table has one row), none at all, or one."""
    rows, features = table
    weight = draw((features, rows), dtype).T if transposed else draw(table, dtype)
    places = np.random.default_rng(rows).integers(0, rows, index).astype(kind)
    found = hold("embedding", weight, places)
    assert found.dtype == dtype
    assert (found == weight[places]).all()
    grad = draw((*index, features), dtype, seed=1)
    back = hold("embedding_backward", grad, places, num_embeddings=rows)
    assert back.dtype == dtype
    unused = np.setdiff1d(np.arange(rows), places)
    assert not back[unused].any()


def test_sums_of_bfloat16_rows_are_rounded_once(instruction_set):
    grad = np.full((1000, 3), 1, mt.bfloat16)  # added up in bfloat16 they would stay at 256
    back = kernels.implementations("embedding_backward")["cpu"]
    found = back(grad, np.zeros(1000, np.int64), num_embeddings=2)
    assert found.tolist() == [[1000] * 3, [0] * 3]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("implementation", ["numpy", "cpu"])
def test_rows_are_added_to_what_is_there(instruction_set, implementation, dtype):
    back = kernels.implementations("embedding_backward")[implementation]
    places, grad = np.array([2, 0, 2, 2, 5]), draw((5, 37), dtype)
    total = draw((7, 37), dtype, seed=1)
    expected = total.astype(np.float64)
    np.add.at(expected, places, grad.astype(np.float64))
    assert back(grad, places, num_embeddings=7, out=total) is total
    bound = {np.float32: 1e-6, np.float64: 1e-15}.get(dtype.type, 0.03)
    np.testing.assert_allclose(total.astype(np.float64), expected, rtol=0, atol=4 * bound)


def test_an_index_out_of_range(instruction_set):
    weight = draw((4, 3), np.float32)
    for bad in (4, -1):
        with pytest.raises(ShapeError, match=r"indices in \[0, 4\)"):
            kernels.implementations("embedding")["cpu"](weight, np.array([0, bad]))
        with pytest.raises(ShapeError, match=r"indices in \[0, 4\)"):
            kernels.implementations("embedding_backward")["cpu"](
                weight[:2], np.array([0, bad]), num_embeddings=4
            )


@st.composite
def rotations(data):
    """x (..., time, features) in some memory order, and angles (time, features / 2)."""
    leading = data(st.sampled_from([(), (1,), (3,), (2, 4), (2, 0)]))
    time, half = data(st.sampled_from([1, 2, 9, 300])), data(st.sampled_from([1, 4, 16, 35]))
    dtype = data(st.sampled_from(DTYPES))
    x = draw((*leading, time, 2 * half), dtype)
    order = data(st.sampled_from(["plain", "by heads", "features apart"]))
    if order == "by heads" and leading:
        x = np.moveaxis(draw((*leading[:-1], time, leading[-1], 2 * half), dtype), -3, -2)
    elif order == "features apart":
        x = np.repeat(x, 2, -1)[..., ::2]
    angle = np.random.default_rng(time).uniform(-4, 4, (time, half))
    wide = np.float64 if dtype == np.float64 else np.float32
    return x, np.cos(angle).astype(wide), np.sin(angle).astype(wide)


@FIXTURES
@given(rotations(), st.booleans(), st.booleans())
def test_rope(hold, case, interleaved, inverse):
    """A rotation of complex numbers a + ib, also into x itself; then back again."""
    x, cos, sin = case
    found = hold("rope", x, cos, sin, interleaved=interleaved, inverse=inverse)
    assert found.dtype == x.dtype

    def as_complex(x):
        wide = x.astype(np.float64)
        a, b = (wide[..., ::2], wide[..., 1::2]) if interleaved else np.split(wide, 2, -1)
        return a + 1j * b

    turn = cos.astype(np.float64) + (-1j if inverse else 1j) * sin
    bound = {4: 1e-6, 8: 1e-14, 2: 3e-2}[x.dtype.itemsize]
    np.testing.assert_allclose(as_complex(found), as_complex(x) * turn, atol=bound)

    kernel = kernels.implementations("rope")["cpu"]
    into = x.copy()
    meta = {"interleaved": interleaved, "inverse": inverse}
    assert kernel(into, cos, sin, out=into, **meta) is into
    assert (into == found).all()
    meta["inverse"] = not inverse
    back = kernel(found, cos, sin, **meta).astype(np.float64)
    np.testing.assert_allclose(back, x.astype(np.float64), atol=2 * bound)


def test_rope_of_what_does_not_fit(instruction_set):
    x, angle = draw((2, 5, 8), np.float32), draw((5, 3), np.float32)
    with pytest.raises(ValueError, match=r"features / 2\); got \(2, 5, 8\), \(5, 3\)"):
        kernels.implementations("rope")["cpu"](x, angle, angle)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("plain", "turned", "value"), [(3, 2, 5), (32, 16, 32), (1, 70, 9)])
def test_heads_of_latent_attention(hold, dtype, interleaved, plain, turned, value):
    """Against the reference, and the way back as the transpose: <J x, y> = <x, Jᵀ y>."""
    batch, time, heads = 2, 5, 3
    query = draw((batch, time, heads * (plain + turned)), dtype)
    made = draw((batch, time, heads * (plain + value)), dtype)
    key = draw((batch, time, turned), dtype)
    angle = np.random.default_rng(0).uniform(-4, 4, (time, turned // 2))
    wide = np.float64 if dtype == np.float64 else np.float32
    tables = np.cos(angle).astype(wide), np.sin(angle).astype(wide)
    options = {"interleaved": interleaved}
    queries, keys = hold("latent_heads", query, made, key, *tables, heads=heads, **options)
    by_head = np.ascontiguousarray(made.reshape(batch, time, heads, -1).swapaxes(1, 2))
    grads = [draw(x.shape, dtype) for x in (queries, keys, by_head[..., plain:])]
    found = hold("latent_heads_backward", *grads, *tables, **options)
    forward = zip((queries, keys, by_head[..., plain:]), grads, strict=True)
    backward = zip((query, made, key), found, strict=True)
    one, other = (
        sum((a.astype(np.float64) * b.astype(np.float64)).sum() for a, b in pairs)
        for pairs in (forward, backward)
    )
    bound = {4: 1e-5, 8: 1e-13, 2: 3e-2}[dtype.itemsize]
    assert one == pytest.approx(other, abs=bound * query.size**0.5 * 10)


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)], ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("width", "q_rank", "rank", "heads"), [(6, 3, 2, 1), (40, 24, 33, 3), (128, 64, 32, 4)]
)
def test_projections_of_latent_attention(hold, dtype, interleaved, width, q_rank, rank, heads):
    """Forward and back, with weights of norms for the first latent alone."""
    plain, turned, value, rows = 5, 6, 4, (2, 30)
    shapes = [(q_rank, width), (q_rank,), (heads * (plain + turned), q_rank)]
    shapes += [(rank + turned, width), None, (heads * (plain + value), rank)]
    weights = [None if shape is None else draw(shape, dtype) / shape[-1] ** 0.5 for shape in shapes]
    angle = np.random.default_rng(0).uniform(-4, 4, (rows[1], turned // 2)).astype(dtype)
    given = draw((*rows, width), dtype), *weights, np.cos(angle), np.sin(angle)
    found = hold("latent_projections", *given, heads=heads, interleaved=interleaved, eps=1e-3)
    queries, keys, made, *kept = found
    values = made.reshape(*rows, heads, -1).swapaxes(1, 2)[..., plain:]
    grads = [draw(x.shape, dtype) for x in (queries, keys, values)]
    options = {"interleaved": interleaved, "needs": (True,) * 4 + (True, False, True)}
    kernel = kernels.implementations("latent_projections_backward")
    exact = kernel["numpy"](*grads, *given, *kept, **options)
    for one, other in zip(kernel["cpu"](*grads, *given, *kept, **options), exact, strict=True):
        if one is not None:
            np.testing.assert_allclose(one, other, atol=np.finfo(dtype).eps * 100 * other.max())


def test_projections_of_latent_attention_without_a_latent_of_queries():
    dtype, rows = np.float64, (1, 3)
    weights = None, None, draw((2 * 3, 4), dtype), draw((5 + 2, 4), dtype), draw((5,), dtype)
    tables = [draw((3, 1), dtype) for _ in range(2)]
    given = draw((*rows, 4), dtype), *weights, draw((2 * 2, 5), dtype), *tables
    options = {"heads": 2, "interleaved": True, "eps": 1e-3}
    named = kernels.implementations("latent_projections")
    found, exact = (named[name](*given, **options) for name in ("cpu", "numpy"))
    assert [x is None for x in found] == [i in (3, 4, 5) for i in range(9)]
    for one, other in zip(found, exact, strict=True):
        if one is not None:
            np.testing.assert_allclose(one, other, atol=1e-13)
