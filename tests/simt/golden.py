"""Golden vectors: what a GPU's instructions gave for random inputs, for the emulator to repeat.

tests/simt/fragments.cu, which both compilers take, calls the functions of ptx.h and wgmma.h that
compute or move numbers; `cases` are inputs for it. On a GPU

    python -m tests.gpu --only golden RESULT.json

compiles it with nvcc, runs every case and writes inputs and outputs to RESULT.golden.safetensors; a
test holds the emulator against each such file in tests/simt/golden. What moves numbers must be the
same bits. Sums are made
in another order there than here, and by tensor cores with fewer bits, so they may differ a little.
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from minitorch.io import load_safetensors, save_safetensors

COMMITTED = Path(__file__).with_name("golden")
SWIZZLES = {0: 0, 128: 1, 64: 2, 32: 3}  # bytes -> the field of a descriptor
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
FLOAT8 = ml_dtypes.float8_e4m3fn
TOLERANCE = 1e-4
"""Of sums of at most 17 products of numbers around 1, relative and absolute."""

Compute = Callable[[str, bytes], bytes]
"""A kernel's name and its input -> its output, of which only the beginning counts."""

WGMMA = [
    *(("bfloat16", 64, a, b, s) for a in (0, 1) for b in (0, 1) for s in SWIZZLES),
    *(("bfloat16", n, a, b, 128) for n in (8, 256) for a, b in ((0, 0), (1, 0))),
    *(("bfloat16", 256, 0, 1, s) for s in (0, 128)),
    *(("float16", 32, a, b, 64) for a in (0, 1) for b in (0, 1)),
]
"""dtype, columns, whether a and b are transposed, bytes of the swizzle."""

FLOAT8_WGMMA = [(128, 128), (128, 0), (96, 64), (96, 32)]
"""Columns, bytes of the swizzle, of products of numbers of 8 bits: 32 steps of k."""


def place(matrix, swizzle, transposed):
    """The bytes of a (rows, 16) operand in shared memory, leading and stride bytes.

    Indices as CuTe's canonical layouts have them, here of pieces of eight numbers:
    K-major ((8, m), (T, 2)): ((S, stride), (1, T)); transposed ((S, m), (8, 2)): ((1, leading),
    (S, stride)). Without a swizzle S = T, and leading and stride are those between two pieces.
    """
    rows = matrix.shape[0]
    row, k = np.meshgrid(np.arange(rows), np.arange(16), indexing="ij")
    line = swizzle // 2 or 8
    if transposed:
        near, far = 8 * line, 8 * line * max(1, rows // line)
        leading, stride = (near, far) if swizzle else (far, near)
        index = row % line + row // line * near + k % 8 * line + k // 8 * far
    elif swizzle:
        leading, stride = 0, 8 * line
        index = row % 8 * line + row // 8 * stride + k
    else:
        leading, stride = 64, 128
        index = row % 8 * 8 + row // 8 * stride + k % 8 + k // 8 * leading
    address = 2 * index
    if swizzle:
        address ^= (address >> 7 & swizzle // 16 - 1) << 4
    memory = np.zeros(32768, np.uint16)
    memory[address // 2] = matrix.view(np.uint16)
    return memory[: address.max() // 2 + 1].tobytes(), 2 * leading, 2 * stride


def warpgroup_input(
    a: np.ndarray,
    b: np.ndarray,
    a_major: int,
    b_major: int,
    swizzle: int,
    accumulate: int,
    in_registers: int,
) -> bytes:
    """What the kernel `wgmma` reads: a (64, 16), b (columns, 16), which it adds a bᵀ of to 0.5."""
    a_bytes, a_leading, a_stride = place(a, swizzle, a_major)
    b_bytes, b_leading, b_stride = place(b, swizzle, b_major)
    b_offset = 8192 + 1024  # a multiple of the swizzle's pattern
    memory = a_bytes.ljust(b_offset, b"\0") + b_bytes
    field = SWIZZLES[swizzle]
    # Each lane's a: registers of rows l / 4 and l / 4 + 8, columns 2 (l % 4) + 0, 1 and + 8.
    pieces = a.view(np.uint16).reshape(4, 2, 8, 2, 4, 2).transpose(0, 2, 4, 3, 1, 5)
    given = struct.pack(
        "10I2f", 0, a_leading, a_stride, field, b_offset, b_leading, b_stride, field,
        accumulate, in_registers, 0.5, 0,
    )  # fmt: skip
    return given + pieces.tobytes() + memory.ljust(65536, b"\0")


def float8_input(a: np.ndarray, b: np.ndarray, swizzle: int, accumulate: int) -> bytes:
    """The same of a (64, 32), b (columns, 32): along k they lie as numbers of 16 bits would."""
    return warpgroup_input(*(x.view(np.uint16) for x in (a, b)), 0, 0, swizzle, accumulate, 0)


def cases() -> dict[str, tuple[str, bytes, int, bool]]:
    """Name -> kernel, input, bytes of its output, and whether the output is sums."""
    return {name: rest for name, *rest in _cases(np.random.default_rng(0))}  # type: ignore[misc]


def _cases(rng: np.random.Generator) -> Iterator[tuple[str, str, bytes, int, bool]]:
    for name, dtype in (("mma_bf16", "bfloat16"), ("mma_f16", "float16")):
        a, b = rng.normal(size=(16, 16)), rng.normal(size=(16, 8))
        halves = b"".join(x.astype(DTYPES[dtype]).tobytes() for x in (a, b))
        yield name, name, halves + rng.normal(size=128).astype(np.float32).tobytes(), 512, True
    yield "mma_tf32", "mma_tf32", rng.normal(size=320).astype(np.float32).tobytes(), 512, True
    for name, size in (
        ("ldmatrix_x2", 256),
        ("ldmatrix_x4", 512),
        ("ldmatrix_x4_trans", 512),
        ("stmatrix_x4", 512),
        ("bulk", 512),
        ("cp_async", 1536),
        ("barriers", 512),
        ("flags", 132),
        ("rounds", 512),
    ):
        yield name, name, rng.bytes(512), size, False
    planes = rng.bytes(3 * 20 * 104 * 2)
    yield "boxes_of_planes", "boxes_of_planes", planes, 6144 + len(planes), False
    yield "registers", "registers", rng.normal(size=128).astype(np.float32).tobytes(), 512, True
    yield "boxes", "boxes", rng.bytes(20 * 104 * 2), 2048 + 20 * 104 * 2, False
    yield "ring", "ring", rng.bytes(20 * 104 * 2), 8192, False
    numbers = rng.normal(size=32).astype(np.float32).tobytes()
    yield "round_to_tf32", "round_to_tf32", numbers, 128, False
    yield "exp2", "powers_of_two", rng.normal(size=32).astype(np.float32).tobytes(), 128, True
    for dtype, columns, a_major, b_major, swizzle in WGMMA:
        a, b = (rng.normal(size=(n, 16)).astype(DTYPES[dtype]) for n in (64, columns))
        for in_registers in (0, 1):
            kernel = f"{dtype} {columns} {a_major} {b_major}"
            given = warpgroup_input(a, b, a_major, b_major, swizzle, 1, in_registers)
            name = f"wgmma {kernel} swizzle {swizzle} registers {in_registers}"
            yield name, kernel, given, 256 * columns, True
    for columns, swizzle in FLOAT8_WGMMA:
        a, b = (rng.normal(size=(n, 32)).astype(FLOAT8) for n in (64, columns))
        given = float8_input(a, b, swizzle, 1)
        yield (
            f"wgmma float8 {columns} {swizzle}",
            f"float8 {columns} 0 0",
            given,
            256 * columns,
            True,
        )


def record(path: Path, compute: Compute, hardware: str) -> None:
    """Run every case, and write inputs and outputs."""
    arrays = {}
    for name, (kernel, given, size, _) in cases().items():
        arrays[f"{name}.input"] = np.frombuffer(given.rstrip(b"\0"), np.uint8)
        arrays[f"{name}.output"] = np.frombuffer(compute(kernel, given)[:size], np.uint8)
    save_safetensors(path, arrays, {"hardware": hardware})


def differences(path: Path, compute: Compute) -> list[str]:
    """A line for each case whose recorded output is not what compute gives for its input now."""
    arrays, _ = load_safetensors(path)
    found = []
    for name, (kernel, given, size, sums) in cases().items():
        kept = arrays[f"{name}.input"].tobytes().ljust(len(given), b"\0")
        output, recorded = compute(kernel, kept)[:size], arrays[f"{name}.output"].tobytes()
        if output == recorded:
            continue
        if not sums:
            found.append(f"{name}: other bytes")
            continue
        ours, theirs = (np.frombuffer(x, np.float32).astype(np.float64) for x in (output, recorded))
        excess = np.abs(ours - theirs) - TOLERANCE * (1 + np.abs(theirs))
        if not (excess <= 0).all():
            at = int(np.nan_to_num(excess, nan=np.inf).argmax())
            found.append(f"{name}: number {at} is {ours[at]:.7g}, was {theirs[at]:.7g}")
    return found
