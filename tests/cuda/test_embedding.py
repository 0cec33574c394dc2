"""The CUDA embedding in the emulator's check build, against the float64 reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import to_device
from minitorch.errors import ShapeError
from minitorch.kernels.cuda import embedding
from minitorch.kernels.cuda.extension import checked
from minitorch.nn import functional as F

DTYPES = ["float64", "float32", "bfloat16", "float16"]
SHAPES = [((3, 5), 4, 7), ((1,), 1, 1), ((2, 9), 3, 40), ((4,), 2, 264), ((0,), 3, 4)]


def sample(dtype, shape, rows, features):
    rng = np.random.default_rng(0)
    dtype = getattr(mt, dtype)
    weight = rng.standard_normal((rows, features)).astype(dtype)
    return (
        weight,
        rng.standard_normal((*shape, features)).astype(dtype),
        rng.integers(0, rows, shape),
    )


@pytest.mark.parametrize(("shape", "rows", "features"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(hold, dtype, shape, rows, features):
    weight, grad, index = sample(dtype, shape, rows, features)
    hold("embedding", weight, index.astype(np.int32))
    hold("embedding_backward", grad, index, num_embeddings=rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_goes_on_from_what_is_there(dtype):
    weight, grad, index = (to_device(x, "simt") for x in sample(dtype, (50,), 3, 8))
    run = kernels.lookup("embedding_backward", "simt")
    alone = run(grad, index, num_embeddings=3)
    out = weight.copy()
    with checked("random", 3):
        assert run(grad, index, num_embeddings=3, out=out) is out
    tolerance = {"bfloat16": 6e-2, "float16": 1e-2}.get(dtype, 1e-5)
    np.testing.assert_allclose(
        np.float64(out), np.float64(alone) + np.float64(weight), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("count", [1, 255, 256, 700])
def test_indices_are_sorted_as_numpy_sorts_them(count, monkeypatch):
    index = np.random.default_rng(1).integers(-3, 9, count)
    with checked("random", 2):
        ordered, order = embedding._sorted(to_device(index, "simt"))
    expected = index.argsort(kind="stable")
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(ordered, index[expected])
    monkeypatch.setattr(embedding, "_MOST_COUNTED", count - 1)
    np.testing.assert_array_equal(embedding._sorted(index)[1], expected)


def test_an_index_that_is_no_row():
    weight, grad, index = (to_device(x, "simt") for x in sample("float32", (5,), 3, 4))
    with pytest.raises(ShapeError, match="expected indices in"):
        kernels.lookup("embedding", "simt")(weight, index + 3)
    with pytest.raises(ShapeError, match="expected indices in"):
        kernels.lookup("embedding_backward", "simt")(grad, index - 3, num_embeddings=3)


def test_gradcheck():
    weight, _, index = (to_device(x, "simt") for x in sample("float64", (2, 3), 4, 3))
    leaf = mt.Tensor(weight, requires_grad=True)
    assert mt.gradcheck(lambda weight: F.embedding(mt.Tensor(index), weight), leaf)
