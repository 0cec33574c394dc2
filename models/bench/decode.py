"""One token of GPT-2 124M at a time, batch 1, with the cache of keys and values.

Every weight of a matrix is read once for each token, so the memory's bandwidth is the limit.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

import minitorch as mt
from models.bench.timing import OURS, Case
from models.gpt2 import GPT2, GPT2Config

CONTEXT = 128


class Decoder:
    """One more token at a call, after `CONTEXT` tokens, greedily; begins again when it is full."""

    def __init__(self, config: GPT2Config, dtype: str, seed: int):
        mt.manual_seed(seed)
        self.model = GPT2(config, np.dtype(getattr(mt, dtype))).eval()
        self.prompt = mt.randint(0, config.vocab_size, (1, CONTEXT))
        self._begin()

    def _begin(self) -> None:
        self.cache = self.model.new_cache()
        self.token = self._next(self.prompt)

    def _next(self, ids: Any) -> Any:
        with mt.inference_mode():
            logits, _ = self.model(ids, cache=self.cache)
        return mt.from_numpy(np.array([[int(logits.data[0, -1].argmax())]]))

    def __call__(self) -> None:
        if self.cache.length == self.model.config.n_positions:
            self._begin()
        self.token = self._next(self.token)


def cases(peers: Sequence[str], seed: int) -> Iterator[Case]:
    """One case in float32 and one in bfloat16. peers: torch, and with it transformers."""
    config = GPT2Config.preset("gpt2")
    for dtype in ("float32", "bfloat16"):
        read = config.num_parameters() - config.n_positions * config.n_embd
        build = partial(_build, peers, config, dtype, seed)
        yield Case(f"gpt2 {dtype}", build, bytes=read * (4 if dtype == "float32" else 2))


def _build(
    peers: Sequence[str], config: GPT2Config, dtype: str, seed: int
) -> dict[str, Callable[[], Any]]:
    runs: dict[str, Callable[[], Any]] = {OURS: Decoder(config, dtype, seed)}
    if "torch" in peers:
        import torch

        from models.bench import torch_gpt

        runs["torch"] = torch_gpt.Decoder(config, CONTEXT, getattr(torch, dtype))
        if find_spec("transformers"):
            runs["transformers"] = torch_gpt.TransformersDecoder(
                config, CONTEXT, getattr(torch, dtype)
            )
    return runs
