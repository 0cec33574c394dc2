"""GRPO's tokens per second, rollouts included, beside trl's on PyTorch with the same tiny model.

    python -m tests.benchmarks.grpo [--rounds 7] [--threads N] [--quick] [--json FILE]
                                    [--peer-python PYTHON]

Both begin with the same weights, write as many completions to the same prompts in a step, judge
them by the same function and learn once from them, without a reference. In turns, so many steps
each; the figure is the median over the rounds of the completions' tokens per second of whole steps:
writing, judging, gradient, AdamW. trl runs in a process of its own, by another Python where one is
given (it needs the extra `peers` only), and sleeps while it waits.
"""

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import minitorch as mt
from minitorch.io import write_json
from minitorch.random import Generator
from models.environments.tasks import Task, addition
from models.families import from_pretrained
from models.llama import LlamaConfig
from models.machine import processor
from models.recipes.grpo import Grpo
from models.recipes.grpo_config import GrpoConfig
from models.recipes.prompts import TaskSource


@dataclass(frozen=True)
class Case:
    """A size of model, and of a step."""

    layers: int
    heads: int
    width: int
    prompts: int
    group_size: int
    max_tokens: int
    learning_rate: float = 1e-4

    @property
    def settings(self) -> dict[str, Any]:
        """Of the step, by the names of GrpoConfig."""
        names = ("prompts", "group_size", "max_tokens", "learning_rate")
        return {name: getattr(self, name) for name in names}


CASES = {
    "64 wide, 64 completions": Case(2, 4, 64, prompts=8, group_size=8, max_tokens=32),
    "64 wide, 256 completions": Case(2, 4, 64, prompts=32, group_size=8, max_tokens=32),
    "96 wide, 256 completions": Case(3, 4, 96, prompts=32, group_size=8, max_tokens=32),
}
"""The first is where the work of Python counts most, the last where products do."""

QUICK = {"quick": Case(1, 2, 16, prompts=2, group_size=2, max_tokens=4)}
STEPS, ROWS = 4, 2048
WORKER = Path(__file__).with_name("grpo_trl.py")


def evens(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The share of even digits: a reward that an untrained model earns now and then."""
    return [sum(char in "02468" for char in c) / max(len(c), 1) for c in completions]


class Ours:
    """The recipe; a call does so many steps and gives tokens and seconds."""

    def __init__(self, folder: Path, task: Task, case: Case):
        overrides = {**case.settings, "beta": 0.0, "eval_prompts": 1}
        config = GrpoConfig.resolve(overrides=overrides)
        tokenizer = task.tokenizer()
        source = TaskSource(task, tokenizer, config.seed)
        model = from_pretrained(folder)
        self.recipe = Grpo(config, model, tokenizer, source, [(evens, 1.0)], task=task)

    def __call__(self, steps: int) -> tuple[float, float]:
        begun = time.perf_counter()
        tokens = sum(self.recipe.train_step()["tokens"] for _ in range(steps))
        return tokens, time.perf_counter() - begun


class Theirs:
    """The same of trl, in its process."""

    def __init__(self, folder: Path, task: Task, case: Case, python: str, threads: int):
        random = np.random.default_rng(1)
        rows = [task.draw(random)["prompt"] for _ in range(ROWS)]
        settings = json.dumps({**case.settings, "rows": rows})
        self.process = subprocess.Popen(
            [python, str(WORKER), str(folder), str(threads), settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, steps: int) -> tuple[float, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline().split()
        if len(answer) != 2:
            raise SystemExit("trl's process has ended, for the reason above; see --peer-python")
        return float(answer[0]), float(answer[1])

    def close(self) -> None:
        """Let it end."""
        self.process.kill()
        self.process.wait()


def main() -> None:
    """Measure in turns, show, and write the results as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=mt.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has trl")
    options = parser.parse_args()
    mt.set_num_threads(options.threads)
    console = Console()
    results = []
    for name, case in (QUICK if options.quick else CASES).items():
        speeds = measured(case, options)
        medians = {library: statistics.median(values) for library, values in speeds.items()}
        ratio = medians["minitorch"] / medians["trl"]
        shown = ", ".join(f"{library} {speed:,.0f}" for library, speed in medians.items())
        console.print(f"{name:28}{shown} tokens per second: {ratio:.2f}", highlight=False)
        results.append(
            {
                "case": name,
                **asdict(case),
                "tokens_per_second": medians,
                "rounds": speeds,
                "ratio": ratio,
            }
        )
    if options.json:
        content = {
            "benchmark": "grpo",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": f"python -m tests.benchmarks.grpo --rounds {options.rounds} "
            f"--threads {options.threads}",
            "processor": processor(),
            "versions": {"python": platform.python_version(), **_versions(options)},
            "threads": options.threads,
            "steps": STEPS,
            "results": results,
        }
        write_json(options.json, content)


def measured(case: Case, options: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens per second of either library, round by round."""
    task = addition()
    sizes = LlamaConfig.sized(
        vocab_size=task.tokenizer().vocab_size,
        layers=case.layers,
        heads=case.heads,
        width=case.width,
        positions=task.longest_prompt + case.max_tokens,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes.build(np.dtype(np.float32), Generator(0)).save_pretrained(folder)
        task.tokenizer().save(folder / "tokenizer.json")
        theirs = Theirs(folder, task, case, options.peer_python, options.threads)
        try:
            ours = Ours(folder, task, case)
            return _in_turns({"minitorch": ours, "trl": theirs}, options.rounds)
        finally:
            theirs.close()


def _in_turns(libraries: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each round, after one that does not count."""
    speeds: dict[str, list[float]] = {library: [] for library in libraries}
    for run in libraries.values():
        run(STEPS)
    for _ in range(rounds):
        for library, run in libraries.items():
            time.sleep(0.2)
            tokens, seconds = run(STEPS)
            speeds[library].append(tokens / seconds)
    return speeds


def _versions(options: argparse.Namespace) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({n: m.version(n) for n in ('torch', 'transformers', 'trl')}))"
    )
    done = subprocess.run([options.peer_python, "-c", code], capture_output=True, text=True)
    return json.loads(done.stdout or "{}")


if __name__ == "__main__":
    main()
