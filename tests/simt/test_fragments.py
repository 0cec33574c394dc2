"""Instructions on matrices give what NumPy does, in the layouts of the PTX ISA; no findings."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from models.emulation import compile_program
from tests.simt import golden
from tests.simt.golden import DTYPES, WGMMA, warpgroup_input


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
    tensor = np.random.default_rng(6).integers(0, 1 << 16, (20, 104), np.uint16)
    for order in ("forward", "reversed", "random"):
        output = run("boxes", tensor, order=order)
        box = np.zeros((8, 64), np.uint16)
        box[:5, :44] = tensor[15:, 60:]
        pieces = box.reshape(8, 8, 8)
        swizzled = np.stack([row[np.arange(8) ^ r] for r, row in enumerate(pieces)])
        for copy in read(output, np.uint16, 2, 8, 8, 8):
            np.testing.assert_array_equal(copy, swizzled)
        stored = np.zeros((20, 104), np.uint16)
        stored[2:10, :60] = box[:, 4:]
        np.testing.assert_array_equal(read(output[2048:], np.uint16, 20, 104), stored)


@pytest.mark.parametrize(("dtype", "columns", "a_major", "b_major", "swizzle"), WGMMA)
def test_products_of_a_warpgroup(run, dtype, columns, a_major, b_major, swizzle):
    rng = np.random.default_rng(columns + swizzle)
    a = rng.normal(size=(64, 16)).astype(DTYPES[dtype])
    b = rng.normal(size=(columns, 16)).astype(DTYPES[dtype])
    for accumulate, in_registers in ((0, 0), (1, 0), (1, 1)):
        given = warpgroup_input(a, b, a_major, b_major, swizzle, accumulate, in_registers)
        output = run(f"{dtype} {columns} {a_major} {b_major}", given, order="random")
        expected = a.astype(float) @ b.astype(float).T + 0.5 * accumulate
        np.testing.assert_allclose(
            read(output, np.float32, 64, columns), expected, atol=2e-5, err_msg=str(in_registers)
        )


@pytest.mark.parametrize(("columns", "swizzle"), golden.FLOAT8_WGMMA)
def test_products_of_8_bit_numbers(run, columns, swizzle):
    rng = np.random.default_rng(columns + swizzle)
    a, b = (rng.normal(size=(n, 32)).astype(golden.FLOAT8) for n in (64, columns))
    for accumulate in (0, 1):
        given = golden.float8_input(a, b, swizzle, accumulate)
        output = run(f"float8 {columns} 0 0", given, order="random")
        expected = a.astype(float) @ b.astype(float).T + 0.5 * accumulate
        np.testing.assert_allclose(read(output, np.float32, 64, columns), expected, atol=5e-5)


@pytest.mark.parametrize("order", ["forward", "random"])
def test_boxes_of_planes(run, order):
    """Swizzled within 128 bytes, and within 64; zeros beyond the edges."""
    tensor = np.random.default_rng(9).integers(0, 1 << 16, (3, 20, 104), np.uint16)
    output = run("boxes_of_planes", tensor, order=order)
    padded = np.zeros((3, 40, 200), np.uint16)
    padded[:, 10:30, :104] = tensor
    wide = [padded[2, 25:33, 60:124], padded[1, 7:15, 8:72]]
    pieces = [x.reshape(8, 8, 8)[np.arange(8)[:, None], np.arange(8) ^ np.arange(8)[:, None]]
              for x in wide]  # fmt: skip
    narrow = padded[0, 14:30, 40:72].reshape(16, 4, 8)
    line = np.arange(16)[:, None]
    pieces.append(narrow[line, np.arange(4) ^ line // 2 % 4].reshape(8, 8, 8))
    for copy in read(output, np.uint16, 2, 3, 8, 8, 8):
        np.testing.assert_array_equal(copy, np.stack(pieces))
    stored = np.zeros((3, 20, 104), np.uint16)
    stored[2, :6, 50:] = wide[1][2:, :54]
    np.testing.assert_array_equal(read(output[6144:], np.uint16, 3, 20, 104), stored)


@pytest.mark.parametrize("order", ["forward", "reversed", "random"])
def test_barriers(run, order):
    numbers = np.random.default_rng(10).integers(0, 1 << 16, (2, 64)).astype(np.uint32)
    output = read(run("barriers", numbers, order=order), np.uint32, 2, 64)
    for turn in range(4):
        numbers = np.roll(3 * numbers + np.uint32(turn), -1, axis=1)
    np.testing.assert_array_equal(output, numbers[::-1])


@pytest.mark.parametrize("order", ["forward", "reversed", "random"])
def test_flags(run, order):
    numbers = np.random.default_rng(11).integers(0, 1 << 16, 32).astype(np.uint32)
    output = read(run("flags", numbers, order=order), np.uint32, 33)
    for _ in range(5):
        numbers = 5 * np.roll(numbers, -7)
    np.testing.assert_array_equal(output, [*numbers, 6])


def test_registers(run):
    numbers = np.random.default_rng(12).normal(size=128).astype(np.float32)
    indices = np.add.outer(np.arange(128), np.arange(200)) % 128
    sums = np.broadcast_to(numbers.astype(float)[:, None], (128, 200))
    for step in range(4):
        sums = sums / 2 + numbers[(indices + step) % 128]
    output = read(run("registers", numbers), np.float32, 128)
    np.testing.assert_allclose(output, sums.sum(1), rtol=1e-5, atol=1e-3)


def test_powers_of_two(run):
    x = np.linspace(-20, 20, 32, dtype=np.float32)
    np.testing.assert_allclose(read(run("powers_of_two", x), np.float32, 32), np.exp2(x), rtol=1e-6)


def test_rounding_to_tf32(run):
    """To a multiple of the last of ten bits, half of them away from zero."""
    x = np.float32([1, 1 + 2**-10, 1 + 2**-11, -1 - 2**-11, 1 + 2**-12, 3.1415927] + 26 * [0])
    found = read(run("round_to_tf32", x), np.float32, 32)
    expected = np.sign(x) * np.floor(np.abs(x) / 2**-10 + 0.5) * 2**-10
    expected[5] = np.floor(x[5] / 2**-9 + 0.5) * 2**-9
    np.testing.assert_array_equal(found, expected)


def test_copies_that_end_early(run):
    rows = np.random.default_rng(7).integers(1, 256, (32, 16), np.uint8)
    expected = np.zeros((3, 32, 16), np.uint8)
    for j, size in enumerate((16, 8, 4)):
        for i in range(32):
            count = i % (size + 1)
            expected[j, i, :count] = rows[i, :count]
    np.testing.assert_array_equal(read(run("cp_async", rows), np.uint8, 3, 32, 16), expected)


def test_copies_of_many_bytes(run):
    numbers = np.random.default_rng(8).integers(0, 1 << 31, 128).astype(np.uint32)
    for order in ("forward", "reversed", "random"):
        output = run("bulk", numbers, order=order)
        np.testing.assert_array_equal(read(output, np.uint32, 128), 2 * numbers)


def test_blocks_of_a_grid_hand_on_numbers(run):
    numbers = np.random.default_rng(9).integers(0, 1 << 20, (4, 32), np.uint32)
    expected = numbers
    for i in range(3):
        expected = 3 * np.roll(expected, -1, 0) + np.uint32(i)
    for order in ("forward", "reversed", "random"):
        output = run("rounds", numbers, order=order)
        np.testing.assert_array_equal(read(output, np.uint32, 4, 32), expected)


def test_a_block_hears_from_others_before_it_overwrites(run):
    x = np.random.default_rng(10).integers(1, 1 << 16, (20, 104), np.uint16)
    swizzled = np.arange(8) ^ np.arange(8)[:, None]
    for order in ("forward", "reversed", "random"):
        found = read(run("ring", x, order=order), np.uint16, 4, 2, 8, 8, 8)
        for i, boxes in enumerate(found):
            expected = x[3 * i : 3 * i + 8, 8 * i : 8 * i + 64]
            for box in boxes:
                straight = np.take_along_axis(box, swizzled[:, :, None], 1).reshape(8, 64)
                np.testing.assert_array_equal(straight, expected)


def test_every_instruction_has_a_case():
    """The functions of ptx.h and wgmma.h, but for one, which all others use, are in a kernel, and
    that is in the golden vectors."""
    cuda = Path(__file__).parents[2] / "csrc" / "cuda"
    headers = "".join((cuda / name).read_text() for name in ("ptx.h", "wgmma.h"))
    program = Path(__file__).with_name("fragments.cu").read_text()
    functions = set(re.findall(r"^__device__ inline [\w&*: ]+?(\w+)\(", headers, re.M))
    assert {"mbarrier_arrive_at", "sync_grid", "wgmma", "in_block"} <= functions
    assert functions - set(re.findall(r"ptx::(\w+)", program)) == {"shared_address"}
    kernels = set(re.findall(r"__global__ void (?:__launch_bounds__\(.*?\) )?(\w+)\(", program))
    assert {"registers", "ring", "wgmma"} <= kernels
    recorded = {kernel.split()[0] for kernel, *_ in golden.cases().values()}
    assert kernels - {"wgmma"} == recorded - {"bfloat16", "float16", "float8"}


def test_golden_vectors(run, tmp_path):
    """What one compiler's program writes, another's is held against; a wrong number is found."""
    compute = lambda name, given: run(name, given)  # noqa: E731
    path = tmp_path / "vectors.safetensors"
    golden.record(path, compute, "the emulator")
    assert golden.differences(path, compute) == []

    def wrong(name, given):
        output = bytearray(run(name, given))
        output[3] ^= 1  # the exponent of the first float
        return bytes(output)

    assert {line.split(":")[0] for line in golden.differences(path, wrong)} == {*golden.cases()}


@pytest.mark.parametrize("path", sorted(golden.COMMITTED.glob("*.safetensors")), ids=str)
def test_the_emulator_computes_what_a_gpu_did(run, path):
    assert golden.differences(path, lambda name, given: run(name, given)) == []
