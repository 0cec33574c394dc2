"""Multi-token prediction: in training the model also predicts tokens beyond the next one.

    h⁰_i = what the head reads at position i
    hᵏ_i = norm(block_k(W_k [norm(embedding[t_{i+k}]); norm(hᵏ⁻¹_i)]))        k = 1, ..., depth
    hᵏ_i W_headᵀ                                                 are the logits of t_{i+k+1}
    loss = CE(h⁰) + factor / depth · Σ_k CE(hᵏ)

Embedding and head are the model's own. Each hᵏ is computed in order, from the tokens up to t_{i+k}
alone, so that the chain of predictions stays causal. At inference the blocks are left out, or draft
tokens that the model then checks. Source: DeepSeek-AI 2024, DeepSeek-V3 (arXiv 2412.19437), section
2.2; the order of the two norms in W_k is that of the published weights (the paper has it reversed),
and they, too, read h⁰ after the model's last norm.

In files the block of depth k is layer num_hidden_layers + k - 1.
"""

import re
from collections.abc import Mapping

import numpy as np

from minitorch import nn
from minitorch.backend import DEFAULT_FLOAT
from minitorch.errors import CheckpointError
from minitorch.nn import functional as F
from minitorch.ops.joining import cat
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.cache import step
from models.blocks.context import Context
from models.decoder import Decoder, DecoderConfig

Arrays = dict[str, np.ndarray]


class MultiTokenLayer(nn.Module):
    """One depth: (what was predicted from, the tokens then known) -> what the next is read from."""

    def __init__(
        self, config: DecoderConfig, layer: int, dtype: np.dtype, generator: Generator | None
    ):
        width = config.hidden_size
        self.enorm, self.hnorm = config.norm(dtype), config.norm(dtype)
        self.eh_proj = nn.Linear(2 * width, width, False, dtype, generator)
        self.block = config.block(layer, dtype, generator)
        self.norm = config.norm(dtype)

    def forward(self, features: Tensor, embedded: Tensor, context: Context) -> Tensor:
        """features, embedded: (batch, time, width), position i of which are hᵏ⁻¹_i and t_{i+k}.

        features may be of more positions, which are left out behind their norm.
        """
        known = self.hnorm(features)[:, : embedded.shape[1]]
        both = cat([self.enorm(embedded), known], -1)
        return self.norm(self.block(self.eh_proj(both), context))


class MultiTokenDecoder(Decoder):
    """A decoder that is trained to see `depth` tokens further ahead."""

    def __init__(
        self,
        config: DecoderConfig,
        depth: int,
        factor: float,
        dtype: np.dtype = DEFAULT_FLOAT,
        generator: Generator | None = None,
    ):
        layers = config.num_hidden_layers
        self.mtp = nn.ModuleList(
            MultiTokenLayer(config, layers + k, dtype, generator) for k in range(depth)
        )
        self.factor = factor
        super().__init__(config, dtype, generator)  # initialises all weights, these too

    def further(self, features: Tensor, ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """hᵏ for each depth, (batch, time - k, width), from h⁰ and the tokens that were read.

        Besides, what the blocks add to the loss.
        """
        found, losses = [features], []
        for k, layer in enumerate(self.mtp, 1):
            later = ids[:, k:]
            at = step(later)
            found.append(layer(found[-1], self.embed_tokens(later), at))
            losses += at.losses()
        return found[1:], losses

    def loss(self, ids: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Decoder's, and in training that of the tokens further ahead; ids without padding then."""
        if not self.training or mask is not None or ids.shape[1] <= len(self.mtp):
            return super().loss(ids, targets, mask)
        context, weight = step(ids), self.lm_head.weight
        features = self.features(ids, context=context)
        loss = F.linear_cross_entropy(features, weight, targets)
        ahead, losses = self.further(features, ids)
        for k, h in enumerate(ahead, 1):
            part = F.linear_cross_entropy(h, weight, targets[:, k:])
            loss = loss + self.factor / len(self.mtp) * part
        return sum(context.losses() + losses, loss)


OWN = re.compile(r"(enorm|hnorm|eh_proj)\.")
SHARED = re.compile(r"(embed_tokens|shared_head\.head)\.")


def from_layers(arrays: Mapping[str, np.ndarray], layers: int, depth: int) -> Arrays:
    """The file's layers beyond the model's as `mtp`; copies of embedding and head are dropped.

    With depth = 0 these layers are dropped whole.
    """
    out, found = {}, set()
    for name, array in arrays.items():
        match = re.match(r"layers\.(\d+)\.(.+)", name)
        k = int(match[1]) - layers if match else -1
        if match is None or k < 0:
            out[name] = array
        elif k < depth and not SHARED.match(match[2]):
            found.add(k)
            rest = match[2].removeprefix("shared_head.")
            own = OWN.match(rest) or rest != match[2]
            out[f"mtp.{k}.{rest if own else f'block.{rest}'}"] = array
    if depth and not found:
        raise CheckpointError(
            "DeepSeek-V3: expected the weights of multi-token prediction, that config.json has "
            f"{depth} of; the files have none. Set num_nextn_predict_layers to 0 in it"
        )
    return out


def to_layers(arrays: Mapping[str, np.ndarray], layers: int) -> Arrays:
    """The inverse, without the copies."""
    out = {}
    for name, array in arrays.items():
        match = re.fullmatch(r"mtp\.(\d+)\.(block\.)?(.+)", name)
        if match:
            rest = f"shared_head.{match[3]}" if match[3].startswith("norm.") else match[3]
            name = f"layers.{layers + int(match[1])}.{rest}"
        out[name] = array
    return out
