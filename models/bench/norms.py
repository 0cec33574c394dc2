"""What works on rows: softmax, norms, activations, cross-entropy; forward and backward, float32."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

import minitorch as mt
from minitorch.nn import functional as F
from models.bench.timing import OURS, Case

SHAPES = ((768, 128), (4096, 384), (256, 768), (256, 3072))
VOCABULARIES = ((768, 65), (256, 50257))


def cases(peers: Sequence[str], seed: int, device: str = "cpu") -> Iterator[Case]:
    """One case for each function and shape. peers: torch."""
    for name in ("softmax", "layer_norm", "rms_norm", "gelu", "silu"):
        for shape in SHAPES:
            # x, the result and two gradients are read or written once at least.
            build = partial(_build, peers, name, shape, seed, device)
            yield Case(f"{name} {shape[0]}x{shape[1]}", build, bytes=5 * 4 * shape[0] * shape[1])
    for shape in VOCABULARIES:
        build = partial(_build, peers, "cross_entropy", shape, seed, device)
        yield Case(f"cross_entropy {shape[0]}x{shape[1]}", build, bytes=3 * 4 * shape[0] * shape[1])


def _build(
    peers: Sequence[str], name: str, shape: tuple[int, int], seed: int, device: str
) -> dict[str, Callable[[], Any]]:
    generator = np.random.default_rng(seed)
    x, grad = generator.standard_normal((2, *shape), np.float32)
    weight, bias = generator.standard_normal((2, shape[1]), np.float32)
    target = generator.integers(0, shape[1], shape[0])

    def step(library: Any, tensor: Callable[[np.ndarray], Any]) -> Callable[[], None]:
        inputs = [tensor(array) for array in (x, weight, bias)]
        a, w, b = (t.requires_grad_() for t in inputs)
        v, t = tensor(grad), tensor(target)
        calls = {
            "softmax": lambda: a.softmax(-1),
            "layer_norm": lambda: library.layer_norm(a, (shape[1],), w, b),
            "rms_norm": lambda: library.rms_norm(a, (shape[1],), w),
            "gelu": lambda: library.gelu(a, approximate="tanh"),
            "silu": lambda: library.silu(a),
            "cross_entropy": lambda: library.cross_entropy(a, t),
        }
        call = calls[name]

        def run() -> None:
            out = call()
            out.backward(v if out.ndim else None)
            a.grad = w.grad = b.grad = None

        return run

    runs: dict[str, Callable[[], Any]] = {OURS: step(F, lambda x: mt.from_numpy(x).to(device))}
    if "torch" in peers:
        import torch

        runs["torch"] = step(torch.nn.functional, lambda x: torch.from_numpy(x).to(device))
    return runs
