"""Experts and the way to them, as PyTorch computes them: the peers of these primitives."""

import pytest

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")
F = torch.nn.functional


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
