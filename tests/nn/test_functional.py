"""Functions without parameters against their formulas in NumPy, and their gradients' slopes."""

import numpy as np
import pytest
from scipy import signal, special

import minitorch as mt
from minitorch.errors import ConfigError, ShapeError
from minitorch.nn import functional as F
from minitorch.ops import fused as fused_operations


def rand(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def assert_slope(function, *arrays):
    """Every gradient agrees with central differences along a random direction."""
    tensors = [mt.tensor(array, requires_grad=True) for array in arrays]
    out = function(*tensors)
    cotangent = rand(*out.shape, seed=9)
    out.backward(mt.from_numpy(cotangent))
    for position, tensor in enumerate(tensors):
        direction, values = rand(*tensor.shape, seed=7), []
        for h in (1e-6, -1e-6):
            moved = list(arrays)
            moved[position] = arrays[position] + h * direction
            values.append((function(*map(mt.from_numpy, moved)).numpy() * cotangent).sum())
        slope = (values[0] - values[1]) / 2e-6
        assert (tensor.grad.numpy() * direction).sum() == pytest.approx(slope, rel=1e-6, abs=1e-8)


def value(function, *arrays, **options):
    return function(*map(mt.from_numpy, arrays), **options).numpy()


def test_swiglu():
    gate, up = rand(3, 4), rand(3, 4, seed=1)
    np.testing.assert_allclose(value(F.swiglu, gate, up), gate * special.expit(gate) * up)
    assert_slope(F.swiglu, gate, up)
    assert_slope(lambda both: F.swiglu(*both.chunk(2, -1)), rand(3, 8))
    with pytest.raises(ShapeError, match=r"one shape and dtype; got \(3, 4\) float64 and \(4,\)"):
        F.swiglu(mt.tensor(gate), mt.tensor(up[0]))


def fused_layer(x, residual, weight, bias):
    return F.fused_add_layer_norm(x, residual, (5,), weight, bias)


def layer(x, residual, weight, bias):
    total = x + residual
    return F.layer_norm(total, (5,), weight, bias), total


def fused_rms(x, residual, weight, _):
    return F.fused_add_rms_norm(x, residual, (5,), weight, eps=1e-3)


def rms(x, residual, weight, _):
    total = x + residual
    return F.rms_norm(total, (5,), weight, eps=1e-3), total


ADD_AND_NORM = pytest.mark.parametrize(
    ("fused", "composed"), [(fused_layer, layer), (fused_rms, rms)], ids=["layer", "rms"]
)
SHAPES = (2, 3, 5), (2, 3, 5), (5,), (5,)


@ADD_AND_NORM
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("used", ["both", "out", "total"])
def test_add_and_norm_is_the_two_operations(fused, composed, dtype, used):
    """Values, gradients, and what is on the tape, whichever of the results is used."""
    results = []
    for function in (fused, composed):
        inputs = [mt.tensor(rand(*s, seed=i), dtype=dtype) for i, s in enumerate(SHAPES)]
        inputs = [x.requires_grad_() for x in inputs]
        out, total = function(*inputs)
        names = [x.grad_fn.name for x in (out, total)]
        cotangents = [mt.tensor(rand(2, 3, 5, seed=i), dtype=dtype) for i in (7, 8)]
        loss = (out * cotangents[0]).sum() * (used != "total")
        (loss + (total * cotangents[1]).sum() * (used != "out")).backward()
        found = [out, total, *[x.grad for x in inputs if x.grad is not None]]
        results.append([x.detach().float().numpy() for x in found])
    assert names[1] == "add"
    bound = {"float32": 1e-6, "float64": 1e-6, "bfloat16": 4e-2}[dtype]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=bound * (1 + np.abs(other).max()))


@ADD_AND_NORM
def test_derivatives_of_add_and_norm(fused, composed):
    inputs = [mt.tensor(rand(*s, seed=i)) for i, s in enumerate(SHAPES)]

    def mixed(*xs):
        out, total = fused(*xs)
        return out * total + total.sin()

    moving = len(SHAPES) - (fused is fused_rms)
    mt.gradcheck(lambda *xs: mixed(*xs, *inputs[moving:]), inputs[:moving])
    axes = (0, 0, None, None)
    found = mt.vmap(fused, axes)(*inputs)
    for one, other in zip(found, composed(*inputs), strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-12)
    with pytest.raises(ShapeError, match="of one shape"):
        fused(inputs[0], inputs[2], *inputs[2:])


def test_what_went_around_a_norm_joins_its_gradient(monkeypatch):
    """A residual stream: other uses of the norm's input before and after it, hooks, two sweeps."""
    ran, kernel = [], fused_operations._kernel
    monkeypatch.setattr(fused_operations, "_kernel", lambda name: ran.append(name) or kernel(name))
    weight = mt.tensor(rand(5), requires_grad=True)
    start = mt.tensor(rand(4, 5, seed=1), requires_grad=True)
    seen = []

    def stream(norm):
        x = start * 2
        x.register_hook(lambda g: seen.append(g.detach().numpy().copy()))
        y = x + norm(x).sin()
        return (y * y + norm(y) * x).sum()

    def composed(x):
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight

    gradients = []
    for norm in (lambda x: F.layer_norm(x, (5,), weight), composed):
        loss = stream(norm)
        found = mt.autograd.grad(loss, [start, weight], retain_graph=True)
        again = mt.autograd.grad(loss, [start, weight], create_graph=True)
        only = mt.autograd.grad(loss, [start])
        gradients.append([g.detach().numpy() for g in (*found, *again, *only)])
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)
    assert "add_layer_norm_backward" in ran
    for hooked in seen[1:]:
        np.testing.assert_allclose(hooked, seen[0], rtol=1e-10)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_scores_depend_on_the_distance_of_positions(interleaved):
    query, key = rand(2, 1, 8)[:, :, None, :]  # the same at every position
    angles = np.arange(12)[:, None] * 100.0 ** (-np.arange(4) / 4)
    cos, sin = np.cos(angles), np.sin(angles)

    def turned(x):
        x = np.broadcast_to(x, (1, 12, 8)).copy()
        return value(F.apply_rotary_emb, x, cos, sin, interleaved=interleaved)[0]

    scores = turned(query) @ turned(key).T
    for distance in range(-8, 9):
        np.testing.assert_allclose(np.diagonal(scores, distance), scores.diagonal(distance)[0])
    np.testing.assert_allclose(scores[0, 0], (query * key).sum())
    assert_slope(
        lambda x, c, s: F.apply_rotary_emb(x, c, s, interleaved), rand(2, 3, 12, 8), cos, sin
    )
    with pytest.raises(ShapeError, match=r"got \(12, 8\), \(12, 8\) and \(12, 4\)"):
        F.apply_rotary_emb(*map(mt.tensor, (rand(12, 8), rand(12, 8), sin)))


def test_linear():
    x, weight, bias = rand(2, 3, 4), rand(5, 4), rand(5)
    np.testing.assert_allclose(value(F.linear, x, weight, bias), x @ weight.T + bias)
    np.testing.assert_allclose(value(F.linear, x[0, 0], weight), weight @ x[0, 0])
    assert_slope(F.linear, x, weight, bias)
    with pytest.raises(ShapeError, match=r"linear.*\(4, 5\)"):
        F.linear(mt.from_numpy(x), mt.zeros(4, 5))


def test_pad():
    x = rand(2, 3)
    for mode, theirs in [("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")]:
        expected = np.pad(x, ((1, 0), (2, 1)), theirs)
        np.testing.assert_array_equal(value(F.pad, x, pad=(2, 1, 1, 0), mode=mode), expected)
        assert_slope(lambda t, mode=mode: F.pad(t, (2, 1, 1, 0), mode), x)
    expected = np.pad(x, ((0, 0), (2, 1)), constant_values=7)
    np.testing.assert_array_equal(value(F.pad, x, pad=(2, 1), value=7), expected)
    tensor = mt.zeros(2, 3)
    assert F.pad(tensor, (0, 0), "circular") is tensor


@pytest.mark.parametrize(
    ("shape", "widths", "mode", "message"),
    [
        ((2, 3), (0, 3), "reflect", "at most 2 elements on each side of dimension 1"),
        ((2, 3), (0, 0, 3, 0), "circular", "at most 2 elements on each side of dimension 0"),
        ((2, 3), (-1, 0), "replicate", "not negative"),
        ((2, 0), (1, 0), "replicate", "something to pad with"),
        ((2, 3), (1,), "reflect", "pairs of widths"),
        ((2, 3), (1, 1, 1, 1, 1, 1), "reflect", "at most 2 dimensions"),
        ((2, 3), (1, 1, 1), "constant", "pairs of widths"),
    ],
)
def test_pad_refuses_what_does_not_fit(shape, widths, mode, message):
    with pytest.raises(ShapeError, match=f"pad.*{message}"):
        F.pad(mt.zeros(*shape), widths, mode)


def test_pad_knows_its_modes():
    with pytest.raises(ConfigError, match="'constant', 'reflect', 'replicate', 'circular'"):
        F.pad(mt.zeros(3), (1, 1), "edge")
    with pytest.raises(ConfigError, match="'reflect' takes no value"):
        F.pad(mt.zeros(3), (1, 1), "reflect", 1.0)


def test_mse_loss():
    x, target = rand(3, 4), rand(3, 4, seed=1)
    squares = (x - target) ** 2
    assert value(F.mse_loss, x, target) == pytest.approx(squares.mean())
    assert value(F.mse_loss, x, target, reduction="sum") == pytest.approx(squares.sum())
    np.testing.assert_allclose(value(F.mse_loss, x, target, reduction="none"), squares)
    assert_slope(F.mse_loss, x, target)
    with pytest.raises(ShapeError, match="expand"):
        F.mse_loss(mt.zeros(3, 1), mt.zeros(3))
    with pytest.raises(ConfigError, match="reduction"):
        F.mse_loss(mt.zeros(3), mt.zeros(3), reduction="average")


def test_nll_loss_is_cross_entropy_without_the_softmax():
    x, target = rand(4, 5), np.array([0, 4, -100, 2])
    log_probs = special.log_softmax(x, -1)
    picked = -log_probs[[0, 1, 3], [0, 4, 2]]
    tensors = mt.from_numpy(log_probs), mt.from_numpy(target)
    assert F.nll_loss(*tensors).item() == pytest.approx(picked.mean())
    assert F.nll_loss(*tensors, reduction="sum").item() == pytest.approx(picked.sum())
    assert F.nll_loss(*tensors, reduction="none").numpy()[2] == 0
    logits = mt.from_numpy(x)
    assert F.nll_loss(*tensors).item() == pytest.approx(F.cross_entropy(logits, tensors[1]).item())
    kept = mt.from_numpy(np.array([0, 4, -1, 2]))
    assert F.nll_loss(tensors[0], kept, ignore_index=-1).item() == pytest.approx(picked.mean())
    assert_slope(lambda p: F.nll_loss(p, tensors[1]), log_probs)
    with pytest.raises(ShapeError, match="rows"):
        F.nll_loss(mt.zeros(3, 2), mt.zeros(2, dtype=mt.int64))


def test_binary_cross_entropy_with_logits():
    x, target = 3 * rand(3, 4), np.random.default_rng(0).random((3, 4))
    p = special.expit(x)
    expected = -(target * np.log(p) + (1 - target) * np.log(1 - p))
    assert value(F.binary_cross_entropy_with_logits, x, target) == pytest.approx(expected.mean())
    assert_slope(F.binary_cross_entropy_with_logits, x, target)
    extremes = F.binary_cross_entropy_with_logits(
        mt.tensor([50.0, -50.0, 50.0, -1000.0]), mt.tensor([1.0, 0.0, 0.0, 1.0]), reduction="none"
    )
    np.testing.assert_allclose(extremes.numpy(), [np.exp(-50), np.exp(-50), 50, 1000], rtol=1e-5)


def test_kl_div():
    p, q = special.softmax(rand(3, 4), -1), special.softmax(rand(3, 4, seed=1), -1)
    p[0, 1] = 0
    terms = special.rel_entr(p, q)
    log_q = np.log(q)
    assert value(F.kl_div, log_q, p) == pytest.approx(terms.mean())
    assert value(F.kl_div, log_q, p, reduction="batchmean") == pytest.approx(terms.sum() / 3)
    np.testing.assert_allclose(value(F.kl_div, log_q, p, reduction="none"), terms, atol=1e-12)
    positive = special.softmax(rand(3, 4), -1)
    np.testing.assert_allclose(
        value(F.kl_div, log_q, np.log(positive), log_target=True),
        value(F.kl_div, log_q, positive),
        rtol=1e-12,
    )
    assert_slope(F.kl_div, log_q, positive)
    assert_slope(lambda a, b: F.kl_div(a, b, log_target=True), log_q, np.log(positive))


def test_normalize():
    x = rand(3, 4)
    x[1] = 0
    out = value(F.normalize, x)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), [1, 0, 1])
    np.testing.assert_allclose(value(F.normalize, x, p=1.0, dim=0), x / np.abs(x).sum(0))
    assert_slope(F.normalize, rand(3, 4))


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 0, 1), (2, 1, 1), (3, 2, 2)])
def test_conv1d(stride, padding, groups):
    x, weight, bias = rand(2, 4, 9), rand(6, 4 // groups, 3), rand(6)
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding)))
    share, per = 6 // groups, 4 // groups
    expected = np.stack(
        [
            [
                sum(
                    np.correlate(image[o // share * per + i], weight[o, i], "valid")
                    for i in range(per)
                )[::stride]
                + bias[o]
                for o in range(6)
            ]
            for image in padded
        ]
    )
    options = {"stride": stride, "padding": padding, "groups": groups}
    np.testing.assert_allclose(value(F.conv1d, x, weight, bias, **options), expected, atol=1e-12)
    assert_slope(lambda *tensors: F.conv1d(*tensors, **options), x, weight, bias)


@pytest.mark.parametrize(
    ("stride", "padding", "groups"), [(1, 0, 1), (2, (1, 2), 1), ((2, 3), 1, 2), (1, 1, 4)]
)
def test_conv2d(stride, padding, groups):
    x, weight, bias = rand(2, 4, 7, 8), rand(8, 4 // groups, 3, 2), rand(8)
    high, wide = (padding, padding) if isinstance(padding, int) else padding
    down, right = (stride, stride) if isinstance(stride, int) else stride
    padded = np.pad(x, ((0, 0), (0, 0), (high, high), (wide, wide)))
    share, per = 8 // groups, 4 // groups
    expected = np.stack(
        [
            [
                sum(
                    signal.correlate2d(image[o // share * per + i], weight[o, i], "valid")
                    for i in range(per)
                )[::down, ::right]
                + bias[o]
                for o in range(8)
            ]
            for image in padded
        ]
    )
    options = {"stride": stride, "padding": padding, "groups": groups}
    np.testing.assert_allclose(value(F.conv2d, x, weight, bias, **options), expected, atol=1e-12)
    assert_slope(lambda *tensors: F.conv2d(*tensors, **options), x, weight, bias)


def test_convolutions_refuse_what_does_not_fit():
    x = mt.zeros(2, 4, 5)
    for weight, options in [
        (mt.zeros(6, 3, 3), {}),
        (mt.zeros(6, 4, 6), {}),
        (mt.zeros(6, 4), {}),
        (mt.zeros(5, 2, 3), {"groups": 2}),
        (mt.zeros(6, 4, 3), {"stride": (1, 1)}),
    ]:
        with pytest.raises(ShapeError, match="conv1d"):
            F.conv1d(x, weight, **options)
    assert F.conv1d(x, mt.zeros(6, 4, 6), padding=1).shape == (2, 6, 2)
    with pytest.raises(ShapeError, match="conv2d"):
        F.conv2d(x, mt.zeros(6, 4, 3))
