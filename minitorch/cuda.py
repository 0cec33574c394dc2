"""CUDA graphs: a whole step recorded once, then launched as one, with no Python in between.

A small model computes a training step in less time than Python needs to launch its kernels, one by
one. A graph holds all launches of a step with their arguments and sends them together. Arguments
are addresses, so every replay reads the same inputs and writes the same results: what is to change
has to lie on the device (`minitorch.capture`), and memory that the step takes comes from a pool of
the graph's own, that nothing else is given any of.

    graph = mt.cuda.CUDAGraph()
    with mt.cuda.graph(graph):
        loss = step(ids, targets)        # recorded, not computed
    graph.replay()                       # computed

`GraphedStep` does this for a function: a few calls as usual, then a capture, then replays.

Names are PyTorch's (torch.cuda.CUDAGraph, torch.cuda.graph). Source: CUDA C++ Programming Guide,
"CUDA Graphs"; the pool and the numbers on the device as in PyTorch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from minitorch import capture
from minitorch.backend import load_cupy
from minitorch.capture import Capture
from minitorch.errors import DeviceError, GraphError, MinitorchError, ShapeError
from minitorch.tensor import Tensor


class CUDAGraph:
    """A recorded step of the device "cuda". Raises DeviceError where that cannot be used."""

    def __init__(self) -> None:
        self._cupy = load_cupy()
        self._pool = self._cupy.cuda.MemoryPool()
        self._stream = self._cupy.cuda.Stream(non_blocking=True)
        self._others = self._cupy.cuda.Stream(non_blocking=True)
        self._capture: Capture | None = None
        self._graph: Any = None
        self._replayed = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """In the block operations are queued on the graph's stream, and take memory of its pool.

        A step that runs here before it is captured leaves behind what is made only once, such as
        compiled kernels and an optimizer's moments.
        """
        cuda = self._cupy.cuda
        outside = cuda.get_current_stream()
        self._stream.wait_event(outside.record())
        with cuda.using_allocator(self._pool.malloc), self._stream:
            yield
        outside.wait_event(self._stream.record())

    def replay(self) -> None:
        """Queue the step on the current stream, with the count, learning rates and draws of now."""
        if self._graph is None or self._capture is None:
            raise GraphError(
                "replay: this graph holds no step yet; record one with minitorch.cuda.graph(...)"
            )
        if self._replayed:
            self._capture.renew()
        self._replayed = True
        self._graph.launch(self._cupy.cuda.get_current_stream())

    def _begin(self) -> None:
        if self._capture is not None:
            raise GraphError("graph: this one holds a step already; make another CUDAGraph")
        if capture.thread.current is not None:
            raise GraphError("graph: a capture is under way already; end it before the next")
        self._capture = Capture(self._placed)
        self._stream.begin_capture()
        capture.thread.current = self._capture

    def _end(self) -> None:
        capture.thread.current = None
        self._graph = self._stream.end_capture()

    def _placed(self, array: np.ndarray) -> Any:
        """The array on the device, by a stream that is not captured, in the common pool."""
        cuda = self._cupy.cuda
        pool = self._cupy.get_default_memory_pool()
        with cuda.using_allocator(pool.malloc), self._others:
            placed = self._cupy.asarray(array)
        self._others.synchronize()
        return placed


@contextmanager
def graph(cuda_graph: CUDAGraph) -> Iterator[None]:
    """Record into the graph what the block launches on the device; nothing of it is computed yet.

    What the block makes has values after the first `replay()`. Python runs once: what it counts and
    draws in the block belongs to that first replay. Numbers that the optimizers and the random
    generators of this library use change from replay to replay as they would from call to call;
    all others stay, and so do arrays that come from main memory. Raises GraphError where a value is
    needed while the step is recorded, as `item()` does; the graph is then of no use.
    """
    with cuda_graph.aside():
        cuda_graph._begin()
        try:
            yield
        except BaseException as error:
            with suppress(Exception):  # a capture that failed cannot be ended in good order
                cuda_graph._end()
            cuda_graph._graph = None
            if isinstance(error, MinitorchError) or not isinstance(error, Exception):
                raise
            raise GraphError(
                f"graph: the step cannot be captured ({type(error).__name__}: {error}). Move what "
                "waits for the device, or allocates, out of it, or leave it uncaptured"
            ) from error
        cuda_graph._end()
    cuda_graph._capture.finish()  # type: ignore[union-attr]


class GraphedStep:
    """A function of tensors that runs as it is in its first calls, later as a CUDA graph.

        step = mt.cuda.GraphedStep(train_step)
        for ids, targets in batches:
            loss = step(ids, targets)

    train_step: takes and returns tensors, and does all that is on the device: forward, backward,
    clipping, optimizer. Every call is one step of training, also the first `num_warmup_iters`.
    Inputs, tensors or NumPy arrays, are copied into memory where the graph finds them; all calls
    have the same shapes and dtypes. What is returned is the same tensors in every call, with new
    values. What the function looks at in Python (training or evaluation, autocast, shapes) stays
    as it was at the capture, and so do the arrays that it uses: after optimizer.load_state_dict(),
    say, make a new GraphedStep.

    In PyTorch: torch.cuda.make_graphed_callables, which captures a forward and a backward but not
    the optimizer.
    """

    def __init__(self, function: Callable[..., Any], num_warmup_iters: int = 3):
        self.function = function
        self.num_warmup_iters = max(num_warmup_iters, 1)
        self.graph = CUDAGraph()
        self._calls = 0
        self._inputs: list[Tensor] = []
        self._result: Any = None

    def __call__(self, *inputs: Tensor | np.ndarray) -> Any:
        """One step on these inputs; its result, which the next call overwrites."""
        self._take(inputs)
        self._calls += 1
        if self._calls <= self.num_warmup_iters:
            with self.graph.aside():
                return self.function(*self._inputs)
        if self._result is None:
            with graph(self.graph):
                self._result = self.function(*self._inputs)
        self.graph.replay()
        return self._result

    def _take(self, inputs: tuple[Tensor | np.ndarray, ...]) -> None:
        """Copy the inputs to where the step reads them."""
        arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
        if not self._inputs:
            asarray = self.graph._cupy.array
            self._inputs = [Tensor(asarray(x)) for x in arrays]
            return
        for i, (array, kept) in enumerate(zip(arrays, self._inputs, strict=True)):
            if array.shape != kept.shape or array.dtype != kept.dtype:
                raise ShapeError(
                    f"GraphedStep: expected input {i} as in the first call, {kept.shape} "
                    f"{kept.dtype}; got {array.shape} {array.dtype}. Pad it, or take another "
                    "GraphedStep for it"
                )
            if isinstance(array, np.ndarray):
                kept.data.set(np.ascontiguousarray(array))
            else:
                kept.data[...] = array


def synchronize() -> None:
    """Wait until the device "cuda" has done all that was queued."""
    load_cupy().cuda.Device().synchronize()


def is_available() -> bool:
    """Whether tensors can be on the device "cuda" here."""
    try:
        load_cupy()
    except DeviceError:
        return False
    return True
