"""Figures become part of the page: what a chapter draws follows the light or the dark theme.

Matplotlib writes SVG with text as text and black as black. Placed in the page itself, the text
takes the font of the page, and black becomes `currentColor`, the colour of the text.
"""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform


def to_inline(svg: str, description: str) -> str:
    """An <svg> element for a page, from a file that Matplotlib wrote."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<g|<text) id="[\w-]+_\d+"', r"\1", svg)
    svg = re.sub(r"#000000\b", "currentColor", svg)
    svg = re.sub(r"<text([^>]*?)style=\"([^\"]*)\"", _text_style, svg)
    svg = re.sub(r'<svg[^>]*?width="([\d.]+)pt"[^>]*?>', _open, svg, count=1)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).strip()


def _text_style(match: re.Match[str]) -> str:
    size = re.search(r"([\d.]+)px", match[2])
    anchor = re.search(r"text-anchor: *\w+", match[2])
    fill = re.search(r"fill: *[^;]+", match[2])
    parts = [f"font-size: {size[1]}px" if size else "", anchor and anchor[0], fill and fill[0]]
    style = "; ".join(filter(None, parts))
    return f'<text{match[1]}style="{style}"'


def _open(match: re.Match[str]) -> str:
    box = re.search(r'viewBox="[^"]*"', match[0])
    width = float(match[1]) * 4 / 3
    return (
        f'<svg class="figure" style="width: {width:.0f}px" {box[0] if box else ""} '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )


class InlineSvg(SphinxPostTransform):
    """Replaces the SVG images among the outputs of cells; text outputs next to them stay."""

    default_priority = 900
    formats = ("html",)

    def run(self, **_: Any) -> None:
        """Visit every image of the page."""
        for image in list(self.document.findall(nodes.image)):
            path = Path(self.app.srcdir, image["uri"])
            if path.suffix != ".svg" or not path.is_file():
                continue
            text = path.read_text(encoding="utf-8")
            if "matplotlib" not in text:
                continue
            image.replace_self(nodes.raw("", to_inline(text, image.get("alt", "")), format="html"))
            self.env.images.pop(image["uri"], None)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the transform."""
    app.add_post_transform(InlineSvg)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
