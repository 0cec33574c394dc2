"""Every error that minitorch raises on purpose.

Each message names the operation, what was expected, what came, and the remedy. Each class also
derives from the built-in error that a Python programmer would expect to catch.
"""


class MinitorchError(Exception):
    """The base of all errors below; the command line prints these without a traceback."""


class ShapeError(MinitorchError, ValueError):
    """Shapes, dimensions or indices that do not fit the operation."""


class DtypeError(MinitorchError, TypeError):
    """A dtype that the operation does not take, or that cannot be converted."""


class DeviceError(MinitorchError, RuntimeError):
    """A device that is unknown, absent, or different from that of the other arguments."""


class GraphError(MinitorchError, RuntimeError):
    """The tape used in a way that has no meaning: freed, changed in place, not differentiable."""


class KernelError(MinitorchError, RuntimeError):
    """No implementation of a kernel where one was asked for."""


class DataError(MinitorchError, ValueError):
    """Text or token data that cannot be read or does not suit its purpose."""


class CheckpointError(MinitorchError, RuntimeError):
    """A saved file that is missing, damaged, or does not match what it is loaded into."""


class ConfigError(MinitorchError, ValueError):
    """A configuration key or value that is not valid."""


class GradcheckError(MinitorchError, AssertionError):
    """A derivative that disagrees with its numeric estimate."""
