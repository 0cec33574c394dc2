"""Matrix products of a transformer's training and decoding, and squares; float32 and bfloat16.

A case is named by m x n x k and by its layouts, N as it lies and T transposed: a layer's forward
pass is NT (x Wᵀ), its two backward products NN (grad W) and TN (gradᵀ x).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from minitorch.backend import bfloat16
from minitorch.kernels import lookup
from models.bench.timing import OURS, Case

SHAPES = (
    *[(768, n, 128, "NT") for n in (384, 128, 512, 65)],
    (768, 128, 512, "NT"),
    (768, 128, 512, "NN"),
    (512, 128, 768, "TN"),
    *[(4096, n, 384, "NT") for n in (1152, 384, 1536)],
    (4096, 384, 1536, "NT"),
    (4096, 384, 1536, "NN"),
    (1536, 384, 4096, "TN"),
    *[(256, n, 768, "NT") for n in (2304, 768, 3072, 50257)],
    (256, 768, 3072, "NT"),
    (256, 768, 3072, "NN"),
    (3072, 768, 256, "TN"),
    (1, 2304, 768, "NT"),
    (1, 3072, 768, "NT"),
    (1, 768, 3072, "NT"),
    *[(n, n, n, "NN") for n in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)],
)
"""m, n, k, and the layouts of a and b."""


def cases(peers: Sequence[str], seed: int) -> Iterator[Case]:
    """One case for each shape in float32, then in bfloat16. peers: numpy, torch."""
    for dtype in ("float32", "bfloat16"):
        for m, n, k, layout in SHAPES:
            moved = (m * k + k * n + m * n) * (4 if dtype == "float32" else 2)
            build = partial(_build, peers, (m, n, k), layout, dtype, seed)
            yield Case(f"{m}x{n}x{k} {layout} {dtype}", build, 2 * m * n * k, moved, dtype)


def _build(
    peers: Sequence[str], sizes: tuple[int, int, int], layout: str, dtype: str, seed: int
) -> dict[str, Callable[[], Any]]:
    m, n, k = sizes
    generator = np.random.default_rng(seed)
    shapes = [(m, k), (k, n)]
    a, b = (
        generator.standard_normal(s if side == "N" else s[::-1], np.float32)
        for s, side in zip(shapes, layout, strict=True)
    )
    kind = np.dtype(np.float32) if dtype == "float32" else bfloat16
    ours = [x.astype(kind) if side == "N" else x.astype(kind).T for x, side in zip((a, b), layout)]
    out = np.empty((m, n), kind)
    runs: dict[str, Callable[[], Any]] = {OURS: lambda: lookup("matmul")(*ours, out=out)}
    if "numpy" in peers and dtype == "float32":
        result = np.empty((m, n), np.float32)
        runs["numpy"] = lambda: np.matmul(ours[0], ours[1], out=result)
    if "torch" in peers:
        import torch

        theirs = [torch.from_numpy(x).to(getattr(torch, dtype)) for x in (a, b)]
        theirs = [x if side == "N" else x.T for x, side in zip(theirs, layout)]
        into = torch.empty(m, n, dtype=getattr(torch, dtype))
        runs["torch"] = lambda: torch.mm(*theirs, out=into)
    return runs
