"""minitorch/_methods.pyi says what the methods of Tensor are at run time."""

import runpy
from pathlib import Path

import minitorch

TOOL = Path(minitorch.__file__).parents[1] / "tools" / "method_stubs.py"


def test_the_stub_file_is_up_to_date():
    tool = runpy.run_path(str(TOOL))
    assert tool["TARGET"].read_text(encoding="utf-8") == tool["stubs"](), (
        "run python tools/method_stubs.py"
    )
