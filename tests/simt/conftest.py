"""What tests of the emulator need of the machine."""

import shutil

import pytest


@pytest.fixture(scope="session", autouse=True)
def compiler():
    """A compiler, and what tells source lines from addresses."""
    if not shutil.which("g++") or not shutil.which("addr2line"):
        pytest.skip("needs g++ and addr2line (binutils)")
