"""Convolution and pooling, values and gradients, against PyTorch in float64."""

import numpy as np
import pytest

from minitorch import Tensor
from minitorch.errors import ShapeError
from minitorch.ops import convolution

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")


def _compare(ours, theirs, *arrays, **options):
    mine = [Tensor(a, requires_grad=True) for a in arrays]
    peers = [torch.tensor(a, requires_grad=True) for a in arrays]
    out, expected = ours(*mine, **options), theirs(*peers, **options)
    np.testing.assert_allclose(out.detach().numpy(), expected.detach().numpy(), rtol=1e-12)
    cotangent = np.random.default_rng(1).standard_normal(out.shape)
    out.backward(Tensor(cotangent))
    expected.backward(torch.tensor(cotangent))
    for x, peer in zip(mine, peers, strict=True):
        np.testing.assert_allclose(x.grad.numpy(), peer.grad.numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": (2, 1)},
        {"groups": 2, "stride": (1, 3)},
    ],
)
def test_conv2d(options):
    random = np.random.default_rng(0)
    channels = 4 // options.get("groups", 1)
    _compare(
        convolution.conv2d,
        torch.nn.functional.conv2d,
        random.standard_normal((2, 4, 7, 8)),
        random.standard_normal((6, channels, 3, 2)),
        random.standard_normal(6),
        **options,
    )


def test_conv1d():
    random = np.random.default_rng(0)
    arrays = random.standard_normal((2, 3, 9)), random.standard_normal((4, 3, 3))
    for options in ({}, {"stride": 2, "padding": 2}, {"dilation": 3}):
        _compare(convolution.conv1d, torch.nn.functional.conv1d, *arrays, **options)


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize("options", [{}, {"stride": 1}, {"stride": 2, "padding": 1}])
def test_pooling(name, options):
    images = np.random.default_rng(0).standard_normal((2, 3, 7, 8))
    ours, theirs = getattr(convolution, name), getattr(torch.nn.functional, name)
    _compare(
        lambda x, **rest: ours(x, 3, **rest),
        lambda x, **rest: theirs(x, 3, **rest),
        images,
        **options,
    )


def test_errors_name_the_shapes():
    x, weight = Tensor(np.zeros((1, 2, 3, 3))), Tensor(np.zeros((1, 3, 2, 2)))
    with pytest.raises(ShapeError, match=r"conv2d: expected input .*\(1, 2, 3, 3\)"):
        convolution.conv2d(x, weight)
    with pytest.raises(ShapeError, match="larger than the padded"):
        convolution.conv2d(x, Tensor(np.zeros((1, 2, 4, 4))))
