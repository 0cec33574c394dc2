"""Experts in Hugging Face's files: one matrix at a time, or stacked as they are here.

    on the disk     mlp.experts.3.gate_proj.weight, .up_proj.weight, .down_proj.weight
    Mixtral's       block_sparse_moe.experts.3.w1.weight, .w3.weight, .w2.weight
    stacked         mlp.experts.gate_up_proj, mlp.experts.down_proj

Public files have the first two; transformers keeps the third in memory since version 5, and saves
it where it is told to. All are read, and what the public files have is written.
"""

import re
from collections.abc import Mapping

import numpy as np

from minitorch.errors import CheckpointError

Arrays = dict[str, np.ndarray]
Names = tuple[str, str, str]
"""The names of gate, up and down."""

PROJECTIONS: Names = ("gate_proj", "up_proj", "down_proj")
NUMBERED: Names = ("w1", "w3", "w2")
EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)\.weight")


def stacked(arrays: Mapping[str, np.ndarray], names: Names = PROJECTIONS) -> Arrays:
    """The arrays, with experts of their own name stacked; those that are already stay."""
    parts: dict[str, dict[tuple[int, str], np.ndarray]] = {}
    out = {}
    for name, array in arrays.items():
        found = EXPERT.fullmatch(name)
        if found and found[3] in names:
            parts.setdefault(found[1], {})[int(found[2]), found[3]] = array
        else:
            out[name] = array
    for prefix, experts in parts.items():
        gate, up, down = (_stack(prefix, experts, name) for name in names)
        out[f"{prefix}.gate_up_proj"] = np.concatenate([gate, up], 1)
        out[f"{prefix}.down_proj"] = down
    return out


def _stack(prefix: str, experts: Mapping[tuple[int, str], np.ndarray], name: str) -> np.ndarray:
    total = 1 + max(number for number, _ in experts)
    missing = [i for i in range(total) if (i, name) not in experts]
    if missing:
        raise CheckpointError(
            f"{prefix}: expected {name} of the experts 0 to {total - 1}; missing are those of "
            f"{', '.join(map(str, missing[:10]))}. The folder is incomplete: copy it again"
        )
    shapes = {experts[i, name].shape for i in range(total)}
    if len(shapes) > 1:
        raise CheckpointError(f"{prefix}: expected {name} of one shape; got {sorted(shapes)}")
    return np.stack([experts[i, name] for i in range(total)])


def separate(arrays: Mapping[str, np.ndarray], names: Names = PROJECTIONS) -> Arrays:
    """The inverse of `stacked`: views, nothing is copied."""
    out = {}
    for name, array in arrays.items():
        prefix, _, last = name.rpartition(".")
        if not prefix.endswith(".experts"):
            out[name] = array
            continue
        parts = np.split(array, 2, 1) if last == "gate_up_proj" else [array]
        chosen = names[:2] if last == "gate_up_proj" else names[2:]
        for part, projection in zip(parts, chosen, strict=True):
            for i, weight in enumerate(part):
                out[f"{prefix}.{i}.{projection}.weight"] = weight
    return out
