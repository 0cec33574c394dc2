"""Latent attention: its formula head by head, naive = absorbed, cached = full, what it saves."""

import dataclasses

import numpy as np
import pytest

import minitorch as mt
from models.blocks.cache import Cache
from models.blocks.context import place
from models.blocks.latent import LatentAttention, LatentConfig, softmax_scale
from models.blocks.positions import Rotary

BATCH, TIME = 2, 9
CONFIG = LatentConfig(
    hidden_size=12,
    num_heads=3,
    q_lora_rank=7,
    kv_lora_rank=5,
    qk_nope_head_dim=4,
    qk_rope_head_dim=6,
    v_head_dim=2,
    rotary=Rotary(6, interleaved=True),
    scale=0.29,
    bias=True,
)
CONFIGS = [CONFIG, dataclasses.replace(CONFIG, q_lora_rank=None, bias=False)]


def layer(config, dtype=np.float64, seed=0):
    made = LatentAttention(config, np.dtype(dtype), mt.Generator(0))
    rng = np.random.default_rng(seed)
    for param in made.parameters():
        param.data[...] = (param.ndim == 1) + 0.5 * rng.standard_normal(param.shape)
    return made


def inputs(seed=1, time=TIME, dtype=np.float64):
    data = np.random.default_rng(seed).standard_normal((BATCH, time, CONFIG.hidden_size))
    return mt.Tensor(data.astype(dtype), requires_grad=True)


def whole(mask=None, time=TIME):
    return place(time, mask, np.empty((1, 0), np.int64), None, "cpu")


def formula(made, x):
    """One sequence, one head, one query at a time, with complex rotations."""
    config = made.config
    w = {name: tensor.numpy() for name, tensor in made.state_dict().items()}

    def affine(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"]

    def turned(x):
        angles = np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(0, 6, 2) / 6)
        z = (x[:, ::2] + 1j * x[:, 1::2]) * np.exp(1j * angles)
        return np.stack([z.real, z.imag], -1).reshape(x.shape)

    if config.q_lora_rank is None:
        queries = affine(x, "q_proj")
    else:
        queries = affine(norm(affine(x, "q_a_proj"), "q_a_layernorm"), "q_b_proj")
    latent, shared = np.split(affine(x, "kv_a_proj_with_mqa"), [config.kv_lora_rank], -1)
    made_of = affine(norm(latent, "kv_a_layernorm"), "kv_b_proj")
    shared, heads = turned(shared), []
    for h in range(config.num_heads):
        q, q_turned = np.split(queries[:, 10 * h : 10 * (h + 1)], [4], -1)
        k, v = np.split(made_of[:, 6 * h : 6 * (h + 1)], [4], -1)
        scores = config.scale * (q @ k.T + turned(q_turned) @ shared.T)
        scores[np.triu_indices(len(x), 1)] = -np.inf
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(probs / probs.sum(-1, keepdims=True) @ v)
    return affine(np.concatenate(heads, -1), "o_proj")


@pytest.mark.parametrize("config", CONFIGS)
def test_it_is_the_formula(config):
    made, x = layer(config), inputs()
    out = made(x, whole()).detach().numpy()
    for row, expected in zip(out, x.detach().numpy(), strict=True):
        np.testing.assert_allclose(row, formula(made, expected), atol=1e-11)


@pytest.mark.parametrize("config", CONFIGS)
def test_naive_is_absorbed(config):
    """Values and every gradient."""
    results = []
    for way in ("naive", "absorbed"):
        made, x, context = layer(config), inputs(), whole()
        query, latents = made._queries(x, context), made._latents(x, context)
        out = getattr(made, way)(query, latents, context)
        out.backward(mt.Tensor(np.random.default_rng(2).standard_normal(out.shape)))
        grads = [param.grad for param in made.parameters() if param.grad is not None]
        results.append([out, x.grad, *grads])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), atol=1e-11)


@pytest.mark.parametrize("parts", [[9], [1] * 9, [4, 1, 4], [3, 6]], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_cached_is_full(parts, dtype, tolerance):
    made, x = layer(CONFIG, dtype), inputs(dtype=dtype)
    cache, pieces, start = Cache([made.new_cache()]), [], 0
    with mt.no_grad():
        full = made(x, whole()).numpy()
        for n in parts:
            piece = x[:, start : start + n]
            pieces.append(made(piece, cache.extend(n, None, "cpu"), cache.layers[0]).numpy())
            start += n
    np.testing.assert_allclose(np.concatenate(pieces, 1), full, rtol=tolerance, atol=tolerance)
    numbers = CONFIG.kv_lora_rank + CONFIG.qk_rope_head_dim
    room = 2 ** int(np.ceil(np.log2(TIME)))
    assert cache.nbytes == BATCH * room * numbers * np.dtype(dtype).itemsize


@pytest.mark.parametrize("left", [True, False])
def test_padding_changes_nothing(left):
    made, x = layer(CONFIG), inputs()
    mask = np.ones((BATCH, TIME), bool)
    pads = slice(0, 3) if left else slice(TIME - 3, TIME)
    tokens = slice(3, TIME) if left else slice(0, TIME - 3)
    mask[1, pads] = False
    out = made(x, whole(mask)).detach().numpy()
    alone = made(x[1:, tokens], whole(time=TIME - 3)).detach().numpy()
    np.testing.assert_allclose(out[1, tokens], alone[0], atol=1e-12)
    np.testing.assert_allclose(out[0], made(x, whole()).detach().numpy()[0], atol=1e-12)


def test_the_scale_has_the_temperature_once():
    """cos and sin have mscale / mscale_all_dim of it, the softmax the rest: see softmax_scale."""
    yarn = {
        "rope_type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    }
    temperature = 0.1 * 0.707 * np.log(40) + 1
    assert softmax_scale(192, yarn) == pytest.approx(192**-0.5 * temperature**2)
    assert Rotary(64, 10_000.0, yarn).scaled(1)[1] == 1.0
    assert softmax_scale(192, None) == 192**-0.5
    plain = {key: yarn[key] for key in list(yarn)[:3]}
    assert softmax_scale(192, plain) == 192**-0.5
    assert Rotary(64, 10_000.0, plain).scaled(1)[1] == pytest.approx(0.1 * np.log(40) + 1)
