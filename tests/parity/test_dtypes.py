"""What two dtypes become when they meet, for every pair and every kind of operand, and the exchange
of memory with PyTorch, both ways.
"""

import itertools
import operator

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import DtypeError, GraphError

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")

INTEGERS = ["bool", "uint8", "int8", "int16", "int32", "int64"]
FLOATS = ["float16", "bfloat16", "float32", "float64"]
DTYPES = INTEGERS + FLOATS
NUMBERS = [True, 2, 0.5]
OPERATIONS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "pow": operator.pow,
    "eq": operator.eq,
    "lt": operator.lt,
    "maximum": lambda a, b: library(a).maximum(a, b),
    "minimum": lambda a, b: library(a).minimum(a, b),
    "atan2": lambda a, b: library(a).atan2(a, b),
    "where": lambda a, b: library(a).where(a == a, a, b),
    "cat": lambda a, b: library(a).cat([a.reshape(-1), b.reshape(-1)]),
    "stack": lambda a, b: library(a).stack([a.reshape(-1)[:1], b.reshape(-1)[:1]]),
    "and": operator.and_,
}
KEPT = {
    # In torch bool - number is refused; here True counts as 1, as it does in bool + number.
    "sub": lambda a, b: (a == "bool") != (b in ("bool", True)),
    # In torch bool ** True is a bool, though bool ** bool is refused.
    "pow": lambda a, b: a == "bool" and b is True,
}
"""Where this library differs on purpose; a Python number stands for its own dtype."""

OF_TENSORS = ("maximum", "minimum", "atan2", "cat", "stack")


def library(tensor):
    return mt if isinstance(tensor, mt.Tensor) else torch


def ones(library, shape, dtype):
    return library.ones(shape, dtype=getattr(library, dtype))


def result_dtype(function, *operands):
    """Its name, or "refused"."""
    try:
        return str(function(*operands).dtype).removeprefix("torch.")
    except (TypeError, RuntimeError, NotImplementedError):
        return "refused"


def kept(name, a, b):
    return name in KEPT and KEPT[name](a, b)


SHAPES = [((2,), (2,)), ((2,), ()), ((), (2,)), ((), ())]


def test_result_type_of_every_pair():
    for a, b in itertools.product(DTYPES, DTYPES):
        assert str(mt.promote_types(getattr(mt, a), getattr(mt, b))) == str(
            torch.promote_types(getattr(torch, a), getattr(torch, b))
        ).removeprefix("torch.")
        for left, right in SHAPES:
            mine = mt.result_type([ones(mt, left, a).data, ones(mt, right, b).data])
            other = torch.result_type(ones(torch, left, a), ones(torch, right, b))
            assert f"torch.{mine}" == str(other), (left, a, right, b)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_on_every_pair(name):
    function = OPERATIONS[name]
    wrong = []
    for a, b in itertools.product(DTYPES, DTYPES):
        for left, right in SHAPES:
            mine = result_dtype(function, ones(mt, left, a), ones(mt, right, b))
            other = result_dtype(function, ones(torch, left, a), ones(torch, right, b))
            if mine != other and not kept(name, a, b):
                wrong.append(f"{a}{left} {b}{right}: {mine}, in torch {other}")
    assert not wrong


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in OF_TENSORS])
def test_operations_with_every_number(name):
    function = OPERATIONS[name]
    wrong = []
    for dtype, number, shape in itertools.product(DTYPES, NUMBERS, [(2,), ()]):
        one, other = ones(mt, shape, dtype), ones(torch, shape, dtype)
        pairs = [(result_dtype(function, x, number), "right") for x in (one, other)]
        if name != "where":
            pairs += [(result_dtype(function, number, x), "left") for x in (one, other)]
        for (mine, side), (wanted, _) in zip(pairs[::2], pairs[1::2], strict=True):
            if mine != wanted and not kept(name, dtype, number):
                wrong.append(f"{dtype}{shape} {number} on the {side}: {mine}, in torch {wanted}")
    assert not wrong


EXCHANGED = [dtype for dtype in DTYPES if dtype != "bfloat16"]


@pytest.mark.parametrize("shape", [(2, 3), (), (0, 2)], ids=str)
@pytest.mark.parametrize("dtype", EXCHANGED)
def test_memory_is_shared_both_ways(dtype, shape):
    mine = ones(mt, shape, dtype)
    peer = torch.from_dlpack(mine)
    assert peer.dtype == getattr(torch, dtype)
    assert tuple(peer.shape) == shape
    back = mt.from_dlpack(peer)
    assert back.dtype == mine.dtype
    assert back.shape == shape
    peer.zero_()
    assert not mine.any().item()
    back.fill_(1)
    assert peer.all().item()
    assert not mine.numel() or np.shares_memory(mine.data, back.data)


def test_strided_memory_is_shared_both_ways():
    array = np.arange(24.0).reshape(2, 3, 4)
    for view in (lambda x: x.permute(2, 0, 1)[1:], lambda x: x[:, 1, ::2]):
        mine, peer = mt.tensor(array), torch.tensor(array)
        there, here = torch.from_dlpack(view(mine)), mt.from_dlpack(view(peer))
        np.testing.assert_array_equal(there.numpy(), view(torch.tensor(array)))
        np.testing.assert_array_equal(here.numpy(), view(torch.tensor(array)))
        there.zero_()
        here.zero_()
        np.testing.assert_array_equal(mine.numpy(), peer.numpy())
        assert (mine == 0).any().item()


def test_negative_strides_leave_as_a_copy():
    x = mt.arange(3).flip(0)
    assert torch.from_dlpack(x).tolist() == [2, 1, 0]
    with pytest.raises(BufferError, match="contiguous"):
        x.__dlpack__(copy=False)


def test_what_cannot_be_exchanged_says_why():
    with pytest.raises(DtypeError, match=r"bfloat16.*float"):
        torch.from_dlpack(mt.ones(2, dtype=mt.bfloat16))
    with pytest.raises(DtypeError, match=r"from_dlpack.*bfloat16 on cpu"):
        mt.from_dlpack(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(GraphError, match="detach"):
        torch.from_dlpack(mt.ones(2, requires_grad=True))
    with pytest.raises(BufferError, match="detach"):
        mt.from_dlpack(torch.ones(2, requires_grad=True))
    with pytest.raises(DtypeError, match="complex64"):
        mt.from_dlpack(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(DtypeError, match=r"list.*minitorch.tensor"):
        mt.from_dlpack([1.0])
