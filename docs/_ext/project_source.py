"""The directive `source`: a definition of the project, shown from its file by name.

    ```{source} minitorch.tape.Node
    ```

shows a function, a class, a method (`minitorch.gradcheck.report.Report.worst`), or the statement
that assigns a name (`minitorch.ops.general._softmax`), with its file and first line as a caption. A
name that does not exist is an error, so the book cannot show what the project no longer has.
Nothing is imported: the file is parsed.

Options: `:docstring: no` leaves the docstring of the outermost definition out.
"""

import ast
import functools
import textwrap
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]


class Definition(NamedTuple):
    """A piece of a source file. line: of its first line, counted from 1."""

    text: str
    path: Path
    line: int


def find(name: str, *, docstring: bool = True) -> Definition:
    """The definition of a dotted name; LookupError says how far the name could be followed."""
    path, rest = _module(name)
    source = path.read_text(encoding="utf-8")
    scope: Any = _parse(path)
    for i, part in enumerate(rest):
        for statement in scope.body:
            if part in _names(statement):
                scope = statement
                break
        else:
            raise LookupError(f"{path.relative_to(ROOT)} defines no {'.'.join(rest[: i + 1])}")
    first = min([scope.lineno, *(d.lineno for d in getattr(scope, "decorator_list", ()))])
    lines = source.splitlines()[first - 1 : scope.end_lineno]
    if not docstring and ast.get_docstring(scope) is not None:
        quoted = scope.body[0]
        del lines[quoted.lineno - first : quoted.end_lineno - first + 1]
        while lines[quoted.lineno - first : quoted.lineno - first + 1] == [""]:
            del lines[quoted.lineno - first]
    return Definition(textwrap.dedent("\n".join(lines)), path, first)


def _module(name: str) -> tuple[Path, list[str]]:
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        base = ROOT.joinpath(*parts[:count])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path, parts[count:]
    raise LookupError(f"no module of the project holds {name}")


@functools.cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Assign):
        return {target.id for target in statement.targets if isinstance(target, ast.Name)}
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return {statement.target.id}
    return set()


def block(definition: Definition) -> nodes.container:
    """The definition as a captioned, highlighted block."""
    where = definition.path.relative_to(ROOT)
    box = nodes.container("", literal_block=True, classes=["literal-block-wrapper", "source"])
    caption = nodes.caption("", "", nodes.literal("", f"{where}:{definition.line}"))
    box += [caption, nodes.literal_block(definition.text, definition.text, language="python")]
    return box


class Source(SphinxDirective):
    """The directive; see the head of this file."""

    required_arguments = 1
    option_spec: ClassVar = {"docstring": lambda value: directives.choice(value, ("yes", "no"))}

    def run(self) -> list[nodes.Node]:
        """Look the name up, and make the page depend on the file."""
        try:
            found = find(self.arguments[0], docstring=self.options.get("docstring", "yes") == "yes")
        except LookupError as error:
            raise self.error(f"source: {error}") from error
        self.env.note_dependency(str(found.path))
        return [block(found)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("source", Source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
