"""What this thread records at the moment, and the switches that change it.

Each switch is a context manager and a decorator, and restores what it found. Operations look at
`thread.mode` once, in `tape.apply`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, contextmanager
from typing import Any, ClassVar

from minitorch import backend
from minitorch.errors import DtypeError


class Mode:
    """What the tape of a thread does at the moment."""

    __slots__ = ("anomaly", "inference", "keep", "lower", "observers", "record", "scaled")

    def __init__(self) -> None:
        self.record = True
        self.inference = False
        self.anomaly = False
        self.keep: Callable[[Any], Any] | None = None  # checkpointing: what to save in its place
        self.lower: Any = None  # autocast: the dtype that float32 is lowered to
        self.scaled = False  # autocast: linear layers multiply numbers of 8 bits
        self.observers: tuple[Any, ...] = ()  # profilers and tracers, see `observe`


class _Thread(threading.local):
    def __init__(self) -> None:
        self.mode = Mode()


thread = _Thread()
"""thread.mode is this thread's."""


class _Switch(ContextDecorator):
    """A context manager, and decorator, that sets fields of `thread.mode` and restores them."""

    fields: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self._before: list[dict[str, Any]] = []

    def __enter__(self) -> None:
        self._before.append({name: getattr(thread.mode, name) for name in self.fields})
        for name, value in self.fields.items():
            setattr(thread.mode, name, value)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.pop().items():
            setattr(thread.mode, name, value)


class no_grad(_Switch):
    """Record nothing: results have requires_grad=False. Also a decorator."""

    fields: ClassVar[dict[str, Any]] = {"record": False}


class enable_grad(_Switch):
    """Record again inside a `no_grad`."""

    fields: ClassVar[dict[str, Any]] = {"record": True, "inference": False}


class inference_mode(_Switch):
    """`no_grad` for good: the results carry no version counter and may never join a tape."""

    fields: ClassVar[dict[str, Any]] = {"record": False, "inference": True}


class set_grad_enabled(_Switch):
    """`enable_grad` or `no_grad`, by a flag."""

    def __init__(self, enabled: bool):
        super().__init__()
        self.fields = {"record": enabled}  # type: ignore[misc]


class detect_anomaly(_Switch):
    """Stop at the first NaN, forward or backward, and name the line that computed it.

    Slow: checks every result, and keeps the stack of every recorded operation.
    """

    fields: ClassVar[dict[str, Any]] = {"anomaly": True}


class autocast(_Switch):
    """Mixed precision: matrix products and attention take and give `dtype` instead of float32.

    dtype: "bfloat16" (the default) or "float16", or the dtype itself; or "float8": as bfloat16, and
    the products of `Linear`, `mlp`, `linear_swiglu`, `moe_swiglu` and the projections of
    `rotary_self_attention`, all three of each, are of operands rounded to e4m3 with a scale for
    each block (DeepSeek-V3 2024, section 3.3), which only Hopper has hardware for; everything else,
    the head with its loss too, stays in bfloat16.
    Parameters stay float32, and so do their gradients: what is lowered is a copy, made where it is
    used. That of a parameter is kept until the parameter changes, and optimizers write it as they
    change the parameter: no cast in a step of training or for a token that is sampled. On the CPU
    the gradients of `Linear`, `mlp`, `linear_swiglu` and those projections come to parameters as
    they were summed, in float32, without a rounding between. Losses raise what they are given back
    to float32; everything else follows its inputs, computes in float32 and rounds once. float64 is
    left alone.
    Also a decorator. In PyTorch: torch.autocast, which keeps copies to its end.
    """

    def __init__(self, dtype: Any = "bfloat16"):
        super().__init__()
        scaled = isinstance(dtype, str) and dtype == "float8"
        lower = backend.bfloat16 if scaled else backend.as_dtype(dtype)
        if not backend.half_precision(lower):
            raise DtypeError(f"autocast: expected bfloat16, float16 or float8; got {lower}")
        self.fields = {"lower": lower, "scaled": scaled}  # type: ignore[misc]


def is_grad_enabled() -> bool:
    """Whether operations are being recorded."""
    return thread.mode.record


@contextmanager
def observe(observer: Any) -> Iterator[Any]:
    """Let observer see what is computed in the block.

    observer.call(primitive, inputs, meta, run) is called in place of run() for every operation and
    returns its result. observer.sweep(node, run), if there is one, likewise for every step of a
    reverse sweep; the operations inside of the step are then not reported one by one.
    """
    before = thread.mode.observers
    thread.mode.observers = (*before, observer)
    try:
        yield observer
    finally:
        thread.mode.observers = before
