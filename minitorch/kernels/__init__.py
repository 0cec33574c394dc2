"""Kernels: the inner loops of the engine, one signature each, looked up by name and device."""

from minitorch.kernels import reference as reference  # registers the NumPy implementations
from minitorch.kernels.table import available, implementations, lookup, prefer, register

__all__ = ["available", "implementations", "lookup", "prefer", "register"]
