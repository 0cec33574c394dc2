"""Imports run downward only, and in no circle: the contracts in pyproject.toml."""

import pytest


def test_import_contracts():
    pytest.importorskip("importlinter", reason="not installed: pip install -e .[dev]")
    from importlinter.cli import lint_imports

    assert lint_imports(no_cache=True) == 0


def test_nothing_at_run_time_imports_a_peer():
    import subprocess
    import sys

    program = (
        "import sys, minitorch, models.cli, models.training, models.commands.train; "
        "print(sorted({'torch', 'jax', 'tensorflow', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
