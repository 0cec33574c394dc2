"""The feed-forward layer by CUDA kernels in the check build, against the float64 reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import SimtArray
from minitorch.kernels.cuda.extension import checked
from minitorch.kernels.reference import mlp as reference

TOLERANCE = {"float64": 1e-13, "float32": 3e-6, "bfloat16": 2e-2, "float16": 3e-3}


def close(found, expected, dtype):
    bound = TOLERANCE[dtype] * (1 + np.abs(expected).max())
    np.testing.assert_allclose(np.float64(found), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_both_directions(activation, dtype):
    rng = np.random.default_rng(0)
    shapes = (2, 3, 6), (20, 6), (20,), (5, 20), (5,)
    arrays = [rng.standard_normal(shape).astype(getattr(mt, dtype)) for shape in shapes]
    grad = rng.standard_normal((2, 3, 5)).astype(getattr(mt, dtype))
    on_device, exact = [x.view(SimtArray) for x in arrays], [np.float64(x) for x in arrays]
    x, weight_1, _, weight_2, _ = range(5)
    options = {"activation": activation, "needs": (True,) * 5}
    with checked("random", 1):
        out, pre = kernels.lookup("mlp", "simt")(*on_device, activation=activation)
        found = kernels.lookup("mlp_backward", "simt")(
            grad.view(SimtArray),
            *(on_device[i] for i in (x, weight_1, weight_2)),
            pre,
            **options,
        )
    expected, exact_pre = reference.mlp(*exact, activation=activation)
    close(out, expected, dtype)
    close(pre, exact_pre, dtype)
    gradients = reference.mlp_backward(
        np.float64(grad), *(exact[i] for i in (x, weight_1, weight_2)), np.float64(pre), **options
    )
    for one, exactly in zip(found, gradients, strict=True):
        assert type(one) is SimtArray
        close(one, exactly, dtype)
