"""Products by pairs of bfloat16, and in tile registers, computed here with plain instructions.

Few processors have the instructions for them, and all that is around those can be wrong anywhere.
Tile registers multiply float32 too, in three pieces each.
"""

import ctypes
import fcntl
import itertools
import os
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
# pairs otherwise, 768 in pieces), and an odd number of them.
SHAPES = [(100, 70, 129), (37, 300, 256), (300, 37, 255), (64, 64, 2051), (13, 513, 1026)]
SHAPES += [(33, 40, 4099), (40, 33, 4098)]
PIECES = [(94, 95, 1100), (63, 400, 260), (400, 63, 250), (96, 96, 1600), (143, 110, 768)]
KINDS = ["rows", "columns", "odd"]
FEW_ROWS = [(1, 70, 96), (1, 33, 131), (3, 17, 130), (8, 65, 2)]


@pytest.fixture(scope="module", params=["MT_PAIRS", "MT_TILES"])
def library(request, tmp_path_factory):
    """Compiled by the first of the processes that run the tests; the others wait for it."""
    if not shutil.which("g++"):
        pytest.skip("no g++ here")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path = folder / f"{request.param}.so"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            compile_products(request.param, path)
    return ctypes.CDLL(str(path))


def compile_products(instructions, path):
    flags = [f"-D{instructions}", "-DMT_INSTRUCTION_SET=plain", "-DMT_VECTOR_BYTES=16"]
    sources = [HERE / "plain_products.cpp", CPU / "threads.cpp"]
    command = ["g++", "-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", *flags, f"-I{CPU}"]
    subprocess.run([*command, *sources, "-o", path.with_suffix(".part")], check=True)
    path.with_suffix(".part").rename(path)


def strided(rows, columns, kind, dtype=ml_dtypes.bfloat16):
    """Random numbers in memory as a row-major matrix, its transpose, or rows of an odd length."""
    shape = {"rows": (rows, columns), "columns": (columns, rows), "odd": (rows, columns + 1)}[kind]
    values = RANDOM.standard_normal((shape[0], shape[1] + shape[1] % 2 + (kind == "odd")))
    x = values.astype(dtype)[:, : shape[1]]
    return x.T if kind == "columns" else x[:, :columns]


@pytest.mark.parametrize("b_kind", KINDS)
@pytest.mark.parametrize("a_kind", KINDS)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_a_product(library, m, n, k, a_kind, b_kind):
    a, b, sums = strided(m, k, a_kind), strided(k, n, b_kind), np.full(m, np.nan, np.float32)
    check(library.multiply_bfloat16, a, b, sums)
    np.testing.assert_allclose(sums, a.astype(np.float64).sum(1), atol=2e-6 * k, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "n", "k"), FEW_ROWS)
def test_a_few_rows(library, m, n, k, kind):
    check(library.multiply_bfloat16, strided(m, k, "odd"), strided(n, k, kind).T)


@pytest.mark.parametrize("library", ["MT_TILES"], indirect=True)
@pytest.mark.parametrize(
    ("a_kind", "b_kind", "scale"),
    [(*kinds, 1) for kinds in itertools.product(KINDS, KINDS)]
    + [(kind, kind, scale) for kind, scale in itertools.product(KINDS, (1e-34, 1e34))],
)
@pytest.mark.parametrize(("m", "n", "k"), PIECES)
def test_a_product_of_float32(library, m, n, k, a_kind, b_kind, scale):
    """Also of numbers that do not fit in pieces, in one panel of A."""
    a, b = strided(m, k, a_kind, np.float32), strided(k, n, b_kind, np.float32)
    a[:32] *= np.float32(scale)
    sums = np.full(m, np.nan, np.float32)
    error = np.abs(product(library.multiply_float32, a, b, sums) - a.astype(np.float64) @ b)
    largest = np.abs(a.astype(np.float64)) @ np.abs(b)
    assert (error <= 1e-6 * largest).all()
    sums -= a.astype(np.float64).sum(1)
    assert (np.abs(sums) <= 1e-6 * np.abs(a.astype(np.float64)).sum(1)).all()


def check(multiply, a, b, sums=None):
    out = product(multiply, a, b, sums)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(out, expected, atol=2e-6 * a.shape[1], rtol=0)


def product(multiply, a, b, sums=None):
    (m, k), n = a.shape, b.shape[1]
    out = np.full((m, n), np.nan, np.float32)
    steps = [stride // x.itemsize for x in (a, b) for stride in x.strides]
    strides = (ctypes.c_long * 4)(*steps)
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (a, b)]
    results = [ctypes.c_void_p(x.ctypes.data if x is not None else None) for x in (out, sums)]
    multiply(*map(ctypes.c_long, (m, n, k)), *pointers, strides, *results)
    return out
