"""What the fields of a configuration hold, checked: sizes, positive numbers, shares."""

from typing import Any

from minitorch.errors import ConfigError


def check_size(name: str, value: Any) -> None:
    """ConfigError unless value is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}: expected an integer of at least 1; got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """ConfigError unless value is a number above 0."""
    if not _is_number(value) or not value > 0:
        raise ConfigError(f"{name}: expected a number above 0; got {value!r}")


def check_share(name: str, value: Any) -> None:
    """ConfigError unless value is a number in [0, 1), as the probability of dropout is."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ConfigError(f"{name}: expected a number in [0, 1); got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
