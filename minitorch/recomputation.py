"""Activation checkpointing: keep the tape, drop the arrays, compute them again when asked.

The forward pass records its nodes as usual, but every array that a rule would keep is replaced by
a ticket. The first ticket that the sweep presents makes the segment run again, with the random
state it had, and all its tickets are honoured from that run. Since the nodes stay where they are,
gradients flow to parameters that the function closes over, hooks fire, and the gradient can be
differentiated again. Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
"""

from collections.abc import Callable, Sequence
from typing import Any

from minitorch import modes, random
from minitorch.errors import GraphError
from minitorch.modes import thread
from minitorch.tape import Recomputed, Segment
from minitorch.tensor import Tensor
from minitorch.trees import flatten


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs), holding none of its inner arrays until they are needed.

    function must do the same when it runs again: same operations on the same values; random
    draws from the global generator are replayed. A checkpoint inside of another is part of it.
    In PyTorch: torch.utils.checkpoint.checkpoint(..., use_reentrant=False).
    """
    if thread.mode.keep is not None or not modes.is_grad_enabled():
        return function(*args, **kwargs)
    segment = _Segment(function, args, kwargs)
    thread.mode.keep = segment.keep
    try:
        return function(*args, **kwargs)
    finally:
        thread.mode.keep = None


class _Segment(Segment):
    """A function with its arguments and the random state that it had."""

    def __init__(self, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]):
        super().__init__()
        self.function = function
        self.args = [_stand_in(x) for x in args]
        self.kwargs = {name: _stand_in(x) for name, x in kwargs.items()}
        self.random_state = random.get_rng_state()
        self.shapes: list[tuple[int, ...]] = []

    @property
    def given(self) -> Sequence[Tensor]:  # type: ignore[override]
        """The tensors among the arguments."""
        return flatten([self.args, self.kwargs])[0]

    def keep(self, array: Any) -> Recomputed:
        """What the tape keeps in place of array."""
        self.shapes.append(array.shape)
        return self.ticket(len(self.shapes) - 1)

    def run_again(self) -> list[Any]:
        arrays: list[Any] = []

        def keep(array: Any) -> Any:
            arrays.append(array)
            return array

        before, keep_before = random.get_rng_state(), thread.mode.keep
        random.set_rng_state(self.random_state)
        thread.mode.keep = keep
        try:
            with modes.enable_grad():
                self.function(*self.args, **self.kwargs)
        finally:
            thread.mode.keep = keep_before
            random.set_rng_state(before)
        if [array.shape for array in arrays] != self.shapes:
            raise GraphError(
                "checkpoint: the function did not do the same when it ran again: "
                f"{len(self.shapes)} arrays were kept the first time, {len(arrays)} now, or of "
                "other shapes. It must not depend on anything that changes between its runs"
            )
        return arrays


def _stand_in(x: Any) -> Any:
    """The same values without the tape behind them, so that a rerun records the same nodes."""
    if not isinstance(x, Tensor):
        return x
    return x.detach().requires_grad_(x.requires_grad) if x._node is not None else x
