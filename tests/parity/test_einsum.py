"""einsum on equations drawn at random, against PyTorch: values and gradients of both orders.

Letters repeated in an operand, dimensions of length 1 and of length 0, permuted results, dots, one
to four operands, and results without "->".
"""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import minitorch as mt

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")


@st.composite
def calls(draw, repeats=True, longest=3):
    """(equation, shapes)"""
    letters = "abcd"
    lengths = {letter: draw(st.integers(0 if draw(st.booleans()) else 1, 3)) for letter in letters}
    batch = draw(st.lists(st.integers(1, 2), max_size=2))
    terms, shapes = [], []
    for _ in range(draw(st.integers(1, longest))):
        term = draw(st.lists(st.sampled_from(letters), max_size=4, unique=not repeats))
        shape = [lengths[letter] for letter in term]
        if len(set(term)) == len(term):
            shape = [draw(st.sampled_from([1, n])) if n else n for n in shape]
        if draw(st.booleans()):
            at = draw(st.integers(0, len(term)))
            kept = batch[draw(st.integers(0, len(batch))) :]
            dots = [draw(st.sampled_from([1, n])) for n in kept]
            term.insert(at, "...")
            shape[at:at] = dots
        terms.append("".join(term))
        shapes.append(tuple(shape))
    equation = ",".join(terms)
    if draw(st.booleans()):
        used = sorted(set(equation) - set(",."))
        out = draw(st.permutations(used))[: draw(st.integers(0, len(used)))]
        if "..." in equation:
            out.insert(draw(st.integers(0, len(out))), "...")
        equation += "->" + "".join(out)
    return equation, shapes


@given(call=calls())
@example(call=("ii->", [(3, 3)]))
@example(call=("ii->i", [(3, 3)]))
@example(call=("iij,jkk->ik", [(2, 2, 3), (3, 2, 2)]))
@example(call=("iii->i", [(2, 2, 2)]))
@example(call=("bij,bjk->kbi", [(2, 3, 4), (2, 4, 2)]))
@example(call=("ij,jk->ik", [(2, 0), (0, 3)]))
@example(call=("bij,bjk->bik", [(0, 2, 3), (0, 3, 2)]))
@example(call=("ij,jk->ik", [(2, 1), (3, 4)]))
@example(call=("...ij,...jk", [(2, 1, 3, 2), (3, 2, 4)]))
def test_values_and_gradients(call):
    equation, shapes = call
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(shape) for shape in shapes]
    mine = [mt.tensor(x, requires_grad=True) for x in arrays]
    peers = [torch.tensor(x, requires_grad=True) for x in arrays]
    out, expected = mt.einsum(equation, *mine), torch.einsum(equation, *peers)
    assert out.shape == tuple(expected.shape)
    close(out, expected)
    v = random.standard_normal(out.shape)
    first = mt.autograd.grad(out, mine, mt.tensor(v), create_graph=True)
    peer_first = torch.autograd.grad(expected, peers, torch.tensor(v), create_graph=True)
    for one, other in zip(first, peer_first, strict=True):
        close(one, other)
    if len(mine) == 1:
        return  # linear: the first derivative does not depend on x
    sum((g * g).sum() for g in first).backward()
    sum((g * g).sum() for g in peer_first).backward()
    for one, other in zip(mine, peers, strict=True):
        close(one.grad, other.grad)


def close(one, other):
    np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), rtol=1e-11, atol=1e-11)
