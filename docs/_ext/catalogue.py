"""The directive `catalogue`: every primitive of one structure, as the engine's registry has it.

    ```{catalogue} elementwise
    ```

makes a section for each primitive: its formula, its Jacobian as a formula and as a picture at the
first sample on which the tests check it, and its definition with the derivative rule. For
`nondifferentiable` it makes one table that says why there is no derivative.
"""

import ast
import inspect
import math
from typing import Any

import numpy as np
from docutils import nodes
from project_source import ROOT, Definition, block, find
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import minitorch as mt
from minitorch.ops import registry
from minitorch.tape import apply


class Catalogue(SphinxDirective):
    """The directive; see the head of this file."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Sections in the order of the source files."""
        structure = self.arguments[0]
        chosen = [
            p
            for p in registry.values()
            if p.structure == structure and p.module.startswith("minitorch.")
        ]
        if not chosen:
            raise self.error(f"catalogue: no primitive has the structure {structure!r}")
        for module in {p.module for p in chosen}:
            self.env.note_dependency(str(ROOT.joinpath(*module.split(".")).with_suffix(".py")))
        if structure == "nondifferentiable":
            return [_table(chosen)]
        return [self._section(p) for p in chosen]

    def _section(self, primitive: Any) -> nodes.section:
        name = f"primitive-{primitive.name.replace('_', '-')}"
        section = nodes.section("", nodes.title("", primitive.name), ids=[name], names=[name])
        self.state.document.note_explicit_target(section)
        card = nodes.container(classes=["primitive"])
        text = nodes.container(classes=["primitive-text"])
        text += nodes.math_block("", primitive.formula, nowrap=False, number=None)
        if primitive.jacobian:
            line = nodes.paragraph("", "Jacobian: ", nodes.math("", primitive.jacobian))
            text += line
        text += nodes.paragraph("", _kept(primitive), classes=["kept"])
        card += [text, nodes.raw("", _picture(primitive), format="html")]
        section += [card, *[block(definition) for definition in definitions(primitive)]]
        return section


def _kept(primitive: Any) -> str:
    if primitive.structure == "fused":
        return "The tape keeps its inputs" + (
            f", and {', '.join(primitive.extras)} from the kernel." if primitive.extras else "."
        )
    names = primitive.inputs
    if primitive.variadic:
        if not primitive.saves[True, True]:
            return "The tape keeps nothing."
        return "The tape keeps each input where another one needs a gradient."
    rules = getattr(primitive, "rules", [])
    needs = tuple(i < len(rules) and rules[i] is not None for i in range(len(names)))
    saved = ["the result" if i < 0 else names[i] for i in primitive.saves[needs]]
    return f"The tape keeps {' and '.join(saved)}." if saved else "The tape keeps nothing."


def jacobian(primitive: Any) -> tuple[np.ndarray, list[int]]:
    """The Jacobian at the first sample, (out, all inputs), and the width of each input in it."""
    sample = primitive.samples()[0]
    inputs = [
        mt.tensor(x, requires_grad=True) if _floating(x) else _plain(x) for x in sample.inputs
    ]
    out = apply(primitive, inputs, sample.meta)
    moving = [x for x in inputs if isinstance(x, mt.Tensor) and x.requires_grad]
    rows = []
    for i in range(out.numel()):
        unit = np.zeros(out.numel())
        unit[i] = 1.0
        found = mt.autograd.grad(
            out, moving, mt.tensor(unit).reshape(out.shape), retain_graph=True, allow_unused=True
        )
        rows.append(
            [
                np.zeros(x.numel()) if g is None else g.detach().numpy().ravel()
                for x, g in zip(moving, found, strict=True)
            ]
        )
    widths = [x.numel() for x in moving]
    return np.array([np.concatenate(row) for row in rows]).reshape(out.numel(), -1), widths


def _floating(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def _plain(x: Any) -> Any:
    return mt.tensor(x) if isinstance(x, np.ndarray) else x


def _picture(primitive: Any) -> str:
    """The Jacobian as an SVG of squares, coloured by the style sheet: (out) rows, (in) columns."""
    matrix, widths = jacobian(primitive)
    limit = np.abs(matrix[np.isfinite(matrix)]).max(initial=0) or 1
    height, width = matrix.shape
    squares = "".join(
        f'<rect class="{"plus" if value > 0 else "minus"}" x="{column}" y="{row}" '
        f'opacity="{min(1, 0.15 + 0.85 * abs(value) / limit):.2f}"/>'
        for row, values in enumerate(matrix)
        for column, value in enumerate(values)
        if value and math.isfinite(value)
    )
    bars = "".join(
        f'<path class="bar" d="M{x} 0V{height}"/>' for x in np.cumsum(widths)[:-1].tolist()
    )
    scale = min(10, 260 / width, 260 / max(height, 1))
    return (
        f'<figure class="jacobian"><svg role="img" aria-label="The Jacobian of {primitive.name}" '
        f'style="width: {width * scale:.0f}px" viewBox="-0.1 -0.1 {width + 0.2} {height + 0.2}">'
        f'{squares}{bars}<path class="frame" d="M0 0H{width}V{height}H0Z"/></svg>'
        f"<figcaption>{height} × {width}</figcaption></figure>"
    )


def definitions(primitive: Any) -> list[Definition]:
    """The statement that defines a primitive, and the named functions that its rules are.

    Where these show no rule, the function that the statement calls, which writes it.
    """
    path = ROOT.joinpath(*primitive.module.split(".")).with_suffix(".py")
    source = path.read_text(encoding="utf-8")
    found, maker = [], None
    for statement in ast.parse(source).body:
        call = getattr(statement, "value", None)
        if not isinstance(call, ast.Call) or not call.args:
            continue
        first = call.args[0]
        if isinstance(first, ast.Constant) and first.value == primitive.name:
            lines = source.splitlines()[statement.lineno - 1 : statement.end_lineno]
            found.append(Definition("\n".join(lines), path, statement.lineno))
            if "lambda" not in found[0].text and isinstance(call.func, ast.Name):
                maker = f"{primitive.module}.{call.func.id}"
            break
    else:
        raise LookupError(f"catalogue: no statement of {path} defines {primitive.name}")
    rules = [rule and rule.function for rule in getattr(primitive, "rules", ())]
    for function in [*rules, getattr(primitive, "joint", None), *_reference(primitive)]:
        if function is not None and "<lambda>" not in function.__name__:
            named = find(f"{function.__module__}.{function.__name__}")
            if named not in found:
                found.append(named)
    if maker is not None and len(found) == 1:
        found.append(find(maker))
    return found


def _reference(primitive: Any) -> list[Any]:
    reference = getattr(primitive, "reference", None)
    return [reference] if reference is not None and inspect.isfunction(reference) else []


def _table(primitives: list[Any]) -> nodes.table:
    table = nodes.table("", classes=["nondifferentiable"])
    group = nodes.tgroup("", cols=3)
    table += group
    group += [nodes.colspec("", colwidth=width) for width in (2, 3, 6)]
    head, body = nodes.thead(""), nodes.tbody("")
    group += [head, body]
    head += _row([nodes.Text(t) for t in ("operation", "formula", "why it has no derivative")])
    for p in primitives:
        body += _row([nodes.literal("", p.name), nodes.math("", p.formula), nodes.Text(p.why)])
    return table


def _row(contents: list[nodes.Node]) -> nodes.row:
    return nodes.row("", *[nodes.entry("", nodes.paragraph("", "", c)) for c in contents])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("catalogue", Catalogue)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
