"""Every build ends with a search of its own pages for anything that a browser would fetch.

A script, style sheet, image, font or frame from another host is a warning, and so, with -W, an
error. Links to follow are not: nothing happens until they are clicked.
"""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

_REMOTE = re.compile(r"\s*(?:[a-z]+:)?//", re.IGNORECASE)
_IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
_IN_SCRIPT = re.compile(
    r"""(?:import\s*\(?|fetch\(|importScripts\(|\.src\s*=)\s*["'`]((?:https?:)?//[^"'`]+)"""
)
_LOADING = {"src", "srcset", "data", "poster"}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        loading = [values[name] for name in _LOADING & values.keys()]
        if tag == "link" and values.get("rel") not in ("canonical", "author", "license"):
            loading.append(values.get("href", ""))
        if tag in ("image", "use"):
            loading += [values.get("href", ""), values.get("xlink:href", "")]
        self.found += [f"<{tag}> {value}" for value in loading if _REMOTE.match(value)]
        self.found += [f"<{tag} style> {url}" for url in _IN_STYLE.findall(values.get("style", ""))]

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self.found += [f"<style> {url}" for url in _IN_STYLE.findall(data)]
        if self.cdata_elem == "script":
            self.found += [f"<script> {url}" for url in _IN_SCRIPT.findall(data)]


def remote_resources(text: str, suffix: str) -> list[str]:
    """What a .html, .css or .js file of this content would fetch from another host."""
    if suffix == ".html":
        page = _Page()
        page.feed(text)
        return page.found
    return (_IN_STYLE if suffix == ".css" else _IN_SCRIPT).findall(text)


def _examine(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    log = logging.getLogger(__name__)
    for path in sorted(Path(app.outdir).rglob("*")):
        if path.suffix in (".html", ".css", ".js"):
            for found in remote_resources(path.read_text(encoding="utf-8"), path.suffix):
                log.warning("%s would load from the network: %s", path.name, found)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the examination."""
    app.connect("build-finished", _examine, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
