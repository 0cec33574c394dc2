"""Every chapter as a notebook to download, with its solutions at the end, and named as such.

`_downloads/NAME.ipynb` is written next to the pages, and each chapter's page links to its own.
"""

import re
from pathlib import Path
from typing import Any

import nbformat
from chapters import DOCS, Cell, cells, chapters
from docutils import nodes
from project_source import find
from sphinx.application import Sphinx

_SOURCE = re.compile(r"^```\{source\} (\S+)\n.*?^```$", re.DOTALL | re.MULTILINE)
_INCLUDE = re.compile(
    r"^```\{literalinclude\} (\S+)\n:language: (\w+)\n:class: source\n"
    r':start-after: "(.*)"\n:end-before: "(.*)"\n```$',
    re.MULTILINE,
)
_ROLE = re.compile(r"\{\w+\}`([^`]*)`")
_TARGET = re.compile(r"^\([\w-]+\)=\n", re.MULTILINE)


def notebook(path: Path) -> nbformat.NotebookNode:
    """The notebook of one chapter, not executed."""
    text = path.read_text(encoding="utf-8")
    body, solutions, position = [], [], 0
    for cell in cells(path):
        body.append(_prose(text[position : cell.span[0]]))
        (solutions if "solution" in cell.tags else body).append(_code(cell))
        position = cell.span[1]
    body.append(_prose(text[position:]))
    if solutions:
        body.append(nbformat.v4.new_markdown_cell("## Solutions, in order"))
    book = nbformat.v4.new_notebook(cells=[c for c in body if c.source.strip()] + solutions)
    book.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    for i, cell in enumerate(book.cells):
        cell["id"] = f"{path.stem}-{i}"
    return book


def _prose(text: str) -> nbformat.NotebookNode:
    text = re.sub(r"\A---\n.*?^---\n", "", text, flags=re.DOTALL | re.MULTILINE)
    text = _SOURCE.sub(lambda m: f"```python\n{find(m[1]).text}\n```", text)
    text = _INCLUDE.sub(_included, text)
    return nbformat.v4.new_markdown_cell(_TARGET.sub("", _ROLE.sub(r"\1", text)).strip())


def _included(match: re.Match[str]) -> str:
    path, language, start, end = match.groups()
    _, _, rest = (DOCS / path).read_text(encoding="utf-8").partition(f"{start}\n")
    return f"```{language}\n{rest[: rest.index(end)].rstrip()}\n```"


def _code(cell: Cell) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(cell.code.rstrip())


def _name_solutions(app: Sphinx, document: nodes.document) -> None:
    for box in document.findall(nodes.container):
        if "prompt_show" in box and "tag_solution" in box["classes"]:
            box["prompt_show"], box["prompt_hide"] = "Solution", "Solution"


def _link(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if doctree is not None and any(path.stem == page for path in chapters()):
        up = "../" * page.count("/")
        link = (
            f'<p class="notebook-link"><a href="{up}_downloads/{page}.ipynb" download>'
            "This page as a notebook</a></p>"
        )
        context["body"] = context["body"].replace("</h1>", f"</h1>\n{link}", 1)


def _write(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir) / "_downloads"
    folder.mkdir(exist_ok=True)
    for path in chapters():
        nbformat.write(notebook(path), folder / f"{path.stem}.ipynb")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the handlers."""
    app.connect("doctree-read", _name_solutions)
    app.connect("html-page-context", _link)
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
