"""A training step of GPT-2 124M in float32 beside llm.c's, on the CPU.

    python -m tests.benchmarks.llm_c --source FOLDER [--rounds 9] [--threads N] [--json FILE]

FOLDER is a checkout of github.com/karpathy/llm.c (MIT), which is no part of this project; of it
train_gpt2.c is compiled as its Makefile does, with the C compiler that CC names, or cc. Batch, time
and AdamW's numbers are built into it, weights and tokens come from files: it gets ours. So both
sides train from the same weights on the same batch, and their losses must agree, step by step.

llm.c trains without a pause, so it is stopped (SIGSTOP) while the other has its turn. Before every
tenth step it also validates, and from the twentieth on writes text. Of the calls of `measure` every
other one counts, and these are the odd steps: validation falls between them, and text comes later.
"""

import argparse
import hashlib
import os
import re
import signal
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import minitorch as mt
from minitorch import optim
from minitorch.io import write_json
from models.bench.report import show, to_json
from models.bench.step import SIZES, flops
from models.bench.timing import OURS, Case, measure
from models.gpt2 import GPT2

CONFIG, BATCH, TIME = SIZES["gpt2"]
THEIRS = "llm.c"
FLAGS = (
    "-Ofast -Wno-unused-result -Wno-ignored-pragmas -Wno-unknown-attributes "
    "-march=native -fopenmp -DOMP"
)
MOST_ROUNDS = 9
"""After so many, llm.c would come to the step before which it writes text."""

AGREE, TOLERANCE = 4, 1e-4
"""So many losses are compared; later ones part, as Adam divides gradients that are but rounding."""


class Ours:
    """One step at a call, as llm.c's main() has it: no weight decay, no clipping."""

    def __init__(self, model: GPT2, tokens: np.ndarray):
        self.model, self.losses = model, list[float]()
        self.ids, self.targets = (
            mt.Tensor(x.reshape(BATCH, TIME)) for x in (tokens, np.roll(tokens, -1))
        )
        self.optimizer = optim.AdamW(model.parameters(), 1e-4, weight_decay=0.0)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        loss = self.model.loss(self.ids, self.targets)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())


class Theirs:
    """llm.c's process in a folder with its files: runs at a call until a step is done."""

    def __init__(self, program: Path, folder: Path, threads: int):
        self.losses = list[float]()
        # A terminal's other end, since the C library holds back lines that go to a pipe.
        reading, writing = os.openpty()
        self.process = subprocess.Popen(
            [program],
            cwd=folder,
            stdout=writing,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        self.process.send_signal(signal.SIGSTOP)
        os.close(writing)
        self.output = open(reading, errors="replace")  # noqa: SIM115

    def __call__(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        said = list[str]()
        while (loss := read_loss(said[-1] if said else "")) is None:
            said.append(self._line())
            if not said[-1]:
                raise SystemExit(f"llm.c ended before its next step:\n{''.join(said[-5:])}")
        self.process.send_signal(signal.SIGSTOP)
        self.losses.append(loss)

    def _line(self) -> str:
        try:
            return self.output.readline()
        except OSError:  # Linux's way to say that nobody has the other end any more
            return ""

    def close(self) -> None:
        """End it, wherever it is."""
        self.process.kill()
        self.process.wait()
        self.output.close()


def read_loss(line: str) -> float | None:
    """The loss, of a line that says that a step is done."""
    found = re.match(r"step \d+: train loss (\S+) \(took \S+ ms\)", line)
    return float(found[1]) if found else None


def compile_program(source: Path, target: Path) -> None:
    """llm.c's train_gpt2, with its own flags."""
    command = [_compiler(), *FLAGS.split(), source / "train_gpt2.c", "-lm", "-lgomp", "-o", target]
    if subprocess.run(command).returncode:
        raise SystemExit(f"{source}/train_gpt2.c does not compile; see above")


def _compiler() -> str:
    return os.environ.get("CC", "cc")


BLOCK = (
    "ln_1.weight",
    "ln_1.bias",
    "attn.c_attn.weight",
    "attn.c_attn.bias",
    "attn.c_proj.weight",
    "attn.c_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
)
"""The order of a checkpoint of llm.c; each of these is there for all layers before the next one."""


def write_checkpoint(path: Path, model: GPT2) -> None:
    """The weights for gpt2_build_from_checkpoint; the table's rows are a multiple of 128 there."""
    config = model.config
    rows = -(-config.vocab_size // 128) * 128
    weights = {name: p.data for name, p in model.named_parameters()}
    table = np.zeros((rows, config.n_embd), np.float32)
    table[: config.vocab_size] = weights["wte.weight"]
    arrays = [table, weights["wpe.weight"]]
    arrays += [weights[f"h.{i}.{name}"] for name in BLOCK for i in range(config.n_layer)]
    arrays += [weights["ln_f.weight"], weights["ln_f.bias"]]
    sizes = (config.n_positions, config.vocab_size, config.n_layer, config.n_head, config.n_embd)
    with path.open("wb") as file:
        file.write(_header(20240326, 3, *sizes, rows))
        for array in arrays:
            file.write(np.ascontiguousarray(array, np.float32).tobytes())


def write_tokens(folder: Path, tokens: np.ndarray) -> None:
    """The batch again and again where llm.c looks for texts, so that any order gives the same."""
    folder = folder / "dev/data/tinyshakespeare"
    folder.mkdir(parents=True)
    text = np.tile(tokens, 65)[: 64 * len(tokens) + 1].astype(np.uint16)
    for part in ("train", "val"):
        content = _header(20240520, 1, len(text)) + text.tobytes()
        (folder / f"tiny_shakespeare_{part}.bin").write_bytes(content)


def _header(*numbers: int) -> bytes:
    return np.array(numbers, np.int32).tobytes().ljust(1024, b"\0")


def check_losses(ours: list[float], theirs: list[float]) -> None:
    """Both must have done the same work."""
    for step, (mine, other) in enumerate(zip(ours[:AGREE], theirs[:AGREE], strict=True)):
        if not abs(mine - other) <= TOLERANCE:
            raise SystemExit(f"step {step}: the loss is {mine:.6f} here and {other:.6f} in llm.c")


def main() -> None:
    """Measure in turns, compare, show, and write the results as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="a checkout of llm.c")
    parser.add_argument("--rounds", type=int, default=9, choices=range(1, MOST_ROUNDS + 1))
    parser.add_argument("--threads", type=int, default=mt.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    mt.set_num_threads(options.threads)
    model = GPT2(CONFIG, generator=mt.Generator(0))
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, BATCH * TIME)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compile_program(options.source, folder / "train_gpt2")
        write_checkpoint(folder / "gpt2_124M.bin", model)
        write_tokens(folder, tokens)
        ours = Ours(model, tokens)
        theirs = Theirs(folder / "train_gpt2", folder, options.threads)
        try:
            runs = partial(dict, {OURS: ours, THEIRS: theirs})
            case = Case("gpt2 float32", runs, flops(CONFIG, BATCH, TIME))
            results = show(Console(), THEIRS, [measure(case, options.rounds)], None)
        finally:
            theirs.close()
    check_losses(ours.losses, theirs.losses)
    if options.json:
        command = f"python -m tests.benchmarks.llm_c --source FOLDER --rounds {options.rounds}"
        losses = {OURS: ours.losses, THEIRS: theirs.losses}
        content = to_json("llm_c", results, None, command)
        write_json(options.json, {**content, **_about(options.source), "losses": losses})


def _about(source: Path) -> dict[str, Any]:
    """What was compiled, with what, and how."""
    said = subprocess.run([_compiler(), "--version"], capture_output=True, text=True, check=True)
    return {
        "sha256": hashlib.sha256((source / "train_gpt2.c").read_bytes()).hexdigest(),
        "compiler": said.stdout.splitlines()[0],
        "flags": FLAGS,
    }


if __name__ == "__main__":
    main()
