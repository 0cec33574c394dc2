"""The GPT of models/gpt2.py in PyTorch, as its users write it: a peer in `step` and `decode`.

Fused attention (scaled_dot_product_attention), AdamW with fused=True, gradients clipped by norm.
The same sizes, the same parameters, the same operations, and no dropout.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from models.gpt2 import GPT2Config


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        d = config.n_embd
        self.n_head = config.n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.c_attn, self.attn_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.c_fc, self.mlp_proj = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: torch.Tensor, past: Any = None) -> tuple[torch.Tensor, Any]:
        """With past (keys, values) x are the positions after them."""
        batch, time, d = x.shape
        qkv = self.c_attn(self.ln_1(x)).split(d, dim=2)
        q, k, v = (t.view(batch, time, self.n_head, d // self.n_head).transpose(1, 2) for t in qkv)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=time > 1)
        x = x + self.attn_proj(y.transpose(1, 2).reshape(batch, time, d))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh")), (k, v)


class GPT(nn.Module):
    """Token ids to logits; the head shares the embedding."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: torch.Tensor, past: Any = None) -> tuple[torch.Tensor, Any]:
        """Logits, and the keys and values of every layer."""
        start = 0 if past is None else past[0][0].shape[2]
        x = self.wte(ids) + self.wpe(torch.arange(start, start + ids.shape[1], device=ids.device))
        present = []
        for i, block in enumerate(self.blocks):
            x, keys_values = block(x, None if past is None else past[i])
            present.append(keys_values)
        return self.ln_f(x) @ self.wte.weight.T, present


class Step:
    """One training step at a call: loss, gradients, clipping, AdamW.

    precision: "float32", or "bfloat16" for torch.autocast. compiled: torch.compile the loss.
    """

    def __init__(
        self,
        config: GPT2Config,
        ids,
        targets,
        precision: str,
        compiled: bool,
        device: str = "cpu",
    ):
        torch.manual_seed(0)
        self.model, self.device = GPT(config).to(device), device
        self.ids, self.targets = (torch.from_numpy(x).to(device) for x in (ids, targets))
        self.autocast = precision == "bfloat16"
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, weight_decay=0.1, fused=True
        )
        self.loss = torch.compile(self._loss) if compiled else self._loss

    def _loss(self) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            logits, _ = self.model(self.ids)
            return F.cross_entropy(logits.flatten(0, 1), self.targets.flatten())

    def __call__(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


class Decoder:
    """One more token at a call, after `context` tokens, greedily, with the cache of the keys."""

    def __init__(self, config: GPT2Config, context: int, dtype: torch.dtype):
        torch.manual_seed(0)
        self.model = GPT(config).to(dtype).eval()
        with torch.inference_mode():
            logits, self.past = self.model(torch.randint(0, config.vocab_size, (1, context)))
        self.token = logits[:, -1:].argmax(-1)

    def __call__(self) -> int:
        with torch.inference_mode():
            logits, _ = self.model(self.token, self.past)
        return int(logits[:, -1].argmax())


class TransformersDecoder:
    """The same by transformers' GPT2LMHeadModel; begins again when its positions are used up."""

    def __init__(self, config: GPT2Config, context: int, dtype: torch.dtype):
        from transformers import GPT2Config as Config
        from transformers import GPT2LMHeadModel

        torch.manual_seed(0)
        model: Any = GPT2LMHeadModel(
            Config(
                vocab_size=config.vocab_size,
                n_positions=config.n_positions,
                n_embd=config.n_embd,
                n_layer=config.n_layer,
                n_head=config.n_head,
            )
        )
        self.model = model.to(dtype).eval()
        self.prompt = torch.randint(0, config.vocab_size, (1, context))
        self.length = config.n_positions

    def __call__(self) -> int:
        with torch.inference_mode():
            if self.length == self.model.config.n_positions:
                self.past, self.token, self.length = None, self.prompt, 0
            out = self.model(self.token, past_key_values=self.past, use_cache=True)
            self.past, self.length = out.past_key_values, self.length + self.token.shape[1]
            self.token = out.logits[:, -1:].argmax(-1)
        return int(self.token)
