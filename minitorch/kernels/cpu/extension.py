"""The compiled extension, if it was built: which instruction set it uses, and how many threads.

MT_ISA=portable|avx2|avx512|avx512_bf16|amx_bf16 in the environment forces an instruction set, and
MT_NUM_THREADS=n a number of threads; without it there are as many as the process may run on (its
affinity mask). What a kernel computes does not depend on the number of threads. After a fork the
child starts threads of its own when it needs them.
"""

import os
from contextlib import suppress
from importlib import import_module
from typing import Any

from threadpoolctl import threadpool_limits

from minitorch.errors import ConfigError

extension: Any = None
"""The module minitorch._cpu, or None where it was not built."""

with suppress(ImportError):
    extension = import_module("minitorch._cpu")


def instruction_sets() -> tuple[str, ...]:
    """What the compiled kernels can use on this processor, best first; () where none were built."""
    return tuple(extension.instruction_sets()) if extension else ()


def use_instruction_set(name: str) -> None:
    """Run the compiled kernels of this instruction set from now on; the best is the default."""
    if extension is None or name not in instruction_sets():
        raise ConfigError(
            f"use_instruction_set: expected one of {instruction_sets()}; got {name!r}; "
            f"is minitorch installed with its compiled kernels, and has this processor these?"
        )
    extension.use_instruction_set(name)


def set_num_threads(count: int) -> None:
    """Let the kernels use `count` threads, the calling one among them, and NumPy's BLAS as many.

    In PyTorch: torch.set_num_threads.
    """
    if not isinstance(count, int) or not 1 <= count <= 1024:
        raise ConfigError(f"set_num_threads: expected an integer from 1 to 1024; got {count!r}")
    if extension:
        extension.set_num_threads(count)
    threadpool_limits(count, user_api="blas")


def get_num_threads() -> int:
    """How many threads the compiled kernels use; 1 where they were not built."""
    return extension.num_threads() if extension else 1


def _processors() -> int:
    """How many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _configure() -> None:
    asked = os.environ.get("MT_NUM_THREADS", "")
    if asked and not (asked.isdigit() and int(asked) > 0):
        raise ConfigError(f"MT_NUM_THREADS: expected a number of threads; got {asked!r}")
    extension.set_num_threads(int(asked) if asked else _processors())
    if os.environ.get("MT_ISA"):
        use_instruction_set(os.environ["MT_ISA"])


if extension:
    _configure()
