"""The cells of a chapter, read from its Markdown file.

A chapter is MyST Markdown whose fences marked `{code-cell}` are executed. An exercise is three
cells in a row, told apart by their tags: `exercise`, a stub for the reader to fill; `solution`,
folded away in the page; `check`, assertions that fail on the stub and pass on the solution.
"""

import re
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[1]
_FENCE = re.compile(r"^(`{3,}|:{3,})\{code-cell\}[^\n]*\n(.*?)^\1[ ]*$", re.DOTALL | re.MULTILINE)
_TAGS = re.compile(r"\A:tags: *\[([^\]]*)\]\n")


class Cell(NamedTuple):
    """A cell of code. line: the file's line before its first line of code, counted from 1."""

    code: str
    tags: frozenset[str]
    line: int
    span: tuple[int, int]


def chapters() -> list[Path]:
    """The Markdown files that hold cells, by name."""
    return sorted(p for p in DOCS.glob("*.md") if p.name != "README.md" and cells(p))


def cells(path: Path) -> list[Cell]:
    """The cells of one chapter, in their order."""
    text = path.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        body = fence[2]
        header = _TAGS.match(body)
        code = body[header.end() :] if header else body
        tags = frozenset(re.split(r"[,\s]+", header[1].strip())) if header else frozenset()
        line = text.count("\n", 0, fence.end(2) - len(code)) + 1
        found.append(Cell(code, tags, line, fence.span()))
    return found
