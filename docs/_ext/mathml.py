"""Mathematics as MathML, made at build time: no script runs in the page, and nothing is fetched.

math-core turns LaTeX into MathML Core, which every current browser draws by itself. It draws it
well only with a font that has a MATH table, so STIX Two Math (SIL Open Font License), which the
package ziamath carries, is reduced to the characters of mathematics and placed beside the pages.
"""

import functools
import re
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import math_core
from docutils import nodes
from fontTools import subset
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.math import get_node_equation_number

FONT = "STIXTwoMath.woff"
CHARACTERS = [
    *range(0x20, 0x17F),  # Latin
    *range(0x2B0, 0x3FF),  # accents, Greek
    *range(0x2000, 0x2BFF),  # punctuation, arrows, operators, brackets, shapes
    *range(0x1D400, 0x1D7FF),  # the alphabets: browsers draw <mi>x</mi> with U+1D465
]

_PRIME = re.compile("<msup>((?:(?!<msup>).)*?)<mo>([′″‴])</mo></msup>")


@functools.cache
def _converter() -> Any:
    return math_core.LatexToMathML(macros={"R": r"\mathbb{R}", "T": r"^{\top}"})


def to_mathml(latex: str, *, display: bool) -> str:
    """The <math> element for one formula; ExtensionError where it cannot be read."""
    try:
        math = _converter().convert_with_local_state(latex.strip(), displaystyle=display)
    except math_core.LatexError as error:
        raise ExtensionError(f"mathml: cannot read the formula {latex!r}: {error}") from error
    # A font's prime is raised already: as a superscript it would be raised twice.
    return _PRIME.sub(r'<mrow>\1<mo lspace="0" rspace="0">\2</mo></mrow>', math)


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(to_mathml(node.astext(), display=False))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    latex = node.astext()
    if "\\\\" in latex and "\\begin" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    attributes = {"ids": node["ids"]} if node.get("ids") else {}
    translator.body.append(translator.starttag(node, "div", CLASS="math", **attributes))
    translator.body.append(to_mathml(latex, display=True))
    if node.get("number"):
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})</span>')
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def _write_font(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    options = subset.Options(flavor="woff", layout_features=["*"], notdef_outline=True)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=CHARACTERS)
    with as_file(files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf") as path:
        font = subset.load_font(path, options)
    subsetter.subset(font)
    subset.save_font(font, Path(app.outdir) / "_static" / FONT, options)


def setup(app: Sphinx) -> dict[str, Any]:
    """Make MathML the renderer of every formula in HTML."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.config.html_math_renderer = "mathml"
    app.connect("build-finished", _write_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
