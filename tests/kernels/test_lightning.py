"""Lightning attention: the compiled kernel and the reference against the sum that defines it."""

import numpy as np
import pytest

from minitorch import kernels

SLOPES = (0.5, 0.11, 0.0)


def data(batch, time, dim, dtype, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, time, len(SLOPES) * 3 * dim)).astype(dtype)
    return x, rng.standard_normal((batch, time, len(SLOPES) * dim)).astype(dtype)


def parts(x):
    """q, k and v: (batch, time, heads, dim)."""
    by_head = x.reshape(*x.shape[:2], len(SLOPES), 3, -1).astype(np.float64)
    return (by_head[:, :, :, i] for i in range(3))


def decay(time):
    """λ^{t-s} for s ≤ t, else 0: (heads, t, s)."""
    away = np.arange(time)[:, None] - np.arange(time)
    return np.where(away >= 0, np.exp(-np.array(SLOPES)[:, None, None] * abs(away)), 0)


def by_definition(x):
    q, k, v = parts(x)
    out = np.einsum("bthd,bshd,hts,bshe->bthe", q, k, decay(x.shape[1]), v)
    return out.reshape(*x.shape[:2], -1)


def gradient_by_definition(grad, x):
    q, k, v = parts(x)
    g = grad.reshape(v.shape).astype(np.float64)
    near = decay(x.shape[1])
    dq = np.einsum("bthe,bshe,hts,bshd->bthd", g, v, near, k)
    dk = np.einsum("bthe,bshe,hts,bthd->bshd", g, v, near, q)
    dv = np.einsum("bthe,bthd,bshd,hts->bshe", g, q, k, near)
    return np.stack([dq, dk, dv], 3).reshape(x.shape)


@pytest.mark.parametrize("implementation", ["numpy", "cpu"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("block_size", [1, 4, 16, 23, 64])
@pytest.mark.parametrize(("time", "dim"), [(23, 5), (1, 4), (40, 16)])
def test_it_is_the_sum_and_its_gradient(
    instruction_set, implementation, dtype, block_size, time, dim
):
    x, grad = data(2, time, dim, dtype)
    meta = {"slopes": SLOPES, "block_size": block_size}
    of = kernels.implementations
    out = of("lightning_attention")[implementation](x, **meta)
    dx = of("lightning_attention_backward")[implementation](grad, x, **meta)
    rtol = 1e-4 if dtype == "float32" else 1e-11
    for found, expected in ((out, by_definition(x)), (dx, gradient_by_definition(grad, x))):
        assert (found.dtype, found.shape) == (x.dtype, expected.shape)
        np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


def test_views_and_threads_change_nothing():
    x, grad = data(3, 30, 4, np.float32)
    of, meta = kernels.implementations, {"slopes": SLOPES, "block_size": 8}
    run = of("lightning_attention")["cpu"], of("lightning_attention_backward")["cpu"]
    threads = kernels.get_num_threads()
    try:
        kernels.set_num_threads(1)
        alone = run[0](x, **meta), run[1](grad, x, **meta)
        kernels.set_num_threads(3)
        wide = np.repeat(x, 2, -1)[..., ::2], np.repeat(grad, 2, -1)[..., ::2]
        views = run[0](wide[0], **meta), run[1](wide[1], wide[0], **meta)
    finally:
        kernels.set_num_threads(threads)
    for one, other in zip(alone, views, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_long_text_does_not_overflow():
    """Powers of λ with exponents of thousands, of which none may be divided by another."""
    x, grad = data(1, 3000, 4, np.float32)
    x *= 0.1
    for name, given in (("lightning_attention", (x,)), ("lightning_attention_backward", (grad, x))):
        found = kernels.implementations(name)["cpu"](*given, slopes=SLOPES, block_size=1000)
        assert np.isfinite(found).all()
