"""PEER with up to 2^20 experts beside a dense layer of equal cost: time and memory of a token.

    python -m tests.benchmarks.peer [--rounds 9] [--threads N] [--quick] [--json FILE]

One step of training (forward, backward, AdamW) of one layer, for growing numbers N of experts, in
turns with a dense layer that multiplies as often: as many units as PEER computes, and those that
its queries and the scores of 2 √N keys would pay for. Besides, in a process for each, the memory:
what stays between steps (tables and their moments), and the most that the arrays of a step take on
top of it at a time, by token.
The exponent is that of N in the time, between the last two numbers: 0.5 where the search is all.
"""

import argparse
import math
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import minitorch as mt
from minitorch import nn, optim
from minitorch.io import write_json
from models.bench.report import show, to_json
from models.bench.timing import OURS, Case, Result, measure
from models.blocks.feed_forward import FeedForward
from models.blocks.peer import PEER

WIDTH, TOKENS, HEADS, K, KEY_DIM = 256, 512, 8, 16, 128
EXPERTS = tuple(4**n for n in range(5, 11))
QUICK = {"WIDTH": 16, "TOKENS": 16, "KEY_DIM": 8, "EXPERTS": (64, 256)}
DENSE = "dense"


def equal_cost(experts: int) -> int:
    """The units of a dense layer that multiplies as often for a token."""
    searched = HEADS * KEY_DIM * (WIDTH + math.isqrt(experts))
    return HEADS * K + searched // (2 * WIDTH)


class Step:
    """One step of training of a layer at a call."""

    def __init__(self, library: str, experts: int):
        generator = mt.Generator(0)
        self.layer: nn.Module = (
            PEER(WIDTH, experts, HEADS, K, KEY_DIM, generator=generator)
            if library == OURS
            else FeedForward(WIDTH, equal_cost(experts), generator=generator)
        )
        self.optimizer = optim.AdamW(self.layer.parameters(), 1e-4)
        rng = np.random.default_rng(0)
        self.x, self.grad = (
            rng.standard_normal((1, TOKENS, WIDTH)).astype(np.float32) for _ in range(2)
        )

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.layer(mt.Tensor(self.x, requires_grad=True)).backward(mt.Tensor(self.grad))
        self.optimizer.step()


def runs(experts: int) -> dict[str, Callable[[], Any]]:
    """Both layers."""
    return {library: Step(library, experts) for library in (OURS, DENSE)}


def memory(library: str, experts: int, quick: bool) -> dict[str, float]:
    """Bytes that stay, and bytes that a step takes for each token, of a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.peer", "--memory", library, str(experts)]
    command += ["--quick"] if quick else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    held, taken = map(int, done.stdout.split())
    return {"held": held, "taken_per_token": taken / TOKENS}


def print_memory(library: str, experts: int) -> None:
    """What `memory` asks for: the bytes of all arrays after a step, and the most of the next one.

    NumPy tells tracemalloc of each array, also of one whose buffer is an older one's. What kernels
    keep for themselves between calls is not counted: some rows for each thread.
    """
    tracemalloc.start()
    run = Step(library, experts)
    run()
    run.optimizer.zero_grad()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    run()
    print(held, tracemalloc.get_traced_memory()[1] - held)


def exponent(results: list[Result]) -> float:
    """Of the number of experts in the time, between the last two."""
    (_, before), (_, last) = ((r.case, r.median(OURS)) for r in results[-2:])
    return math.log(last / before) / math.log(EXPERTS[-1] / EXPERTS[-2])


def main() -> None:
    """Measure, show, and write the results as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        globals().update(QUICK)
    if options.threads:
        mt.set_num_threads(options.threads)
    if options.memory:
        print_memory(options.memory[0], int(options.memory[1]))
        return
    cases = (Case(f"2^{round(math.log2(n))} experts", partial(runs, n)) for n in EXPERTS)
    console = Console()
    results = show(console, "peer", (measure(case, options.rounds) for case in cases), None)
    command = f"python -m tests.benchmarks.peer --rounds {options.rounds}"
    content = to_json("peer", results, None, command)
    for row, n in zip(content["results"], EXPERTS, strict=True):
        row["experts"], row["dense_units"] = n, equal_cost(n)
        row["memory"] = {library: memory(library, n, options.quick) for library in (OURS, DENSE)}
        mine = row["memory"][OURS]
        console.print(
            f"{row['case']}: {mine['held'] / 1e6:,.0f} MB held, "
            f"{mine['taken_per_token'] / 1e3:,.1f} kB taken for a token"
        )
    content |= {"width": WIDTH, "tokens": TOKENS, "heads": HEADS, "k": K, "key_dim": KEY_DIM}
    content["exponent"] = exponent(results)
    console.print(f"time grows as N^{content['exponent']:.2f}")
    if options.json:
        write_json(options.json, content)


if __name__ == "__main__":
    main()
