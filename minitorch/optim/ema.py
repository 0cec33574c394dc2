"""An exponential moving average of the parameters, to evaluate and sample with.

    average = average + (1 - decay_t) (w - average),   decay_t = min(decay, (1 + t) / (10 + t))

after step t = 1, 2, ...; it begins as the weights themselves. The bound lets the average follow
quickly at first, so that it forgets the random initial weights (as in TensorFlow's
ExponentialMovingAverage with num_updates). In the long run it averages over about 1 / (1 - decay)
steps. Source: Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging".
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minitorch import capture
from minitorch.backend import device_of, half_precision, to_device
from minitorch.errors import CheckpointError, ConfigError, GraphError
from minitorch.kernels import lookup
from minitorch.tensor import Tensor


class EMA:
    """Averages of the given parameters; float16 and bfloat16 ones are averaged in float32."""

    def __init__(self, parameters: Iterable[Tensor], decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ConfigError(f"EMA: expected decay in [0, 1); got {decay}")
        self.parameters = list(parameters)
        self.decay = decay
        self.num_updates = 0
        self.averages = [_wide_copy(param.data) for param in self.parameters]

    def update(self) -> None:
        """Move the averages towards the parameters; to be called after optimizer.step()."""
        if capture.thread.current is not None:
            raise GraphError(
                "EMA.update: its rate changes from step to step. Call it after the captured step"
            )
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        values = [param.data for param in self.parameters]
        if values:
            lookup("follow", device_of(values[0]))(self.averages, values, rate=1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the parameters are their averages; afterwards themselves again."""
        weights = [param.data.copy() for param in self.parameters]
        self._write(self.averages)
        try:
            yield
        finally:
            self._write(weights)

    def _write(self, values: list[np.ndarray]) -> None:
        for param, value in zip(self.parameters, values):
            param.data[...] = value.astype(param.data.dtype, copy=False)
            param.bump_version()

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the averages by position, "0", "1", ..., and "num_updates"."""
        arrays = {str(index): average.copy() for index, average in enumerate(self.averages)}
        return {**arrays, "num_updates": np.array(self.num_updates)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what state_dict() returned. Raises CheckpointError if it does not fit."""
        expected = {name: value.shape for name, value in self.state_dict().items()}
        found = {name: np.shape(value) for name, value in state_dict.items()}
        if found != expected:
            names = sorted({*expected, *found})
            wrong = [name for name in names if found.get(name) != expected.get(name)]
            raise CheckpointError(
                f"EMA.load_state_dict: expected {len(self.averages)} averages and num_updates; "
                f"entries {wrong} are missing, unknown or of another shape"
            )
        for index, average in enumerate(self.averages):
            average[...] = to_device(state_dict[str(index)], device_of(average))
        self.num_updates = int(state_dict["num_updates"])


def _wide_copy(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32 if half_precision(array.dtype) else array.dtype)
