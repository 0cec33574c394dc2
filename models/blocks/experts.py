"""Mixture of experts: a feed-forward layer of which each token sees a small part.

    y = Σ_chosen g_e(x) expert_e(x)  [+ shared(x)]  [· sigmoid(w x) on the shared part]
    expert(x) = W_down (silu(W_gate x) * W_up x)

Tokens are sorted by expert, so that all experts together are two grouped matrix products, whatever
their number; the operations are in minitorch/ops/routing.py and experts.py. Source: Shazeer et al.
2017 (arXiv 1701.06538); with shared experts, Dai et al. 2024 (DeepSeekMoE, 2401.06066); with a gate
on them, Qwen2-MoE (transformers, modeling_qwen2_moe.py).

Weights are stacked over experts as in transformers since version 5: gate_up_proj (experts, 2
hidden, width) and down_proj (experts, width, hidden).
"""

from functools import partial
from typing import Any

import numpy as np

from minitorch import modes, nn
from minitorch.backend import DEFAULT_FLOAT, half_precision
from minitorch.errors import ConfigError
from minitorch.nn import functional as F
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.context import Context
from models.blocks.feed_forward import GatedFeedForward
from models.blocks.routing import (
    INIT_STD,
    Balance,
    BalanceOfLayers,
    Router,
    RouterConfig,
    expert_choice,
)


class Experts(nn.Module):
    """SwiGLU experts over rows sorted by expert: (rows, width) -> the same."""

    def __init__(
        self,
        width: int,
        hidden: int,
        num_experts: int,
        dtype: np.dtype = DEFAULT_FLOAT,
        generator: Generator | None = None,
    ):
        self.gate_up_proj = nn.Parameter(nn.init.empty((num_experts, 2 * hidden, width), dtype))
        self.down_proj = nn.Parameter(nn.init.empty((num_experts, width, hidden), dtype))
        for param in self.parameters():
            nn.init.normal_(param, std=INIT_STD, generator=generator)

    def forward(self, rows: Tensor, offs: Tensor) -> Tensor:
        """offs: (experts,), where the rows of each expert end."""
        product = partial(F.grouped_mm, offs=offs, scaled=modes.thread.mode.scaled)
        both = product(rows, self.gate_up_proj.mT)
        return product(F.swiglu_packed(both), self.down_proj.mT)

    def extra_repr(self) -> str:
        count, width, hidden = self.down_proj.shape
        return f"{count}, width={width}, hidden={hidden}"


class MixtureOfExperts(nn.Module):
    """Routed experts, and what every token sees besides: (batch, time, width) -> the same.

    hidden: of one expert. shared: a module of what all tokens see, or None; shared_gate: whether
    sigmoid(w x) scales it. In training the routing goes to the context.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        router: RouterConfig,
        balance: Balance | None = None,
        shared: nn.Module | None = None,
        shared_gate: bool = False,
        dtype: np.dtype = DEFAULT_FLOAT,
        generator: Generator | None = None,
    ):
        if shared_gate and shared is None:
            raise ConfigError("mixture of experts: a shared_gate needs shared experts; got none")
        self.balance = balance or Balance()
        self.gate = Router(width, router, dtype, generator)
        self.experts = Experts(width, hidden, router.num_experts, dtype, generator)
        self.shared_experts = shared
        self.shared_expert_gate = (
            nn.Linear(width, 1, False, dtype, generator) if shared_gate else None
        )

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if (out := self._at_once(x)) is not None:
            return out
        real, shared = context.counted(), self._shared_weights()
        routing = self.gate(x, real, sequences=len(x))
        out = F.moe_swiglu(
            x,
            routing.weights,
            self.experts.gate_up_proj,
            self.experts.down_proj,
            routing.places,
            routing.offs,
            **shared or {},
        )
        if self.training:
            context.leave(routing, BalanceOfLayers(self.balance, self.gate.config, len(x)))
        if self.shared_experts is None or shared is not None:
            return out
        common = self.shared_experts(x, context)
        if self.shared_expert_gate is not None:
            common = self.shared_expert_gate(x).sigmoid() * common
        return out + common

    def _shared_weights(self) -> dict[str, Any] | None:
        """Of the shared expert, for F.moe_swiglu; None where it is more than plain products."""
        experts, scale = self.shared_experts, self.shared_expert_gate
        if experts is None:
            return {}
        weights = experts.swiglu_weights() if isinstance(experts, GatedFeedForward) else None
        if weights is None or (scale is not None and type(scale) is not nn.Linear):
            return None
        return {"shared": weights, "shared_scale": None if scale is None else scale.weight}

    def _at_once(self, x: Tensor) -> Tensor | None:
        """All in one call, where nothing is learnt and all parts are of the plain kind."""
        if (
            self.training
            or modes.is_grad_enabled()
            or modes.thread.mode.lower is not None
            or type(x.data) is not np.ndarray
            or half_precision(x.dtype)
        ):
            return None
        if type(self.gate) is not Router or (shared := self._shared_weights()) is None:
            return None
        return F.moe_feed_forward(
            x,
            self.gate.weight,
            self.experts.gate_up_proj,
            self.experts.down_proj,
            **self.gate.options(),
            **shared,
        )


def active_parameters(model: nn.Module) -> int:
    """How many of a model's parameters a token meets: k of the experts of each layer."""
    layers = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    idle = sum(
        layer.experts.num_parameters() * (1 - layer.gate.config.k / layer.gate.config.num_experts)
        for layer in layers
    )
    return model.num_parameters() - round(idle)


def choose_tokens(experts: Experts, x: Tensor, logits: Tensor, capacity: int) -> Tensor:
    """A mixture in which every expert takes `capacity` tokens: (tokens, width) -> the same.

    logits: (tokens, experts). See `routing.expert_choice`.
    """
    weights, tokens = expert_choice(logits, capacity)
    offs = Tensor(np.arange(1, len(weights) + 1) * capacity).to(x.device)
    chosen = tokens.reshape(-1)
    rows = experts(F.embedding(chosen, x), offs) * weights.reshape(-1, 1)
    return (x * 0).index_add(0, chosen, rows)


def upcycled(
    gate_up: np.ndarray,
    down: np.ndarray,
    num_experts: int,
    hidden: int,
    reinitialised: float = 0.0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Experts cut from a trained dense layer: gate_up_proj and down_proj of `Experts`.

    gate_up: (2 dense_hidden, width); down: (width, dense_hidden). hidden: of one expert. The dense
    layer's hidden units, shuffled anew for every copy of it that is needed, are dealt out to the
    experts; of each expert the fraction `reinitialised` of its units starts at random, with the
    standard deviation of the trained ones. With hidden = dense_hidden and none reinitialised every
    expert computes what the dense layer did.
    Source: Komatsuzaki et al. 2022 (arXiv 2212.05055); units shuffled, half of them reinitialised:
    Qwen2 technical report 2024 (2407.10671), section 2.2.2.
    """
    rng = np.random.default_rng(seed)
    dense = down.shape[1]
    copies = -(-num_experts * hidden // dense)
    units = np.concatenate([rng.permutation(dense) for _ in range(copies)])
    units = units[: num_experts * hidden].reshape(num_experts, hidden)
    gate, up = np.split(gate_up, 2)
    gates, ups, downs = gate[units], up[units], down.T[units]
    fresh = rng.permuted(np.tile(np.arange(hidden), (num_experts, 1)), axis=1)
    fresh = fresh < round(reinitialised * hidden)
    for array in (gates, ups, downs):
        array[fresh] = array.std() * rng.standard_normal((int(fresh.sum()), array.shape[-1]))
    return np.concatenate([gates, ups], 1), np.ascontiguousarray(downs.swapaxes(1, 2))
