"""Products by pairs of bfloat16, and in tile registers, computed here with plain instructions.

Few processors have the instructions for them, and all that is around those can be wrong anywhere.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

HERE = Path(__file__).parent
CPU = HERE.parents[1] / "csrc" / "cpu"
RANDOM = np.random.default_rng(0)

# On both sides of a tile, more than a piece of the depth (2,048 numbers in tile registers, as many
# pairs otherwise), and an odd number of them.
SHAPES = [(100, 70, 129), (37, 300, 256), (300, 37, 255), (64, 64, 2051), (13, 513, 1026)]
SHAPES += [(33, 40, 4099), (40, 33, 4098)]
FEW_ROWS = [(1, 70, 96), (1, 33, 131), (3, 17, 130), (8, 65, 2)]


@pytest.fixture(scope="module", params=["MT_PAIRS", "MT_TILES"])
def multiply(request, tmp_path_factory):
    if not shutil.which("g++"):
        pytest.skip("no g++ here")
    library = tmp_path_factory.mktemp("products") / f"{request.param}.so"
    flags = [f"-D{request.param}", "-DMT_INSTRUCTION_SET=plain", "-DMT_VECTOR_BYTES=16"]
    sources = [HERE / "bfloat16_products.cpp", CPU / "threads.cpp"]
    command = ["g++", "-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", *flags, f"-I{CPU}"]
    subprocess.run([*command, *sources, "-o", library], check=True)
    return ctypes.CDLL(str(library)).multiply


def strided(rows, columns, kind):
    """Random numbers in memory as a row-major matrix, its transpose, or rows of an odd length."""
    shape = {"rows": (rows, columns), "columns": (columns, rows), "odd": (rows, columns + 1)}[kind]
    values = RANDOM.standard_normal((shape[0], shape[1] + shape[1] % 2 + (kind == "odd")))
    x = values.astype(ml_dtypes.bfloat16)[:, : shape[1]]
    return x.T if kind == "columns" else x[:, :columns]


@pytest.mark.parametrize("b_kind", ["rows", "columns", "odd"])
@pytest.mark.parametrize("a_kind", ["rows", "columns", "odd"])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_a_product(multiply, m, n, k, a_kind, b_kind):
    a, b, sums = strided(m, k, a_kind), strided(k, n, b_kind), np.full(m, np.nan, np.float32)
    check(multiply, a, b, sums)
    np.testing.assert_allclose(sums, a.astype(np.float64).sum(1), atol=2e-6 * k, rtol=0)


@pytest.mark.parametrize("kind", ["rows", "columns", "odd"])
@pytest.mark.parametrize(("m", "n", "k"), FEW_ROWS)
def test_a_few_rows(multiply, m, n, k, kind):
    check(multiply, strided(m, k, "odd"), strided(n, k, kind).T)


def check(multiply, a, b, sums=None):
    (m, k), n = a.shape, b.shape[1]
    out = np.full((m, n), np.nan, np.float32)
    strides = (ctypes.c_long * 4)(*[stride // 2 for x in (a, b) for stride in x.strides])
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (a, b)]
    results = [ctypes.c_void_p(x.ctypes.data if x is not None else None) for x in (out, sums)]
    multiply(*map(ctypes.c_long, (m, n, k)), *pointers, strides, *results)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(out, expected, atol=2e-6 * k, rtol=0)
