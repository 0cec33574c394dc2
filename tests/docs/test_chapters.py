"""Every cell of every chapter runs as plain Python, each chapter alone in an empty namespace.

The check of an exercise must fail on the stub that the reader finds, and pass on the solution.
Line numbers in a traceback are those of the chapter's Markdown file.
"""

import ast
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from chapters import DOCS, Cell, cells, chapters

import minitorch as mt
from minitorch.ops import registry

SLOW = {"experts", "gpt", "grpo", "million", "optimizers", "reward_hacking", "training"}


def _parameters() -> list[Any]:
    return [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])
        for path in chapters()
    ]


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A reader's Python in docs/, and the engine as it was when the reader leaves."""
    primitives = dict(registry)
    state = mt.random.default_generator.get_state()
    threads = mt.get_num_threads()
    monkeypatch.chdir(DOCS)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    backend = mpl.get_backend()
    plt.switch_backend("agg")
    with mpl.rc_context(fname=DOCS / "matplotlibrc"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    plt.close("all")
    plt.switch_backend(backend)
    mt.random.default_generator.set_state(state)
    mt.set_num_threads(threads)
    registry.clear()
    registry.update(primitives)


def run(cell: Cell, path: Path, namespace: dict[str, Any]) -> None:
    """Execute one cell, and make what a notebook would show of its last line."""
    tree = ast.parse("\n" * (cell.line - 1) + cell.code, str(path))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(path), "exec"), namespace)
    if last is not None:
        shown = eval(compile(ast.Expression(last.value), str(path), "eval"), namespace)
        for form in ("_repr_html_", "_repr_svg_", "__repr__"):
            if hasattr(type(shown), form):
                getattr(shown, form)()


def fails(cell: Cell, path: Path, namespace: dict[str, Any]) -> bool:
    """Whether the cell raises."""
    try:
        run(cell, path, namespace)
    except Exception:
        return True
    return False


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("path", _parameters())
def test_the_chapter_runs_and_its_checks_mean_something(path: Path) -> None:
    namespace = types.ModuleType("chapter").__dict__
    mt.manual_seed(0)
    np.random.seed(0)
    todo = cells(path)
    for i, cell in enumerate(todo):
        run(cell, path, namespace)
        if "exercise" in cell.tags:
            assert fails(todo[i + 2], path, namespace), f"line {cell.line}: the stub passes"


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_an_exercise_is_a_stub_a_solution_and_a_check(path: Path) -> None:
    roles = [
        next(iter(cell.tags & {"exercise", "solution", "check"}), None) for cell in cells(path)
    ]
    kept = [role for role in roles if role is not None]
    assert kept == ["exercise", "solution", "check"] * (len(kept) // 3)
    text = "".join(role[0] if role else "." for role in roles)
    assert text.replace("esc", "").strip(".") == "", "the three cells must follow one another"
    solutions = [cell for cell in cells(path) if "solution" in cell.tags]
    assert all("hide-cell" in cell.tags for cell in solutions)


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_code_fits_the_column(path: Path) -> None:
    lines = [line for cell in cells(path) for line in cell.code.splitlines()]
    assert [line for line in lines if len(line) > 96] == []


def test_a_check_without_a_solution_is_noticed(tmp_path: Path) -> None:
    chapter = tmp_path / "chapter.md"
    chapter.write_text("text\n\n```{code-cell}\n:tags: [check]\nassert answer() == 42\n```\n")
    (cell,) = cells(chapter)
    assert cell.tags == {"check"}
    with pytest.raises(NameError) as failure:
        run(cell, chapter, {})
    assert failure.traceback[-1].lineno + 1 == 5
