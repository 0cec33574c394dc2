"""The book's Sphinx extensions: formulas, figures, the catalogue, notebooks."""

import numpy as np
import pytest

pytest.importorskip("myst_nb", reason='not installed: pip install -e ".[docs]"')

from catalogue import definitions, jacobian
from chapters import DOCS, cells, chapters
from inline_svg import to_inline
from mathml import to_mathml
from notebooks import notebook
from sphinx.errors import ExtensionError

import minitorch as mt
from minitorch.ops import registry

PRIMITIVES = [p for p in registry.values() if p.module.startswith("minitorch.")]


def test_a_formula_becomes_mathml() -> None:
    math = to_mathml(r"\frac{1}{2} x^2", display=True)
    assert math.startswith("<math")
    assert "<mfrac>" in math
    assert "display" in math.split(">")[0]


def test_a_prime_is_not_raised_twice() -> None:
    assert "<msup>" not in to_mathml("f'(x)", display=False)
    assert "<msup>" in to_mathml("x^2 f'", display=False)


def test_a_formula_that_cannot_be_read_is_an_error_that_shows_it() -> None:
    with pytest.raises(ExtensionError, match=r"nonsense"):
        to_mathml(r"\nonsense{x}", display=False)


@pytest.mark.parametrize("primitive", PRIMITIVES, ids=lambda p: p.name)
def test_every_primitive_has_formulas_and_a_definition(primitive) -> None:
    assert to_mathml(primitive.formula, display=True)
    if primitive.jacobian:
        assert to_mathml(primitive.jacobian, display=False)
    if primitive.structure != "nondifferentiable":
        assert repr(primitive.name) in definitions(primitive)[0].text.replace('"', "'")


def test_the_picture_of_softmax_is_its_jacobian() -> None:
    found, widths = jacobian(registry["softmax"])
    (x,) = registry["softmax"].samples()[0].inputs
    rows = mt.tensor(x).softmax(1).numpy()
    expected = np.zeros((x.size, x.size))
    for i, s in enumerate(rows):
        at = slice(i * len(s), (i + 1) * len(s))
        expected[at, at] = np.diag(s) - np.outer(s, s)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert widths == [x.size]


def test_black_becomes_the_colour_of_the_text() -> None:
    svg = (
        '<?xml version="1.0"?><svg width="72pt" height="36pt" viewBox="0 0 72 36">'
        '<metadata>m</metadata><g id="figure_1"><path style="stroke: #000000"/>'
        "<text style=\"font: 9px 'X'; text-anchor: middle\">a</text></g></svg>"
    )
    inline = to_inline(svg, 'a "figure"')
    assert inline.startswith('<svg role="img" aria-label="a &quot;figure&quot;"')
    assert "stroke: currentColor" in inline
    assert "font-size: 9px; text-anchor: middle" in inline
    assert "metadata" not in inline
    assert "width: 96px" in inline


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_a_notebook_has_every_cell_and_its_solutions_last(path) -> None:
    code = [cell.source for cell in notebook(path).cells if cell.cell_type == "code"]
    assert sorted(code) == sorted(cell.code.rstrip() for cell in cells(path))
    solutions = [cell.code.rstrip() for cell in cells(path) if "solution" in cell.tags]
    assert code[len(code) - len(solutions) :] == solutions


def test_a_definition_in_a_notebook_is_code_to_read() -> None:
    text = "\n".join(cell.source for cell in notebook(DOCS / "tape.md").cells)
    assert "{source}" not in text
    assert "def _sweep(" in text


def test_a_piece_of_a_file_in_a_notebook_is_code_to_read() -> None:
    text = "\n".join(cell.source for cell in notebook(DOCS / "matmul.md").cells)
    assert "{literalinclude}" not in text
    assert "```cpp\nSTEP three_loops(" in text
    assert "outer_products(long depth" in text
