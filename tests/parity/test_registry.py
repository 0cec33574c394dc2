"""Every primitive of the registry against PyTorch, on the registry's own samples.

Forward in all floating dtypes; v J for a random v in float64, singular points included: there both
follow a convention, and it is to be the same. Elementwise functions and their gradients at values
that overflow, underflow or are no numbers, with a list of what differs on purpose.
"""

import numpy as np
import pytest

import minitorch as mt
from minitorch.ops import registry
from minitorch.ops.indexing import Slot
from minitorch.ops.promotion import promote
from minitorch.tape import apply

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")
F = torch.nn.functional


def same_name(name, module=torch):
    return lambda *xs, **meta: getattr(module, name)(*xs, **meta)


def of_tensors(name):
    """Functions that take no Python numbers: those become tensors of the other's dtype."""

    def run(a, b):
        a = a if isinstance(a, torch.Tensor) else torch.tensor(a, dtype=b.dtype)
        b = b if isinstance(b, torch.Tensor) else torch.tensor(b, dtype=a.dtype)
        return getattr(torch, name)(a, b)

    return run


def identity(x, **_):
    return x.clone()


def key_of(key, index, x):
    """A key with its index tensors in place; torch has no negative steps, so those are gathered."""
    parts = []
    for axis, part in enumerate(key):
        if isinstance(part, Slot):
            part = index[part]
        elif isinstance(part, slice) and part.step is not None and part.step < 0:
            part = torch.arange(x.shape[axis])[torch.tensor(range(*part.indices(x.shape[axis])))]
        parts.append(part)
    return tuple(parts)


def getitem(x, *index, key):
    return x[key_of(key, index, x)]


def setitem(x, value, *index, key):
    out = x.clone()
    out[key_of(key, index, x)] = value
    return out


def scatter_index(x, *index, key, to):
    out = torch.zeros(to, dtype=x.dtype)
    if index:
        return out.index_put(key_of(key, index, out), x, accumulate=True)
    out[key_of(key, index, out)] = x
    return out


def diagonal_scatter(x, shape, **meta):
    return torch.diagonal_scatter(torch.zeros(shape, dtype=x.dtype), x, **meta)


def pad(x, widths, value):
    flat = [width for pair in reversed(widths) for width in pair]
    return F.pad(x, flat, value=value)


def fold(x, shape, dim, size, step):
    zeros = torch.zeros(shape, dtype=x.dtype, requires_grad=True)
    windows = zeros.unfold(dim, size, step)
    return torch.autograd.grad(windows, zeros, x, create_graph=True)[0]


def attention(query, key, value, mask, sinks, causal, scale, window, softcap, lower_right):
    """By torch's own function, or, for what that does not know, from the formula."""
    if sinks is None and not softcap and window == (-1, -1) and not lower_right:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=True
        )
    groups = query.shape[-3] // key.shape[-3]
    key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    time_q, time_k = scores.shape[-2:]
    position = torch.arange(time_q)[:, None] + (time_k - time_q if lower_right else 0)
    distance = torch.arange(time_k) - position
    hidden = (distance < -window[0]) & (window[0] >= 0) | (distance > 0) & causal
    hidden |= (distance > window[1]) & (window[1] >= 0)
    scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is not None:
        logits = sinks.view(-1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, logits], -1)
    return scores.softmax(-1)[..., :time_k] @ value


def packed(qkv, sinks, heads, kv_heads, **options):
    batch, time, _ = qkv.shape
    by_head = qkv.view(batch, time, heads + 2 * kv_heads, -1).transpose(1, 2)
    q, k, v = by_head.split([heads, kv_heads, kv_heads], 1)
    return attention(q, k, v, None, sinks, **options).transpose(1, 2).flatten(2)


def rotary_attention(query, key, value, cos, sin, heads, kv_heads, interleaved, **options):
    def turn(x):
        moving, still = x.tensor_split([2 * cos.shape[1]], -1)
        return torch.cat([rotary(moving, cos, sin, interleaved, False), still], -1)

    q, k, v = (
        x.unflatten(-1, (count, -1)).transpose(1, 2)
        for x, count in ((query, heads), (key, kv_heads), (value, kv_heads))
    )
    return attention(turn(q), turn(k), v, None, None, **options).transpose(1, 2).flatten(2)


def rotary_self_attention(x, q, k, v, q_bias, k_bias, v_bias, cos, sin, **options):
    query, key, value = map(F.linear, (x, x, x), (q, k, v), (q_bias, k_bias, v_bias))
    return rotary_attention(query, key, value, cos, sin, **options)


def varlen(query, key, value, sinks, starts_q, starts_k, **options):
    parts = []
    for a, b, c, d in zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False):
        q, k, v = (x.transpose(0, 1) for x in (query[a:b], key[c:d], value[c:d]))
        parts.append(attention(q, k, v, None, sinks, **options).transpose(0, 1))
    return torch.cat(parts)


def paged(query, keys, values, sinks, table, lengths, **options):
    parts = []
    for q, pages, length in zip(query, table, lengths, strict=True):
        k, v = (pool[pages].transpose(0, 1).flatten(1, 2)[:, :length] for pool in (keys, values))
        parts.append(attention(q, k, v, None, sinks, **options))
    return torch.stack(parts)


def decode_blocks(x, *others, eps, activation):
    *blocks, norm, shift, head = others
    for i in range(0, len(blocks), 14):
        x = decode_block(x, *blocks[i : i + 14], eps=eps, activation=activation)
    if norm is not None:
        x = F.layer_norm(x, x.shape[2:], norm, shift, eps)
    return x if head is None else F.linear(x, head)


def decode_block(x, *others, eps, activation):
    """In float32, as ours computes half precision."""
    half = x.dtype if x.dtype.itemsize == 2 else None
    wide = [t if t is None else t.float() if half else t for t in (x, *others)]
    x, norm_1, shift_1, qkv, qkv_bias, proj, proj_bias, norm_2, shift_2, *rest, keys, values = wide
    batch, heads, _, dim = keys.shape
    normed = F.layer_norm(x, x.shape[2:], norm_1, shift_1, eps)
    query, key, value = F.linear(normed, qkv, qkv_bias).view(batch, 3, heads, 1, dim).unbind(1)
    joined = (torch.cat([c[:, :, :-1], new], 2) for c, new in ((keys, key), (values, value)))
    mixed = F.scaled_dot_product_attention(query, *joined).transpose(1, 2).flatten(2)
    y = x + F.linear(mixed, proj, proj_bias)
    up, up_bias, down, down_bias = rest
    normed = F.layer_norm(y, y.shape[2:], norm_2, shift_2, eps)
    return (y + mlp(normed, up, up_bias, down, down_bias, activation)).to(half or y.dtype)


def cross_entropy(logits, target, ignore_index, label_smoothing, z_loss, reduction):
    """torch has no z-loss."""
    kept = target != ignore_index
    penalty = torch.where(kept, z_loss * logits.logsumexp(-1) ** 2, 0)
    if reduction != "none":
        penalty = penalty.sum() / (kept.sum() if reduction == "mean" else 1)
    loss = F.cross_entropy(
        logits,
        target,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    return loss + penalty


def linear_cross_entropy(x, weight, target, bias, ahead, **options):
    """ahead is about when the gradient is computed."""
    return cross_entropy(F.linear(x, weight, bias), target, **options)


def mlp(x, weight_1, bias_1, weight_2, bias_2, activation):
    name, _, tanh = activation.partition("_")
    hidden = F.linear(x, weight_1, bias_1)
    hidden = F.gelu(hidden, approximate="tanh") if tanh else getattr(F, name)(hidden)
    return F.linear(hidden, weight_2, bias_2)


def normalise(norm):
    def run(x, *parameters, eps, ndim):
        return norm(x, x.shape[x.ndim - ndim :], *parameters, eps=eps)

    return run


def rotary(x, cos, sin, interleaved, inverse):
    """Numbers a + ib times cos + i sin."""
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).mT
    turned = torch.view_as_complex(pairs.contiguous().double()) * torch.complex(
        cos.double(), (-sin if inverse else sin).double()
    )
    parts = torch.view_as_real(turned)
    return (parts if interleaved else parts.mT).flatten(-2).to(x.dtype)


def reduce_all(name):
    return lambda x, dim, keepdim: getattr(torch, name)(x, dim=dim, keepdim=keepdim)


SAME_NAMES = (
    "permute", "flip", "tril", "triu", "diagonal", "exp", "expm1", "log", "log1p", "log2", "sqrt",
    "rsqrt", "square", "reciprocal", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh",
    "tanh", "sigmoid", "erf", "abs", "relu", "sign", "floor", "ceil", "round", "trunc", "clamp",
    "add", "sub", "neg", "div", "pow", "remainder", "bitwise_and", "bitwise_or", "bitwise_xor",
    "bitwise_not", "logical_not", "logical_and", "logical_or", "isnan", "isinf", "isfinite",
    "floor_divide", "cumsum", "prod", "amax", "amin", "argmax", "argmin", "logcumsumexp", "softmax",
    "log_softmax", "logsumexp", "argsort", "mul", "matmul",
)  # fmt: skip
OF_TENSORS = ("maximum", "minimum", "atan2", "eq", "ne", "lt", "le", "gt", "ge")
FUNCTIONAL = ("softplus", "logsigmoid", "leaky_relu", "gelu", "silu")


def kept(shape, p, seed, offset):
    """What dropout keeps, drawn from NumPy's generator in the state (seed, offset)."""
    bits = np.random.Philox(key=[seed, 0], counter=[0, 0, offset, 0])
    return torch.tensor(np.random.Generator(bits).random(shape, np.float32) >= p)


def categorical(x, temperature, top_k, top_p, min_p, seed, offset):
    """By way of a sort, on the noise of NumPy's generator in the state (seed, offset)."""
    rows, columns = x.shape
    bits = np.random.Philox(key=[seed, 0], counter=[0, 0, offset, 0])
    shape = (rows, -(-columns // 8) * 8)
    u = np.random.Generator(bits).integers(0, 2**32, shape, dtype=np.uint32)[:, :columns]
    noise = -torch.log(-torch.log1p(-(torch.tensor(u.astype(np.float64)) + 0.5) / 2**32))
    probs, order = (x.double() / temperature).softmax(-1).sort(-1, descending=True)
    probs[:, top_k or columns :] = 0
    probs = probs / probs.sum(-1, keepdim=True)
    probs[probs.cumsum(-1) - probs >= top_p] = 0
    probs[probs < min_p * probs[:, :1]] = 0
    best = (probs.log() + noise.gather(-1, order)).argmax(-1, keepdim=True)
    return order.gather(-1, best).squeeze(-1)


def groups(x, offs):
    return x.tensor_split(offs[:-1])


def routing_weights(x, indices, score_function, norm_topk_prob, scaling_factor):
    weights = getattr(torch, score_function)(x, *[-1] * (score_function == "softmax"))
    weights = weights.flatten(0, -2).gather(1, indices)
    if norm_topk_prob:
        weights = weights / weights.sum(1, keepdim=True)
    return weights * scaling_factor


def expected_cost(logits, cost, score_function):
    scores = getattr(torch, score_function)(logits, *[-1] * (score_function == "softmax"))
    return (F.normalize(scores, p=1, dim=-1) * cost).sum()


def expert_balance(logits, indices, score_function, sequences, factor):
    parts = zip(logits.flatten(0, -2).chunk(sequences), indices.chunk(sequences), strict=True)
    total = 0
    for x, chosen in parts:
        scores = getattr(torch, score_function)(x, *[-1] * (score_function == "softmax"))
        often = torch.bincount(chosen.flatten(), minlength=x.shape[1]).to(x.dtype) / chosen.numel()
        total = total + x.shape[1] * often @ F.normalize(scores, p=1, dim=-1).mean(0)
    return factor * total / sequences


def moe_swiglu(x, weights, gate_up, down, places, offs, *shared):
    shape, x = x.shape, x.flatten(0, -2)
    expert = torch.searchsorted(offs, places, right=True)
    gate, up = (gate_up[expert] @ x[:, None, :, None]).squeeze(-1).chunk(2, -1)
    out = (down[expert] @ (F.silu(gate) * up).unsqueeze(-1)).squeeze(-1)
    out = (out * (1 if weights is None else weights[..., None])).sum(1)
    return (shared_expert(x, *shared) + out).view(shape)


def shared_expert(x, gate, up, down, scale):
    if gate is None:
        return 0
    out = (F.silu(x @ gate.T) * (x @ up.T)) @ down.T
    return out if scale is None else (x @ scale.T).sigmoid() * out


def moe_feed_forward(x, router, bias, gate_up, down, *shared, k, groups, kept_groups, group_best,
                     **weighing):  # fmt: skip
    shape, x = x.shape, x.flatten(0, -2)
    logits = x @ router.T
    softmax = weighing["score_function"] == "softmax"
    ranks = logits.softmax(-1) if softmax else logits.sigmoid()
    chosen = (ranks if bias is None else ranks + bias).topk(k).indices
    gate, up = (gate_up[chosen] @ x[:, None, :, None]).squeeze(-1).chunk(2, -1)
    out = (down[chosen] @ (F.silu(gate) * up).unsqueeze(-1)).squeeze(-1)
    out = (out * routing_weights(logits, chosen, **weighing).unsqueeze(-1)).sum(1)
    return (shared_expert(x, *shared) + out).view(shape)


def unit_experts(x, weights, down, up, index):
    units = F.gelu((down[index] * x[:, None]).sum(-1)) * weights
    return F.embedding_bag(index, up, per_sample_weights=units, mode="sum")


def product_scores(query, keys, indices):
    n, (first, second) = keys.shape[1], query.chunk(2, -1)
    every = (first @ keys[0].T).unsqueeze(2) + (second @ keys[1].T).unsqueeze(1)
    assert every.shape[1:] == (n, n)
    return every.flatten(1).gather(1, indices)


def lightning(x, slopes, block_size):
    query, key, value = x.unflatten(-1, (len(slopes), -1)).transpose(1, 2).chunk(3, -1)
    t = torch.arange(x.shape[1])
    rates = torch.tensor(slopes, dtype=torch.float64)[:, None, None]
    powers = (-rates * (t[:, None] - t)).exp().tril().to(x.dtype)
    return ((query @ key.mT * powers) @ value).transpose(1, 2).flatten(2)


def latent_attention(query, made, key, cos, sin, heads, scale, interleaved):
    plain = query.shape[-1] // heads - key.shape[-1]
    query, made = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, made))
    turned, shared = (
        rotary(x, cos, sin, interleaved, False) for x in (query[..., plain:], key[:, None])
    )
    scores = query[..., :plain] @ made[..., :plain].mT + turned @ shared.mT
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    probabilities = (scale * scores).masked_fill(future, -torch.inf).softmax(-1)
    return (probabilities @ made[..., plain:]).transpose(1, 2).flatten(2)


def latent_self_attention(
    x, q_a, q_norm, q_b, kv_a, kv_norm, kv_b, cos, sin, heads, scale, interleaved, eps
):
    latent, key = (x @ kv_a.mT).split([len(kv_norm), len(kv_a) - len(kv_norm)], -1)
    made = F.rms_norm(latent, kv_norm.shape, kv_norm, eps) @ kv_b.mT
    if q_a is not None:
        x = F.rms_norm(x @ q_a.mT, q_norm.shape, q_norm, eps)
    return latent_attention(x @ q_b.mT, made, key, cos, sin, heads, scale, interleaved)


PEERS = {
    **{name: same_name(name) for name in SAME_NAMES},
    **{name: of_tensors(name) for name in OF_TENSORS},
    **{name: same_name(name, F) for name in FUNCTIONAL},
    **{name: reduce_all(name) for name in ("sum", "any", "all")},
    "alias": identity,
    "clone": identity,
    "move": identity,
    "cast": lambda x, dtype: x.to(getattr(torch, str(dtype))),
    "reshape": lambda x, to: x.reshape(to),
    "expand": lambda x, to: x.expand(to),
    "roll": lambda x, shifts, dims: torch.roll(x, shifts, dims),
    "diagonal_scatter": diagonal_scatter,
    "pad": pad,
    "cat": lambda *xs, dim: torch.cat(xs, dim),
    "where": lambda a, b, condition: torch.where(condition, a, b),
    "unfold": lambda x, dim, size, step: x.unfold(dim, size, step),
    "fold": fold,
    "linear": F.linear,
    "mlp": mlp,
    "linear_swiglu": lambda x, gate, up, keep: F.silu(F.linear(x, gate)) * F.linear(x, up),
    "swiglu": lambda gate, up: F.silu(gate) * up,
    "swiglu_packed": lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
    "apply_rotary_emb": rotary,
    "layer_norm": normalise(F.layer_norm),
    "rms_norm": normalise(F.rms_norm),
    "gated_rms_norm": lambda x, gate, weight, eps: (
        gate.sigmoid() * F.rms_norm(x, x.shape[-1:], weight, eps)
    ),
    "cross_entropy": cross_entropy,
    "linear_cross_entropy": linear_cross_entropy,
    "scaled_dot_product_attention": attention,
    "attention_qkvpacked": packed,
    "latent_attention": latent_attention,
    "latent_self_attention": latent_self_attention,
    "rotary_attention": rotary_attention,
    "rotary_self_attention": rotary_self_attention,
    "lightning_attention": lightning,
    "varlen_attention": varlen,
    "paged_attention": paged,
    "decode_blocks": decode_blocks,
    "dropout": lambda x, p, seed, offset: x * kept(x.shape, p, seed, offset) / (1 - p),
    "getitem": getitem,
    "setitem": setitem,
    "scatter_index": scatter_index,
    "gather": lambda x, index, dim: torch.gather(x, dim, index),
    "scatter_add": lambda x, source, index, dim: x.scatter_add(dim, index, source),
    "embedding": lambda weight, index: F.embedding(index, weight),
    "embedding_transpose": lambda x, index, rows: torch.zeros(
        rows, x.shape[-1], dtype=x.dtype
    ).index_add(0, index.flatten(), x.flatten(0, -2)),
    "categorical": categorical,
    "moe_permute": lambda x, weights, places: (
        (x[:, None] * (1 if weights is None else weights[..., None]))
        .expand(*places.shape, -1)
        .flatten(0, 1)[places.flatten().argsort()]
    ),
    "moe_unpermute": lambda rows, weights, places: (
        rows[places] * (1 if weights is None else weights[..., None])
    ).sum(1),
    "moe_dot": lambda rows, x, places: (rows[places] * x[:, None]).sum(-1),
    "grouped_mm": lambda x, weight, offs: torch.cat(
        [part @ w for part, w in zip(groups(x, offs), weight, strict=True)]
    ),
    "grouped_outer": lambda x, y, offs: torch.stack(
        [a.T @ b for a, b in zip(groups(x, offs), groups(y, offs), strict=True)]
    ),
    "moe_swiglu": moe_swiglu,
    "moe_feed_forward": moe_feed_forward,
    "product_scores": product_scores,
    "unit_experts": unit_experts,
    "routing_weights": routing_weights,
    "expected_cost": expected_cost,
    "expert_balance": expert_balance,
    "topk": lambda x, k, dim, largest: torch.topk(x, k, dim, largest).indices,
    "einsum": lambda *xs, terms, out: torch.einsum(f"{','.join(terms)}->{out}", *xs),
}

EPS = {"float64": 1e-11, "float32": 4e-6, "bfloat16": 2**-7, "float16": 2**-9}
ONLY_FLOAT64 = {"cast": "its samples name the dtype to cast to"}
SAMPLES = [
    pytest.param(primitive, sample, id=f"{name}-{i}")
    for name, primitive in registry.items()
    if primitive.module.startswith("minitorch.")
    for i, sample in enumerate(primitive.samples())
]


def is_float(x):
    return isinstance(x, np.ndarray) and x.dtype == np.float64


def ours(x, dtype):
    if is_float(x):
        return mt.tensor(x, dtype=dtype, requires_grad=True)
    return mt.tensor(x) if isinstance(x, np.ndarray) else x


def theirs(x, dtype):
    if is_float(x):
        return torch.tensor(x).to(getattr(torch, dtype)).requires_grad_()
    return torch.tensor(x) if isinstance(x, np.ndarray) else x


def array(tensor):
    if isinstance(tensor, mt.Tensor):
        return np.asarray(tensor.detach().numpy(), np.float64)
    return tensor.detach().double().numpy()


def close(found, expected, bound):
    finite = expected[np.isfinite(expected)]
    np.testing.assert_allclose(
        found, expected, rtol=bound, atol=bound * max(1, np.abs(finite).max(initial=0))
    )


def test_every_primitive_has_a_peer():
    names = {n for n, p in registry.items() if p.module.startswith("minitorch.")}
    assert names - PEERS.keys() == set()
    assert PEERS.keys() - names == set()


def compute(primitive, sample, dtype):
    mine = [ours(x, dtype) for x in sample.inputs]
    peers = [theirs(x, dtype) for x in sample.inputs]
    inputs = promote(mine, primitive.floating) if _promotes(mine) else mine
    out = apply(primitive, inputs, sample.meta)
    return mine, peers, out, PEERS[primitive.name](*peers, **sample.meta)


def _promotes(inputs):
    """Index tensors and None stay as they are; only arithmetic of numbers is promoted."""
    return all(x is not None for x in inputs) and not any(
        isinstance(x, mt.Tensor) and not x.is_floating_point() for x in inputs
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("primitive", "sample"), SAMPLES)
def test_forward(primitive, sample, dtype):
    if primitive.name in ONLY_FLOAT64:
        dtype = "float64"
    _, _, out, expected = compute(primitive, sample, dtype)
    assert str(out.dtype) == str(expected.dtype).removeprefix("torch.")
    assert out.shape == tuple(expected.shape)
    close(array(out), array(expected), EPS[dtype])


@pytest.mark.parametrize(("primitive", "sample"), SAMPLES)
def test_float64_and_gradients(primitive, sample):
    mine, peers, out, expected = compute(primitive, sample, "float64")
    close(array(out), array(expected), EPS["float64"])
    if not primitive.differentiable or not expected.requires_grad:
        assert not out.requires_grad
        return
    v = np.random.default_rng(0).standard_normal(out.shape)
    out.backward(mt.tensor(v))
    expected.backward(torch.tensor(v))
    for one, other in zip(mine, peers, strict=True):
        if isinstance(other, torch.Tensor) and other.requires_grad:
            wanted = np.zeros(one.shape) if other.grad is None else array(other.grad)
            got = np.zeros(one.shape) if one.grad is None else array(one.grad)
            close(got, wanted, EPS["float64"])


SPECIAL = {
    "float64": [
        np.nan, np.inf, 0.0, 5e-324, 1e-310, 1e-300, 1e-160, 1e-20, 0.3, 0.5, 1.0, 2.0, 3.0, 40.0,
        750.0, 1e160, 1e308,
    ],
    "float32": [
        np.nan, np.inf, 0.0, 1e-45, 1e-40, 1e-37, 1e-20, 1e-10, 0.3, 0.5, 1.0, 2.0, 3.0, 40.0,
        100.0, 1e20, 3e38,
    ],
}  # fmt: skip
"""What overflows, underflows, rounds to nothing or is no number; used with both signs."""

POINTWISE = [
    primitive
    for name, primitive in registry.items()
    if primitive.module.startswith("minitorch.")
    and (
        primitive.structure == "elementwise"
        or name in ("add", "sub", "neg", "mul", "gelu", "silu", "floor_divide")
        or name in ("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite")
    )
]


def subnormal(x):
    return (x != 0) & (np.abs(x) < np.finfo(x.dtype).tiny)


KEPT = {
    "abs": lambda x: np.isnan(x),  # its gradient is NaN, in torch 0: a NaN stays one, everywhere
    "sign": lambda x: np.isnan(x),  # likewise, as in NumPy
    "log1p": subnormal,  # torch rounds these to 0
    # torch's 1 + erf(x / sqrt(2)) cancels in float32, and its product with x overflows.
    "gelu": lambda x: (x < -2) | (x > np.finfo(x.dtype).max / 2),
    # torch takes 1 / (a^2 + b^2) first, which overflows before the quotient does.
    "atan2": lambda a, b: subnormal(a * a + b * b),
    # torch's quotient overflows where the remainder is small and known exactly.
    "remainder": lambda a, b: np.isinf(a / b) & np.isfinite(a),
}
"""Where this library differs on purpose."""


@pytest.mark.parametrize("dtype", SPECIAL)
@pytest.mark.parametrize("primitive", POINTWISE, ids=lambda primitive: primitive.name)
def test_special_values(primitive, dtype):
    values = np.array(SPECIAL[dtype], dtype)
    values = np.concatenate([values, -values])
    points = [x.ravel() for x in np.meshgrid(*[values] * len(primitive.inputs))]
    metas = {repr(sample.meta): sample.meta for sample in primitive.samples()}
    for meta in metas.values():
        agree_at_special_values(primitive, points, meta, dtype)


@pytest.mark.parametrize("exponent", [-2, -1, 0, 1, 2, 3, -0.5, 0.0, 0.5, 1.5])
def test_special_values_to_a_number(exponent):
    values = np.array(SPECIAL["float64"])
    values = np.concatenate([values, -values])
    if abs(exponent) == 0.5:  # torch takes a square root, which at -0 and -inf is not C's pow
        values = values[(values != -np.inf) & ~((values == 0) & np.signbit(values))]
    agree_at_special_values(registry["pow"], [values], {}, "float64", exponent)


def agree_at_special_values(primitive, points, meta, dtype, *numbers):
    mine = [mt.tensor(x, requires_grad=True) for x in points]
    peers = [torch.tensor(x, requires_grad=True) for x in points]
    out = apply(primitive, promote([*mine, *numbers], primitive.floating), meta)
    expected = PEERS[primitive.name](*peers, *numbers, **meta)
    pairs = [(out, expected)]
    if primitive.differentiable and expected.requires_grad:
        v = np.ones(out.shape, dtype)
        gradients = mt.autograd.grad(out, mine, mt.tensor(v))
        wanted = torch.autograd.grad(expected, peers, torch.tensor(v))
        pairs += zip(gradients, wanted, strict=True)
    compared = np.ones(out.shape, bool)
    with np.errstate(all="ignore"):
        if primitive.name in KEPT:
            compared = ~KEPT[primitive.name](*points)
    tiny = np.finfo(dtype).tiny
    for one, other in pairs:
        np.testing.assert_allclose(
            array(one)[compared], array(other)[compared], rtol=1e2 * np.finfo(dtype).eps, atol=tiny
        )
