"""The dtypes in which a primitive computes: inputs that meet, and half precision.

The rules of promotion stand in backend.py. Half precision is a storage format: it is widened to
float32, and the result is rounded once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minitorch import backend, kernels, modes
from minitorch.errors import DtypeError
from minitorch.tensor import Tensor


def in_float32(
    function: Callable[..., Any], arrays: Sequence[Any], meta: dict[str, Any], dtype: np.dtype
) -> Any:
    """function(*arrays) with half precision widened before and float32 results narrowed after."""
    result = function(*[widen(array) for array in arrays], **meta)
    if isinstance(result, tuple):
        return (_narrow(result[0], dtype), *result[1:])
    return _narrow(result, dtype)


def widen(x: Any) -> Any:
    if hasattr(x, "dtype") and backend.half_precision(x.dtype):
        return cast(x, backend.float32)
    return x


def _narrow(x: Any, dtype: np.dtype) -> Any:
    return cast(x, dtype) if getattr(x, "dtype", None) == backend.float32 else x


def cast(x: Any, dtype: np.dtype) -> Any:
    """A copy of an array in another dtype, by the kernel of where it is."""
    x = np.asanyarray(x) if isinstance(x, np.generic) else x
    return kernels.lookup("cast", backend.device_of(x))(x, dtype=dtype)


def promote(inputs: Sequence[Any], floating: bool = False) -> Sequence[Any]:
    """The inputs with a common dtype; Python numbers stay as they are (they never widen)."""
    if _settled(inputs, floating):
        return inputs
    operands = [_operand(x) for x in inputs]
    dtype = backend.result_type([x.data if isinstance(x, Tensor) else x for x in operands])
    if floating and not backend.is_float(dtype):
        dtype = backend.DEFAULT_FLOAT
    if not any(isinstance(x, Tensor) for x in operands):
        return [Tensor(x, dtype) for x in operands]
    return [
        (x if x.data.dtype == dtype else x.to(dtype))
        if isinstance(x, Tensor)
        else _number(x, dtype)
        for x in operands
    ]


def check_one_dtype(name: str, tensors: Sequence[Tensor | None]) -> None:
    """Raises DtypeError unless a product reads all tensors, None aside, in one dtype."""
    given = [tensor for tensor in tensors if tensor is not None]
    if all(tensor.data.dtype is given[0].data.dtype for tensor in given):
        return
    if len(read := dtypes_read(given)) > 1:
        raise DtypeError(
            f"{name}: expected tensors of one dtype; got {', '.join(sorted(map(str, read)))}; "
            "convert them with .to(dtype)"
        )


def dtypes_read(tensors: Sequence[Tensor]) -> set[np.dtype]:
    """The dtypes in which a product reads the tensors: `autocast` lowers float32."""
    lower = modes.thread.mode.lower or backend.float32
    return {lower if t.data.dtype == backend.float32 else t.data.dtype for t in tensors}


def _settled(inputs: Sequence[Any], floating: bool) -> bool:
    """Whether all tensors have one dtype already, and it is that of the numbers among them."""
    dtype, numbers = None, False
    for x in inputs:
        if isinstance(x, Tensor):
            if dtype is None:
                dtype = x.data.dtype
            elif x.data.dtype is not dtype:
                return False
        elif type(x) in _NUMBERS:
            numbers = True
        else:
            return False
    return dtype is not None and (dtype.kind == "f" or not (numbers or floating))


_NUMBERS = frozenset({int, float})


def _operand(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x
    if isinstance(x, (np.ndarray, np.generic)):
        return Tensor(x)
    backend.scalar_dtype(x)
    return x


def _number(number: Any, dtype: np.dtype) -> Any:
    if backend.is_float(dtype):
        return float(number)
    if dtype == backend.bool:
        return bool(number)
    limits = np.iinfo(dtype)
    if not limits.min <= number <= limits.max:
        raise DtypeError(
            f"the number {number} does not fit in {dtype}; convert the tensor with .long() first"
        )
    return int(number)
