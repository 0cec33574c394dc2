"""One step of training: forward, loss, backward, gradients clipped by norm, AdamW.

The three sizes of models/gpt2.py that people train on a CPU, in float32 and in mixed precision. A
step computes 6 operations for each parameter of a matrix and token (2 forward, 4 backward), and
12 * layers * width * time for each token in attention (Kaplan et al. 2020, table 1, doubled where
both factors need a gradient).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

import minitorch as mt
from minitorch import optim
from models.bench.timing import OURS, Case
from models.gpt2 import GPT2, GPT2Config

SIZES = {
    "nano": (GPT2Config.preset("nano", vocab_size=65), 12, 64),
    "baby": (GPT2Config.preset("baby", vocab_size=65), 16, 256),
    "gpt2": (GPT2Config.preset("gpt2"), 4, 64),
}
"""Name -> configuration, batch, time."""

PRECISIONS = ("float32", "bfloat16")


def flops(config: GPT2Config, batch: int, time: int) -> float:
    """Operations of a step, the head's product included and the embeddings' look-up not."""
    matrices = 12 * config.n_layer * config.n_embd**2 + config.vocab_size * config.n_embd
    return batch * time * (6 * matrices + 12 * config.n_layer * config.n_embd * time)


class Step:
    """One training step at a call; on a GPU a CUDA graph of it."""

    def __init__(
        self,
        config: GPT2Config,
        ids: np.ndarray,
        targets: np.ndarray,
        precision: str,
        device: str = "cpu",
    ):
        mt.manual_seed(0)
        self.model = GPT2(config).to(device)
        self.ids, self.targets = (mt.from_numpy(x).to(device) for x in (ids, targets))
        self.update = mt.cuda.GraphedStep(self.eager) if device == "cuda" else self.eager
        self.optimizer = optim.AdamW(self.model.parameters(), 1e-4, weight_decay=0.1)
        self.precision = precision

    def __call__(self) -> float:
        return self.update(self.ids, self.targets).item()

    def eager(self, ids: mt.Tensor, targets: mt.Tensor) -> mt.Tensor:
        """The step, launch by launch; the loss stays on the device."""
        self.optimizer.zero_grad()
        with mt.autocast("bfloat16") if self.precision == "bfloat16" else nullcontext():
            loss = self.model.loss(ids, targets)
        loss.backward()
        _, scale = optim.clip_grad_scale(self.model.parameters(), 1.0)
        self.optimizer.step(scale)
        return loss.detach()


def cases(peers: Sequence[str], seed: int, device: str = "cpu") -> Iterator[Case]:
    """One case for each size and precision. peers: those of torch (also compiled) and jax."""
    for size, (config, _, _) in SIZES.items():
        ids, targets = tokens(size, seed)
        for precision in PRECISIONS:
            names = libraries(peers, precision)
            if device != "cpu":
                names = [name for name in names if name != "jax"]  # its device is its own choice
            build = partial(_build_all, names, config, ids, targets, precision, device)
            yield Case(f"{size} {precision}", build, flops(config, *ids.shape), dtype=precision)


def tokens(size: str, seed: int) -> np.ndarray:
    """Random ids and targets of a step of this size: (2, batch, time)."""
    config, batch, time = SIZES[size]
    return np.random.default_rng(seed).integers(0, config.vocab_size, (2, batch, time))


def libraries(peers: Sequence[str], precision: str) -> list[str]:
    """Who takes part: what `build` knows, of these peers, in this precision."""
    names = [OURS]
    if "torch" in peers:
        names += ["torch", "torch.compile"]
    if "jax" in peers and precision == "float32":
        names.append("jax")
    return names


def build(
    library: str,
    config: GPT2Config,
    ids: np.ndarray,
    targets: np.ndarray,
    precision: str,
    device: str = "cpu",
) -> Callable[[], Any]:
    """A call that does one step with this library; its first one compiles, where it does."""
    match library:
        case "minitorch":
            return Step(config, ids, targets, precision, device)
        case "jax":
            from models.bench import jax_gpt

            return jax_gpt.Step(config, ids, targets)
        case _:
            from models.bench import torch_gpt

            compiled = library == "torch.compile"
            return torch_gpt.Step(config, ids, targets, precision, compiled, device)


def _build_all(names: Sequence[str], *arguments: Any) -> dict[str, Callable[[], Any]]:
    return {library: build(library, *arguments) for library in names}
