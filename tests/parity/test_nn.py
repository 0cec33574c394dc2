"""Modules and functions against PyTorch's, with the same random weights and cotangents."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import nn
from minitorch.nn import functional as F

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")


def rand(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def compare(ours, theirs, *arrays, tolerance=1e-10):
    """Values, and the gradients of arguments and parameters, for one random cotangent."""
    mine = [_ours(array) for array in arrays]
    his = [_theirs(array) for array in arrays]
    out, expected = ours(*mine), theirs(*his)
    cotangent = rand(*out.shape, seed=5)
    out.backward(mt.from_numpy(cotangent))
    expected.backward(torch.from_numpy(cotangent))
    np.testing.assert_allclose(out.detach().numpy(), expected.detach().numpy(), atol=tolerance)
    pairs = list(zip(mine, his, strict=True))
    if isinstance(ours, nn.Module):
        params = dict(theirs.named_parameters())
        pairs += [(param, params.pop(name)) for name, param in ours.named_parameters()]
        assert not params
    for one, two in pairs:
        if one.requires_grad:
            np.testing.assert_allclose(one.grad.numpy(), two.grad.numpy(), atol=tolerance)


def _ours(array):
    return mt.tensor(array, requires_grad=array.dtype == np.float64)


def _theirs(array):
    return torch.tensor(array, requires_grad=array.dtype == np.float64)


MODULES = [
    ("Linear", (4, 5), {}, (2, 3, 4)),
    ("Linear", (4, 5), {"bias": False}, (3, 4)),
    ("LayerNorm", (4,), {"eps": 1e-3}, (2, 3, 4)),
    ("LayerNorm", ((3, 4),), {"bias": False}, (2, 3, 4)),
    ("LayerNorm", (4,), {"elementwise_affine": False}, (2, 3, 4)),
    ("RMSNorm", (4,), {"eps": 1e-3}, (2, 3, 4)),
    ("Conv1d", (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2}, (2, 4, 9)),
    ("Conv2d", (4, 6, (3, 2)), {"stride": (2, 1), "padding": 1}, (2, 4, 7, 8)),
    ("Conv2d", (4, 8, 3), {"groups": 4, "bias": False}, (2, 4, 7, 8)),
    ("Conv1d", (4, 6, 3, 1, 2, 3), {}, (2, 4, 9)),
    ("Conv2d", (4, 6, (3, 2)), {"padding": 1, "dilation": (2, 3), "groups": 2}, (2, 4, 7, 8)),
    ("GELU", (), {}, (3, 4)),
    ("GELU", (), {"approximate": "tanh"}, (3, 4)),
    ("SiLU", (), {}, (3, 4)),
    ("Tanh", (), {}, (3, 4)),
    ("ReLU", (), {}, (3, 4)),
    ("Sigmoid", (), {}, (3, 4)),
    ("Softmax", (0,), {}, (3, 4)),
]


@pytest.mark.parametrize(("name", "args", "options", "shape"), MODULES)
def test_modules(name, args, options, shape):
    theirs = getattr(torch.nn, name)(*args, **options).double()
    ours = getattr(nn, name)(*args, **options).double()
    for i, param in enumerate(theirs.parameters()):
        param.data = torch.from_numpy(rand(*param.shape, seed=i + 1))
    ours.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    compare(ours, theirs, rand(*shape))


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell"])
def test_cells(name):
    theirs = getattr(torch.nn, name)(3, 4).double()
    ours = getattr(nn, name)(3, 4).double()
    ours.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    compare(ours, theirs, rand(2, 3), rand(2, 4))


TARGET = np.array([1, 0, -100, 3, 3])

FUNCTIONS = [
    ("mse_loss", [rand(3, 4), rand(3, 4, seed=1)], {}),
    ("mse_loss", [rand(3, 4), rand(3, 4, seed=1)], {"reduction": "none"}),
    ("cross_entropy", [rand(5, 4), TARGET], {"label_smoothing": 0.1}),
    ("cross_entropy", [rand(5, 4), TARGET], {"reduction": "none"}),
    ("cross_entropy", [rand(5, 4), TARGET % 4], {"ignore_index": 1, "reduction": "sum"}),
    ("nll_loss", [rand(5, 4), TARGET], {}),
    ("nll_loss", [rand(5, 4), TARGET], {"reduction": "none"}),
    ("binary_cross_entropy_with_logits", [3 * rand(3, 4), rand(3, 4, seed=1) ** 2], {}),
    ("kl_div", [rand(3, 4), rand(3, 4, seed=1) ** 2], {"reduction": "sum"}),
    ("kl_div", [rand(3, 4), rand(3, 4, seed=1)], {"reduction": "batchmean", "log_target": True}),
    ("normalize", [rand(3, 4)], {}),
    ("normalize", [rand(3, 4)], {"p": 1.0, "dim": 0}),
    ("layer_norm", [rand(3, 4)], {"normalized_shape": (4,)}),
    ("scaled_dot_product_attention", [rand(2, 3, 5, 4)] * 3, {"is_causal": True}),
    ("scaled_dot_product_attention", [rand(2, 3, 5, 4), rand(2, 3, 7, 4), rand(2, 3, 7, 4)], {}),
    ("embedding", [np.array([[1, 4], [4, 0]]), rand(5, 3)], {}),
    ("softplus", [rand(3, 4)], {}),
    ("logsigmoid", [rand(3, 4)], {}),
    ("leaky_relu", [rand(3, 4)], {"negative_slope": 0.2}),
    ("log_softmax", [rand(3, 4)], {"dim": 0}),
    ("pad", [rand(3, 4)], {"pad": (1, 2, 0, 3)}),
    ("pad", [rand(3, 4)], {"pad": (1, 2), "value": 2.5}),
    *[
        ("pad", [rand(*shape)], {"pad": widths, "mode": mode})
        for mode in ("reflect", "replicate", "circular")
        for shape, widths in [
            ((2, 3, 5), (4, 2)),
            ((3, 5), (0, 3)),
            ((2, 2, 4, 3), (1, 2, 3, 0)),
            ((1, 2, 3, 4, 2), (1, 1, 2, 3, 0, 2)),
        ]
    ],
    ("pad", [rand(2, 3, 2)], {"pad": (9, 5), "mode": "replicate"}),
    ("pad", [rand(2, 3, 2)], {"pad": (2, 2), "mode": "circular"}),
]


@pytest.mark.parametrize(("name", "arrays", "options"), FUNCTIONS)
def test_functions(name, arrays, options):
    theirs = getattr(torch.nn.functional, name)
    compare(lambda *x: getattr(F, name)(*x, **options), lambda *x: theirs(*x, **options), *arrays)


def test_gains_are_torchs():
    for name in nn.init.GAINS:
        assert nn.init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name))


def test_every_state_of_an_encoder_loads_both_ways():
    """Names of nested modules, lists and buffers agree with PyTorch's."""
    ours = nn.Sequential(nn.ModuleList([nn.Linear(2, 3), nn.LayerNorm(3)]), nn.GRUCell(2, 3))
    theirs = torch.nn.Sequential(
        torch.nn.ModuleList([torch.nn.Linear(2, 3), torch.nn.LayerNorm(3)]),
        torch.nn.GRUCell(2, 3),
    )
    ours.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    back = {key: torch.from_numpy(value.numpy()) for key, value in ours.state_dict().items()}
    theirs.load_state_dict(back)
    assert list(back) == list(theirs.state_dict())
