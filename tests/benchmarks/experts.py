"""Mixture of experts: one kernel beside a Python loop over experts, and beside transformers.

    python -m tests.benchmarks.experts [--rounds 9] [--threads N] [--quick] [--json FILE]

A layer (forward and backward), a step of training (loss, backward, clipping, AdamW) and decoding of
one token, of a Qwen2-MoE of a size for a laptop; all with the same weights, in turns
(models/bench/timing.py). The loop is the same model, its experts one after another.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import minitorch as mt
from minitorch import optim
from minitorch.io import write_json
from minitorch.nn import functional as F
from models.bench.report import show, to_json
from models.bench.timing import OURS, Case, measure
from models.blocks.cache import step
from models.blocks.context import Context
from models.blocks.experts import MixtureOfExperts
from models.decoder import Decoder
from models.qwen_moe import Qwen2MoeConfig

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 256,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 1024,
    "router_aux_loss_coef": 0.0,
}
QUICK: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_experts": 8}
LOOP, TRANSFORMERS = "loop", "transformers"


class Looped(MixtureOfExperts):
    """The same layer, one expert after another, each with the tokens that chose it."""

    def forward(self, x: mt.Tensor, context: Context) -> mt.Tensor:
        """What MixtureOfExperts.forward gives."""
        flat = x.reshape(-1, x.shape[-1])
        routing, out = self.gate(flat), mt.zeros(*flat.shape)
        for e in range(self.gate.config.num_experts):
            tokens, choices = np.nonzero(routing.indices.numpy() == e)
            if len(tokens):
                at = mt.Tensor(tokens)
                gate, up = F.linear(flat[at], self.experts.gate_up_proj[e]).chunk(2, -1)
                y = F.linear(F.swiglu(gate, up), self.experts.down_proj[e])
                out = out.index_add(0, at, y * routing.weights[at, mt.Tensor(choices)].unsqueeze(1))
        assert self.shared_experts is not None
        assert self.shared_expert_gate is not None
        shared = self.shared_expert_gate(x).sigmoid() * self.shared_experts(x, context)
        return out.reshape(x.shape) + shared


def looped(config: Qwen2MoeConfig) -> Decoder:
    """The model with its experts in loops."""
    model = build(config)
    for layer in model.layers:
        layer.mlp.__class__ = Looped  # type: ignore[attr-defined]
    return model


def build(config: Qwen2MoeConfig) -> Decoder:
    """The model, always with the same weights."""
    return config.build(np.dtype(np.float32), mt.Generator(0))


def peer(config: Qwen2MoeConfig) -> Any:
    """Theirs, with the same weights."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        build(config).save_pretrained(folder)
        return transformers.AutoModelForCausalLM.from_pretrained(folder)


def layers(config: Qwen2MoeConfig, tokens: int) -> dict[str, Callable[[], Any]]:
    """Forward and backward of one layer of experts."""
    import torch

    data = np.random.default_rng(0).standard_normal((1, tokens, config.hidden_size))
    data = data.astype(np.float32)
    model, other, theirs = build(config), looped(config), peer(config).model.layers[0].mlp
    context = step(mt.zeros(1, tokens, dtype=mt.int64))

    def ours(model: Decoder) -> Any:
        x = mt.Tensor(data, requires_grad=True)
        model.zero_grad()
        model.layers[0].mlp(x, context).backward(mt.Tensor(data))  # type: ignore[attr-defined]
        return x.grad

    def with_torch() -> Any:
        x = torch.from_numpy(data).requires_grad_()
        theirs.zero_grad()
        theirs(x).backward(torch.from_numpy(data))
        return x.grad

    runs = {OURS: partial(ours, model), LOOP: partial(ours, other), TRANSFORMERS: with_torch}
    for run in runs.values():  # the same work, or the times mean nothing
        np.testing.assert_allclose(run().numpy(), runs[OURS]().numpy(), rtol=1e-3, atol=1e-5)
    return runs


def steps(config: Qwen2MoeConfig, batch: int, time: int) -> dict[str, Callable[[], Any]]:
    """One step of training."""
    import torch

    ids = np.random.default_rng(0).integers(0, config.vocab_size, (batch, time + 1))
    inputs, targets = ids[:, :-1].copy(), ids[:, 1:].copy()
    theirs = peer(config).train()
    their_optimizer = torch.optim.AdamW(theirs.parameters(), 1e-4)

    def ours(model: Decoder, optimizer: optim.Optimizer) -> None:
        optimizer.zero_grad()
        model.loss(mt.Tensor(inputs), mt.Tensor(targets)).backward()
        optimizer.step(optim.clip_grad_scale(model.parameters(), 1.0)[1])

    def with_torch() -> None:
        their_optimizer.zero_grad()
        logits = theirs(torch.from_numpy(inputs), use_cache=False).logits.flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets).flatten()).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        their_optimizer.step()

    runs = {
        name: partial(ours, model, optim.AdamW(model.parameters(), 1e-4))
        for name, model in ((OURS, build(config)), (LOOP, looped(config)))
    }
    return {**runs, TRANSFORMERS: with_torch}


def decoding(config: Qwen2MoeConfig, prompt: int, tokens: int) -> dict[str, Callable[[], Any]]:
    """Greedy tokens after a prompt, the prompt included."""
    import torch

    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, prompt))
    theirs = peer(config).eval()

    def ours(model: Decoder) -> None:
        cache, new = model.new_cache(), ids
        with mt.inference_mode():
            for _ in range(tokens):
                logits = model(mt.Tensor(new), cache=cache)[0].data
                new = logits[:, -1:].argmax(-1)

    def with_torch() -> None:
        cache, new = None, torch.from_numpy(ids)
        with torch.inference_mode():
            for _ in range(tokens):
                out = theirs(new, past_key_values=cache, use_cache=True)
                cache, new = out.past_key_values, out.logits[:, -1:].argmax(-1)

    return {
        OURS: partial(ours, build(config).eval()),
        LOOP: partial(ours, looped(config).eval()),
        TRANSFORMERS: with_torch,
    }


def main() -> None:
    """Measure, show, and write the results as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, help="of both libraries")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
        mt.set_num_threads(options.threads)
    config = Qwen2MoeConfig(**(SIZES | QUICK if options.quick else SIZES))
    tokens, time = (64, 16) if options.quick else (2048, 256)
    cases = [
        Case(f"layer, {tokens} tokens", partial(layers, config, tokens)),
        Case(f"step, 4 x {time} tokens", partial(steps, config, 4, time)),
        Case("decoding, 8 + 16 tokens", partial(decoding, config, 8, 16)),
    ]
    results = show(Console(), "experts", (measure(case, options.rounds) for case in cases), None)
    if options.json:
        command = f"python -m tests.benchmarks.experts --rounds {options.rounds}"
        write_json(options.json, to_json("experts", results, None, command))


if __name__ == "__main__":
    main()
