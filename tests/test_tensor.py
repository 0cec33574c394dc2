"""What a tensor is made from, prints as, converts to, and refuses."""

import copy
import pickle

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import DtypeError, GraphError, ShapeError


def test_construction_and_default_dtypes():
    assert mt.tensor([1.0, 2.0]).dtype == mt.float32
    assert mt.tensor([1, 2]).dtype == mt.int64
    assert mt.tensor([True]).dtype == mt.bool
    assert mt.tensor(np.zeros(2)).dtype == mt.float64
    with pytest.raises(ShapeError, match="rectangular"):
        mt.tensor([[1.0], [1.0, 2.0]])
    with pytest.raises(DtypeError):
        mt.tensor("text")
    with pytest.raises(DtypeError, match="floating"):
        mt.tensor([1], requires_grad=True)


def test_tensor_copies_and_from_numpy_shares():
    array = np.zeros(2)
    copied, shared = mt.tensor(array), mt.from_numpy(array)
    array[0] = 1
    assert copied.tolist() == [0, 0]
    assert shared.tolist() == [1, 0]


def test_python_scalars_never_widen():
    assert (mt.ones(2) * 1e300).dtype == mt.float32
    assert (np.float32(2) * mt.ones(2)).dtype == mt.float32
    assert (mt.ones(2, dtype=mt.int8) + 1).dtype == mt.int8
    assert (mt.ones(2, dtype=mt.bfloat16) / 3).dtype == mt.bfloat16


def test_values_too_large_for_the_dtype_become_infinite_without_a_warning(recwarn):
    x = mt.ones(2)
    big = 1e300
    results = [
        mt.tensor([big]),
        mt.tensor(np.array([big]), dtype="float16"),
        mt.full((2,), big),
        mt.zeros(2).fill_(big),
        x.masked_fill(x > 0, big),
        mt.where(x > 0, big, x),
        x * big,
        mt.nn.functional.pad(x, (1, 0), value=big)[:1],
        mt.full((2,), big, dtype="float64").to("bfloat16"),
    ]
    y = mt.zeros(2)
    y[...] = mt.full((2,), big, dtype="float64")
    for result in (*results, y):
        assert np.isinf(result.float().numpy()).all()
    assert not recwarn.list


def test_numpy_array_on_the_left_gives_a_tensor():
    assert isinstance(np.ones(2) * mt.ones(2, dtype=mt.float64), mt.Tensor)


def test_truth_and_length():
    with pytest.raises(ShapeError, match="ambiguous"):
        bool(mt.ones(2))
    assert bool(mt.ones(1))
    with pytest.raises(ShapeError, match="no dimensions"):
        len(mt.tensor(1.0))
    with pytest.raises(ShapeError, match="one element"):
        mt.ones(2).item()


def test_copies_and_pickling():
    x = mt.ones(2).requires_grad_()
    assert copy.copy(x).data is x.data
    deep = copy.deepcopy(x)
    assert deep.data is not x.data
    assert deep.requires_grad
    with pytest.raises(GraphError, match="mul"):
        copy.deepcopy(x * 2)
    with pytest.raises(TypeError, match="safetensors"):
        pickle.dumps(x)


def test_exchange_with_numpy():
    x = mt.ones(2, 3)
    assert np.shares_memory(np.from_dlpack(x), x.data)
    assert mt.from_dlpack(np.arange(3)).tolist() == [0, 1, 2]
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    for convert in (np.asarray, np.from_dlpack):
        with pytest.raises(GraphError, match="detach"):
            convert(x.clone().requires_grad_())


def test_repr():
    x = mt.ones(2).requires_grad_()
    assert repr(mt.ones(2)) == "tensor([1., 1.])"
    assert "requires_grad=True" in repr(x)
    assert "grad_fn=<mul>" in repr(x * 2)
    assert "dtype=bfloat16" in repr(mt.ones(1, dtype=mt.bfloat16))
    assert "shape=(0, 3)" in repr(mt.zeros(0, 3))


def test_errors_name_the_operation_and_the_shapes():
    with pytest.raises(ShapeError, match=r"(?s)matmul.*\(2, 3\).*\(2, 3\)"):
        mt.ones(2, 3) @ mt.ones(2, 3)
    with pytest.raises(ShapeError, match=r"(?s)add.*\(2,\).*\(3,\)"):
        mt.ones(2) + mt.ones(3)
    with pytest.raises(ShapeError, match="getitem"):
        mt.ones(2)[5]
