"""Each optimizer's rule against its formula, typed again in float64."""

import ml_dtypes
import numpy as np
import pytest

from minitorch.nn import Parameter
from minitorch.optim import SGD, Adafactor, Adam, AdamW, Lion, Muon
from minitorch.tensor import Tensor

STEPS = 12


def gradients(shape, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) * (1 + i % 3) for i in range(STEPS)]


def run(optimizer_class, start, grads, dtype=np.float64, **options):
    """The parameter after one step for each gradient."""
    param = Parameter(start.astype(dtype))
    optimizer = optimizer_class([param], **options)
    for grad in grads:
        param.grad = Tensor(grad.astype(dtype))
        optimizer.step()
    return param.data


def sgd(w, grads, *, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    buffer = None
    for grad in grads:
        g = grad + weight_decay * w
        buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
        w = w - lr * (g + momentum * buffer if nesterov else buffer if momentum else g)
    return w


def adam(w, grads, *, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False):
    m = v = np.zeros_like(w)
    for t, grad in enumerate(grads, start=1):
        g = grad if decoupled else grad + weight_decay * w
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        decay = lr * weight_decay * w if decoupled else 0.0
        w = w - decay - lr * m_hat / (np.sqrt(v_hat) + eps)
    return w


def adamw(w, grads, **options):
    return adam(w, grads, decoupled=True, **options)


def lion(w, grads, *, lr, betas=(0.9, 0.99), weight_decay=0.0):
    m = np.zeros_like(w)
    for g in grads:
        u = np.sign(betas[0] * m + (1 - betas[0]) * g)
        w, m = w - lr * (u + weight_decay * w), betas[1] * m + (1 - betas[1]) * g
    return w


def adafactor(w, grads, *, lr=1e-2, weight_decay=0.0, d=1.0):
    """Algorithms 4 and 5 of the paper, with the sums that it has in place of means."""
    rows, columns = np.zeros(w.shape[:-1]), np.zeros((*w.shape[:-2], w.shape[-1]))
    full = np.zeros_like(w)
    for t, g in enumerate(grads, start=1):
        beta = 1 - t**-0.8
        alpha = max(1e-3, np.sqrt(np.mean(w**2))) * min(lr, t**-0.5)
        if w.ndim > 1:
            rows = beta * rows + (1 - beta) * (g**2).sum(-1)
            columns = beta * columns + (1 - beta) * (g**2).sum(-2)
            outer = rows[..., :, None] * columns[..., None, :]
            v = outer / rows.sum(-1)[..., None, None]
        else:
            v = full = beta * full + (1 - beta) * g**2
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt(np.mean(u**2)) / d)
        w = w - lr * weight_decay * w - alpha * u
    return w


def muon(w, grads, *, lr, weight_decay=0.1, momentum=0.95, nesterov=True, scale=None):
    """The polynomial applied to the singular values, by way of an SVD."""
    buffer = np.zeros_like(w)
    n, m = w.shape
    scale = np.sqrt(max(1, n / m)) if scale is None else scale
    for g in grads:
        buffer = momentum * buffer + (1 - momentum) * g
        u, s, vt = np.linalg.svd(
            (1 - momentum) * g + momentum * buffer if nesterov else buffer, full_matrices=False
        )
        s = s / np.sqrt((s**2).sum())
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        w = w - lr * weight_decay * w - lr * scale * (u * s) @ vt
    return w


CASES = [
    (SGD, sgd, {"lr": 0.1}),
    (SGD, sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    (SGD, sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    (SGD, sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (Adam, adam, {"lr": 0.1}),
    (Adam, adam, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-2, "weight_decay": 0.3}),
    (AdamW, adamw, {"lr": 0.1, "weight_decay": 0.0}),
    (AdamW, adamw, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-2, "weight_decay": 0.3}),
    (Lion, lion, {"lr": 0.1}),
    (Lion, lion, {"lr": 0.1, "betas": (0.5, 0.8), "weight_decay": 0.3}),
    (Adafactor, adafactor, {}),
    (Adafactor, adafactor, {"lr": 0.5, "weight_decay": 0.1, "d": 1.5}),
]


def name(case):
    return f"{case[0].__name__}-{'-'.join(case[2])}"


@pytest.mark.parametrize("case", CASES, ids=name)
@pytest.mark.parametrize("shape", [(7,), (4, 6), (3, 5, 2)], ids=str)
def test_rule_is_the_formula(case, shape):
    optimizer_class, formula, options = case
    start, grads = np.random.default_rng(1).standard_normal(shape), gradients(shape)
    expected = formula(start, grads, **options)
    np.testing.assert_allclose(
        run(optimizer_class, start, grads, **options), expected, rtol=1e-11, atol=1e-12
    )
    single = run(optimizer_class, start, grads, dtype=np.float32, **options)
    assert single.dtype == np.float32
    if optimizer_class is not Lion:  # rounding may turn the sign of a momentum near 0
        np.testing.assert_allclose(single, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("shape", [(4, 4), (4, 9), (9, 4), (1, 3)], ids=str)
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_the_polynomial_on_singular_values(shape, nesterov):
    start, grads = np.random.default_rng(1).standard_normal(shape), gradients(shape)
    options = {"lr": 0.1, "nesterov": nesterov}
    expected = muon(start, grads, **options)
    np.testing.assert_allclose(run(Muon, start, grads, **options), expected, atol=1e-9)


def test_muon_can_match_the_size_of_adamw_updates():
    start, grads = np.zeros((4, 9)), gradients((4, 9))
    expected = muon(start, grads, lr=0.1, scale=0.2 * 3)
    got = run(Muon, start, grads, lr=0.1, adjust_lr_fn="match_rms_adamw")
    np.testing.assert_allclose(got, expected, atol=1e-9)


@pytest.mark.parametrize("together", [1, 30, 10_000])
def test_muon_updates_many_matrices_as_one_by_one(together, monkeypatch):
    """However many directions are in memory together."""
    monkeypatch.setattr("minitorch.optim.muon.BATCH", together)
    shapes = [(4, 9), (9, 4), (3, 3), (1, 5), (7, 2)]
    starts = [np.random.default_rng(i).standard_normal(s) for i, s in enumerate(shapes)]
    params = [Parameter(start.copy()) for start in starts]
    optimizer = Muon(params, lr=0.1)
    for grads in zip(*(gradients(shape) for shape in shapes), strict=True):
        for param, grad in zip(params, grads, strict=True):
            param.grad = Tensor(4 * grad)
        optimizer.step(0.25)
    for param, start, shape in zip(params, starts, shapes, strict=True):
        expected = muon(start, gradients(shape), lr=0.1)
        np.testing.assert_allclose(param.data, expected, atol=1e-9)


def test_muon_updates_other_groups_by_adamw():
    start, grads = np.random.default_rng(1).standard_normal(5), gradients(5)
    group = {"params": [Parameter(start.copy())], "use_muon": False, "lr": 0.1}
    optimizer = Muon([group], weight_decay=0.2, betas=(0.5, 0.9), adamw_eps=1e-3)
    for grad in grads:
        optimizer.param_groups[0]["params"][0].grad = Tensor(grad)
        optimizer.step()
    expected = adamw(start, grads, lr=0.1, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.2)
    np.testing.assert_allclose(group["params"][0].data, expected, rtol=1e-11)


RULES = [(SGD, {"lr": 0.1, "momentum": 0.9}), (AdamW, {}), (Lion, {}), (Adafactor, {})]


@pytest.mark.parametrize(("optimizer_class", "options"), RULES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_updated_in_float32_and_rounded(optimizer_class, options, dtype):
    """One step equals the float32 step rounded, and the state has float32's precision."""
    start = np.random.default_rng(1).standard_normal((4, 6)).astype(dtype)
    grads = [grad.astype(dtype) for grad in gradients((4, 6))]
    half = Parameter(start.copy())
    wide = Parameter(start.astype(np.float32))
    optimizers = [optimizer_class([half], **options), optimizer_class([wide], **options)]
    half.grad, wide.grad = Tensor(grads[0]), Tensor(grads[0].astype(np.float32))
    for optimizer in optimizers:
        optimizer.step()
    assert half.data.dtype == dtype
    np.testing.assert_array_equal(half.data, wide.data.astype(dtype))
    for key, value in optimizers[0].state_dict()["state"].items():
        np.testing.assert_array_equal(value, optimizers[1].state_dict()["state"][key])
        assert value.dtype == (np.int64 if key.endswith("step") else np.float32)


@pytest.mark.parametrize(("optimizer_class", "options"), RULES)
def test_scalars_views_and_transposes_are_updated_in_place(optimizer_class, options):
    start = np.random.default_rng(1).standard_normal((3, 4))
    grads = gradients((3, 4))
    base = np.zeros((4, 6))
    view = base[:, ::2].T
    view[...] = start
    param = Parameter(view)
    optimizer = optimizer_class([param], **options)
    for grad in grads:
        param.grad = Tensor(np.asfortranarray(grad))
        optimizer.step()
    np.testing.assert_allclose(base[:, ::2].T, run(optimizer_class, start, grads, **options))
    assert not base[:, 1::2].any()

    scalar = run(optimizer_class, np.array(2.0), [np.array(1.0)], **options)
    vector = run(optimizer_class, np.array([2.0]), [np.array([1.0])], **options)
    assert scalar.shape == ()
    assert scalar == vector[0] != 2.0


def test_adamw_decays_by_its_factor_where_adam_moves_by_lr():
    """With no gradient AdamW keeps p (1 - lr wd)^t; Adam moves by about lr, whatever p is."""
    start, zeros = np.array([0.01, 1.0, 100.0]), [np.zeros(3)] * 5
    decoupled = run(AdamW, start, zeros, lr=0.01, weight_decay=0.1)
    np.testing.assert_allclose(decoupled, start * (1 - 0.01 * 0.1) ** 5, rtol=1e-12)
    penalty = run(Adam, start, zeros[:1], lr=0.01, weight_decay=0.1)
    np.testing.assert_allclose(start - penalty, 0.01, rtol=1e-4)


def test_bfloat16_loses_a_small_update():
    """Why mixed precision keeps float32 weights: 1 - 0.001 is 1 in bfloat16."""
    start, grads = np.ones(1), [np.ones(1)] * 100
    assert run(SGD, start, grads, dtype=ml_dtypes.bfloat16, lr=1e-3)[0] == 1
    assert run(SGD, start, grads, dtype=np.float32, lr=1e-3)[0] < 0.91
