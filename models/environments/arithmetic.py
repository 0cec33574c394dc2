"""Arithmetic that a model has written, worked out exactly and within bounds.

A text is parsed by Python's own grammar and then only what is listed here is walked: numbers,
+ - * / // % **, signs and parentheses. No name, call, attribute or comparison gets past. Values are
fractions, so 1/3*3 is 1. Everything is bounded before it is done: the text, the depth, an exponent,
and the digits of a result.
"""

import ast
import operator
import re
from collections.abc import Callable, Collection
from fractions import Fraction

from minitorch.errors import MinitorchError

LONGEST_TEXT, LARGEST_EXPONENT, LARGEST_BITS = 200, 64, 256

ALLOWED = re.compile(r"[0-9+\-*/%(). ]*", re.ASCII)

OPERATIONS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


class ArithmeticRefused(MinitorchError, ValueError):
    """A text that is no arithmetic, or too much of it."""


def parse(text: str, operations: Collection[type] = tuple(OPERATIONS)) -> ast.expr:
    """The tree of an expression that has these operations only. Raises ArithmeticRefused."""
    if len(text) > LONGEST_TEXT:
        raise ArithmeticRefused(f"expected at most {LONGEST_TEXT} characters; got {len(text)}")
    if not ALLOWED.fullmatch(text):
        raise ArithmeticRefused(f"expected digits, signs and parentheses; got {text!r}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ArithmeticRefused(f"expected an expression; got {text!r}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and type(node.op) not in operations:
            raise ArithmeticRefused(f"{type(node.op).__name__} is not allowed here")
        known = ast.BinOp | ast.UnaryOp | ast.Constant | ast.operator | ast.unaryop
        if not isinstance(node, known):
            raise ArithmeticRefused(f"{type(node).__name__} is no arithmetic")
    return tree


def evaluate(tree: ast.expr) -> Fraction:
    """The value of a tree that parse gave. Raises ArithmeticRefused, for a division by 0 too."""
    match tree:
        case ast.Constant(value=int() | float() as value):
            return _bounded(Fraction(str(value)))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -evaluate(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return evaluate(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return _applied(type(op), evaluate(left), evaluate(right))
    raise ArithmeticRefused(f"{type(tree).__name__} is no arithmetic")


def numbers_in(tree: ast.expr) -> list[int | float]:
    """The numbers that an expression was made of."""
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]  # type: ignore[misc]


def calculate(text: str) -> str:
    """The value of a text as a text: an integer, a fraction's decimals, or "error".

    Decimals are rounded to six places.
    """
    try:
        value = evaluate(parse(text))
    except ArithmeticRefused:
        return "error"
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.6f}".rstrip("0").rstrip(".")


def _applied(op: type, left: Fraction, right: Fraction) -> Fraction:
    if op is ast.Pow and (right.denominator != 1 or abs(right) > LARGEST_EXPONENT):
        raise ArithmeticRefused(f"expected an exponent of at most {LARGEST_EXPONENT}; got {right}")
    try:
        return _bounded(Fraction(OPERATIONS[op](left, right)))
    except ZeroDivisionError:
        raise ArithmeticRefused("division by 0") from None


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > LARGEST_BITS:
        raise ArithmeticRefused(f"a value of more than {LARGEST_BITS} bits")
    return value
