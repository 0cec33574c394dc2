"""LayerNorm and RMSNorm: each vector of activations brought to a standard size.

    LayerNorm  y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias     Ba et al. 2016
    RMSNorm    y = x / sqrt(mean(x²) + eps) * weight                      Zhang & Sennrich 2019

Mean and variance (divided by n, not n - 1) are over the last dimensions, per position.
"""

import numpy as np

from minitorch.backend import DEFAULT_FLOAT, as_dtype
from minitorch.nn import functional as F
from minitorch.nn.module import Module, Parameter
from minitorch.tensor import Tensor


class LayerNorm(Module):
    """Normalises over the last dimensions, which have `normalized_shape` (an int: the last one).

    weight starts as 1 and bias as 0; without elementwise_affine there are none.
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: np.dtype = DEFAULT_FLOAT,
    ):
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
        dtype = as_dtype(dtype)
        self.normalized_shape, self.eps = tuple(shape), eps
        self.weight = Parameter(np.ones(shape, dtype)) if elementwise_affine else None
        self.bias = Parameter(np.zeros(shape, dtype)) if elementwise_affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"


class RMSNorm(Module):
    """Divides by the root mean square over the last dimensions; weight starts as 1.

    eps defaults to 1e-6, as in Llama; in PyTorch to the spacing of the dtype.
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        dtype: np.dtype = DEFAULT_FLOAT,
    ):
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
        self.normalized_shape, self.eps = tuple(shape), eps
        self.weight = Parameter(np.ones(shape, as_dtype(dtype))) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"
