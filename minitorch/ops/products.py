r"""Bilinear primitives: products, linear in each argument.

For y = A B the derivative is dy = dA B + A dB, so each argument's transpose multiplies the
cotangent by the other: v -> v B^T and v -> A^T v. Bilinear is not linear: to differentiate with
respect to one argument the tape keeps the other.
"""

from typing import Any

import numpy as np

from minitorch import backend, kernels
from minitorch.autograd import apply
from minitorch.errors import DtypeError, ShapeError
from minitorch.ops.elementwise import _operator
from minitorch.ops.primitive import bilinear, promote
from minitorch.ops.samples import binary, real, sample
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


@method_as("__mul__", "mul")
def _mul(a: Tensor, b: Any) -> Tensor:
    return _operator(mul, a, b)


@method_as("__rmul__")
def _rmul(a: Tensor, b: Any) -> Tensor:
    return _operator(mul, b, a)


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


_einsum = bilinear(
    "einsum",
    lambda *xs, terms, out: np.einsum(f"{','.join(terms)}->{out}", *xs, optimize=len(xs) > 2),
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

    Letters missing on the right are summed over; "..." stands for any leading dimensions. Without
    "->" the result has the letters that occur once, in alphabetical order. A letter may occur only
    once in each operand (take .diagonal() first).
    """
    terms, out = _parse_einsum(equation, [x.shape for x in operands])
    return apply(_einsum, list(_promote_all(operands)), {"terms": terms, "out": out})


def _promote_all(operands: tuple[Tensor, ...]) -> list[Tensor]:
    if not all(isinstance(x, Tensor) for x in operands):
        raise DtypeError("einsum: expected tensors after the equation")
    dtype = backend.result_type([x.data for x in operands])
    return [x.to(dtype) for x in operands]


def _parse_einsum(equation: str, shapes: list[tuple[int, ...]]) -> tuple[tuple[str, ...], str]:
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
    lengths: dict[str, int] = {}
    for term, shape in zip(named, shapes, strict=True):
        if len(term) != len(shape) or len(set(term)) != len(term):
            raise ShapeError(
                f"einsum: in {equation!r} the term {term!r} does not fit shape {shape}: expected "
                "one letter for each dimension, none twice"
            )
        for letter, n in zip(term, shape, strict=True):
            if lengths.setdefault(letter, n) != n:
                raise ShapeError(
                    f"einsum: in {equation!r} the index {letter!r} has lengths "
                    f"{lengths[letter]} and {n}"
                )
    if not set(out) <= set(lengths) or len(set(out)) != len(out):
        raise ShapeError(f"einsum: the result of {equation!r} names unknown or repeated indices")
    return tuple(named), out
