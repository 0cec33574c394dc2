"""What the cells share (docs/book.py), and the C++ that they compile (docs/kernels/)."""

import ctypes

import numpy as np
import pytest
from book import compiled, fastest

ANY_SHAPE = ("three_loops", "loop_order", "blocks")
WHOLE_TILES = ("vectors", "register_tile", "packing")


@pytest.fixture(scope="module")
def steps() -> ctypes.CDLL:
    library = compiled("matmul_steps.cpp", "-Wall", "-Wextra", "-Werror")
    if library is None:
        pytest.skip("no C++ compiler was found")
    return library


@pytest.mark.parametrize(
    ("step", "m", "n", "k"),
    [
        *((step, *shape) for step in ANY_SHAPE for shape in [(1, 1, 1), (7, 300, 70), (5, 3, 0)]),
        *((step, *shape) for step in WHOLE_TILES for shape in [(108, 96, 200), (12, 32, 1)]),
    ],
)
def test_a_step_of_the_matrix_product_adds_the_product(steps, step, m, n, k) -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n), (m, n)))
    expected = c + a.astype(np.float64) @ b
    sizes = (ctypes.c_long(size) for size in (m, n, k))
    getattr(steps, step)(*sizes, *(ctypes.c_void_p(x.ctypes.data) for x in (a, b, c)))
    np.testing.assert_allclose(c, expected, rtol=1e-5, atol=1e-4)


def test_without_a_compiler_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiled("matmul_steps.cpp") is None


def test_what_does_not_compile_is_an_error_with_the_compilers_words(steps) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)does not compile matmul_steps\.cpp:.*192"):
        compiled("matmul_steps.cpp", "-DkDepth=1")


def test_calls_are_repeated_until_the_budget_is_spent() -> None:
    calls = []
    assert fastest(lambda: calls.append(1), budget=0.001) >= 0
    assert len(calls) > 1
