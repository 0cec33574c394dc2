"""Every primitive of the registry against PyTorch, on the registry's own samples.

Forward in all floating dtypes; v J for a random v in float64, singular points included: there both
follow a convention, and it is to be the same.
"""

import numpy as np
import pytest

import minitorch as mt
from minitorch.ops import registry
from minitorch.ops.promotion import promote
from minitorch.tape import apply
from tests.parity.peers import PEERS, array

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")

EPS = {"float64": 1e-11, "float32": 4e-6, "bfloat16": 2**-7, "float16": 2**-9}
ONLY_FLOAT64 = {"cast": "its samples name the dtype to cast to"}
SAMPLES = [
    pytest.param(primitive, sample, id=f"{name}-{i}")
    for name, primitive in registry.items()
    if primitive.module.startswith("minitorch.")
    for i, sample in enumerate(primitive.samples())
]


def is_float(x):
    return isinstance(x, np.ndarray) and x.dtype == np.float64


def ours(x, dtype):
    if is_float(x):
        return mt.tensor(x, dtype=dtype, requires_grad=True)
    return mt.tensor(x) if isinstance(x, np.ndarray) else x


def theirs(x, dtype):
    if is_float(x):
        return torch.tensor(x).to(getattr(torch, dtype)).requires_grad_()
    return torch.tensor(x) if isinstance(x, np.ndarray) else x


def close(found, expected, bound):
    finite = expected[np.isfinite(expected)]
    np.testing.assert_allclose(
        found, expected, rtol=bound, atol=bound * max(1, np.abs(finite).max(initial=0))
    )


def test_every_primitive_has_a_peer():
    names = {n for n, p in registry.items() if p.module.startswith("minitorch.")}
    assert names - PEERS.keys() == set()
    assert PEERS.keys() - names == set()


def compute(primitive, sample, dtype):
    mine = [ours(x, dtype) for x in sample.inputs]
    peers = [theirs(x, dtype) for x in sample.inputs]
    inputs = promote(mine, primitive.floating) if _promotes(mine) else mine
    out = apply(primitive, inputs, sample.meta)
    return mine, peers, out, PEERS[primitive.name](*peers, **sample.meta)


def _promotes(inputs):
    """Index tensors and None stay as they are; only arithmetic of numbers is promoted."""
    return all(x is not None for x in inputs) and not any(
        isinstance(x, mt.Tensor) and not x.is_floating_point() for x in inputs
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("primitive", "sample"), SAMPLES)
def test_forward(primitive, sample, dtype):
    if primitive.name in ONLY_FLOAT64:
        dtype = "float64"
    _, _, out, expected = compute(primitive, sample, dtype)
    assert str(out.dtype) == str(expected.dtype).removeprefix("torch.")
    assert out.shape == tuple(expected.shape)
    close(array(out), array(expected), EPS[dtype])


@pytest.mark.parametrize(("primitive", "sample"), SAMPLES)
def test_float64_and_gradients(primitive, sample):
    mine, peers, out, expected = compute(primitive, sample, "float64")
    close(array(out), array(expected), EPS["float64"])
    if not primitive.differentiable or not expected.requires_grad:
        assert not out.requires_grad
        return
    v = np.random.default_rng(0).standard_normal(out.shape)
    out.backward(mt.tensor(v))
    expected.backward(torch.tensor(v))
    for one, other in zip(mine, peers, strict=True):
        if isinstance(other, torch.Tensor) and other.requires_grad:
            wanted = np.zeros(one.shape) if other.grad is None else array(other.grad)
            got = np.zeros(one.shape) if one.grad is None else array(one.grad)
            close(got, wanted, EPS["float64"])
