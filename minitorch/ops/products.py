r"""Bilinear primitives: products, linear in each argument.

For y = A B the derivative is dy = dA B + A dB, so each argument's transpose multiplies the
cotangent by the other: v -> v B^T and v -> A^T v. Bilinear is not linear: to differentiate with
respect to one argument the tape keeps the other.
"""

import math
from typing import Any

import numpy as np

from minitorch import backend, kernels
from minitorch.errors import DtypeError, ShapeError
from minitorch.ops.arithmetic import both_ways, operator
from minitorch.ops.primitive import bilinear
from minitorch.ops.promotion import promote
from minitorch.ops.samples import binary, real, sample
from minitorch.tape import apply
from minitorch.tensor import Tensor, method, method_as

mul = bilinear(
    "mul",
    np.multiply,
    lambda grad, b: grad * b,
    lambda grad, a: grad * a,
    formula=r"a \odot b",
    jacobian=r"\begin{pmatrix} \operatorname{diag}(b) & \operatorname{diag}(a) \end{pmatrix}",
    samples=binary(real, real),
    doc="a * b element by element, with broadcasting.",
)
both_ways(mul, "mul")
method_as("mul")(operator(mul))


_matmul = bilinear(
    "matmul",
    lambda a, b: kernels.lookup("matmul", backend.device_of(a))(a, b),
    lambda grad, b: grad @ b.mT,
    lambda grad, a: a.mT @ grad,
    kernel="matmul",
    autocast="lower",
    formula=r"A B",
    jacobian=r"\begin{pmatrix} I \otimes B^\top & A \otimes I \end{pmatrix}",
    samples=lambda: [
        sample(real(3, 4), real(4, 2)),
        sample(real(2, 3, 4), real(2, 4, 2, seed=1)),
        sample(real(2, 1, 3, 4), real(3, 4, 2)),
        sample(real(3, 0), real(0, 2)),
    ],
)


@method_as("__matmul__", "matmul", "mm", "bmm")
def matmul(a: Tensor, b: Any) -> Tensor:
    """The matrix product of the last two dimensions, the others broadcast; vectors as in PyTorch.

    a: (..., n, k) or (k,); b: (..., k, m) or (k,). Raises ShapeError where k disagrees.
    """
    if not isinstance(a, Tensor) or not isinstance(b, (Tensor, np.ndarray)):
        return NotImplemented
    a, b = promote((a, b))
    left, right = a.data.shape, b.data.shape
    if len(left) == len(right) == 2 and left[1] == right[0]:
        return apply(_matmul, (a, b), {})
    if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-2 if b.ndim > 1 else -1]:
        raise ShapeError(
            f"matmul: expected (..., n, k) and (..., k, m) with one k; got {a.shape} and {b.shape}"
        )
    if a.ndim == 1:
        return matmul(a.unsqueeze(0), b).squeeze(-2 if b.ndim > 1 else 0)
    if b.ndim == 1:
        return matmul(a, b.unsqueeze(1)).squeeze(-1)
    if b.ndim == 2 and a.ndim > 2:
        # One product of two matrices, and one gradient of b, instead of one for each of the batch.
        rows = apply(_matmul, (a.reshape(-1, a.shape[-1]) if a.numel() else a, b), {})
        return rows.reshape((*a.shape[:-1], b.shape[-1]))
    return apply(_matmul, (a, b), {})


@method_as("__rmatmul__")
def _rmatmul(a: Tensor, b: Any) -> Tensor:
    return matmul(Tensor(b), a)


@method
def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of two vectors."""
    if a.ndim != 1 or b.shape != a.shape:
        raise ShapeError(f"dot: expected two vectors of one length; got {a.shape} and {b.shape}")
    return matmul(a, b)


@method
def outer(a: Tensor, b: Tensor) -> Tensor:
    """The matrix of all products a_i b_j of two vectors."""
    if a.ndim != 1 or b.ndim != 1:
        raise ShapeError(f"outer: expected two vectors; got {a.shape} and {b.shape}")
    return a.unsqueeze(1) * b


_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _einsum_transpose(grad: Tensor, node: Any, position: int) -> Tensor:
    """The same contraction with the result and the operand at position exchanged.

    An index that stands in this operand alone was summed: the cotangent is spread over it.
    """
    terms, out = node.meta["terms"], node.meta["out"]
    term, shape = terms[position], node.shapes[position]
    others = [i for i in range(len(terms)) if i != position]
    known = set(out).union(*(terms[i] for i in others))
    kept = "".join(letter for letter in term if letter in known)
    result = apply(
        _einsum,
        [grad, *(node.input(i) for i in others)],
        {"terms": (out, *(terms[i] for i in others)), "out": kept},
    )
    spread = [n if letter in known else 1 for letter, n in zip(term, shape, strict=True)]
    return result.reshape(spread).expand(shape)


def _contract(*xs: Any, terms: tuple[str, ...], out: str) -> Any:
    """Two operands as a matrix product, where no index is summed that only one of them has."""
    if len(xs) == 2:
        (first, second), known = terms, set(out)
        summed = [letter for letter in first if letter in second and letter not in known]
        batch = [letter for letter in first if letter in second and letter in known]
        rows = [letter for letter in first if letter not in second]
        columns = [letter for letter in second if letter not in first]
        if summed and known.issuperset(rows) and known.issuperset(columns):
            sizes = dict(zip(first + second, xs[0].shape + xs[1].shape, strict=True))
            a = _as_matrices(xs[0], first, sizes, batch, rows, summed)
            b = _as_matrices(xs[1], second, sizes, batch, summed, columns)
            product = kernels.lookup("matmul", backend.device_of(a))(a, b)
            order = batch + rows + columns
            shaped = product.reshape([sizes[letter] for letter in order])
            return shaped.transpose([order.index(letter) for letter in out])
    return np.einsum(f"{','.join(terms)}->{out}", *xs, optimize=len(xs) > 2)


def _as_matrices(
    x: Any, term: str, sizes: dict[str, int], batch: list[str], rows: list[str], columns: list[str]
) -> Any:
    """x as (batch..., rows, columns), each of the last two made of all the indices named."""
    turned = x.transpose([term.index(letter) for letter in batch + rows + columns])
    lengths = [math.prod(sizes[letter] for letter in letters) for letters in (rows, columns)]
    return turned.reshape([sizes[letter] for letter in batch] + lengths)


_einsum = bilinear(
    "einsum",
    _contract,
    _einsum_transpose,
    autocast="lower",
    formula=r"\sum \prod_i x_i",
    samples=lambda: [
        sample(real(2, 3), real(3, 4), terms=("ij", "jk"), out="ik"),
        sample(real(2, 3, 4), real(2, 4), terms=("bij", "bj"), out="bi"),
        sample(real(2, 3), real(3), real(2), terms=("ij", "j", "i"), out=""),
        sample(real(2, 3), terms=("ij",), out="j"),
    ],
)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Einstein's summation: "bij,bjk->bik" names each dimension by a letter.

    Letters missing on the right are summed over; "..." stands for any further dimensions. Without
    "->" the result has the letters that occur once, in alphabetical order. A letter that stands
    twice in one operand means its diagonal: "ii->" is the trace. Dimensions of length 1 broadcast.
    """
    terms, out = _parse_einsum(equation, [x.shape for x in operands])
    inputs = _promote_all(operands)
    parts = [_diagonals(x, term) for x, term in zip(inputs, terms, strict=True)]
    lengths = _lengths(equation, parts)
    parts = [_unbroadcast(x, term, lengths) for x, term in parts]
    meta = {"terms": tuple(term for _, term in parts), "out": out}
    return apply(_einsum, [x for x, _ in parts], meta)


def _diagonals(x: Tensor, term: str) -> tuple[Tensor, str]:
    """An operand with its diagonal in place of each letter that stands twice."""
    for letter in sorted(set(term)):
        while term.count(letter) > 1:
            first = term.index(letter)
            second = term.index(letter, first + 1)
            if x.shape[first] != x.shape[second]:
                raise ShapeError(
                    f"einsum: the index {letter!r} stands twice in one operand, where the lengths "
                    f"{x.shape[first]} and {x.shape[second]} disagree"
                )
            x = x.diagonal(0, first, second)
            term = term[:first] + term[first + 1 : second] + term[second + 1 :] + letter
    return x, term


def _lengths(equation: str, parts: list[tuple[Tensor, str]]) -> dict[str, int]:
    """The length of each index: that of all operands which have it, but for those of length 1."""
    lengths: dict[str, int] = {}
    for x, term in parts:
        for letter, n in zip(term, x.shape, strict=True):
            known = lengths.setdefault(letter, n)
            if known == 1:
                lengths[letter] = n
            elif n not in (1, known):
                raise ShapeError(
                    f"einsum: in {equation!r} one index has lengths {known} and {n}; the latter "
                    f"is dimension {term.index(letter)} of an operand of shape {x.shape}"
                )
    return lengths


def _unbroadcast(x: Tensor, term: str, lengths: dict[str, int]) -> tuple[Tensor, str]:
    """An operand without the dimensions of length 1 that are longer in others."""
    kept = [letter for letter, n in zip(term, x.shape, strict=True) if n == lengths[letter]]
    if len(kept) < len(term):
        x = x.reshape([lengths[letter] for letter in kept])
    return x, "".join(kept)


def _promote_all(operands: tuple[Tensor, ...]) -> list[Tensor]:
    if not all(isinstance(x, Tensor) for x in operands):
        raise DtypeError("einsum: expected tensors after the equation")
    dtype = backend.result_type([x.data for x in operands])
    return [x.to(dtype) for x in operands]


def _parse_einsum(equation: str, shapes: list[tuple[int, ...]]) -> tuple[list[str], str]:
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(shapes):
        raise ShapeError(
            f"einsum: {equation!r} has {len(terms)} terms, but {len(shapes)} tensors came"
        )
    free = [letter for letter in _LETTERS if letter not in equation]
    batch = [len(shape) - len(term) + 3 for term, shape in zip(terms, shapes, strict=True)]
    widest = max((n for n, term in zip(batch, terms, strict=True) if "..." in term), default=0)
    ellipsis = "".join(free[:widest])
    named = [
        term.replace("...", ellipsis[widest - n :] if "..." in term else "")
        for term, n in zip(terms, batch, strict=True)
    ]
    if not arrow:
        joined = "".join(term.replace("...", "") for term in terms)
        right = "..." * bool(widest) + "".join(
            sorted(letter for letter in set(joined) if joined.count(letter) == 1)
        )
    out = right.replace("...", ellipsis)
    for term, shape in zip(named, shapes, strict=True):
        if len(term) != len(shape):
            raise ShapeError(
                f"einsum: in {equation!r} the term {term!r} does not fit shape {shape}: expected "
                "one letter for each dimension"
            )
    if not set(out) <= set("".join(named)) or len(set(out)) != len(out):
        raise ShapeError(f"einsum: the result of {equation!r} names unknown or repeated indices")
    return named, out
