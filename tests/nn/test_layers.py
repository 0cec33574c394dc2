"""Layers: what they compute, how they start, what they refuse."""

import math

import numpy as np
import pytest
from scipy import special

import minitorch as mt
from minitorch import nn
from minitorch.errors import ConfigError, GraphError, ShapeError
from minitorch.optim import Adam


def rand(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def apply(layer, *arrays):
    return layer(*map(mt.from_numpy, arrays)).detach().numpy()


def randomise(layer, seed=3):
    """float64, and no parameter 0 or 1."""
    layer.double()
    for i, param in enumerate(layer.parameters()):
        param.data[...] = rand(*param.shape, seed=seed + i)
    return layer


@pytest.mark.parametrize(
    ("make", "bound"),
    [
        (lambda g: nn.Linear(50, 40, generator=g), 1 / math.sqrt(50)),
        (lambda g: nn.Conv1d(10, 40, 5, generator=g), 1 / math.sqrt(50)),
        (lambda g: nn.Conv2d(8, 40, (2, 3), groups=2, generator=g), 1 / math.sqrt(24)),
        (lambda g: nn.RNNCell(30, 50, generator=g), 1 / math.sqrt(50)),
        (lambda g: nn.GRUCell(30, 50, generator=g), 1 / math.sqrt(50)),
    ],
)
def test_layers_start_uniform_as_in_pytorch(make, bound):
    layer, again = make(mt.Generator(1)), make(mt.Generator(1))
    for param, other in zip(layer.parameters(), again.parameters(), strict=True):
        np.testing.assert_array_equal(param.data, other.data)
        assert param.dtype == mt.float32
        assert 0.8 * bound < np.abs(param.data).max() <= bound
        assert param.data.std() == pytest.approx(bound / math.sqrt(3), rel=0.2)
    values = np.concatenate([param.data.ravel() for param in layer.parameters()])
    assert len(np.unique(values)) > 0.99 * len(values)


def test_linear():
    layer = randomise(nn.Linear(3, 4))
    x = rand(2, 5, 3)
    np.testing.assert_allclose(apply(layer, x), x @ layer.weight.data.T + layer.bias.data)
    assert nn.Linear(3, 4, bias=False).bias is None
    assert nn.Linear(3, 4, dtype=mt.float64).weight.dtype == mt.float64
    with pytest.raises(ShapeError, match="linear"):
        layer(mt.zeros(2, 4))


def test_embedding():
    layer = nn.Embedding(50, 40, generator=mt.Generator(0))
    assert layer.weight.data.std() == pytest.approx(1, rel=0.1)
    index = np.array([[1, 4], [4, 0]])
    out = layer(mt.from_numpy(index))
    np.testing.assert_array_equal(out.detach().numpy(), layer.weight.data[index])
    out.backward(mt.ones(2, 2, 40))
    np.testing.assert_array_equal(
        layer.weight.grad.data.sum(1), 40 * np.bincount(index.ravel(), minlength=50)
    )


@pytest.mark.parametrize("shape", [(4,), (3, 4)], ids=str)
def test_norms(shape):
    x = 2 * rand(2, 3, 4) + 1
    dims = tuple(range(-len(shape), 0))
    layer = randomise(nn.LayerNorm(shape, eps=1e-3))
    expected = (x - x.mean(dims, keepdims=True)) / np.sqrt(x.var(dims, keepdims=True) + 1e-3)
    np.testing.assert_allclose(
        apply(layer, x), expected * layer.weight.data + layer.bias.data, rtol=1e-9
    )
    layer = randomise(nn.RMSNorm(shape, eps=1e-3))
    expected = x / np.sqrt((x**2).mean(dims, keepdims=True) + 1e-3)
    np.testing.assert_allclose(apply(layer, x), expected * layer.weight.data, rtol=1e-9)


def test_norms_start_as_the_plain_norm():
    assert [name for name, _ in nn.LayerNorm(4).named_parameters()] == ["weight", "bias"]
    assert [name for name, _ in nn.LayerNorm(4, bias=False).named_parameters()] == ["weight"]
    for layer in (nn.LayerNorm(4), nn.LayerNorm(4, elementwise_affine=False)):
        out = apply(layer.double(), rand(3, 4))
        np.testing.assert_allclose(out.mean(-1), 0, atol=1e-12)
        np.testing.assert_allclose(out.std(-1), 1, rtol=1e-3)
    out = apply(nn.RMSNorm(4, elementwise_affine=False), rand(3, 4))
    np.testing.assert_allclose((out**2).mean(-1), 1, rtol=1e-4)
    with pytest.raises(ShapeError, match="layer_norm"):
        nn.LayerNorm(4)(mt.zeros(3, 5))


def test_dropout():
    layer = nn.Dropout(0.25, generator=mt.Generator(0))
    x = np.ones((100, 100), np.float32)
    out = apply(layer, x)
    assert set(np.unique(out)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (out == 0).mean() == pytest.approx(0.25, abs=0.02)
    assert (apply(layer, x) != out).any()
    again = nn.Dropout(0.25, generator=mt.Generator(0))
    np.testing.assert_array_equal(apply(again, x), out)
    np.testing.assert_array_equal(apply(layer.eval(), x), x)
    with pytest.raises(ConfigError, match="Dropout"):
        nn.Dropout(1.0)


def test_activations_and_losses():
    x = rand(3, 4)
    for layer, expected in [
        (nn.ReLU(), np.maximum(x, 0)),
        (nn.GELU(), x * special.ndtr(x)),
        (nn.SiLU(), x * special.expit(x)),
        (nn.Tanh(), np.tanh(x)),
        (nn.Sigmoid(), special.expit(x)),
        (nn.Softmax(dim=0), special.softmax(x, 0)),
    ]:
        np.testing.assert_allclose(apply(layer, x), expected, rtol=1e-10)
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(apply(nn.GELU(approximate="tanh"), x), tanh, rtol=1e-10)

    target = np.array([1, -1, 3])
    smooth = 0.1 / 4 + 0.9 * np.eye(4)[[1, 3]]
    expected = -(smooth * special.log_softmax(x[[0, 2]], -1)).sum(-1)
    for reduction, total in [("mean", expected.mean()), ("sum", expected.sum())]:
        loss = nn.CrossEntropyLoss(ignore_index=-1, label_smoothing=0.1, reduction=reduction)
        assert apply(loss, x, target) == pytest.approx(total)
    assert apply(nn.MSELoss(reduction="sum"), x, x + 2) == pytest.approx(48)


def test_convolutions_hold_their_options():
    layer = randomise(nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2, bias=False))
    assert layer.weight.shape == (6, 2, 3)
    assert apply(layer, rand(2, 4, 9)).shape == (2, 6, 5)
    layer = randomise(nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1))
    x = rand(2, 4, 7, 8)
    out = nn.functional.conv2d(mt.from_numpy(x), layer.weight, layer.bias, stride=(2, 1), padding=1)
    np.testing.assert_array_equal(apply(layer, x), out.detach().numpy())
    layer = randomise(nn.Conv1d(4, 6, 3, dilation=4))
    assert apply(layer, rand(2, 4, 9)).shape == (2, 6, 1)
    assert "dilation=4" in repr(layer)
    with pytest.raises(ConfigError, match="groups"):
        nn.Conv1d(4, 6, 3, groups=4)


def test_cells():
    x, h = rand(2, 3), rand(2, 4)
    cell = randomise(nn.RNNCell(3, 4))
    w = {name: param.data for name, param in cell.named_parameters()}
    expected = np.tanh(x @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"])
    np.testing.assert_allclose(apply(cell, x, h), expected)

    cell = randomise(nn.GRUCell(3, 4))
    w = {name: np.split(param.data, 3) for name, param in cell.named_parameters()}
    x_r, x_z, x_n = (x @ m.T + b for m, b in zip(w["weight_ih"], w["bias_ih"], strict=True))
    h_r, h_z, h_n = (h @ m.T + b for m, b in zip(w["weight_hh"], w["bias_hh"], strict=True))
    r, z = special.expit(x_r + h_r), special.expit(x_z + h_z)
    n = np.tanh(x_n + r * h_n)
    np.testing.assert_allclose(apply(cell, x, h), (1 - z) * n + z * h)


def test_a_recurrent_network_learns_to_remember():
    """The first of eight bits, said again at the end."""
    mt.manual_seed(0)
    cell, head = nn.GRUCell(1, 8), nn.Linear(8, 1)
    optimizer = Adam([*cell.parameters(), *head.parameters()], lr=0.02)
    bits = np.random.default_rng(0).integers(0, 2, (64, 8, 1)).astype(np.float32)
    for _ in range(60):
        h = mt.zeros(64, 8)
        for t in range(8):
            h = cell(mt.from_numpy(bits[:, t]), h)
        loss = nn.functional.binary_cross_entropy_with_logits(head(h), mt.from_numpy(bits[:, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 < math.log(2)


class TestAttention:
    def layer(self, **options):
        return randomise(nn.CausalSelfAttention(6, 2, **options))

    def test_is_the_formula(self):
        layer, x = self.layer(), rand(2, 5, 6)
        w = {name: param.data for name, param in layer.named_parameters()}
        q, k, v = np.split(x @ w["c_attn.weight"].T + w["c_attn.bias"], 3, -1)
        heads = []
        for part in (slice(0, 3), slice(3, 6)):
            scores = q[..., part] @ k[..., part].swapaxes(1, 2) / math.sqrt(3)
            scores[:, np.triu_indices(5, 1)[0], np.triu_indices(5, 1)[1]] = -np.inf
            heads.append(special.softmax(scores, -1) @ v[..., part])
        out = np.concatenate(heads, -1) @ w["c_proj.weight"].T + w["c_proj.bias"]
        np.testing.assert_allclose(apply(layer, x), out, rtol=1e-9)

    def test_cache(self):
        layer, x = self.layer(), rand(2, 7, 6)
        whole, cache = apply(layer, x), nn.KVCache(7)
        with mt.no_grad():
            pieces = [
                layer(mt.from_numpy(np.ascontiguousarray(x[:, a:b])), cache).numpy()
                for a, b in [(0, 3), (3, 4), (4, 7)]
            ]
        np.testing.assert_allclose(np.concatenate(pieces, 1), whole, rtol=1e-9)
        assert cache.length == 7
        with mt.no_grad(), pytest.raises(ShapeError, match="7 positions"):
            layer(mt.from_numpy(x[:, :1].copy()), cache)
        with pytest.raises(GraphError, match="no_grad"):
            layer(mt.from_numpy(x), nn.KVCache(7))

    def test_dropout_of_probabilities_and_output(self):
        mt.manual_seed(0)
        layer, x = self.layer(dropout=0.5), rand(2, 5, 6)
        one, two = apply(layer, x), apply(layer, x)
        assert (one == 0).mean() == pytest.approx(0.5, abs=0.25)
        assert (one != two).any()
        layer.eval()
        np.testing.assert_array_equal(apply(layer, x), apply(layer, x))

    def test_heads_must_divide(self):
        for heads in (0, 4):
            with pytest.raises(ConfigError, match="n_head"):
                nn.CausalSelfAttention(6, heads)
