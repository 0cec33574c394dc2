"""The checker is checked: derivative rules broken on purpose, each of which gradcheck must catch.

Every mutant is of a kind that somebody has shipped: a factor, a sign, a missing term, a missing sum
over a broadcast dimension, arguments swapped, the mean forgotten in a norm, the zero gradient that
a plain sum() of a softmax would hide, a second derivative cut off by detach, a small entry that is
wrong beside large ones that are right.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

import minitorch as mt
from minitorch import gradcheck, kernels
from minitorch.errors import GradcheckError
from minitorch.nn import functional as F
from minitorch.ops import registry
from minitorch.ops.definition import Rule, Saves
from minitorch.tensor import Tensor


def _replace(name: str, position: int, rule: Callable) -> Callable:
    """A mutation: another derivative rule for one input of a primitive."""

    def mutate(monkeypatch):
        primitive = registry[name]
        rules = list(primitive.rules)
        rules[position] = Rule(rule, primitive.inputs, primitive.extras)
        monkeypatch.setattr(primitive, "rules", rules)
        monkeypatch.setattr(primitive, "saves", Saves(primitive._positions))
        if getattr(primitive, "backward", None) is not None:
            monkeypatch.setattr(primitive, "backward", None)

    return mutate


def _kernel(name: str, broken: Callable) -> Callable:
    """A mutation: another backward kernel; `broken` gets the right one as its first argument."""

    def mutate(monkeypatch):
        right = kernels.lookup(name)
        monkeypatch.setattr(
            kernels,
            "lookup",
            lambda wanted, device="cpu": (
                (lambda *a, **k: broken(right, *a, **k))
                if wanted == name
                else _LOOKUP(wanted, device)
            ),
        )

    return mutate


_LOOKUP = kernels.lookup


def _no_broadcast_sum(monkeypatch):
    """Take the first of what should be added up."""

    def first(x, shape):
        while x.ndim > len(shape):
            x = x[0]
        for i, n in enumerate(shape):
            if n == 1 and x.shape[i] != 1:
                x = x.narrow(i, 0, 1)
        return x

    monkeypatch.setattr(Tensor, "sum_to", first)


def _scatter_overwrites(monkeypatch):
    def overwrite(x, *index, key, to):
        out = np.zeros(to, x.dtype)
        out[tuple(index[part] if type(part).__name__ == "Slot" else part for part in key)] = x
        return out

    monkeypatch.setattr(registry["scatter_index"], "forward", overwrite)


def _drop_mean(right, grad, x, weight, mean, rstd, *, ndim):
    _, dweight, dbias = right(grad, x, weight, mean, rstd, ndim=ndim)
    normalised = (x - mean[..., None]) * rstd[..., None]
    g = grad * weight
    dx = rstd[..., None] * (g - normalised * (g * normalised).mean(-1, keepdims=True))
    return dx, dweight, dbias


def _drop_projection(right, grad, x, weight, mean, rstd, *, ndim):
    _, dweight, dbias = right(grad, x, weight, mean, rstd, ndim=ndim)
    g = grad * weight
    return rstd[..., None] * (g - g.mean(-1, keepdims=True)), dweight, dbias


def _unscaled(right, grad, query, *rest, **options):
    dquery, *others = right(grad, query, *rest, **options)
    return dquery / query.shape[-1] ** -0.5, *others


def _sinks_forgotten(right, *inputs, **options):
    *gradients, dsinks = right(*inputs, **options)
    return *gradients, np.zeros_like(dsinks)


def _not_divided(right, grad, logits, *rest, **options):
    return right(grad * len(logits), logits, *rest, **options)


def _small_ones(right, *arrays, **options):
    dx, *rest = right(*arrays, **options)
    return [np.where(abs(dx) < 1e-2, 0.99 * dx, dx), *rest]


def _random(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(shape).standard_normal(shape))


@dataclass
class Mutant:
    """f at inputs, right as it is, and wrong after mutate(monkeypatch)."""

    f: Callable
    inputs: tuple
    mutate: Callable
    order: int = 1


EXPONENTS = Tensor(np.log([1e8, 1e-4, 10.0]))

MUTANTS = {
    "exp: a factor": Mutant(
        lambda x: x.exp(), (_random(3),), _replace("exp", 0, lambda out: 2 * out)
    ),
    "exp: one percent of the small entry": Mutant(
        lambda x: x.exp(),
        (EXPONENTS,),
        _replace("exp", 0, lambda out: mt.where(out < 1, 1.01 * out, out)),
    ),
    "exp: the sign of the small entry": Mutant(
        lambda x: x.exp(),
        (EXPONENTS,),
        _replace("exp", 0, lambda out: mt.where(out < 1, -out, out)),
    ),
    "exp: the small entry is zero": Mutant(
        lambda x: x.exp(),
        (EXPONENTS,),
        _replace("exp", 0, lambda out: mt.where(out < 1, 0.0, out)),
    ),
    "exp: the small entries of a large array": Mutant(
        lambda x: x.exp(),
        (EXPONENTS.repeat(40),),
        _replace("exp", 0, lambda out: mt.where(out < 1, 1.01 * out, out)),
    ),
    "mul: the small entry is zero, in a sum with a large one": Mutant(
        lambda a, b: (a * b).sum(),
        (_random(3), Tensor(np.array([1e8, 1e-4, 1.0]))),
        _replace("mul", 0, lambda grad, b: grad * mt.where(b.abs() < 1e-2, 0.0, b)),
    ),
    "linear: one percent of the small entries, in the kernel": Mutant(
        F.linear,
        (_random(3, 2), Tensor(np.array([[1e8, 1e-4], [3.0, 1.0]]))),
        _kernel("linear_backward", _small_ones),
    ),
    "sin: a sign": Mutant(lambda x: x.sin(), (_random(3),), _replace("sin", 0, lambda x: -x.cos())),
    "tanh: a missing term": Mutant(
        lambda x: x.tanh(), (_random(3),), _replace("tanh", 0, lambda out: -out * out)
    ),
    "tanh: second derivative cut off": Mutant(
        lambda x: x.tanh(),
        (_random(3),),
        _replace("tanh", 0, lambda out: 1 - out.detach() * out.detach()),
        order=2,
    ),
    "mul: arguments swapped": Mutant(
        lambda a, b: a * b,
        (_random(3), _random(2, 3)),
        _replace("mul", 0, lambda grad, a, b: grad * a),
    ),
    "mul: no sum over the broadcast dimension": Mutant(
        lambda a, b: a * b, (_random(3, 1), _random(3, 2)), _no_broadcast_sum
    ),
    "div: a sign": Mutant(
        lambda a, b: a / (b * b + 1),
        (_random(3), _random(2, 3)),
        _replace("div", 1, lambda b, out: out / b),
    ),
    "matmul: no transpose": Mutant(
        lambda a, b: a @ b,
        (_random(3, 3), _random(3, 3)),
        _replace("matmul", 0, lambda grad, b: grad @ b),
    ),
    "where: branches swapped": Mutant(
        lambda a, b: mt.where(mt.tensor([True, False, True]), a, b),
        (_random(3), _random(2, 3)),
        _replace("where", 0, lambda grad, condition: mt.where(condition, 0.0, grad)),
    ),
    "permute: not the inverse": Mutant(
        lambda x: x.permute(1, 2, 0),
        (_random(2, 2, 2),),
        _replace("permute", 0, lambda grad, dims: grad.permute(*dims)),
    ),
    "cumsum: not reversed": Mutant(
        lambda x: x.cumsum(0),
        (_random(3),),
        _replace("cumsum", 0, lambda grad, dim: grad.cumsum(dim)),
    ),
    "getitem: repeated indices overwrite": Mutant(
        lambda x: x[mt.tensor([0, 2, 0])], (_random(3, 2),), _scatter_overwrites
    ),
    "softmax: all zero": Mutant(
        lambda x: x.softmax(-1),
        (_random(2, 3),),
        _replace("softmax", 0, lambda grad, out: grad * 0.0),
    ),
    "softmax: only the diagonal": Mutant(
        lambda x: x.softmax(-1),
        (_random(2, 3),),
        _replace("softmax", 0, lambda grad, out: grad * out),
    ),
    "logsumexp: uniform weights": Mutant(
        lambda x: x.logsumexp(0),
        (_random(3),),
        _replace("logsumexp", 0, lambda grad, x: grad.expand(x.shape) / 3),
    ),
    "layer norm: mean forgotten": Mutant(
        lambda x, w, b: x.layer_norm(4, w, b),
        (_random(3, 4), _random(4), _random(4)),
        _kernel("layer_norm_backward", _drop_mean),
    ),
    "layer norm: projection forgotten": Mutant(
        lambda x, w, b: x.layer_norm(4, w, b),
        (_random(3, 4), _random(4), _random(4)),
        _kernel("layer_norm_backward", _drop_projection),
    ),
    "gelu: the derivative of the other gelu": Mutant(
        lambda x: x.gelu(),
        (_random(5),),
        _kernel(
            "gelu_backward", lambda right, grad, x, approximate: right(grad, x, approximate="tanh")
        ),
    ),
    "cross entropy: not divided by the count": Mutant(
        lambda x: F.cross_entropy(x, mt.tensor([0, 2])),
        (_random(2, 3),),
        _kernel("cross_entropy_backward", _not_divided),
    ),
    "attention: scale forgotten": Mutant(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        (_random(1, 1, 3, 2), _random(1, 1, 3, 2) * 0.5, _random(1, 1, 3, 2) + 1),
        _kernel("scaled_dot_product_attention_backward", _unscaled),
    ),
    "attention: sinks forgotten": Mutant(
        lambda q, k, v, z: F.scaled_dot_product_attention(q, k, v, sinks=z),
        (_random(1, 2, 3, 4), _random(1, 2, 5, 4), _random(1, 2, 5, 4), _random(2)),
        _kernel("scaled_dot_product_attention_backward", _sinks_forgotten),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_caught(name, monkeypatch):
    mutant = MUTANTS[name]
    assert gradcheck(mutant.f, mutant.inputs, order=2).ok
    mutant.mutate(monkeypatch)
    if mutant.order == 2:
        assert gradcheck(mutant.f, mutant.inputs, order=1).ok, "right in the first order"
    with pytest.raises(GradcheckError, match="analytic"):
        gradcheck(mutant.f, mutant.inputs, order=mutant.order)


def test_back_propagating_a_sum_would_have_missed_some():
    """Why cotangents are random: the zero rule agrees with softmax's on the all-ones cotangent."""
    x = _random(2, 3).requires_grad_()
    x.softmax(-1).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 0, atol=1e-16)
