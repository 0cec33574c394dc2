"""Lightning attention: its three forms are one, and its state is all it needs."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import GraphError, ShapeError
from minitorch.nn import functional as F
from models.blocks import lightning
from models.blocks.cache import Cache
from models.blocks.context import place
from models.blocks.lightning import LightningAttention, decay_slopes

BATCH, HEADS, TIME, DIM = 2, 3, 11, 4
SLOPES = decay_slopes(HEADS, 1, 4)


def heads(seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shape = (BATCH, HEADS, TIME, DIM)
    return [mt.Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True) for _ in "qkv"]


def one_by_one(query, key, value):
    """The sum that defines it."""
    q, k, v = (x.detach().numpy() for x in (query, key, value))
    out = np.zeros_like(v)
    for h in range(HEADS):
        for t in range(TIME):
            for s in range(t + 1):
                near = np.exp(-SLOPES[h] * (t - s)) * (q[:, h, t] * k[:, h, s]).sum(-1)
                out[:, h, t] += near[:, None] * v[:, h, s]
    return out


FORMS = {
    "quadratic": lambda *qkv: lightning.quadratic(*qkv, SLOPES),
    "recurrent": lambda *qkv: lightning.recurrent(*qkv, SLOPES)[0],
    **{
        f"blocks of {n}": lambda *qkv, n=n: lightning.blockwise(*qkv, SLOPES, n)[0]
        for n in (1, 3, 5, TIME, 64)
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_sum(form):
    out = FORMS[form](*heads())
    np.testing.assert_allclose(out.detach().numpy(), one_by_one(*heads()), atol=1e-12)


@pytest.mark.parametrize("form", list(FORMS)[1:])
def test_every_form_has_the_same_gradients(form):
    cotangent = mt.Tensor(np.random.default_rng(1).standard_normal((BATCH, HEADS, TIME, DIM)))
    results = []
    for name in ("quadratic", form):
        qkv = heads()
        FORMS[name](*qkv).backward(cotangent)
        results.append([x.grad.numpy() for x in qkv])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("block_size", [1, 3, 4, TIME, 64])
def test_one_operation_is_the_sum(block_size):
    """Values and gradients of queries, keys and values that lie side by side."""
    cotangent = np.random.default_rng(1).standard_normal((BATCH, HEADS, TIME, DIM))
    apart = heads()
    lightning.quadratic(*apart, SLOPES).backward(mt.Tensor(cotangent))
    x = mt.cat([part.detach() for part in apart], -1).transpose(1, 2).reshape(BATCH, TIME, -1)
    x.requires_grad_()
    out = F.lightning_attention(x, tuple(SLOPES), block_size)
    out.backward(mt.Tensor(cotangent).transpose(1, 2).reshape(BATCH, TIME, -1))
    expected = one_by_one(*apart).swapaxes(1, 2).reshape(BATCH, TIME, -1)
    np.testing.assert_allclose(out.detach().numpy(), expected, atol=1e-12)
    grads = np.concatenate([part.grad.numpy() for part in apart], -1).swapaxes(1, 2)
    np.testing.assert_allclose(x.grad.numpy(), grads.reshape(x.shape), atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 10)], ids=str)
def test_one_operation_refuses_what_does_not_fit(shape):
    with pytest.raises(ShapeError, match="lightning_attention: expected"):
        F.lightning_attention(mt.ones(*shape), (0.5, 0.1))


@pytest.mark.parametrize("way", [lightning.recurrent, lightning.blockwise])
def test_the_state_is_all_it_needs(way):
    qkv = heads()
    first, state = way(*(x[:, :, :4] for x in qkv), SLOPES)
    assert state.shape == (BATCH, HEADS, DIM, DIM)
    rest, end = lightning.blockwise(*(x[:, :, 4:] for x in qkv), SLOPES, 3, state)
    out = np.concatenate([first.detach().numpy(), rest.detach().numpy()], 2)
    np.testing.assert_allclose(out, one_by_one(*qkv), atol=1e-12)
    np.testing.assert_allclose(end.tolist(), lightning.recurrent(*qkv, SLOPES)[1].tolist())


def test_a_strong_decay_over_a_long_block_does_not_overflow():
    """λ^i / λ^j would: exp(0.99 · 2000) is not a float."""
    rng = np.random.default_rng(0)
    qkv = [mt.Tensor(rng.standard_normal((1, 1, 2000, 2)).astype(np.float32)) for _ in "qkv"]
    out, _ = lightning.blockwise(*qkv, np.array([0.99]), 2000)
    expected, _ = lightning.blockwise(*qkv, np.array([0.99]), 64)
    assert np.isfinite(out.numpy()).all()
    np.testing.assert_allclose(out.numpy(), expected.numpy(), atol=1e-4)


def test_slopes():
    """The first head forgets fastest, the last layer hardly at all."""
    factor = 1 - 0 / (4 - 1 + 1e-5) + 1e-5
    np.testing.assert_allclose(decay_slopes(8, 0, 4), [2.0**-h * factor for h in range(1, 9)])
    assert decay_slopes(8, 3, 4).max() < 1e-4
    assert decay_slopes(8, 0, 1)[0] == pytest.approx(0.5, rel=1e-4)


def layer(dtype=np.float64):
    made = LightningAttention(6, DIM, SLOPES, 4, np.dtype(dtype), mt.Generator(0))
    rng = np.random.default_rng(0)
    for param in made.parameters():
        param.data[...] = (param.ndim == 1) + 0.5 * rng.standard_normal(param.shape)
    return made


def inputs(dtype=np.float64):
    return mt.Tensor(np.random.default_rng(1).standard_normal((BATCH, TIME, 6)).astype(dtype))


def whole(mask=None, time=TIME):
    return place(time, mask, np.empty((1, 0), np.int64), None, "cpu")


@pytest.mark.parametrize("parts", [[11], [1] * 11, [4, 1, 6], [9, 2]], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_cached_is_full(parts, dtype, tolerance):
    made, x = layer(dtype), inputs(dtype)
    cache, pieces, start = Cache([made.new_cache()]), [], 0
    with mt.no_grad():
        full = made(x, whole()).numpy()
        for n in parts:
            context = cache.extend(n, None, "cpu")
            pieces.append(made(x[:, start : start + n], context, cache.layers[0]).numpy())
            start += n
    np.testing.assert_allclose(np.concatenate(pieces, 1), full, rtol=tolerance, atol=tolerance)
    assert cache.nbytes == BATCH * HEADS * DIM * DIM * np.dtype(dtype).itemsize


def test_padding_adds_nothing_and_lets_nothing_decay():
    """On the left, on the right and in between, also through the state that a cache keeps."""
    made, x = layer(), inputs()
    mask = np.ones((BATCH, TIME), bool)
    mask[1, [0, 5, 6, 9, 10]] = False
    cache = Cache([made.new_cache()])
    with mt.no_grad():
        out = made(x, cache.extend(TIME, mask, "cpu"), cache.layers[0]).numpy()
        alone = made(mt.Tensor(x.numpy()[1:, mask[1]]), whole(time=6)).numpy()
        next_out = made(x[:, :1], cache.extend(1, None, "cpu"), cache.layers[0]).numpy()
        after = mt.Tensor(np.concatenate([x.numpy()[1:, mask[1]], x.numpy()[1:, :1]], 1))
        expected = made(after, whole(time=7)).numpy()
    np.testing.assert_allclose(out[1, mask[1]], alone[0], atol=1e-12)
    np.testing.assert_allclose(next_out[1, 0], expected[0, -1], atol=1e-12)


def test_half_precision_keeps_a_wide_state():
    qkv = [x.detach().to(mt.bfloat16) for x in heads()]
    out, state = lightning.blockwise(*qkv, SLOPES, 4)
    assert out.dtype == mt.bfloat16
    assert state.dtype == mt.float32
    np.testing.assert_allclose(out.float().tolist(), one_by_one(*heads()), atol=0.3)


def test_the_cache_refuses_what_it_cannot_hold():
    made, x = layer(), inputs()
    cache = Cache([made.new_cache()])
    with pytest.raises(GraphError, match="no_grad"):
        made(x, cache.extend(TIME, None, "cpu"), cache.layers[0])
    with mt.no_grad():
        made(x, whole(), cache.layers[0])
        with pytest.raises(ShapeError, match="2 rows"):
            made(x[:1], whole(), cache.layers[0])
