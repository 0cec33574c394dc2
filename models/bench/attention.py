"""Scaled dot-product attention, forward, and forward with backward; float32 and bfloat16."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

import minitorch as mt
from minitorch.nn import functional as F
from models.bench.timing import OURS, Case

SHAPES = (
    (12, 4, 64, 32, True),
    (4, 12, 64, 64, True),
    (16, 4, 128, 64, True),
    (8, 6, 256, 64, True),
    (8, 6, 256, 64, False),
    (2, 8, 512, 64, True),
    (1, 12, 1024, 64, True),
    (1, 12, 1024, 64, False),
    (1, 8, 1024, 128, True),
    (1, 8, 1024, 128, False),
    (1, 4, 2048, 64, True),
    (1, 4, 8192, 64, True),
)
"""batch, heads, time, head_dim, causal."""


def cases(peers: Sequence[str], seed: int, device: str = "cpu") -> Iterator[Case]:
    """Two cases for each shape and dtype. peers: torch."""
    for dtype in ("float32", "bfloat16"):
        for shape in SHAPES:
            batch, heads, time, dim, causal = shape
            flops = 4 * batch * heads * time * time * dim / (2 if causal else 1)
            name = f"{batch}x{heads}x{time}x{dim}{' causal' if causal else ''} {dtype}"
            for backward in (False, True):
                build = partial(_build, peers, shape, dtype, backward, seed, device)
                suffix = " forward + backward" if backward else " forward"
                operations = flops * (3.5 if backward else 1)
                yield Case(name + suffix, build, operations, dtype=dtype)


def _build(
    peers: Sequence[str],
    shape: tuple[int, int, int, int, bool],
    dtype: str,
    backward: bool,
    seed: int,
    device: str,
) -> dict[str, Callable[[], Any]]:
    *sizes, causal = shape
    arrays = np.random.default_rng(seed).standard_normal((4, *sizes), np.float32)

    def step(library: Any, tensor: Callable[[np.ndarray], Any]) -> Callable[[], None]:
        q, k, v, grad = (tensor(array) for array in arrays)
        for x in (q, k, v):
            x.requires_grad_(backward)

        def run() -> None:
            out = library.scaled_dot_product_attention(q, k, v, is_causal=causal)
            if backward:
                out.backward(grad)
                q.grad = k.grad = v.grad = None

        return run

    runs: dict[str, Callable[[], Any]] = {
        OURS: step(F, lambda x: mt.from_numpy(x).to(dtype=dtype, device=device))
    }
    if "torch" in peers:
        import torch

        kind = getattr(torch, dtype)
        runs["torch"] = step(torch.nn.functional, lambda x: torch.from_numpy(x).to(device, kind))
    return runs
