"""All samples of a batch as one array, and how a primitive computes them: the inside of vmap.

A `Batched` stands where an array would stand, and shows the shape of one sample (minitorch/vmap.py
says what for). A primitive that is given one computes all samples by its rule in this file:

* elementwise functions, and all that broadcast: the ranks are aligned, with ones between the batch
  axes and the dimensions, and the forward function is called once;
* what names dimensions in its options (sum, softmax, reshape, ...): they are counted past the batch
  axes, and the forward function is called once;
* fused kernels: the reference is computed instead;
* everything else: a loop over the samples, which is always right.
"""

from collections.abc import Callable, Iterator, Sequence
from string import ascii_letters
from typing import Any, NoReturn

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from minitorch.errors import GraphError, ShapeError
from minitorch.ops.definition import Primitive
from minitorch.tape import Unfused

Levels = tuple[int, ...]
Arrays = Sequence[Any]
Meta = dict[str, Any]


def _escape(*_: Any, **__: Any) -> NoReturn:
    raise GraphError(
        "vmap: a value that each sample has for itself cannot become a NumPy array, a Python "
        "number or a truth value inside of the function, nor be written into a tensor that all "
        "samples share. Keep to Tensor operations (where(condition, a, b) instead of if), and "
        "return what is needed outside"
    )


class Batched(NDArrayOperatorsMixin):
    """An array for each sample, in one: what stands for an array inside of vmap.

    array: (*batch, *shape), one batch axis for each level; levels: ascending.
    It knows NumPy's elementwise functions and, by a loop over the samples, all others: rules may
    use them on raw data. What needs the values of a sample in Python is an error.
    """

    __slots__ = ("array", "levels")

    def __init__(self, array: np.ndarray, levels: Levels):
        self.array = array
        self.levels = levels

    shape = property(lambda self: self.array.shape[len(self.levels) :])
    batch = property(lambda self: self.array.shape[: len(self.levels)])
    ndim = property(lambda self: self.array.ndim - len(self.levels))
    dtype = property(lambda self: self.array.dtype)
    itemsize = property(lambda self: self.array.itemsize)
    nbytes = property(lambda self: self.array.nbytes)
    flags = property(lambda self: self.array.flags)

    @property
    def base(self) -> np.ndarray:
        """The array that owns the memory: views share it, and with it their version counter."""
        return self.array if self.array.base is None else self.array.base

    def compute(self, primitive: Primitive, arrays: Arrays, meta: Meta) -> Any:
        """The primitive's result for every sample, where any of its arrays is Batched."""
        return _rule(primitive)(primitive, arrays, meta, levels_of(arrays))

    def astype(self, dtype: Any, copy: bool = True) -> "Batched":
        return Batched(self.array.astype(dtype, copy=copy), self.levels)

    def copy(self, order: Any = "C") -> "Batched":
        return Batched(self.array.copy(order), self.levels)

    def all(self, axis: Any = None, keepdims: bool = False) -> "Batched":
        return _loop(np.all, (self,), {"axis": axis, "keepdims": keepdims})

    def min(self) -> Any:
        """The smallest of all samples: for checks of a whole array's values."""
        return self.array.min()

    def max(self) -> Any:
        """The largest of all samples."""
        return self.array.max()

    def __getitem__(self, key: Any) -> "Batched":
        parts = key if isinstance(key, tuple) else (key,)
        if any(isinstance(part, (np.ndarray, Batched, list)) for part in parts):
            return _loop(lambda x, *parts: x[parts], (self, *parts), {})
        return Batched(self.array[(*(slice(None),) * len(self.levels), *parts)], self.levels)

    def __setitem__(self, key: Any, value: Any) -> None:
        parts = key if isinstance(key, tuple) else (key,)
        if not set(levels_of((*parts, value))) <= set(self.levels):
            _escape()
        for target, value_i, *parts_i in _samples((self, value, *parts), self.levels):
            target[tuple(parts_i)] = value_i

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if "out" in options:
            _escape()
        if method != "__call__":
            return _loop(getattr(ufunc, method), inputs, options)
        levels = levels_of(inputs)
        return Batched(ufunc(*_aligned(inputs, levels), **options), levels)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if function is np.array2string:
            return f"{self.array}, the samples of a vmap"
        if function in (np.zeros_like, np.ones_like):
            return function(self.array[(0,) * len(self.levels)], *args[1:], **options)
        if not levels_of((*args, *options.values())):
            return NotImplemented
        return _loop(function, args, options)

    __array__ = __bool__ = __int__ = __float__ = __index__ = __len__ = __iter__ = _escape
    item = tolist = get = __dlpack__ = _escape


def levels_of(arrays: Arrays) -> Levels:
    return tuple(sorted({n for x in arrays if isinstance(x, Batched) for n in x.levels}))


def _sizes(arrays: Arrays, levels: Levels) -> tuple[int, ...]:
    found = {
        level: size
        for x in arrays
        if isinstance(x, Batched)
        for level, size in zip(x.levels, x.batch, strict=True)
    }
    return tuple(found[level] for level in levels)


def _lift(x: Batched, levels: Levels, ndim: int) -> np.ndarray:
    """x with an axis for each level, of length 1 where it has none, and then ndim dimensions."""
    batch = [slice(None) if level in x.levels else None for level in levels]
    return x.array[(*batch, *(None,) * (ndim - x.ndim))]


def _aligned(arrays: Arrays, levels: Levels) -> list[Any]:
    """Plain arrays that broadcast against each other as the samples would."""
    ndim = max(getattr(x, "ndim", 0) for x in arrays)
    return [_lift(x, levels, ndim) if isinstance(x, Batched) else x for x in arrays]


def _wide(x: Any, levels: Levels, sizes: tuple[int, ...]) -> np.ndarray:
    """x with a full axis for each level."""
    array = _lift(x, levels, x.ndim) if isinstance(x, Batched) else x
    shape = (*sizes, *x.shape)
    return array if array.shape == shape else np.broadcast_to(array, shape)


def _samples(arrays: Arrays, levels: Levels) -> Iterator[list[Any]]:
    """The arrays of each sample in turn."""
    sizes = _sizes(arrays, levels)
    wide = [_wide(x, levels, sizes) if isinstance(x, Batched) else None for x in arrays]
    for i in np.ndindex(sizes):
        yield [x if w is None else w[(*i, ...)] for x, w in zip(arrays, wide, strict=True)]


def _loop(function: Callable[..., Any], arrays: Arrays, options: dict[str, Any]) -> Batched:
    """function of each sample by itself, and the results stacked."""
    levels = levels_of((*arrays, *options.values()))
    count, names = len(arrays), list(options)
    results = [
        np.asarray(function(*sample[:count], **dict(zip(names, sample[count:], strict=True))))
        for sample in _samples((*arrays, *options.values()), levels)
    ]
    shapes = {result.shape for result in results}
    if len(shapes) > 1:
        raise ShapeError(
            f"vmap: {getattr(function, '__name__', function)} gives results of different shapes "
            f"for different samples: {sorted(shapes)[:3]}. Use an operation whose shape does not "
            "depend on the values, such as where(mask, x, 0) instead of x[mask]"
        )
    sizes = _sizes((*arrays, *options.values()), levels)
    return Batched(np.stack(results).reshape(*sizes, *results[0].shape), levels)


def _each_alone(p: Primitive, arrays: Arrays, meta: Meta, levels: Levels) -> Any:
    def one(*sample: Any) -> Any:
        return p.compute(sample, meta)

    one.__name__ = p.name
    return _loop(one, arrays, {})


def _broadcasting(p: Primitive, arrays: Arrays, meta: Meta, levels: Levels) -> Any:
    return Batched(p.compute(_aligned(arrays, levels), meta), levels)


def _shifted(p: Primitive, arrays: Arrays, meta: Meta, levels: Levels) -> Any:
    """The batch axes are further dimensions in front: count past them wherever dims are named."""
    sizes = _sizes(arrays, levels)
    moved = {k: _SHIFT[k](v, sizes) if k in _SHIFT else v for k, v in meta.items()}
    return Batched(p.compute([_wide(x, levels, sizes) for x in arrays], moved), levels)


def _later(dims: Any, sizes: tuple[int, ...]) -> Any:
    if isinstance(dims, tuple):
        return tuple(_later(dim, sizes) for dim in dims)
    return dims + len(sizes) if dims >= 0 else dims


_SHIFT: dict[str, Callable[[Any, tuple[int, ...]], Any]] = {
    **dict.fromkeys(("dim", "dims", "dim1", "dim2"), _later),
    **dict.fromkeys(("shape", "to"), lambda shape, sizes: (*sizes, *shape)),
    "key": lambda key, sizes: (*(slice(None),) * len(sizes), *key),
    "widths": lambda widths, sizes: (*((0, 0),) * len(sizes), *widths),
}


def _permute(p: Primitive, arrays: Arrays, meta: Meta, levels: Levels) -> Any:
    n = len(levels)
    dims = (*range(n), *(n + dim for dim in meta["dims"]))
    return Batched(p.compute([arrays[0].array], {"dims": dims}), levels)


def _expand(p: Primitive, arrays: Arrays, meta: Meta, levels: Levels) -> Any:
    (x,) = arrays
    lifted = _lift(x, levels, len(meta["to"]))
    return Batched(p.compute([lifted], {"to": (*x.batch, *meta["to"])}), levels)


def _matmul(p: Primitive, arrays: Arrays, meta: Meta, levels: Levels) -> Any:
    a, b = arrays
    if isinstance(b, Batched) or b.ndim > 2 or not a.array.size:
        return _broadcasting(p, arrays, meta, levels)
    rows = p.compute([a.array.reshape(-1, a.shape[-1]), b], meta)  # all samples in one product
    return Batched(rows.reshape(*a.array.shape[:-1], b.shape[-1]), levels)


def _einsum(p: Primitive, arrays: Arrays, meta: Meta, levels: Levels) -> Any:
    unused = sorted(set(ascii_letters) - set("".join(meta["terms"])))
    letter = dict(zip(levels, unused, strict=False))
    terms = [
        "".join(letter[level] for level in x.levels) + term if isinstance(x, Batched) else term
        for x, term in zip(arrays, meta["terms"], strict=True)
    ]
    plain = [x.array if isinstance(x, Batched) else x for x in arrays]
    out = "".join(letter[level] for level in levels) + meta["out"]
    return Batched(p.compute(plain, {"terms": tuple(terms), "out": out}), levels)


def _indexing(p: Primitive, arrays: Arrays, meta: Meta, levels: Levels) -> Any:
    """Shifted where all samples use one index; several index arrays would move the batch axes."""
    if len(arrays) > 2 or any(isinstance(x, Batched) for x in arrays[1:]):
        return _each_alone(p, arrays, meta, levels)
    moved = {k: _SHIFT[k](v, arrays[0].batch) for k, v in meta.items()}
    return Batched(p.compute([arrays[0].array, *arrays[1:]], moved), levels)


def _embedding(p: Primitive, arrays: Arrays, meta: Meta, levels: Levels) -> Any:
    weight, index = arrays
    if isinstance(weight, Batched):
        return _each_alone(p, arrays, meta, levels)
    return Batched(p.compute([weight, index.array], meta), levels)


def _dropout(p: Primitive, arrays: Arrays, meta: Meta, levels: Levels) -> Any:
    """One mask for all samples, as in a loop that begins each from the same random state."""
    (x,) = arrays
    return Batched(x.array * p.compute([np.ones(x.shape, x.dtype)], meta), levels)


def _rotary(p: Primitive, arrays: Arrays, meta: Meta, levels: Levels) -> Any:
    """All samples' rows at once, where the angles are the same for all."""
    x, *angles = arrays
    if any(isinstance(angle, Batched) for angle in angles):
        return _each_alone(p, arrays, meta, levels)
    return Batched(p.compute([x.array, *angles], meta), levels)


def _at_the_border(p: Primitive, arrays: Arrays, meta: Meta, _: Levels) -> Any:
    return p.forward(*arrays, **meta)


_SHIFTED = frozenset(
    "sum prod amax amin any all cumsum logcumsumexp argmax argmin argsort topk softmax log_softmax "  # noqa: SIM905
    "logsumexp reshape flip roll tril triu diagonal diagonal_scatter pad cat unfold fold gather "
    "scatter_add".split()
)
_BROADCASTING = frozenset({"add", "where", "alias", "clone", "cast", "move", "gelu", "silu"})
_RULES: dict[str, Callable[..., Any]] = {
    "permute": _permute,
    "expand": _expand,
    "matmul": _matmul,
    "einsum": _einsum,
    "getitem": _indexing,
    "scatter_index": _indexing,
    "embedding": _embedding,
    "dropout": _dropout,
    "apply_rotary_emb": _rotary,
    "vmap_enter": _at_the_border,
    "vmap_leave": _at_the_border,
}


def _rule(primitive: Primitive) -> Callable[..., Any]:
    name = primitive.name
    if name in _RULES:
        return _RULES[name]
    if name in _SHIFTED:
        return _shifted
    if (
        name in _BROADCASTING
        or primitive.structure == "elementwise"
        or isinstance(primitive.forward, np.ufunc)
    ):
        return _broadcasting
    if primitive.structure == "fused":
        raise Unfused
    return _each_alone
