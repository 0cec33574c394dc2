"""Every operation on the device: the CPU's values and gradients, and nothing comes home unasked."""

import numpy as np
import pytest

from minitorch import ops
from minitorch.tape import apply
from minitorch.tensor import Tensor

SAMPLES = [
    pytest.param(primitive, sample, id=f"{name}-{i}")
    for name, primitive in ops.registry.items()
    if primitive.module.startswith("minitorch.") and name != "move"
    for i, sample in enumerate(primitive.samples())
]


@pytest.mark.parametrize(("primitive", "sample"), SAMPLES)
def test_values_and_gradients(device, primitive, sample):
    expected = results(primitive, sample, "cpu")
    found = results(primitive, sample, device)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.device == device
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-10, atol=1e-12)


def results(primitive, sample, device):
    """The value, and the gradient of each input that has one, recorded and not."""
    inputs = [
        Tensor(x).to(device).requires_grad_(primitive.differentiable and x.dtype == np.float64)
        if isinstance(x, np.ndarray)
        else x
        for x in sample.inputs
    ]
    out = apply(primitive, inputs, sample.meta)
    found = [out.detach()]
    if not out.requires_grad:
        return found
    rng = np.random.default_rng(0)
    cotangent = Tensor(np.asarray(rng.standard_normal(out.shape))).to(out.dtype).to(device)
    for create_graph in (False, True):
        out.backward(cotangent, retain_graph=True, create_graph=create_graph)
        for x in inputs:
            if isinstance(x, Tensor) and x.grad is not None:
                found.append(x.grad.detach())
                x.grad = None
    return found


@pytest.mark.parametrize("there", ["cpu", "device"])
def test_a_gradient_goes_home(device, there):
    """From where it was computed to where its tensor is, moved there in writing or not."""
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = Tensor([3.0, 4.0]).to(device).requires_grad_()
    out = (x.to(device) if there == "device" else x) * y
    assert out.device == device
    out.backward(Tensor([1.0, 10.0]))
    assert (x.grad.device, y.grad.device) == ("cpu", device)
    assert (x.grad.tolist(), y.grad.tolist()) == ([3.0, 40.0], [1.0, 20.0])
