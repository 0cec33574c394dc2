"""The memory of a training step: how much more than before a process holds at its peak.

Each library gets a process of its own, which imports it, notes its peak, builds model and optimizer
and takes some steps of `models.bench.step`; the figure is by how much its peak has grown. Weights,
gradients, the two moments of AdamW, activations, and whatever the library keeps for itself.

    python -m models.bench.memory minitorch nano float32 0
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import minitorch as mt
from minitorch.errors import ConfigError
from models.bench import step
from models.bench.timing import Case
from models.machine import peak_memory

STEPS = 4
"""The first allocates the moments, the second is like all that follow."""


def cases(peers: Sequence[str], seed: int) -> Iterator[Case]:
    """Those of `step`, without torch.compile, in whose process a compiler would be measured."""
    for size in step.SIZES:
        for precision in step.PRECISIONS:
            names = [n for n in step.libraries(peers, precision) if n != "torch.compile"]
            build = partial(_runs, names, size, precision, seed)
            yield Case(f"{size} {precision}", build, unit="B")


def _runs(
    names: Sequence[str], size: str, precision: str, seed: int
) -> dict[str, Callable[[], int]]:
    return {name: partial(measured, name, size, precision, seed) for name in names}


def measured(library: str, size: str, precision: str, seed: int) -> int:
    """Bytes, from a process that does nothing else."""
    command = [sys.executable, "-m", __spec__.name, library, size, precision, str(seed)]
    command.append(str(mt.kernels.get_num_threads()))
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise ConfigError(f"bench memory: {library} failed:\n{done.stderr[-2000:]}")
    return int(done.stdout)


def main(library: str, size: str, precision: str, seed: str, threads: str) -> None:
    """Print the growth of this process's peak, in bytes."""
    mt.set_num_threads(int(threads))
    if library == "torch":
        import_module("torch").set_num_threads(int(threads))
    if library != "minitorch":
        import_module(f"models.bench.{library}_gpt")
    ids, targets = step.tokens(size, int(seed))
    with suppress(OSError):  # Linux: forget the peak of the imports
        Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    run = step.build(library, step.SIZES[size][0], ids, targets, precision)
    for _ in range(STEPS):
        run()
    print(peak_memory() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
