"""References made of other kernels compute, on a device, with the kernels of that device."""

from typing import Any

import numpy as np

from minitorch.backend import device_of
from minitorch.kernels.table import Kernel, implementations, lookup


def part(name: str, x: Any) -> Kernel:
    """The kernel `name` for arrays that lie where x does: of NumPy's arrays the reference."""
    if type(x) is np.ndarray:
        return implementations(name)["numpy"]
    return lookup(name, device_of(x))
