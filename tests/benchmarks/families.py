"""How fast each family's toy learns beside GPT-2: tokens per second, by the parameters they meet.

    python -m tests.benchmarks.families [--rounds 9] [--threads N] [--quick] [--json FILE]

One step of training (loss, backward, gradients clipped, AdamW) of models of one width, depth and
number of heads (`sized`), all in turns. Parameters that a token meets are all but the embedding's
table, of which it reads a row, and of experts those that it is sent to; a head that predicts two
tokens is met twice. The score of a family is its tokens per second times these, over GPT-2's: 1
where a step costs as its parameters do.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import minitorch as mt
from minitorch import optim
from minitorch.io import write_json
from models.bench.report import to_json
from models.bench.timing import OURS, Case, Result, measure
from models.blocks.experts import active_parameters
from models.blocks.routing import update_biases
from models.families import FAMILIES

SIZES = {"layers": 4, "heads": 4, "width": 128, "positions": 64}
BATCH, VOCABULARY = 12, 256
QUICK = {"layers": 1, "heads": 2, "width": 16, "positions": 8}


class Step:
    """One step of training at a call."""

    def __init__(self, family: str, sizes: dict[str, int]):
        config = FAMILIES[family].sized(vocab_size=VOCABULARY, **sizes)
        self.model = config.build(np.dtype(np.float32), mt.Generator(0)).train()
        self.optimizer = optim.AdamW(self.model.parameters(), 1e-4)
        rng = np.random.default_rng(0)
        self.ids, self.targets = rng.integers(0, VOCABULARY, (2, BATCH, sizes["positions"]))

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.model.loss(mt.Tensor(self.ids), mt.Tensor(self.targets)).backward()
        _, scale = optim.clip_grad_scale(self.model.parameters(), 1.0)
        self.optimizer.step(scale)
        update_biases(self.model)

    @property
    def met(self) -> int:
        """The parameters that a token meets, as often as it does.

        A tied table is met by the head, and the head once for each token ahead that is predicted.
        """
        tables = {"embed_tokens.weight", "wte.weight", "wpe.weight"}
        tied = self.model.config.model_type == "gpt2" or self.model.config.tie_word_embeddings
        free = {"wpe.weight"} if tied else tables
        sizes = {name: p.data.size for name, p in self.model.named_parameters()}
        again = getattr(self.model.config, "num_nextn_predict_layers", 0)
        heads = again * sizes.get("lm_head.weight", 0)
        return active_parameters(self.model) + heads - sum(sizes.get(name, 0) for name in free)


def all_steps(sizes: dict[str, int]) -> dict[str, Callable[[], Any]]:
    """The families' steps; GPT-2's is the one that the others are measured by."""
    return {OURS if name == "gpt2" else name: Step(name, sizes) for name in FAMILIES}


def scores(result: Result, steps: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By family: parameters met, tokens per second, and the score."""
    found = {}
    tokens = BATCH * steps[OURS].ids.shape[1]
    rate = {name: tokens / result.median(name) * step.met for name, step in steps.items()}
    for name, step in steps.items():
        found["gpt2" if name == OURS else name] = {
            "parameters_met": step.met,
            "tokens_per_second": tokens / result.median(name),
            "score": rate[name] / rate[OURS],
        }
    return found


def main() -> None:
    """Measure, show, and write the results as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    if options.threads:
        mt.set_num_threads(options.threads)
    steps = all_steps(QUICK if options.quick else SIZES)
    result = measure(Case("step", partial(dict, steps)), options.rounds)
    found = scores(result, steps)
    for name, row in found.items():
        print(f"{name:14}{row['parameters_met']:>12,}{row['tokens_per_second']:>12,.0f} tokens/s"
              f"{row['score']:>8.2f}")  # fmt: skip
    if options.json:
        command = f"python -m tests.benchmarks.families --rounds {options.rounds}"
        write_json(options.json, {**to_json("families", [result], None, command), "scores": found})


if __name__ == "__main__":
    main()
