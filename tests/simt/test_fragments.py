"""Instructions on matrices give what NumPy does, in the layouts of the PTX ISA; no findings."""

import os
import struct
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from models.emulation import compile_program

SWIZZLES = {0: 0, 128: 1, 64: 2, 32: 3}  # bytes -> the field of a descriptor
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    program = compile_program(
        Path(__file__).with_name("fragments.cu"), tmp_path_factory.mktemp("x")
    )

    def run(name, *inputs, order="forward"):
        done = subprocess.run(
            [program, name],
            input=b"".join(x if isinstance(x, bytes) else x.tobytes() for x in inputs),
            env=os.environ | {"SIMT_ORDER": order, "SIMT_SEED": "1"},
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    return run


def read(output, dtype, *shape):
    return np.frombuffer(output, dtype)[: np.prod(shape)].reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_16_bit_numbers(run, dtype):
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=shape).astype(DTYPES[dtype]) for shape in ((16, 16), (16, 8)))
    c = rng.normal(size=(16, 8)).astype(np.float32)
    name = {"bfloat16": "mma_bf16", "float16": "mma_f16"}[dtype]
    expected = a.astype(float) @ b.astype(float) + c
    np.testing.assert_allclose(read(run(name, a, b, c), np.float32, 16, 8), expected, atol=1e-5)


def test_products_of_tf32(run):
    """Ten bits of the fraction count."""
    rng = np.random.default_rng(2)
    a, b, c = (rng.normal(size=s).astype(np.float32) for s in ((16, 8), (8, 8), (16, 8)))
    short = [(x.view(np.uint32) & 0xFFFFE000).view(np.float32).astype(float) for x in (a, b)]
    result = read(run("mma_tf32", a, b, c), np.float32, 16, 8)
    np.testing.assert_allclose(result, short[0] @ short[1] + c, atol=1e-5)


@pytest.mark.parametrize("count", [2, 4])
def test_ldmatrix(run, count):
    matrices = np.random.default_rng(3).integers(0, 1 << 16, (4, 8, 8), np.uint16)
    got = read(run(f"ldmatrix_x{count}", matrices), np.uint16, 32, count, 2)
    # Lane 4 r + j has elements 2 j and 2 j + 1 of row r of each matrix.
    np.testing.assert_array_equal(got.reshape(8, 4, count, 2), _by_lanes(matrices[:count]))


def test_ldmatrix_transposed(run):
    matrices = np.random.default_rng(4).integers(0, 1 << 16, (4, 8, 8), np.uint16)
    got = read(run("ldmatrix_x4_trans", matrices), np.uint16, 8, 4, 4, 2)
    np.testing.assert_array_equal(got, _by_lanes(matrices.transpose(0, 2, 1)))


def test_stmatrix(run):
    matrices = np.random.default_rng(5).integers(0, 1 << 16, (4, 8, 8), np.uint16)
    got = read(run("stmatrix_x4", np.ascontiguousarray(_by_lanes(matrices))), np.uint16, 4, 8, 8)
    np.testing.assert_array_equal(got, matrices)


def _by_lanes(matrices):
    """(matrices, 8, 8) -> (row, pair of columns, matrix, column of the pair)"""
    return matrices.reshape(-1, 8, 4, 2).transpose(1, 2, 0, 3)


def test_boxes_of_a_tensor(run):
    """Loaded for two blocks, swizzled; zeros beyond the edges, and nothing stored there."""
    tensor = np.random.default_rng(6).integers(0, 1 << 16, (20, 100), np.uint16)
    for order in ("forward", "reversed", "random"):
        output = run("boxes", tensor, order=order)
        box = np.zeros((8, 64), np.uint16)
        box[:5, :40] = tensor[15:, 60:]
        pieces = box.reshape(8, 8, 8)
        swizzled = np.stack([row[np.arange(8) ^ r] for r, row in enumerate(pieces)])
        for copy in read(output, np.uint16, 2, 8, 8, 8):
            np.testing.assert_array_equal(copy, swizzled)
        stored = np.zeros((20, 100), np.uint16)
        stored[2:10, :60] = box[:, 4:]
        np.testing.assert_array_equal(read(output[2048:], np.uint16, 20, 100), stored)


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


WGMMA = [
    *(("bfloat16", 64, a, b, s) for a in (0, 1) for b in (0, 1) for s in SWIZZLES),
    *(("bfloat16", n, a, b, 128) for n in (8, 256) for a, b in ((0, 0), (1, 0))),
    *(("bfloat16", 256, 0, 1, s) for s in (0, 128)),
    *(("float16", 32, a, b, 64) for a in (0, 1) for b in (0, 1)),
]


@pytest.mark.parametrize(("dtype", "columns", "a_major", "b_major", "swizzle"), WGMMA)
def test_products_of_a_warpgroup(run, dtype, columns, a_major, b_major, swizzle):
    rng = np.random.default_rng(columns + swizzle)
    a = rng.normal(size=(64, 16)).astype(DTYPES[dtype])
    b = rng.normal(size=(columns, 16)).astype(DTYPES[dtype])
    a_bytes, a_leading, a_stride = place(a, swizzle, a_major)
    b_bytes, b_leading, b_stride = place(b, swizzle, b_major)
    b_offset = 8192 + 1024  # a multiple of the swizzle's pattern
    memory = a_bytes.ljust(b_offset, b"\0") + b_bytes
    field = SWIZZLES[swizzle]
    # Each lane's a: registers of rows l / 4 and l / 4 + 8, columns 2 (l % 4) + 0, 1 and + 8.
    pieces = a.view(np.uint16).reshape(4, 2, 8, 2, 4, 2).transpose(0, 2, 4, 3, 1, 5)
    for accumulate, in_registers in ((0, 0), (1, 0), (1, 1)):
        given = struct.pack(
            "10I2f", 0, a_leading, a_stride, field, b_offset, b_leading, b_stride, field,
            accumulate, in_registers, 0.5, 0,
        )  # fmt: skip
        output = run(
            f"{dtype} {columns} {a_major} {b_major}",
            given,
            np.ascontiguousarray(pieces),
            memory.ljust(65536, b"\0"),
            order="random",
        )
        expected = a.astype(float) @ b.astype(float).T + 0.5 * accumulate
        np.testing.assert_allclose(
            read(output, np.float32, 64, columns), expected, atol=2e-5, err_msg=str(in_registers)
        )
