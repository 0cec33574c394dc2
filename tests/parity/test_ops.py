"""Operations, their gradients and conventions at kinks, held against PyTorch.

The names and arguments are the same, so one function runs on the tensors of both libraries.
"""

import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import minitorch as mt

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")

TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 1e-5, "float64": 1e-10}


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def positive(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0.4, 2.0, size=shape)


def unit(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, size=shape)


def index(high, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, high, size=shape)


def is_float(array):
    return isinstance(array, np.ndarray) and array.dtype == np.float64


def ours(array, dtype="float64"):
    return (
        mt.tensor(array, dtype=dtype, requires_grad=True) if is_float(array) else mt.tensor(array)
    )


def theirs(array, dtype="float64"):
    tensor = torch.tensor(array)
    return tensor.to(getattr(torch, dtype)).requires_grad_() if is_float(array) else tensor


def results(output):
    return list(output) if isinstance(output, (tuple, list)) else [output]


def raw(tensor):
    if isinstance(tensor, mt.Tensor):
        return np.asarray(tensor.detach().numpy(), np.float64)
    return tensor.detach().double().numpy()


def compare(function, *arrays, dtype="float64", gradients=True):
    """function on both libraries: dtypes, shapes, values, and v J for a random v."""
    tolerance = TOLERANCE[dtype]
    a, b = [ours(x, dtype) for x in arrays], [theirs(x, dtype) for x in arrays]
    mine, peers = results(function(*a)), results(function(*b))
    assert len(mine) == len(peers)
    for one, other in zip(mine, peers, strict=True):
        assert str(one.dtype) == str(other.dtype).removeprefix("torch.")
        assert one.shape == tuple(other.shape)
        np.testing.assert_allclose(raw(one), raw(other), rtol=tolerance, atol=tolerance)
    if not gradients or not any(is_float(x) for x in arrays):
        return
    total, peer_total = 0, 0
    for seed, (one, other) in enumerate(zip(mine, peers, strict=True)):
        assert one.requires_grad == other.requires_grad
        if one.requires_grad:
            v = values(*one.shape, seed=100 + seed)
            total = (one * mt.tensor(v, dtype=dtype)).sum() + total
            peer_total = (other * torch.tensor(v).to(other.dtype)).sum() + peer_total
    if isinstance(total, int):
        return
    total.backward()
    peer_total.backward()
    for one, other in zip(a, b, strict=True):
        if other.requires_grad:
            expected = np.zeros(one.shape) if other.grad is None else raw(other.grad)
            got = np.zeros(one.shape) if one.grad is None else raw(one.grad)
            np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


REAL = [
    "exp",
    "expm1",
    "sin",
    "cos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
    "sigmoid",
    "erf",
    "abs",
    "relu",
    "sign",
    "floor",
    "ceil",
    "round",
    "trunc",
    "square",
    "neg",
    "isnan",
    "isinf",
    "isfinite",
    "logical_not",
    "clone",
    "contiguous",
]
UNIT = ["tan", "asin", "acos"]
POSITIVE = ["log", "log1p", "log2", "sqrt", "rsqrt", "reciprocal"]
BINARY = [
    "add",
    "sub",
    "mul",
    "div",
    "pow",
    "atan2",
    "maximum",
    "minimum",
    "remainder",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
]
UNARY = [
    *[(name, values(3, 4)) for name in REAL],
    *[(name, unit(3, 4)) for name in UNIT],
    *[(name, positive(3, 4)) for name in POSITIVE],
]


@pytest.mark.parametrize(("name", "array"), UNARY, ids=[name for name, _ in UNARY])
def test_unary(name, array):
    compare(operator.methodcaller(name), array)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(("name", "array"), UNARY, ids=[name for name, _ in UNARY])
def test_unary_in_lower_precision(name, array, dtype):
    compare(operator.methodcaller(name), array, dtype=dtype, gradients=False)


@pytest.mark.parametrize("shapes", [((3, 4), (3, 4)), ((3, 1), (4,)), ((), (2, 3)), ((0, 2), (2,))])
@pytest.mark.parametrize("name", BINARY)
def test_binary(name, shapes):
    a, b = (positive(*shape, seed=i) for i, shape in enumerate(shapes))
    compare(lambda x, y: getattr(x, name)(y), a, b)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", BINARY)
def test_binary_in_lower_precision(name, dtype):
    a, b = positive(3, 4), positive(3, 4, seed=1)
    compare(lambda x, y: getattr(x, name)(y), a, b, dtype=dtype, gradients=False)


M = values(3, 4)
T = values(2, 3, 4)
METHODS = {
    "view": lambda x: x.view(6, 4),
    "view -1": lambda x: x.view(2, -1),
    "reshape": lambda x: x.reshape((4, 6)),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(2, (2, 2)),
    "permute": lambda x: x.permute(2, 0, 1),
    "transpose": lambda x: x.transpose(0, -1),
    "mT": lambda x: x.mT,
    "movedim": lambda x: x.movedim(0, 2),
    "unsqueeze": lambda x: x.unsqueeze(-2),
    "squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "expand": lambda x: x.unsqueeze(0).expand(5, -1, -1, -1),
    "repeat": lambda x: x.repeat(2, 1, 1, 2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "flip": lambda x: x.flip(0, 2),
    "roll": lambda x: x.roll((1, 2), (0, 2)),
    "sum": lambda x: x.sum(),
    "sum dim": lambda x: x.sum(dim=(0, 2), keepdim=True),
    "mean": lambda x: x.mean(dim=-1),
    "var": lambda x: x.var(dim=1),
    "var of the population": lambda x: x.var(dim=(0, 1), correction=0, keepdim=True),
    "std": lambda x: x.std(dim=2),
    "prod": lambda x: x.prod(dim=1),
    "norm": lambda x: x.norm(dim=1),
    "norm 1": lambda x: x.norm(p=1, dim=2, keepdim=True),
    "max": lambda x: x.max(),
    "max dim": lambda x: x.max(dim=1),
    "min dim": lambda x: x.min(dim=-1, keepdim=True),
    "amax": lambda x: x.amax(dim=(0, 1)),
    "amin": lambda x: x.amin(dim=2),
    "argmax": lambda x: x.argmax(dim=1),
    "argmin": lambda x: x.argmin(),
    "any": lambda x: (x > 1).any(dim=1),
    "all": lambda x: (x > -1).all(),
    "softmax": lambda x: x.softmax(dim=1),
    "log_softmax": lambda x: x.log_softmax(dim=-1),
    "logsumexp": lambda x: x.logsumexp(dim=(0, 2)),
    "cumsum": lambda x: x.cumsum(dim=1),
    "logcumsumexp": lambda x: x.logcumsumexp(dim=2),
    "tril": lambda x: x.tril(-1),
    "triu": lambda x: x.triu(1),
    "diagonal": lambda x: x.diagonal(1, 0, 2),
    "sort": lambda x: x.sort(dim=1, descending=True),
    "argsort": lambda x: x.argsort(dim=2),
    "topk": lambda x: x.topk(2, dim=-1),
    "topk smallest": lambda x: x.topk(2, dim=1, largest=False),
    "clamp": lambda x: x.clamp(min=-0.5, max=0.7),
    "clamp one side": lambda x: x.clamp(max=0.1),
    "split": lambda x: x.split(3, dim=2),
    "split sizes": lambda x: x.split([1, 2], dim=1),
    "chunk": lambda x: x.chunk(3, dim=2),
    "unbind": lambda x: x.unbind(1),
    "unfold": lambda x: x.unfold(2, 2, 1),
    "narrow": lambda x: x.narrow(2, 1, 2),
    "select": lambda x: x.select(1, -1),
    "nonzero": lambda x: (x > 0).nonzero(),
    "scalars": lambda x: 2 - (x * 3 + 1) / 2 + 1 / (x + 10),
    "power": lambda x: (x * x + 1) ** 1.5,
    "power of a scalar": lambda x: 2.0**x,
    "modulus": lambda x: x % 0.7,
    "item": lambda x: x[0, 1, 2],
    "row": lambda x: x[1],
    "slices": lambda x: x[:, 1:, ::2],
    "ellipsis": lambda x: x[..., None, -1],
    "list": lambda x: x[[0, 1, 1]],
    "lists": lambda x: x[[0, 1, 1], [2, 2, 2]],
    "list between": lambda x: x[0, :, [1, 1, 3]],
    "mask after an integer": lambda x: x[1, x.sum(dim=(0, 2)) > 0],
    "integer after a list": lambda x: x[[0, 1], 0, 1:],
    "apart": lambda x: x[[0, 1], :, [3, 2]],
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x < 0),
    "masked_fill": lambda x: x.masked_fill(x > 0, -2.0),
    "detach": lambda x: x * x.detach(),
    "integers": lambda x: x.long(),
    "half": lambda x: x.half(),
}


@pytest.mark.parametrize("function", METHODS.values(), ids=METHODS)
def test_methods(function):
    compare(function, T)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("function", METHODS.values(), ids=METHODS)
def test_methods_in_lower_precision(function, dtype):
    compare(function, T, dtype=dtype, gradients=False)


def _set(x, y):
    x = x.clone()
    x[1:, [0, 2]] = y
    return x


def _set_beside(x, y):
    x = x.clone()
    x[0, [0, 2]] = y.transpose(0, 1)
    return x


COLUMNS = index(4, 3, 2)
SEVERAL = {
    "gather": (lambda x, i: x.gather(1, i), M, COLUMNS),
    "take_along_dim": (lambda x, i: x.take_along_dim(i, 1), M, COLUMNS),
    "index_select": (lambda x, i: x.index_select(1, i), M, index(4, 6)),
    "scatter_add": (lambda x, i, y: x.scatter_add(1, i, y), M, COLUMNS, values(3, 2, seed=1)),
    "scatter": (
        lambda x, i, y: x.scatter(1, i, y),
        M,
        np.array([[0, 3], [2, 1], [1, 0]]),
        values(3, 2, seed=1),
    ),
    "index_add": (lambda x, i, y: x.index_add(0, i, y), M, index(3, 5), values(5, 4, seed=1)),
    "index by tensor": (lambda x, i: x[i], M, index(3, 2, 5)),
    "index by tensors": (lambda x, i, j: x[i, j], M, index(3, 5), index(4, 2, 1)),
    "setitem": (_set, M, values(2, 2, seed=1)),
    "setitem beside an integer": (_set_beside, T, values(4, 2, seed=1)),
    "setitem broadcast": (_set, M, values(1, seed=1)),
    "matrix matrix": (operator.matmul, M, values(4, 2, seed=1)),
    "matrix vector": (operator.matmul, M, values(4, seed=1)),
    "vector matrix": (operator.matmul, values(3, seed=1), M),
    "vector vector": (operator.matmul, values(4), values(4, seed=1)),
    "batches": (operator.matmul, values(2, 1, 3, 4), values(5, 4, 2, seed=1)),
    "batch vector": (operator.matmul, T, values(4, seed=1)),
    "vector batch": (operator.matmul, values(3), T),
    "outer": (lambda x, y: x.outer(y), values(3), values(4, seed=1)),
    "bmm": (lambda x, y: x.bmm(y), T, values(2, 4, 5, seed=1)),
}


@pytest.mark.parametrize("case", SEVERAL.values(), ids=SEVERAL)
def test_several_inputs(case):
    compare(*case)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("case", SEVERAL.values(), ids=SEVERAL)
def test_several_inputs_in_lower_precision(case, dtype):
    compare(*case, dtype=dtype, gradients=False)


def library(tensor):
    return mt if isinstance(tensor, mt.Tensor) else torch


FREE = {
    "cat": (lambda x, y: library(x).cat([x, y], dim=1), M, values(3, 2, seed=1)),
    "stack": (lambda x, y: library(x).stack([x, y, x], dim=-1), M, values(3, 4, seed=1)),
    "where": (lambda x, y: library(x).where(x > y, x, y * 2), M, values(4, seed=1)),
    "einsum": (
        lambda x, y: library(x).einsum("bij,kj->bki", x, y),
        T,
        values(5, 4, seed=1),
    ),
    "einsum of three": (
        lambda x, y, z: library(x).einsum("ij,jk,kl->il", x, y, z),
        M,
        values(4, 2, seed=1),
        values(2, 3, seed=2),
    ),
    "einsum with dots": (
        lambda x, y: library(x).einsum("...ij,...jk->...ik", x, y),
        T,
        values(2, 4, 3, seed=1),
    ),
}


@pytest.mark.parametrize("case", FREE.values(), ids=FREE)
def test_functions(case):
    compare(*case)


KINKS = np.array([-1.0, -0.0, 0.0, 1.0, 1.0])
SINGULAR = {
    "abs": lambda x: x.abs(),
    "relu": lambda x: x.relu(),
    "sign": lambda x: x.sign(),
    "clamp": lambda x: x.clamp(-1.0, 1.0),
    "maximum": lambda x: x.maximum(x.flip(0).detach()),
    "minimum": lambda x: x.minimum(x.flip(0).detach()),
    "amax": lambda x: x.amax(dim=0),
    "amin": lambda x: x.amin(dim=0),
    "max": lambda x: x.max(),
    "prod": lambda x: x.prod(dim=0),
    "norm of zero": lambda x: (x * 0).norm(),
    "sqrt": lambda x: x.abs().sqrt(),
    "log": lambda x: x.abs().log(),
    "power 0": lambda x: x**0,
    "power 2": lambda x: x**2.0,
    "tensor to a tensor": lambda x: x.abs() ** x.detach().abs(),
    "softmax of infinities": lambda x: x.masked_fill(x > 0, float("-inf")).softmax(0),
    "logsumexp of infinities": lambda x: x.masked_fill(x > 0, float("-inf")).logsumexp(0),
}


@pytest.mark.parametrize("function", SINGULAR.values(), ids=SINGULAR)
def test_conventions_at_singular_points(function):
    compare(function, KINKS)


@pytest.mark.parametrize("name", ["add", "mul", "div", "sum", "mean", "exp", "eq", "matmul"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "float16", "bfloat16", "float32"])
def test_result_dtypes(name, dtype):
    if (name, dtype[:3]) == ("mean", "int"):
        for a in (mt.ones(2, dtype=dtype), torch.ones(2, dtype=getattr(torch, dtype))):
            with pytest.raises((TypeError, RuntimeError)):
                a.mean()
        return
    a, b = mt.ones((2, 2), dtype=dtype), torch.ones((2, 2), dtype=getattr(torch, dtype))
    unary = name in ("sum", "mean", "exp")
    one = getattr(a, name)(*(() if unary else (a,)))
    other = getattr(b, name)(*(() if unary else (b,)))
    assert f"torch.{one.dtype}" == str(other.dtype)


small = arrays_of.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)


@given(shape=small, data=st.data())
def test_reductions_of_any_shape(shape, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    keepdim = data.draw(st.booleans())
    array = values(*shape)
    for name in ("sum", "mean", "amax", "logsumexp"):
        compare(lambda x, name=name: getattr(x, name)(dim=dim, keepdim=keepdim), array)


@given(shapes=arrays_of.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3))
def test_broadcasting_of_any_shapes(shapes):
    a, b = (positive(*shape, seed=i) for i, shape in enumerate(shapes.input_shapes))
    compare(lambda x, y: x * y + x / y, a, b)


@given(
    shapes=arrays_of.mutually_broadcastable_shapes(
        signature=np.matmul.signature, max_dims=2, max_side=3
    )
)
def test_matmul_of_any_shapes(shapes):
    a, b = (values(*shape, seed=i) for i, shape in enumerate(shapes.input_shapes))
    compare(operator.matmul, a, b)


@given(shape=small, data=st.data())
def test_basic_indices_of_any_shape(shape, data):
    key = data.draw(
        arrays_of.basic_indices(shape, allow_newaxis=True).filter(
            lambda key: all(
                not isinstance(k, slice) or k.step is None or k.step > 0
                for k in (key if isinstance(key, tuple) else (key,))
            )
        )
    )
    compare(lambda x: x[key], values(*shape))
