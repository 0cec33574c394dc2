"""Qwen 1 in PyTorch, which transformers does not have: its authors ship code with their weights.

Written from what that code computes in evaluation (QwenLM/Qwen, modeling_qwen.py), in float64: its
casts to float32 inside norms and rotations are left out. Parameters have the names of the files.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class Attention(nn.Module):
    """past: keys and values of the tokens before, (batch, heads, time, head_dim) each, or None."""

    def __init__(self, config):
        super().__init__()
        self.config, width = config, config["hidden_size"]
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width, bias=False)

    def forward(self, x, angles, past):
        heads, trained = self.config["num_attention_heads"], self.config["seq_length"]
        query, key, value = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, -1)
        )
        query, key = turned(query, angles), turned(key, angles)
        if past is not None:
            key, value = (torch.cat(pair, 2) for pair in zip(past, (key, value)))
        total, new = key.shape[2], x.shape[1]
        places = torch.arange(total - new + 1, total + 1).double()
        if self.config["use_logn_attn"]:
            query = query * (places.log() / math.log(trained)).clamp(min=1)[:, None]
        seen = torch.ones(total, total, dtype=torch.bool).tril()[-new:]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.c_proj(mixed.transpose(1, 2).flatten(2)), (key, value)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, hidden = config["hidden_size"], config["intermediate_size"] // 2
        self.w1, self.w2 = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.c_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.c_proj(self.w1(x) * F.silu(self.w2(x)))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_epsilon"]
        self.ln_1, self.attn = RMSNorm(width, eps), Attention(config)
        self.ln_2, self.mlp = RMSNorm(width, eps), MLP(config)

    def forward(self, x, angles, past):
        attended, held = self.attn(self.ln_1(x), angles, past)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), held


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.h = nn.ModuleList(Block(config) for _ in range(config["num_hidden_layers"]))
        self.ln_f = RMSNorm(config["hidden_size"], config["layer_norm_epsilon"])


class Qwen1(nn.Module):
    """config: the content of config.json."""

    def __init__(self, config):
        super().__init__()
        self.config, self.transformer = config, Transformer(config)
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)

    def forward(self, ids, prompt, past=None):
        """Logits, and what each layer keeps. prompt: the length that fixes the base of rotations,
        that of the first step."""
        held = past[0][0].shape[2] if past else 0
        angles = torch.arange(held, held + ids.shape[1]).double()[:, None] * self.frequencies(
            prompt
        )
        x, kept = self.transformer.wte(ids), []
        for i, block in enumerate(self.transformer.h):
            x, pair = block(x, angles, past[i] if past else None)
            kept.append(pair)
        return self.lm_head(self.transformer.ln_f(x)), kept

    def frequencies(self, prompt):
        dim, base = self.config["kv_channels"], self.config["rotary_emb_base"]
        alpha = 1
        if self.config["use_dynamic_ntk"]:
            doublings = math.ceil(math.log2(prompt / self.config["seq_length"]) + 1)
            alpha = max(2**doublings - 1, 1)
        return (base * alpha ** (dim / (dim - 2))) ** -(torch.arange(0, dim, 2).double() / dim)

    @torch.no_grad()
    def generate(self, ids, count):
        """ids and so many greedy tokens after them, through the cache."""
        prompt, past, new = ids.shape[1], None, ids
        for _ in range(count):
            logits, past = self(new, prompt, past)
            new = logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, new], 1)
        return ids


def turned(x, angles):
    """Features i and i + dim / 2 are a pair."""
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
