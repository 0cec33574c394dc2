"""Philox 4x64-10, the counter-based generator, as NumPy has it: a draw is (seed, offset).

The seed is the key; the offset is the upper half of the counter, so that each draw has a stream of
2^128 blocks of its own. Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

import numpy as np

_MASK = (1 << 64) - 1


def words(seed: int, offset: int) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Key and counter of a draw, in words of 64 bits, the lowest first."""
    return (seed & _MASK, seed >> 64), (0, 0, offset & _MASK, offset >> 64)


def halves(seed: int, offset: int) -> list[int]:
    """Key and counter of a draw as CUDA kernels take them: words of 32 bits, the lowest first."""
    key, counter = words(seed, offset)
    return [half for word in (*key, *counter) for half in (word & 0xFFFFFFFF, word >> 32)]


def stream(seed: int, offset: int) -> np.random.Generator:
    """NumPy's generator at the beginning of a draw."""
    key, counter = (np.array(number, np.uint64) for number in words(seed, offset))
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
