"""Writes minitorch/_methods.pyi: the methods of Tensor, for type checkers and editors.

Operations become methods of Tensor where they are defined, which a type checker cannot see. Run
`python tools/method_stubs.py` after adding one; a test compares the file with what this prints.
"""

import inspect
import re
from pathlib import Path
from typing import Any

import minitorch
from minitorch.ops.definition import Primitive
from minitorch.tensor import _attached

TARGET = Path(minitorch.__file__).with_name("_methods.pyi")
HEAD = '''\
"""The operations that are attached to Tensor. Written by tools/method_stubs.py; do not edit."""

import builtins
import collections.abc
from typing import Any

import minitorch.autograd
import minitorch.ops.reductions
from minitorch.tensor import Tensor

class Methods:
    @property
    def T(self) -> Tensor: ...
    @property
    def mT(self) -> Tensor: ...
'''
_BUILTIN = re.compile(r"(?<![\w.])(int|float|bool|str|tuple|list|dict|slice)\b")


def stubs() -> str:
    """The text of the stub file."""
    return HEAD + "".join(_stub(name, function) for name, function in sorted(_attached.items()))


def _stub(name: str, function: Any) -> str:
    ignore = "  # type: ignore[override]" if name in ("__eq__", "__ne__") else ""
    if isinstance(function, Primitive):
        others = "".join(f", {other}: Any" for other in function.inputs[1:])
        return f"    def {name}(self{others}) -> Tensor: ...{ignore}\n"
    signature = inspect.signature(function)
    parameters = ["self"]
    for parameter in list(signature.parameters.values())[1:]:
        text = parameter.name
        if parameter.kind is parameter.VAR_POSITIONAL:
            text = "*" + text
        if parameter.annotation is not parameter.empty:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += " = ..."
        parameters.append(text)
    result = signature.return_annotation
    returns = "Tensor" if result is signature.empty else _annotation(result)
    return f"    def {name}({', '.join(parameters)}) -> {returns}: ...{ignore}\n"


def _annotation(annotation: Any) -> str:
    text = inspect.formatannotation(annotation)
    text = text.replace("minitorch.tensor.Tensor", "Tensor").replace("NoneType", "None")
    return _BUILTIN.sub(r"builtins.\1", text)


if __name__ == "__main__":
    TARGET.write_text(stubs(), encoding="utf-8")
