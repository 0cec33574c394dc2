"""What every test shares: runs that repeat, whatever the machine's speed and the tests' order."""

import pytest
from hypothesis import settings

import minitorch as mt

settings.register_profile("minitorch", deadline=None, derandomize=True)
settings.load_profile("minitorch")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before the fixtures of a test: what it draws does not depend on the tests before it."""
    mt.manual_seed(0)
