"""Feed-forward layers by their formulas: dense and gated, every activation."""

import math

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import ConfigError
from models.blocks.feed_forward import ACTIVATIONS, FeedForward, GatedFeedForward

FORMULAS = {
    "relu": lambda z: max(z, 0.0),
    "silu": lambda z: z / (1 + math.exp(-z)),
    "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    "gelu_tanh": lambda z: z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2,
}
every = pytest.mark.parametrize("activation", FORMULAS)


def layer(kind, activation, bias):
    made = kind(5, 7, activation, bias, np.float64)
    rng = np.random.default_rng(0)
    for param in made.parameters():
        param.data[...] = rng.standard_normal(param.shape)
    return made


def affine(linear, x):
    bias = 0.0 if linear.bias is None else linear.bias.data
    return x @ linear.weight.data.T + bias


def inputs():
    return np.random.default_rng(1).standard_normal((2, 3, 5))


@every
@pytest.mark.parametrize("bias", [True, False])
def test_dense(activation, bias):
    made, x = layer(FeedForward, activation, bias), inputs()
    hidden = np.vectorize(FORMULAS[activation])(affine(made.up_proj, x))
    found = made(mt.Tensor(x)).detach().numpy()
    np.testing.assert_allclose(found, affine(made.down_proj, hidden), rtol=1e-12)


@every
@pytest.mark.parametrize("bias", [True, False])
def test_gated(activation, bias):
    """SwiGLU, GeGLU with either gelu, ReGLU: values, and gradients of the input and the weights."""
    made, x = layer(GatedFeedForward, activation, bias), inputs()
    gate = np.vectorize(FORMULAS[activation])(affine(made.gate_proj, x))
    expected = affine(made.down_proj, gate * affine(made.up_proj, x))
    found = made(mt.Tensor(x)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)

    def out(x, gate, up, down):
        made.gate_proj.weight, made.up_proj.weight, made.down_proj.weight = gate, up, down
        return made(x)

    weights = [
        mt.nn.Parameter(linear.weight.data.copy())
        for linear in (made.gate_proj, made.up_proj, made.down_proj)
    ]
    assert mt.gradcheck(out, [mt.Tensor(x, requires_grad=True), *weights])


def test_layers_of_a_class_of_their_own_are_asked():
    class Doubled(mt.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for kind in (FeedForward, GatedFeedForward):
        made, x = layer(kind, "relu", False), mt.Tensor(inputs())
        plain = made(x).detach().numpy()
        made.up_proj.__class__ = Doubled  # of which both are linear functions
        np.testing.assert_allclose(made(x).detach().numpy(), 2 * plain, rtol=1e-12)


def test_unknown_activations_are_refused():
    assert ACTIVATIONS.keys() == FORMULAS.keys()
    for kind in (FeedForward, GatedFeedForward):
        with pytest.raises(ConfigError, match="expected one of relu, silu, gelu, gelu_tanh; got"):
            kind(5, 7, "swish")
