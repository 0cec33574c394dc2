"""Products: einsum's diagonals, broadcasting and errors, and its way through one matrix product."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.errors import ShapeError


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def tensors(*arrays):
    return [mt.tensor(x, requires_grad=True) for x in arrays]


def test_a_repeated_letter_is_a_diagonal():
    x = random(3, 3)
    (a,) = tensors(x)
    np.testing.assert_allclose(mt.einsum("ii->", a).item(), np.trace(x))
    np.testing.assert_array_equal(mt.einsum("ii->i", a).detach().numpy(), np.diagonal(x))
    mt.einsum("ii->", a).backward()
    np.testing.assert_array_equal(a.grad.numpy(), np.eye(3))


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ii->", [(3, 3)]),
        ("iji->j", [(2, 3, 2)]),
        ("iii->i", [(2, 2, 2)]),
        ("iijj->ij", [(2, 2, 3, 3)]),
        ("ii,ij->j", [(3, 3), (3, 2)]),
        ("bii,bjj->b", [(2, 3, 3), (2, 2, 2)]),
        ("...ii->...", [(2, 3, 3)]),
        ("ij,jk->ik", [(2, 1), (3, 4)]),
        ("bij,bjk->bik", [(1, 2, 3), (4, 3, 2)]),
        ("bij,jk->kbi", [(2, 3, 4), (4, 2)]),
        ("ijk,kjl->li", [(2, 3, 4), (4, 3, 2)]),
        ("abij,abjk->aikb", [(2, 3, 2, 4), (2, 3, 4, 2)]),
        ("ij,jk->ik", [(2, 0), (0, 3)]),
        ("bij,bjk->bik", [(0, 2, 3), (0, 3, 2)]),
        ("ij,kj->", [(2, 3), (4, 3)]),
        ("i,i->i", [(3,), (3,)]),
        ("i,j->ji", [(2,), (3,)]),
        ("ij,jk,kl->il", [(2, 3), (3, 2), (2, 4)]),
    ],
)
def test_values_and_derivatives(equation, shapes):
    arrays = [random(*shape, seed=i) for i, shape in enumerate(shapes)]
    inputs = tensors(*arrays)
    out = mt.einsum(equation, *inputs)
    lengths = {}
    for term, shape in zip(equation.split("->")[0].split(","), shapes, strict=True):
        lengths.update({k: max(n, lengths.get(k, 0)) for k, n in zip(term, shape) if n != 1})
    wide = [  # np.einsum broadcasts no letters
        np.broadcast_to(x, [lengths.get(k, n) for k, n in zip(term, x.shape, strict=True)])
        if "." not in term
        else x
        for term, x in zip(equation.split("->")[0].split(","), arrays, strict=True)
    ]
    np.testing.assert_allclose(out.detach().numpy(), np.einsum(equation, *wide), rtol=1e-12)
    if out.numel():
        assert mt.gradcheck(lambda *xs: mt.einsum(equation, *xs), inputs, order=2)
    out.backward(mt.ones_like(out))
    for x, array in zip(inputs, arrays, strict=True):
        assert x.grad.shape == array.shape
        assert np.all(np.isfinite(x.grad.numpy()))


@pytest.mark.parametrize(
    ("equation", "products"),
    [("bij,bjk->kbi", 1), ("ijk,kjl->li", 1), ("ij,ij->i", 1), ("ij,j->", 0), ("i,j->ij", 0)],
)
def test_one_matrix_product_where_nothing_is_summed_by_itself(equation, products, monkeypatch):
    seen = []
    find = kernels.lookup

    def lookup(name, *args):
        seen.append(name)
        return find(name, *args)

    shapes = [[2] * len(term) for term in equation.split("->")[0].split(",")]
    monkeypatch.setattr(kernels, "lookup", lookup)
    mt.einsum(equation, *[mt.ones(shape) for shape in shapes])
    assert seen.count("matmul") == products


def test_errors_name_the_equation_and_the_lengths():
    with pytest.raises(ShapeError, match=r"'i' stands twice.*2 and 3"):
        mt.einsum("ii->i", mt.ones(2, 3))
    with pytest.raises(ShapeError, match=r"'ij,jk->ik'.*lengths 3 and 4"):
        mt.einsum("ij,jk->ik", mt.ones(2, 3), mt.ones(4, 2))
    with pytest.raises(ShapeError, match=r"'ij'.*\(2,\)"):
        mt.einsum("ij->j", mt.ones(2))
    with pytest.raises(ShapeError, match="2 terms, but 1"):
        mt.einsum("ij,jk->ik", mt.ones(2, 2))
    for equation in ("ij->ii", "ij->k"):
        with pytest.raises(ShapeError, match="unknown or repeated"):
            mt.einsum(equation, mt.ones(2, 2))
