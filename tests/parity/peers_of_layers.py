"""What transformers are made of, as PyTorch computes it: the peers of these primitives."""

import pytest

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")
F = torch.nn.functional


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


def lightning(x, slopes, block_size):
    query, key, value = x.unflatten(-1, (len(slopes), -1)).transpose(1, 2).chunk(3, -1)
    t = torch.arange(x.shape[1])
    rates = torch.tensor(slopes, dtype=torch.float64)[:, None, None]
    powers = (-rates * (t[:, None] - t)).exp().tril().to(x.dtype)
    return ((query @ key.mT * powers) @ value).transpose(1, 2).flatten(2)


def mlp(x, weight_1, bias_1, weight_2, bias_2, activation):
    name, _, tanh = activation.partition("_")
    hidden = F.linear(x, weight_1, bias_1)
    hidden = F.gelu(hidden, approximate="tanh") if tanh else getattr(F, name)(hidden)
    return F.linear(hidden, weight_2, bias_2)


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
