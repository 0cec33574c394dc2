"""What devices can do at most by their datasheets, and the two floors that follow for a kernel.

Work cannot be done sooner than its arithmetic takes at the full rate, nor than the bytes take that
must be read and written once. The greater floor is what a kernel is held against (the roofline).
Source: NVIDIA H100 and H200 Tensor Core GPU datasheets, SXM, without sparsity.
"""

_HOPPER = {"e4m3": 1979e12, "bfloat16": 989e12, "float16": 989e12, "tf32": 495e12, "float32": 67e12}
RATES = {
    "H200": {**_HOPPER, "bytes": 4.8e12},
    "H100": {**_HOPPER, "bytes": 3.35e12},
}
"""Multiplications and additions in a second, by the operands' dtype; bytes of memory."""


def rates_of(gpu: str) -> dict[str, float] | None:
    """Those of the device of this name, if it is known."""
    return next((rates for name, rates in RATES.items() if name in gpu), None)


def floors(flops: float, size: float, dtype: str, rates: dict[str, float]) -> tuple[float, float]:
    """Seconds: of the arithmetic, and of the bytes."""
    return flops / rates[dtype], size / rates["bytes"]
