"""What the chapters name exists: names of the library, definitions shown, files, other chapters."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from chapters import DOCS, chapters

pytest.importorskip("myst_nb", reason='not installed: pip install -e ".[docs]"')

from offline import remote_resources
from project_source import find

PAGES = sorted(DOCS.glob("*.md"))
_FENCES = re.compile(r"^(`{3,})[^\n]*\n.*?^\1[ ]*$", re.DOTALL | re.MULTILINE)
_SPANS = re.compile(r"(?<![`}])`([^`\n]+)`(?!`)")
_NAME = re.compile(r"(?:mt|minitorch|models|nn|optim|F)(?:\.[A-Za-z_]\w*)+")
_FILE = re.compile(r"(?:minitorch|models|docs|tests|csrc)/[\w./-]*")
_ALIASES = {"mt": "minitorch", "nn": "minitorch.nn", "optim": "minitorch.optim"}
_ALIASES["F"] = "minitorch.nn.functional"


def _spans(path: Path) -> list[str]:
    return _SPANS.findall(_FENCES.sub("", path.read_text(encoding="utf-8")))


def _resolve(name: str) -> Any:
    first, *rest = name.split(".")
    parts = [*_ALIASES.get(first, first).split("."), *rest]
    found: Any = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:i]))
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_names_of_the_library_in_the_prose_exist(path: Path) -> None:
    missing = []
    for span in _spans(path):
        for name in _NAME.findall(span):
            try:
                _resolve(name)
            except (AttributeError, ImportError):
                missing.append(name)
    assert missing == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_files_in_the_prose_exist(path: Path) -> None:
    named = [name for span in _spans(path) for name in _FILE.findall(span)]
    root = DOCS.parent
    assert [name for name in named if "_build" not in name and not (root / name).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_references_to_chapters_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"\{doc\}`(?:[^`<]*<)?([\w/]+)>?`", text) + re.findall(r":link: (\w+)", text)
    assert [name for name in named if not (DOCS / f"{name}.md").exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_definitions_shown_from_the_source_exist(path: Path) -> None:
    names = re.findall(r"^```\{source\} (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    for name in names:
        assert find(name).text


def test_every_chapter_is_in_the_contents_and_on_the_map() -> None:
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^(\w+)$", text, re.MULTILINE)
    assert {path.stem for path in chapters()} - {"index"} <= set(listed)


def test_a_definition_is_found_with_its_decorators_and_without_its_docstring() -> None:
    whole = find("minitorch.tape.Node.name")
    assert whole.text.startswith("@property\ndef name(self)")
    assert '"""' in whole.text
    assert '"""' not in find("minitorch.tape.Node.name", docstring=False).text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("minitorch.tape.Nobody", "tape.py defines no Nobody"),
        ("minitorch.tape.Node.nothing", "tape.py defines no Node.nothing"),
        ("minitorch.nowhere.Node", "defines no nowhere"),
        ("numpy.array", "no module of the project"),
    ],
)
def test_a_definition_that_does_not_exist_is_an_error(name: str, reason: str) -> None:
    with pytest.raises(LookupError, match=reason):
        find(name)


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/x.css">',
        '<img src="http://example.org/x.png">',
        "<style>@font-face { src: url(https://example.org/x.woff) }</style>",
        '<script type="module">import "https://cdn.example/x.js"</script>',
        '<svg><image xlink:href="https://example.org/x.png"/></svg>',
        '<p style="background: url(//example.org/x.png)">',
    ],
)
def test_what_a_page_would_fetch_is_found(html: str) -> None:
    assert len(remote_resources(html, ".html")) == 1


def test_links_to_follow_and_local_files_are_no_resources() -> None:
    html = (
        '<a href="https://example.org">out</a><img src="_images/x.png"><script src="x.js"></script>'
        '<svg xmlns="http://www.w3.org/2000/svg"></svg><link rel="canonical" href="https://e.org">'
    )
    assert remote_resources(html, ".html") == []
