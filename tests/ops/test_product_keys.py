"""Product keys as operations: the kernel's way and the way of Tensor operations are one."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import debug
from minitorch.errors import ShapeError
from minitorch.nn import functional as F


def inputs(dtype=np.float64, rows=6, n=7, d=3):
    rng = np.random.default_rng(0)
    shapes = (rows, 2 * d), (2, n, d)
    return [mt.Tensor(rng.standard_normal(s).astype(dtype), requires_grad=True) for s in shapes]


def by_parts(query, keys, k):
    first, second = query.chunk(2, -1)
    return F.product_topk(first @ keys[0].mT, second @ keys[1].mT, k)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_values_and_gradients_are_those_of_the_products(k):
    cotangent = mt.Tensor(np.random.default_rng(1).standard_normal((6, k)))
    found = []
    for way in (F.product_key_topk, by_parts):
        query, keys = inputs()
        scores, indices = way(query, keys, k)
        scores.backward(cotangent)
        assert not indices.requires_grad
        found.append([x.detach().numpy() for x in (scores, indices, query.grad, keys.grad)])
    for mine, his in zip(*found, strict=True):
        np.testing.assert_allclose(mine, his, rtol=1e-11, atol=1e-12)


def test_derivatives_of_both_orders():
    query, keys = inputs()
    _, indices = F.product_key_topk(query, keys, 4)
    assert mt.gradcheck(lambda q, c: F.product_key_topk(q, c, 4)[0], [query, keys])
    assert mt.gradcheck(lambda q, c: F.product_scores(q, c, indices), [query, keys])


def test_in_half_precision_under_anomaly_mode_and_with_gradients_of_one_side():
    query, keys = (x.detach().to(mt.bfloat16) for x in inputs())
    scores, _ = F.product_key_topk(query, keys, 3)
    assert scores.dtype == mt.bfloat16
    query, keys = inputs()
    keys.requires_grad_(False)
    plain = F.product_key_topk(query, keys, 3)
    with mt.detect_anomaly():
        watched = F.product_key_topk(query, keys, 3)
    for one, other in zip(plain, watched, strict=True):
        np.testing.assert_allclose(one.tolist(), other.tolist(), rtol=1e-12)
    plain[0].backward(mt.ones(6, 3, dtype=mt.float64))
    assert keys.grad is None
    assert query.grad is not None


def test_what_is_kept_does_not_grow_with_the_number_of_keys():
    """The 2 n products of a row are not: of 2 · 400 the best 4."""
    query, keys = inputs(rows=10, n=400, d=3)
    kept = debug.saved(F.product_key_topk(query, keys, 4)[0]).total
    assert kept <= 8 * (query.numel() + keys.numel() + 10 * 4)


@pytest.mark.parametrize(
    ("shapes", "k"),
    [(((6, 5), (2, 7, 3)), 1), (((6, 6), (3, 7, 3)), 1), (((6, 6), (2, 7, 3)), 50),
     (((6, 6), (7, 3)), 1), (((6, 6), (2, 7, 3)), 0)],
)  # fmt: skip
def test_what_does_not_fit_is_refused(shapes, k):
    with pytest.raises(ShapeError, match="product_key_topk"):
        F.product_key_topk(*(mt.ones(*shape) for shape in shapes), k)
    with pytest.raises(ShapeError, match="product_scores"):
        F.product_scores(mt.ones(6, 6), mt.ones(2, 7, 3), mt.zeros(5, 2, dtype=mt.int64))
