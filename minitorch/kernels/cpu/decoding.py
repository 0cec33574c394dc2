"""Blocks of a GPT that take in one new token of each sequence (csrc/cpu/kernels/decoding.cpp)."""

from contextlib import suppress

import numpy as np

from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.cpu.matmul import ACTIVATIONS
from minitorch.kernels.reference import decoding as reference
from minitorch.kernels.table import register

Array = np.ndarray


@register("decode_blocks", "cpu", half=reference.HALF)
def decode_blocks(x: Array, *others: Array | None, eps: float, activation: str) -> Array:
    """The reference's, in one call; it is left "gelu", arrays of several dtypes, and gaps."""
    number = ACTIVATIONS.get(activation)
    if number is not None:
        with suppress(ValueError):  # of shapes; the reference says what it expects
            done = extension.decode_blocks_as_it_is(x, *others, eps, number)
            if done is not None:
                return done
    return reference.decode_blocks(x, *others, eps=eps, activation=activation)
