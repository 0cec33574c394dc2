"""AdamW with clipping over the parameters of a model, and single operations on small arrays."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

import minitorch as mt
from minitorch import optim
from models.bench.step import SIZES
from models.bench.timing import OURS, Case
from models.gpt2 import GPT2

CHAIN = 20


def cases(peers: Sequence[str], seed: int) -> Iterator[Case]:
    """AdamW for each size, and what one operation costs beside its arithmetic. peers: torch."""
    for size, (config, _, _) in SIZES.items():
        # Parameter, gradient and two moments are read, all but the gradient written.
        build = partial(_adamw, peers, config, seed)
        yield Case(f"clip + AdamW {size}", build, bytes=7 * 4 * config.num_parameters())
    for name in ("add", "mul", "exp"):
        yield Case(f"{name} of 8 numbers", partial(_small, peers, name))
    yield Case(f"{CHAIN} mul, backward", partial(_chain, peers))


def _adamw(peers: Sequence[str], config: Any, seed: int) -> dict[str, Callable[[], Any]]:
    shapes = [p.shape for p in GPT2(config).parameters()]
    generator = np.random.default_rng(seed)
    gradients = [generator.standard_normal(shape, np.float32) for shape in shapes]

    def ours() -> None:
        _, scale = optim.clip_grad_scale(params, 1.0)
        optimizer.step(scale)

    params = [mt.zeros(*shape, requires_grad=True) for shape in shapes]
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = mt.from_numpy(gradient.copy())
    optimizer = optim.AdamW(params, 1e-4)
    runs: dict[str, Callable[[], Any]] = {OURS: ours}
    if "torch" in peers:
        import torch

        theirs = [torch.zeros(shape, requires_grad=True) for shape in shapes]
        for tensor, gradient in zip(theirs, gradients, strict=True):
            tensor.grad = torch.from_numpy(gradient.copy())
        fused = torch.optim.AdamW(theirs, 1e-4, fused=True)

        def peer() -> None:
            torch.nn.utils.clip_grad_norm_(theirs, 1.0)
            fused.step()

        runs["torch"] = peer
    return runs


def _tensors(peers: Sequence[str]) -> dict[str, Any]:
    tensors: dict[str, Any] = {OURS: mt.ones(8, requires_grad=True)}
    if "torch" in peers:
        import torch

        tensors["torch"] = torch.ones(8, requires_grad=True)
    return tensors


def _small(peers: Sequence[str], name: str) -> dict[str, Callable[[], Any]]:
    calls = {"add": lambda x: x + x, "mul": lambda x: x * x, "exp": lambda x: x.exp()}
    return {library: partial(calls[name], x) for library, x in _tensors(peers).items()}


def _chain(peers: Sequence[str]) -> dict[str, Callable[[], Any]]:
    def run(x: Any) -> None:
        y = x
        for _ in range(CHAIN):
            y = y * x
        y.sum().backward()
        x.grad = None

    return {library: partial(run, x) for library, x in _tensors(peers).items()}
