"""Which kernel makes a matrix product on the device: a table by architecture, dtype and layout.

All of them make the same product (csrc/cuda/batch.h). They are the steps of one ladder, each with
one idea more than the one before it. The last one rounds its operands to 8 bits: it is taken only
where that is asked for.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from minitorch.backend import bfloat16, float16, float32
from minitorch.errors import ConfigError
from minitorch.kernels.cuda.extension import address, capability, multiprocessors

LADDER = {
    "matmul": ("naive", "coalesced", "shared", "registers", "vectorised", "buffered"),
    "matmul_mma": ("tensor", "swizzled", "staged"),
    "matmul_wgmma": (
        *("copied", "wide", "specialised", "larger"),
        *("persistent", "clustered", "stored", "ordered"),
    ),
    "scaled_mm_wgmma": ("scaled",),
}
"""The files of csrc/cuda, and the steps that each holds."""
STEPS = tuple(step for steps in LADDER.values() for step in steps)

_HALVES = (bfloat16, float16)
_PRECISIONS = ("highest", "high")
_precision = "highest"
_step: str | None = None

Array = Any


@dataclass(frozen=True)
class Request:
    """Operands a (..., m, k) and b (..., k, n) of a product into out (..., m, n)."""

    a: Array
    b: Array
    out: Array

    @property
    def along_k(self) -> tuple[bool | None, bool | None]:
        """For a and b, whether they lie in memory along k; None: neither along k nor across."""
        b = neighbours(self.b)
        return neighbours(self.a), None if b is None else not b

    @property
    def aligned(self) -> tuple[bool, bool]:
        """For a and b, whether their lines begin at multiples of 16 bytes."""
        return lines(self.a) is not None, lines(self.b) is not None

    def is_for_tensor_cores(self) -> bool:
        """In 16 bits, or in float32 where TF32 will do; in lines, which may begin anywhere."""
        rounded = self.a.dtype == float32 and _precision == "high"
        return (self.a.dtype in _HALVES or rounded) and None not in self.along_k

    def is_for_warpgroups(self) -> bool:
        """In 16 bits, aligned, and of several products all operands evenly spaced, or the same."""
        return (
            self.a.dtype in _HALVES
            and self.is_for_tensor_cores()
            and all(self.aligned)
            and self.a.shape[-1] > 0
            and all(_is_evenly_spaced(x) for x in (self.a, self.b))
        )

    def is_for_8_bits(self) -> bool:
        """One product in 16 bits; its operands are written anew, in lines along k."""
        return self.a.dtype in _HALVES and self.out.ndim == 2 and self.a.shape[-1] > 0

    def is_large(self) -> bool:
        """There are squares of 128 x 128 for a quarter of Hopper's multiprocessors."""
        *leading, m, n = self.out.shape
        return math.prod(leading) * -(-m // 128) * -(-n // 128) >= 32


TABLE: tuple[tuple[str, Callable[[Request, int], bool]], ...] = (
    ("ordered", lambda it, sm: sm == 90 and it.is_for_warpgroups() and it.is_large()),
    ("staged", lambda it, sm: sm >= 80 and it.is_for_tensor_cores()),
    ("buffered", lambda it, sm: True),
)
"""A product is made by the first step whose condition holds, of it and of the architecture."""


_LEAST_DEPTH = 512
"""Steps of k of a part, at least: to add parts up costs something, too."""


def parts(a: Array, b: Array, out: Array) -> int:
    """Into how many a single product is split along k: its tiles may be too few for a GPU."""
    (m, k), n = a.shape[-2:], b.shape[-1]
    suits = _step is None and out.ndim == 2 and capability(a) >= 80
    if not suits or k < 2 * _LEAST_DEPTH or not Request(a, b, out).is_for_tensor_cores():
        return 1
    most = min(multiprocessors(a) // (-(-m // 128) * -(-n // 128)), k // _LEAST_DEPTH)
    return max((i for i in range(1, most + 1) if k % (64 * i) == 0), default=1)


@contextmanager
def matmul_step(name: str) -> Iterator[None]:
    """Within the block, products are made by this one of STEPS instead of the table's choice.

    On tensor cores they take what the table gives their last, those before the last bfloat16 alone,
    and matmul_mma's last float32, too. "scaled" makes single products, of operands rounded to e4m3
    with a scale for each block: an error of up to 1/8 of each term.
    """
    global _step, _precision
    if name not in STEPS:
        raise ConfigError(f"matmul_step: expected one of {', '.join(STEPS)}; got {name!r}")
    before = _step, _precision
    _step, _precision = name, "high"
    try:
        yield
    finally:
        _step, _precision = before


def set_float32_matmul_precision(precision: str) -> None:
    """With "high", a GPU's products in float32 may round their operands to TF32: 10 bits.

    "highest", which is the default, keeps all 23 bits of the fraction, and does without tensor
    cores. In PyTorch: torch.set_float32_matmul_precision.
    """
    global _precision
    if precision not in _PRECISIONS:
        raise ConfigError(
            f"set_float32_matmul_precision: expected one of {', '.join(_PRECISIONS)}; "
            f"got {precision!r}"
        )
    _precision = precision


def get_float32_matmul_precision() -> str:
    """What set_float32_matmul_precision has set."""
    return _precision


def pick(a: Array, b: Array, out: Array) -> tuple[str, list[float]]:
    """The kernel for a product, and what it is told beyond the product: step and layouts."""
    request = Request(a, b, out)
    step = _step or next(step for step, takes in TABLE if takes(request, capability(a)))
    kernel = next(kernel for kernel, steps in LADDER.items() if step in steps)
    numbers: list[float] = [LADDER[kernel].index(step)]
    if kernel == "matmul":
        return kernel, numbers
    if not _takes(kernel, step, request):
        raise ValueError(
            f"matmul: the step {step} expected {_WANTED[kernel]}, before the last step bfloat16 "
            f"alone, and lines of neighbours; got "
            f"{_described(a)} and {_described(b)}; take a step of {', '.join(LADDER['matmul'])}"
        )
    if kernel == "scaled_mm_wgmma":
        return kernel, []
    return kernel, numbers + [float(bool(x)) for x in (*request.along_k, *request.aligned)]


def pick_gated(x: Array, gate: Array, up: Array, out: Array) -> tuple[str, list[float]] | None:
    """As `pick`, for silu(x gate) (x up), (m, k) by (k, n) twice; None: two products make it."""
    alike = gate.strides == up.strides and lines(gate) == lines(up)
    if not alike or parts(x, gate, out) > 1:
        return None
    kernel, numbers = pick(x, gate, out)
    is_last = numbers[:1] == [len(LADDER[kernel]) - 1]
    return (_GATED[kernel], numbers) if kernel in _GATED and is_last else None


_GATED = {"matmul_mma": "linear_swiglu_mma", "matmul_wgmma": "linear_swiglu_wgmma"}
"""Their last steps, with two products in a tile."""
_WANTED = {
    "matmul_mma": "bfloat16, float16 or float32",
    "matmul_wgmma": "bfloat16 or float16 at multiples of 16 bytes, operands evenly spaced",
    "scaled_mm_wgmma": "one product of bfloat16 or float16",
}


def _takes(kernel: str, step: str, request: Request) -> bool:
    last = step == LADDER[kernel][-1]
    fits = {
        "matmul_mma": request.is_for_tensor_cores,
        "matmul_wgmma": request.is_for_warpgroups,
        "scaled_mm_wgmma": request.is_for_8_bits,
    }[kernel]
    return fits() and (last or request.a.dtype == request.out.dtype == bfloat16)


def lines(x: Array) -> bool | None:
    """As `neighbours`, and None where such lines do not all begin at multiples of 16 bytes."""
    if address(x) % 16:
        return None
    for along in (-1, -2):
        others = [i for i in range(-x.ndim, 0) if i != along and x.shape[i] > 1]
        if _is_beside(x, along) and all(x.strides[i] % 16 == 0 for i in others):
            return along == -1
    return None


def neighbours(x: Array) -> bool | None:
    """Whether neighbours of the last dimension lie beside each other in memory; False: of the one
    before it; None: neither. Where both do, the one whose lines are aligned, if there is one."""
    aligned = lines(x)
    if aligned is not None:
        return aligned
    return next((along == -1 for along in (-1, -2) if _is_beside(x, along)), None)


def _is_beside(x: Array, along: int) -> bool:
    return x.shape[along] == 1 or x.strides[along] == x.itemsize


def _is_evenly_spaced(x: Array) -> bool:
    """Whether the leading dimensions could be one."""
    leading = [i for i in range(x.ndim - 2) if x.shape[i] > 1]
    return all(x.strides[i] == x.strides[j] * x.shape[j] for i, j in itertools.pairwise(leading))


def _described(x: Array) -> str:
    return f"{x.dtype} {x.shape} with strides {x.strides}"
