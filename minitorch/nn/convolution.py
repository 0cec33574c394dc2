"""Convolution layers: one small linear map applied at every position.

What is called convolution here, as everywhere in deep learning, is correlation: the kernel is not
mirrored.
"""

import math

import numpy as np

from minitorch.backend import DEFAULT_FLOAT
from minitorch.errors import ConfigError
from minitorch.nn import functional as F
from minitorch.nn import init
from minitorch.nn.module import Module, Parameter
from minitorch.random import Generator
from minitorch.tensor import Tensor


class Conv1d(Module):
    """(batch, in_channels, time) -> (batch, out_channels, out_time).

    weight: (out_channels, in_channels / groups, kernel_size); bias: (out_channels,) or None. Both
    start uniform over ±1 / sqrt(fan_in), as in PyTorch. dilation: the distance of neighbouring
    elements of the kernel in x.
    """

    spatial = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        dtype: np.dtype = DEFAULT_FLOAT,
        generator: Generator | None = None,
    ):
        if in_channels % groups or out_channels % groups:
            raise ConfigError(
                f"{type(self).__name__}: expected groups that divide the channels; got "
                f"{groups} for {in_channels} and {out_channels}"
            )
        kernel = (kernel_size,) * self.spatial if isinstance(kernel_size, int) else kernel_size
        shape = (out_channels, in_channels // groups, *kernel)
        self.stride, self.padding = stride, padding
        self.dilation, self.groups = dilation, groups
        self.weight = Parameter(init.empty(shape, dtype))
        self.bias = Parameter(init.empty((out_channels,), dtype)) if bias else None
        bound = 1 / math.sqrt(init.fans(self.weight)[0])
        for param in self.parameters():
            init.uniform_(param, -bound, bound, generator)

    def forward(self, x: Tensor) -> Tensor:
        options = self.stride, self.padding, self.dilation, self.groups
        return F.conv1d(x, self.weight, self.bias, *options)

    def extra_repr(self) -> str:
        out_channels, in_channels, *kernel = self.weight.shape
        return (
            f"{in_channels * self.groups}, {out_channels}, kernel_size={tuple(kernel)}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}"
        )


class Conv2d(Conv1d):
    """(batch, in_channels, height, width) -> (batch, out_channels, out_height, out_width)."""

    spatial = 2

    def forward(self, x: Tensor) -> Tensor:
        options = self.stride, self.padding, self.dilation, self.groups
        return F.conv2d(x, self.weight, self.bias, *options)
