"""Elements dropped at random, by numbers that need not be kept."""

import numpy as np

from minitorch.backend import device_of, to_device
from minitorch.kernels.philox import stream
from minitorch.kernels.table import register

Array = np.ndarray


@register("dropout", "numpy")
def dropout(x: Array, *, p: float, seed: int, offset: int) -> Array:
    """x / (1 - p) where a uniform number is at least p, 0 elsewhere.

    The numbers are a function of (seed, offset), one for each element of x in row-major order: the
    mask need not be kept, and dropout is its own backward, on the gradient.
    """
    keep = stream(seed, offset).random(x.shape, np.float32) >= p
    out = x * to_device(keep, device_of(x))
    if p < 1:
        out *= 1 / (1 - p)
    return out
