"""Product keys against every sum of two halves, and the first of an order against sorting."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels

IMPLEMENTATIONS = ["numpy", "cpu"]
FLOATS = [np.float32, np.float64]
SIZES = [(1, 1, 1, 1), (5, 3, 2, 9), (70, 33, 5, 16), (300, 64, 17, 7), (40, 200, 8, 40)]
sizes = pytest.mark.parametrize(("rows", "n", "d", "k"), SIZES)


def by_sorting(x, k):
    """The k largest of each row, NaN first, the lower index first in a tie."""
    x = x.astype(np.float64)
    keys = np.where(np.isnan(x), -np.inf, -x)
    return np.lexsort((np.broadcast_to(np.arange(x.shape[1]), x.shape), keys, ~np.isnan(x)))[:, :k]


def drawn(dtype, rows, n, d, whole=False):
    """Small whole numbers, of which every sum is exact and many are equal; or any."""
    rng = np.random.default_rng([rows, n, d])
    shapes = (rows, 2 * d), (2, n, d)
    if whole:
        return [rng.integers(-2, 3, shape).astype(dtype) for shape in shapes]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def every_score(query, keys):
    first, second = (
        half @ key.T
        for half, key in zip(np.split(query.astype(np.float64), 2, 1), keys.astype(np.float64))
    )
    return (first[:, :, None] + second[:, None]).reshape(len(query), -1)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", FLOATS)
@sizes
def test_the_best_are_the_best_of_all(instruction_set, threads, name, dtype, rows, n, d, k):
    query, keys = drawn(dtype, rows, n, d)
    for number in (1, 2):
        threads(number)
        scores, indices = kernels.implementations("product_keys")[name](query, keys, k=k)
        assert scores.dtype == dtype
        every = every_score(query, keys)
        best = -np.sort(-every, 1)[:, :k]
        tolerance = 1e-4 if dtype == np.float32 else 1e-12
        np.testing.assert_allclose(scores, best, atol=tolerance)
        np.testing.assert_allclose(np.take_along_axis(every, indices, 1), best, atol=tolerance)
        assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("dtype", FLOATS)
@sizes
def test_of_equal_scores_both_take_the_same(instruction_set, dtype, rows, n, d, k):
    query, keys = drawn(dtype, rows, n, d, whole=True)
    found = [kernels.implementations("product_keys")[m](query, keys, k=k) for m in IMPLEMENTATIONS]
    for mine, his in zip(*found, strict=True):
        np.testing.assert_array_equal(mine, his)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_comes_where_it_does_in_the_reference(instruction_set, bad):
    """Halves that are infinite with either sign are NaN together, and a NaN is the largest."""
    query, keys = drawn(np.float32, 6, 20, 1)
    query, keys = np.abs(query), np.abs(keys)
    keys[0, 3], keys[1, 7], keys[1, 8] = bad, -bad, bad
    found = [kernels.implementations("product_keys")[m](query, keys, k=9) for m in IMPLEMENTATIONS]
    for mine, his in zip(*found, strict=True):
        np.testing.assert_array_equal(mine, his)


@pytest.mark.parametrize("dtype", FLOATS)
@sizes
def test_gradients(instruction_set, threads, dtype, rows, n, d, k):
    """Both implementations against the dense gradient of all scores; some without the other."""
    query, keys = drawn(dtype, rows, n, d)
    rng = np.random.default_rng(3)
    indices = rng.integers(0, n * n, (rows, k))  # a key several times, too
    grad = rng.standard_normal((rows, k)).astype(dtype)
    dense = np.zeros((rows, n * n))
    np.add.at(dense, (np.arange(rows)[:, None], indices), grad)
    dense = dense.reshape(rows, n, n)
    parts = dense.sum(2), dense.sum(1)
    wide = [x.astype(np.float64) for x in (query, keys)]
    dquery = np.concatenate([part @ key for part, key in zip(parts, wide[1])], 1)
    dkeys = np.stack([part.T @ half for part, half in zip(parts, np.split(wide[0], 2, 1))])
    scores = kernels.lookup("product_scores")(query, keys, indices)
    expected = np.take_along_axis(every_score(query, keys), indices, 1)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == np.float32 else {"atol": 1e-11}
    np.testing.assert_allclose(scores, expected, **tolerance)
    for name in IMPLEMENTATIONS:
        back = kernels.implementations("product_scores_backward")[name]
        for number in (1, 2):
            threads(number)
            found = back(grad, query, keys, indices, needs=(True, True, False))
            np.testing.assert_allclose(found[0], dquery, **tolerance)
            np.testing.assert_allclose(found[1], dkeys, **tolerance)
        assert back(grad, query, keys, indices, needs=(False, True, False))[0] is None
        assert back(grad, query, keys, indices, needs=(True, False, False))[1] is None


def test_an_index_that_is_no_key_is_refused(instruction_set):
    query, keys = drawn(np.float32, 2, 3, 2)
    back = kernels.implementations("product_scores_backward")["cpu"]
    for wrong in (9, -1):
        indices = np.full((2, 1), wrong)
        with pytest.raises(ValueError, match="no key"):
            back(np.ones((2, 1), np.float32), query, keys, indices, needs=(True, True, False))


@pytest.mark.parametrize("dtype", [*FLOATS, mt.bfloat16])
@pytest.mark.parametrize("count", [1, 7, 16, 17, 40, 128, 129, 300, 1000])
def test_the_first_of_an_order(instruction_set, dtype, count):
    """By ranks, by ranks of some, and one by one; numbers, ties, infinities, NaN."""
    rng = np.random.default_rng(count)
    rows = [
        rng.standard_normal(count),
        rng.integers(-3, 4, count),
        np.zeros(count),
        np.full(count, -np.inf),
        np.where(rng.random(count) < 0.3, np.inf, rng.standard_normal(count)),
        np.where(rng.random(count) < 0.3, np.nan, rng.standard_normal(count)),
        np.sort(rng.standard_normal(count)),
        -np.sort(rng.standard_normal(count)),
        np.where(np.arange(count) == count - 1, np.nan, 0.0),
    ]
    x = np.stack(rows).astype(dtype)
    topk = kernels.implementations("topk")["cpu"]
    for k in {k for k in (1, 2, 8, 16, 17, 33, 64, 100, 250) if k <= count}:
        values, indices = topk(x, k=k)
        np.testing.assert_array_equal(indices, by_sorting(x, k))
        wide = x.astype(np.float64)
        found = values.astype(np.float64)
        np.testing.assert_array_equal(found, np.take_along_axis(wide, indices, 1))
        _, least = topk(-x, k=k, largest=False)
        wide[np.isnan(wide)] = -np.inf
        np.testing.assert_array_equal(least, np.argsort(-wide, 1, kind="stable")[:, :k])
