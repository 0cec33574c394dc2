"""The NumPy kernels: values against SciPy and float64 formulas, backward against differences."""

import numpy as np
import pytest
from scipy import special

import minitorch as mt
from minitorch.errors import ShapeError
from minitorch.kernels import lookup, prefer
from minitorch.kernels.reference import (
    activations,
    cross_entropy,
    dropout,
    embedding,
    matmul,
    norms,
    optimizers,
    rope,
    softmax,
)

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _numpy_kernels():
    with prefer("numpy"):
        yield


def _slope(f, grad, x, h=1e-6):
    """<grad, f> differentiated with respect to every element of x."""
    out = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        for sign in (1, -1):
            moved = x.copy()
            moved[i] += sign * h
            out[i] += sign * float(np.sum(grad * f(moved))) / (2 * h)
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 30.0])
def test_error_function_and_gelu(dtype, scale):
    x = (scale * RANDOM.standard_normal(2000)).astype(dtype)
    eps = np.finfo(dtype).eps
    exact = x.astype(np.float64)
    np.testing.assert_allclose(lookup("erf")(x), special.erf(exact), rtol=8 * eps)
    expected = exact * special.ndtr(exact)
    np.testing.assert_allclose(lookup("gelu")(x), expected, rtol=16 * eps, atol=4 * eps)


def test_erf_keeps_its_limits():
    x = np.array([-np.inf, -40.0, -0.0, 0.0, 1e-300, 40.0, np.inf, np.nan])
    np.testing.assert_array_equal(lookup("erf")(x), special.erf(x))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax_family(dim):
    x = 20 * RANDOM.standard_normal((5, 7))
    np.testing.assert_allclose(softmax.softmax(x, dim=dim), special.softmax(x, dim), rtol=1e-13)
    np.testing.assert_allclose(
        softmax.log_softmax(x, dim=dim), special.log_softmax(x, dim), rtol=1e-12
    )
    np.testing.assert_allclose(softmax.logsumexp(x, dim=dim), special.logsumexp(x, dim), rtol=1e-14)
    np.testing.assert_allclose(
        softmax.softmax(x, dim=dim, scale=0.3), special.softmax(0.3 * x, dim), rtol=1e-13
    )
    grad = RANDOM.standard_normal(x.shape)
    small = x / 20
    np.testing.assert_allclose(
        softmax.softmax_backward(grad, softmax.softmax(small, dim=dim), dim=dim),
        _slope(lambda x: special.softmax(x, dim), grad, small),
        atol=1e-9,
    )
    np.testing.assert_allclose(
        softmax.log_softmax_backward(grad, softmax.log_softmax(small, dim=dim), dim=dim),
        _slope(lambda x: special.log_softmax(x, dim), grad, small),
        atol=1e-8,
    )
    for keepdim in (False, True):
        out = softmax.logsumexp(small, dim=dim, keepdim=keepdim)
        grad = RANDOM.standard_normal(out.shape)
        np.testing.assert_allclose(
            softmax.logsumexp_backward(grad, small, out, dim=dim, keepdim=keepdim),
            _slope(lambda x: special.logsumexp(x, dim, keepdims=keepdim), grad, small),  # noqa: B023
            atol=1e-8,
        )


def test_nothing_overflows():
    huge = np.array([[1e4, -1e4, 0.0], [-np.inf, 0.0, -np.inf]], np.float32)
    np.testing.assert_array_equal(softmax.softmax(huge), [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(softmax.logsumexp(huge), [1e4, 0])
    assert softmax.logsumexp(np.full((1, 3), -np.inf)) == -np.inf
    x = np.array([-1e4, 1e4], np.float32)
    np.testing.assert_array_equal(activations.silu(x), [0, 1e4])


def _layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def test_layer_norm():
    x, weight, bias = (RANDOM.standard_normal(s) for s in [(2, 3, 5), (5,), (5,)])
    out, mean, rstd = norms.layer_norm(x, weight, bias, eps=1e-5)
    np.testing.assert_allclose(out, _layer_norm(x, weight, bias), rtol=1e-12)
    grad = RANDOM.standard_normal(x.shape)
    dx, dweight, dbias = norms.layer_norm_backward(grad, x, weight, mean, rstd)
    for found, f, at in [
        (dx, lambda v: _layer_norm(v, weight, bias), x),
        (dweight, lambda v: _layer_norm(x, v, bias), weight),
        (dbias, lambda v: _layer_norm(x, weight, v), bias),
    ]:
        np.testing.assert_allclose(found, _slope(f, grad, at), atol=1e-8)


def test_rms_norm():
    x, weight = RANDOM.standard_normal((4, 6)), RANDOM.standard_normal(6)

    def formula(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight

    out, rstd = norms.rms_norm(x, weight)
    np.testing.assert_allclose(out, formula(x, weight), rtol=1e-12)
    grad = RANDOM.standard_normal(x.shape)
    dx, dweight = norms.rms_norm_backward(grad, x, weight, rstd)
    np.testing.assert_allclose(dx, _slope(lambda v: formula(v, weight), grad, x), atol=1e-8)
    np.testing.assert_allclose(dweight, _slope(lambda v: formula(x, v), grad, weight), atol=1e-8)


def test_norm_of_a_sum():
    x, residual, grad, dsum = RANDOM.standard_normal((4, 3, 5))
    weight, bias = RANDOM.standard_normal((2, 5))
    out, total, mean, rstd = norms.add_layer_norm(x, residual, weight, bias, eps=1e-5)
    np.testing.assert_allclose(out, _layer_norm(x + residual, weight, bias), rtol=1e-12)
    np.testing.assert_array_equal(total, x + residual)
    dx, dweight, dbias = norms.add_layer_norm_backward(grad, dsum, total, weight, mean, rstd)
    alone = norms.layer_norm_backward(grad, total, weight, mean, rstd)
    for found, expected in zip((dx, dweight, dbias), (alone[0] + dsum, *alone[1:])):
        np.testing.assert_allclose(found, expected, rtol=1e-13)
    normed, total, rstd = norms.add_rms_norm(x, residual, weight)
    expected, expected_rstd = norms.rms_norm(x + residual, weight)
    np.testing.assert_array_equal(normed, expected)
    np.testing.assert_array_equal(rstd, expected_rstd)
    dx, _ = norms.add_rms_norm_backward(grad, dsum, total, weight, rstd)
    expected, _ = norms.rms_norm_backward(grad, total, weight, rstd)
    np.testing.assert_allclose(dx, expected + dsum, rtol=1e-13)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_backward(approximate):
    x, grad = 2 * RANDOM.standard_normal(9), RANDOM.standard_normal(9)
    found = activations.gelu_backward(grad, x, approximate=approximate)
    expected = _slope(lambda x: activations.gelu(x, approximate=approximate), grad, x)
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_silu_and_its_backward():
    x, grad = 2 * RANDOM.standard_normal(9), RANDOM.standard_normal(9)
    np.testing.assert_allclose(activations.silu(x), x * special.expit(x), rtol=1e-14)
    np.testing.assert_allclose(
        activations.silu_backward(grad, x),
        _slope(lambda x: x * special.expit(x), grad, x),
        atol=1e-8,
    )


def test_swiglu_and_its_backward():
    gate, up, grad = 2 * RANDOM.standard_normal((3, 9))
    expected = gate * special.expit(gate) * up
    np.testing.assert_allclose(activations.swiglu(gate, up), expected, rtol=1e-14)
    for found, f, x in zip(
        activations.swiglu_backward(grad, gate, up),
        (lambda x: x * special.expit(x) * up, lambda x: gate * special.expit(gate) * x),
        (gate, up),
    ):
        np.testing.assert_allclose(found, _slope(f, grad, x), atol=1e-8)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_turns_pairs(interleaved):
    x, angle = RANDOM.standard_normal((2, 3, 8)), RANDOM.standard_normal((3, 4))
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + 4) for i in range(4)]
    out = rope.rope(x, np.cos(angle), np.sin(angle), interleaved=interleaved)
    for i, (a, b) in enumerate(pairs):
        c, s = np.cos(angle[:, i]), np.sin(angle[:, i])
        np.testing.assert_allclose(out[..., a], x[..., a] * c - x[..., b] * s, rtol=1e-12)
        np.testing.assert_allclose(out[..., b], x[..., b] * c + x[..., a] * s, rtol=1e-12)
    back = rope.rope(out, np.cos(angle), np.sin(angle), interleaved=interleaved, inverse=True)
    np.testing.assert_allclose(back, x, rtol=1e-12)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_cross_entropy(reduction, label_smoothing, z_loss):
    logits, target = RANDOM.standard_normal((4, 5)), np.array([1, -100, 4, 0])
    kept = target != -100

    def formula(logits):
        smoothed = np.full((4, 5), label_smoothing / 5)
        smoothed[kept, target[kept]] += 1 - label_smoothing
        losses = -(smoothed * special.log_softmax(logits, -1)).sum(-1)
        losses = (losses + z_loss * special.logsumexp(logits, -1) ** 2) * kept
        return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / 3}[reduction]

    options = {"label_smoothing": label_smoothing, "z_loss": z_loss, "reduction": reduction}
    loss, log_normaliser = cross_entropy.cross_entropy(logits, target, **options)
    np.testing.assert_allclose(loss, formula(logits), rtol=1e-13)
    grad = RANDOM.standard_normal(np.shape(loss))
    found = cross_entropy.cross_entropy_backward(grad, logits, target, log_normaliser, **options)
    np.testing.assert_allclose(found, _slope(formula, grad, logits), atol=1e-9)
    assert not found[1].any()


def test_embedding_adds_up_repeated_rows():
    weight, index = RANDOM.standard_normal((5, 3)), np.array([[1, 1], [4, 0]])
    np.testing.assert_array_equal(embedding.embedding(weight, index), weight[index])
    grad = RANDOM.standard_normal((2, 2, 3))
    expected = np.zeros((5, 3))
    for place, row in zip(index.reshape(-1), grad.reshape(-1, 3)):
        expected[place] += row
    found = embedding.embedding_backward(grad, index, num_embeddings=5)
    np.testing.assert_allclose(found, expected, rtol=1e-15)
    narrow = np.array([200], np.uint8)  # of which 3 * 200 would be none
    found = embedding.embedding_backward(np.ones((1, 3)), narrow, num_embeddings=201)
    assert found.sum(1).nonzero()[0].tolist() == [200]
    with pytest.raises(ShapeError, match=r"indices in \[0, 5\).*from 5 to 5"):
        embedding.embedding(weight, np.array([5]))


def test_linear():
    x, weight, bias = (RANDOM.standard_normal(s) for s in [(2, 3, 4), (5, 4), (5,)])
    np.testing.assert_allclose(
        matmul.linear(x, weight, bias),
        np.einsum("btc,oc->bto", x, weight) + bias,
        rtol=1e-13,
    )
    grad = RANDOM.standard_normal((2, 3, 5))
    dx, dweight, dbias = matmul.linear_backward(grad, x, weight, needs=(True, True, True))
    np.testing.assert_allclose(dx, grad @ weight, rtol=1e-13)
    np.testing.assert_allclose(dweight, np.einsum("bto,btc->oc", grad, x), rtol=1e-12)
    np.testing.assert_allclose(dbias, grad.sum((0, 1)), rtol=1e-12)
    needs = (False, True, False)
    assert [g is None for g in matmul.linear_backward(grad, x, weight, needs=needs)] == [
        True,
        False,
        True,
    ]


def test_adamw_steps():
    p, g, m, v = RANDOM.standard_normal((4, 6))
    v = v * v
    beta1, beta2, lr, eps, decay, step = 0.8, 0.95, 0.01, 1e-6, 0.1, 3
    m2, v2 = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    direction = (m2 / (1 - beta1**step)) / (np.sqrt(v2 / (1 - beta2**step)) + eps)
    expected = p * (1 - lr * decay) - lr * direction
    numbers = {
        "step": step,
        "lr": lr,
        "betas": (beta1, beta2),
        "eps": eps,
        "weight_decay": decay,
    }
    copy = np.empty(p.shape, mt.bfloat16)
    optimizers.adamw_steps([p], [4 * g], [m], [v], [numbers], grad_scale=0.25, copies=[copy])
    np.testing.assert_allclose(p, expected, rtol=1e-12)
    np.testing.assert_allclose([m, v], [m2, v2], rtol=1e-14)
    assert (copy == p.astype(mt.bfloat16)).all()


def test_sgd_and_lion_steps():
    p, g, b = RANDOM.standard_normal((3, 6))
    lr, decay, momentum, dampening = 0.1, 0.2, 0.9, 0.3
    penalised = 0.5 * g + decay * p
    numbers = {"lr": lr, "weight_decay": decay}
    plain = p.copy()
    optimizers.sgd_steps([plain], [g], [None], [{"step": 1, **numbers}], grad_scale=0.5)
    np.testing.assert_allclose(plain, p - lr * penalised, rtol=1e-13)
    for step, nesterov in ((1, False), (2, False), (2, True)):
        buffer = momentum * b + (1 if step == 1 else 1 - dampening) * penalised
        expected = p - lr * (penalised + momentum * buffer if nesterov else buffer)
        own = {**numbers, "momentum": momentum, "dampening": dampening, "nesterov": nesterov}
        found, kept = p.copy(), b.copy()
        optimizers.sgd_steps([found], [g], [kept], [{"step": step, **own}], grad_scale=0.5)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        np.testing.assert_allclose(kept, buffer, rtol=1e-13)
    found, kept = p.copy(), b.copy()
    numbers = {"lr": lr, "betas": (0.9, 0.99), "weight_decay": decay}
    optimizers.lion_steps([found], [g], [kept], [numbers])
    expected = (1 - lr * decay) * p - lr * np.sign(0.9 * b + 0.1 * g)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    np.testing.assert_allclose(kept, 0.99 * b + 0.01 * g, rtol=1e-12)


def test_direction_steps():
    g, b = RANDOM.standard_normal((2, 6))
    for nesterov in (True, False):
        found, kept = np.full(6, np.nan), b.copy()
        numbers = {"momentum": 0.95, "nesterov": nesterov}
        optimizers.direction_steps([found], [2 * g], [kept], [numbers], grad_scale=0.5)
        np.testing.assert_allclose(kept, 0.95 * b + 0.05 * g, rtol=1e-12)
        expected = 0.05 * g + 0.95 * kept if nesterov else kept
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5)], ids=str)
def test_newton_schulz_is_a_polynomial_of_singular_values(shape):
    x = RANDOM.standard_normal(shape)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    s /= np.sqrt((s**2).sum())
    for _ in range(3):
        s = 2 * s - 1.5 * s**3 + 0.5 * s**5
    optimizers.newton_schulz([x], coefficients=(2, -1.5, 0.5), steps=3, eps=1e-7)
    np.testing.assert_allclose(x, (u * s) @ vt, rtol=0, atol=1e-12)


def test_follow_and_the_norm():
    mean, value = RANDOM.standard_normal((2, 6))
    found = mean.copy()
    optimizers.follow([found], [value], rate=0.1)
    np.testing.assert_allclose(found, 0.9 * mean + 0.1 * value, rtol=1e-12)
    norm = np.linalg.norm(np.concatenate([mean, value]))
    assert optimizers.l2_norm([mean, value]) == pytest.approx(norm, rel=1e-14)


def test_dropout_is_a_function_of_seed_and_offset():
    x = np.ones(100_000, np.float32)
    out = dropout.dropout(x, p=0.25, seed=3, offset=1)
    assert set(np.unique(out)) == {0, np.float32(1 / 0.75)}
    assert abs(out.mean() - 1) < 5 * np.sqrt(0.25 / 0.75 / x.size)
    assert (out == dropout.dropout(x, p=0.25, seed=3, offset=1)).all()
    assert (out != dropout.dropout(x, p=0.25, seed=3, offset=2)).any()
    assert (out != dropout.dropout(x, p=0.25, seed=4, offset=1)).any()
