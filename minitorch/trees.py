"""Trees: tensors in nested lists, tuples and dicts, as arguments and results of functions."""

from collections.abc import Callable, Sequence
from typing import Any

from minitorch.tensor import Tensor

Tree = Any
Rebuild = Callable[[Sequence[Any]], Tree]


def flatten(tree: Tree) -> tuple[list[Tensor], Rebuild]:
    """The tensors of nested lists, tuples and dicts, and a function that puts others in place."""
    if isinstance(tree, Tensor):
        return [tree], lambda leaves: leaves[0]
    if isinstance(tree, dict):
        keys = list(tree)
        leaves, rebuild_list = flatten([tree[key] for key in keys])
        return leaves, lambda new: dict(zip(keys, rebuild_list(new), strict=True))
    if isinstance(tree, (list, tuple)):
        parts = [flatten(item) for item in tree]

        def rebuild(new: Sequence[Any]) -> Tree:
            rest = iter(new)
            items = [build([next(rest) for _ in leaves]) for leaves, build in parts]
            if hasattr(tree, "_fields"):
                return type(tree)(*items)
            return type(tree)(items)

        return [leaf for leaves, _ in parts for leaf in leaves], rebuild
    return [], lambda _: tree
