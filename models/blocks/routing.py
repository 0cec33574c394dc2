r"""Routers: which experts a token goes to, how much each counts, and what keeps the load even.

    s = f(W x)                            an affinity for each of E experts; f: softmax or sigmoid
    chosen = top-k of s + b               perhaps out of a few groups of experts alone
    g_e = λ s_e   or   λ s_e / Σ_chosen s
    y = Σ_chosen g_e expert_e(x)

| router | f | weights | chosen by |
|---|---|---|---|
| Switch (k = 1), GShard (k = 2) | softmax | Switch: s; GShard: divided by their sum | s |
| Mixtral, MiniMax-01 | softmax | divided by their sum: a softmax over the chosen logits | s |
| Qwen2-MoE, DeepSeekMoE | softmax | s: they do not sum to 1 | s |
| DeepSeek-V2 | softmax | λ s | s, in the groups (devices) with the largest s |
| DeepSeek-V3 | sigmoid | λ s / Σ s | s + b, in the groups whose two largest s + b sum highest |

Left alone a router sends more and more to the experts that learnt first. Against it stand losses on
the way the load is spread, which have a gradient through s; a capacity, beyond which an expert
takes no more; a budget of each device, DeepSeek-V2's, over which it drops what it likes least; the
bias b, without a gradient, raised for experts with too little load after each step; and letting
experts choose tokens. Padding is no load: none of these sees it.

Sources: Lepikhin et al. 2020 (GShard, arXiv 2006.16668), algorithm 1; Fedus et al. 2021 (Switch,
2101.03961), section 2.2; Zoph et al. 2022 (z-loss, 2202.08906), equation 5; Zhou et al. 2022
(expert choice, 2202.09368), section 3.2; Dai et al. 2024 (DeepSeekMoE, 2401.06066), section 3;
DeepSeek-AI 2024 (V2, 2405.04434), section 2.2; Wang et al. 2024 (bias, 2408.15664), algorithm 1;
DeepSeek-AI 2024 (V3, 2412.19437), section 2.1.2. Names of options are those of Hugging Face's
configurations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minitorch import nn
from minitorch.backend import DEFAULT_FLOAT, device_of, half_precision, to_device
from minitorch.errors import ConfigError
from minitorch.nn import functional as F
from minitorch.ops.joining import cat
from minitorch.random import Generator
from minitorch.tensor import Tensor

INIT_STD = 0.02


class Routing(NamedTuple):
    """Where tokens go: what `F.route` says, and the logits W x, (..., experts), that say why."""

    weights: Tensor
    indices: Tensor
    places: Tensor
    offs: Tensor
    logits: Tensor
    score_function: str

    @property
    def scores(self) -> Tensor:
        """Affinities that sum to 1, which losses spread: (..., experts), computed anew."""
        if self.score_function == "softmax":
            return self.logits.softmax(-1)
        scores = self.logits.sigmoid()
        return scores / scores.sum(-1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """A router: see the table above.

    groups, kept_groups: a token's experts are in kept_groups of so many equal groups, those whose
    group_best highest scores sum highest. bias: whether there is a b. In training alone,
    capacity_factor: no expert counts for more than this many times its even share of tokens;
    device_capacity_factor: nor one of `devices` equal groups of experts; None: no bound. spared:
    the share of sequences whose tokens no device drops.
    """

    num_experts: int
    k: int
    score_function: str = "softmax"
    norm_topk_prob: bool = False
    scaling_factor: float = 1.0
    groups: int = 1
    kept_groups: int = 1
    group_best: int = 1
    bias: bool = False
    capacity_factor: float | None = None
    device_capacity_factor: float | None = None
    devices: int = 1
    spared: float = 0.0

    def __post_init__(self) -> None:
        size, rest = divmod(self.num_experts, max(self.groups, 1))
        if self.groups < 1 or rest or not 1 <= self.group_best <= size:
            raise ConfigError(
                "router: expected groups that divide the experts, and group_best from 1 to the "
                f"experts of a group; got {self.num_experts} experts, {self.groups} groups and "
                f"group_best {self.group_best}"
            )
        if not (1 <= self.kept_groups <= self.groups and 1 <= self.k <= self.kept_groups * size):
            raise ConfigError(
                f"router: expected 1 to {self.groups} kept_groups and k from 1 to the experts in "
                f"them; got {self.kept_groups} kept_groups of {size} experts and k = {self.k}"
            )
        if self.devices < 1 or self.num_experts % self.devices:
            raise ConfigError(
                f"router: expected devices that divide {self.num_experts} experts; got "
                f"{self.devices}"
            )


class Router(nn.Module):
    """Scores of a linear map, and the experts chosen by them: (..., width) -> Routing.

    It computes in float32 at least. In training it counts the load of each expert, for
    `update_bias`; `e_score_correction_bias` (b) and the counts are buffers, not parameters.
    """

    e_score_correction_bias: Tensor
    load: Tensor

    def __init__(
        self,
        width: int,
        config: RouterConfig,
        dtype: np.dtype = DEFAULT_FLOAT,
        generator: Generator | None = None,
    ):
        self.config = config
        self.weight = nn.Parameter(nn.init.empty((config.num_experts, width), dtype))
        nn.init.normal_(self.weight, std=INIT_STD, generator=generator)
        if config.bias:
            zeros = np.zeros(config.num_experts, np.float32)
            self.register_buffer("e_score_correction_bias", Tensor(zeros))
            self.register_buffer("load", Tensor(zeros.copy()), persistent=False)

    def forward(self, x: Tensor, real: Tensor | None = None, sequences: int = 1) -> Routing:
        """x: the tokens of so many sequences of one length, one after another.

        real: (tokens,) bool, which of them are no padding; None: all.
        """
        config = self.config
        logits = _wide(F.linear(_wide(x), _wide(self.weight)))
        routed = F.route(logits, **self.options())
        routing = Routing(*routed, logits, config.score_function)
        if not self.training:
            return routing
        if config.bias:
            self.load.data += self._load(routing, real)
        return routing._replace(weights=self._bounded(routing, real, sequences))

    def _load(self, routing: Routing, real: Tensor | None) -> Any:
        """How many tokens chose each expert; where all count, from where its rows end."""
        if real is not None:
            return counts(routing.indices, self.config.num_experts, real).data
        load = routing.offs.data.copy()
        load[1:] -= routing.offs.data[:-1]
        return load.astype(np.float32)

    def options(self) -> dict[str, Any]:
        """Of `F.route`."""
        config = self.config
        return {
            "k": config.k,
            "score_function": config.score_function,
            "norm_topk_prob": config.norm_topk_prob,
            "expert_bias": self.e_score_correction_bias if config.bias else None,
            "scaling_factor": config.scaling_factor,
            "groups": config.groups,
            "kept_groups": config.kept_groups,
            "group_best": config.group_best,
        }

    def _bounded(self, routing: Routing, real: Tensor | None, sequences: int) -> Tensor:
        """The weights, 0 for what an expert or a device has no room for."""
        config, weights, indices = self.config, routing.weights, routing.indices
        if config.capacity_factor is not None:
            room = share(config.capacity_factor, indices, config.num_experts, real)
            weights = weights * within_capacity(indices, room, config.num_experts, real)
        if config.device_capacity_factor is not None:
            scores = routing.scores.detach().reshape(-1, config.num_experts)
            weights = weights * self._within_budget(scores, indices, real, sequences)
        return weights

    def _within_budget(
        self, scores: Tensor, indices: Tensor, real: Tensor | None, sequences: int
    ) -> Tensor:
        """`within_budget`; spared are the first sequences of a batch, whose order is random."""
        config = self.config
        assert config.device_capacity_factor is not None
        spared = np.zeros((sequences, len(indices) // sequences), bool)
        spared[: round(config.spared * sequences)] = True
        return within_budget(
            scores.gather(-1, indices),
            indices // (config.num_experts // config.devices),
            config.devices,
            share(config.device_capacity_factor, indices, config.devices, real),
            Tensor(spared.ravel()).to(scores.device),
            real,
        )

    def update_bias(self, rate: float) -> None:
        """b += rate sign(mean load - load), after an optimizer step; the counts begin anew.

        The counts are of all batches since the last call: one step may have several.
        """
        bias, load = self.e_score_correction_bias.data, self.load.data
        bias += rate * np.sign(load.mean() - load)
        load[...] = 0

    def extra_repr(self) -> str:
        return f"num_experts={self.config.num_experts}, k={self.config.k}"


def _wide(x: Tensor) -> Tensor:
    return x.float() if half_precision(x.dtype) else x


def counts(indices: Tensor, num_experts: int, real: Tensor | None = None) -> Tensor:
    """How many tokens of each sequence chose each expert: (..., experts) float32, no gradient.

    indices: (..., tokens, k). real: (..., tokens) bool, the tokens that count; None: all.
    """
    *leading, tokens, k = indices.shape
    device = device_of(indices.data)
    first = to_device(np.arange(math.prod(leading)) * num_experts, device)
    bins = indices.data.reshape(-1, tokens, k) + first[:, None, None]
    if real is not None:
        bins = bins[real.data.reshape(-1, tokens)]
    found = np.bincount(bins.reshape(-1), minlength=len(first) * num_experts)
    return Tensor(found.reshape(*leading, num_experts).astype(np.float32))


def max_violation(load: Tensor) -> float:
    """(max load - mean load) / mean load: 0 when even. Source: Wang et al. 2024, equation 4."""
    return (load.max() / load.mean()).item() - 1


def update_biases(model: nn.Module, rate: float = 1e-3) -> None:
    """update_bias of every router that has one; to be called after each optimizer step."""
    for module in model.modules():
        if isinstance(module, Router) and module.config.bias:
            module.update_bias(rate)


@dataclass(frozen=True, kw_only=True)
class Balance:
    """The losses that spread the load, each with its factor; 0: without it.

    sequence_wise: experts are balanced within each sequence, not over the batch. devices: groups of
    experts that device and communication, DeepSeek-V2's, balance.
    """

    expert: float = 0.0
    z: float = 0.0
    device: float = 0.0
    communication: float = 0.0
    sequence_wise: bool = False
    devices: int = 1

    def loss(
        self,
        routings: Sequence[Routing],
        config: RouterConfig,
        sequences: int,
        real: Tensor | None = None,
    ) -> Tensor | None:
        """The sum of the losses of the routings of some layers; None where there are none.

        real: (tokens,) bool, which are no padding; None: all.
        """
        parts = [self.z * router_z_loss(found.logits, real) for found in routings if self.z]
        rows = sequences if self.sequence_wise else 1
        devices = self.device or self.communication
        if self.expert and real is None and not devices:
            parts.append(self._of_experts(routings, rows))
        elif self.expert or devices:
            parts += [self._together(found, config, rows, real) for found in routings]
        return sum(parts[1:], parts[0]) if parts else None

    def _of_experts(self, routings: Sequence[Routing], rows: int) -> Tensor:
        """The losses of experts in all layers, as of one with the sequences of all of them."""
        layers = len(routings)
        logits, indices = routings[0].logits, routings[0].indices
        if layers > 1:
            logits = cat([found.logits for found in routings])
            indices = cat([found.indices for found in routings])
        score = routings[0].score_function
        return F.expert_balance(logits, indices, score, layers * self.expert, layers * rows)

    def _together(
        self, routing: Routing, config: RouterConfig, rows: int, real: Tensor | None
    ) -> Tensor:
        """The losses of experts and devices as one sum, of what a token's score costs in each."""
        indices = Tensor(routing.indices.data.reshape(rows, -1, config.k))
        mask = None if real is None else real.reshape(rows, -1)
        cost: Any = 0
        if self.expert:
            cost = cost + self.expert * expert_cost(indices, config.num_experts, mask)
        if self.device:
            cost = cost + self.device * device_cost(indices, config.num_experts, self.devices, mask)
        if self.communication:
            cost = cost + self.communication * communication_cost(
                indices, config.num_experts, self.devices, config.kept_groups, mask
            )
        logits = routing.logits.reshape(*indices.shape[:-1], -1)
        return F.expected_cost(logits, Tensor(cost.astype(logits.dtype)), routing.score_function)


@dataclass(frozen=True)
class BalanceOfLayers:
    """The loss of the layers of a model that balance alike, from their routings."""

    balance: Balance
    config: RouterConfig
    sequences: int

    def __call__(self, routings: list[Routing], real: Tensor | None) -> Tensor | None:
        return self.balance.loss(routings, self.config, self.sequences, real)


def _tokens(indices: Tensor, real: Tensor | None) -> Any:
    """How many of the tokens of (..., tokens, k) count: (..., 1), at least 1."""
    return indices.shape[-2] if real is None else real.data.sum(-1, keepdims=True).clip(min=1)


def _cost(often: Any, indices: Tensor, real: Tensor | None) -> Any:
    """What makes Σ_te cost_te s_te the mean over sequences of Σ_e f_e P_e, P the mean score.

    often: (..., experts), f. Returns (..., 1 or tokens, experts): 0 for tokens that do not count.
    """
    sequences = often.size // often.shape[-1]
    cost = (often / _tokens(indices, real) / sequences)[..., None, :]
    return cost if real is None else cost * real.data[..., None]


def _often(indices: Tensor, num_experts: int, real: Tensor | None) -> Any:
    """f: how often each expert is chosen, 1 when even: (..., experts)."""
    chosen = counts(indices, num_experts, real).data.astype(np.float64)
    return chosen * (num_experts / indices.shape[-1]) / _tokens(indices, real)


def expert_cost(indices: Tensor, num_experts: int, real: Tensor | None = None) -> Any:
    """`load_balancing_loss` without its scores: what one of a token costs."""
    return _cost(_often(indices, num_experts, real), indices, real)


def load_balancing_loss(scores: Tensor, indices: Tensor, real: Tensor | None = None) -> Tensor:
    """Σ_e f_e P_e, the mean over sequences; f_e = experts / (k tokens) · tokens that chose e.

    scores: (..., tokens, experts), which sum to 1; indices: (..., tokens, k); real: (..., tokens)
    bool, the tokens that are meant, None for all. P_e is the mean score and alone has a gradient.
    1 when even, up to experts / k. In transformers, load_balancing_loss_func, f counts k times as
    much, and the tokens of all layers are one.
    Source: Fedus et al. 2021, equation 4; with k > 1, Dai et al. 2024, equations 12 to 14.
    """
    return _expected(scores, expert_cost(indices, scores.shape[-1], real))


def _expected(scores: Tensor, cost: Any) -> Tensor:
    return (scores * Tensor(cost.astype(scores.dtype))).sum()


def device_cost(indices: Tensor, num_experts: int, devices: int, real: Tensor | None = None) -> Any:
    """`device_loss` without its scores."""
    often = _often(indices, num_experts, real)
    of_devices = often.reshape(*often.shape[:-1], devices, -1).mean(-1)
    return _cost(_of_each(of_devices, num_experts), indices, real)


def device_loss(
    scores: Tensor, indices: Tensor, devices: int, real: Tensor | None = None
) -> Tensor:
    """Σ_d f_d P_d; f_d: the mean f of its experts, P_d: the sum of their P.

    Shapes as for load_balancing_loss. Source: DeepSeek-V2, equations 26 to 28.
    """
    return _expected(scores, device_cost(indices, scores.shape[-1], devices, real))


def _of_each(often: Any, experts: int) -> Any:
    """What holds for a device for each of its experts: (..., devices) -> (..., experts)."""
    return often.repeat(experts // often.shape[-1], -1)


def communication_cost(
    indices: Tensor, num_experts: int, devices: int, limit: int, real: Tensor | None = None
) -> Any:
    """`communication_loss` without its scores."""
    every = to_device(np.arange(devices), device_of(indices.data))
    sent = ((indices.data // (num_experts // devices))[..., None] == every).any(-2)
    if real is not None:
        sent = sent & real.data[..., None]
    often = sent.sum(-2) * (devices / limit) / _tokens(indices, real)
    return _cost(_of_each(often, num_experts), indices, real)


def communication_loss(
    scores: Tensor, indices: Tensor, devices: int, limit: int, real: Tensor | None = None
) -> Tensor:
    """Σ_d f_d P_d; f_d = devices / (limit tokens) · tokens sent to device d, P_d as in device_loss.

    limit: how many devices a token may be sent to. Source: DeepSeek-V2, equations 29 to 31.
    """
    experts = scores.shape[-1]
    return _expected(scores, communication_cost(indices, experts, devices, limit, real))


def router_z_loss(logits: Tensor, real: Tensor | None = None) -> Tensor:
    """The mean of log(Σ_e exp(logit_e))², which keeps logits small.

    logits: (..., experts); real: (tokens,) bool, the tokens that are meant, None for all.
    """
    squares = F.logsumexp(logits, -1).reshape(-1).square()
    return squares.mean() if real is None else (squares * real).sum() / real.sum().clamp(min=1)


def share(factor: float, indices: Tensor, places: int, real: Tensor | None = None) -> int:
    """ceil(factor · choices / places): what one of so many experts or devices may take at most.

    indices: (tokens, k); real: (tokens,) bool, the tokens that count; None: all.
    """
    tokens = len(indices) if real is None else int(real.sum().item())
    return math.ceil(factor * indices.shape[1] * tokens / places)


def within_capacity(
    indices: Tensor, capacity: int, num_experts: int, real: Tensor | None = None
) -> Tensor:
    """Which choices their experts have room for: (tokens, k) bool.

    First come the first choices of all tokens in order, then their second choices, and so on. What
    is dropped weighs 0: the token passes by its residual connection alone. (Accelerators with fixed
    buffers save the computation; here only the effect on learning is reproduced.)
    Source: Lepikhin et al. 2020, algorithm 1.
    """
    by_priority = F.one_hot(indices.mT.reshape(-1), num_experts)
    if real is not None:
        by_priority = by_priority * real.expand(indices.shape[1], -1).reshape(-1, 1)
    place = (by_priority.cumsum(0) * by_priority).sum(-1)
    return (place <= capacity).reshape(indices.shape[1], indices.shape[0]).mT


def within_budget(
    affinities: Tensor,
    devices: Tensor,
    count: int,
    budget: int,
    spared: Tensor,
    real: Tensor | None = None,
) -> Tensor:
    """Which choices stay if each of `count` devices drops what it likes least: (tokens, k) bool.

    affinities: (tokens, k), scores of the chosen, at most 1; devices: (tokens, k), where each is
    computed. `budget` choices of a device stay, those with the highest affinities, but of `spared`,
    (tokens,) bool, all: the model then knows texts of which nothing was dropped, and may be used
    either way. real: (tokens,) bool, the tokens that take room; None: all.
    Source: DeepSeek-V2, section 2.2.4, who spare a tenth of the sequences.
    """
    rank = affinities + 2 * spared.unsqueeze(-1)
    if real is not None:
        rank = rank.masked_fill(~real.unsqueeze(-1), -1.0)
    order = rank.reshape(-1).argsort(descending=True)
    by_rank = F.one_hot(devices.reshape(-1)[order], count)
    place = (by_rank.cumsum(0) * by_rank).sum(-1)
    return (place <= budget)[order.argsort()].reshape(*rank.shape) | spared.unsqueeze(-1)


def expert_choice(logits: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Each expert takes the tokens with the highest scores: weights, tokens, (experts, capacity).

    logits: (tokens, experts); scores are the softmax over experts. The load is even by
    construction; a token may get several experts or none. Which tokens an expert takes depends on
    later ones, so that a language model trained with it sees the future.
    Source: Zhou et al. 2022, equation 2.
    """
    weights, tokens = logits.softmax(-1).mT.topk(capacity)
    return weights, tokens
