"""Shapes of many tiles, for which the emulator is slow: on a GPU, against the float64 reference.

Products in every layout by every step, attention of every width by every kernel, experts, latents,
pages, long rows, collectives on streams. Skipped where there is no GPU; MT_GPU_TESTS=stand-in runs
it all on the stand-in for CuPy, which takes minutes.
"""

import os

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.kernels.cuda.attention import KERNELS, attention_kernel
from minitorch.kernels.cuda.collectives import ALGORITHMS, collective_space
from minitorch.kernels.cuda.ladder import LADDER, matmul_step
from minitorch.kernels.cuda.scaled_mm import as_scaled
from minitorch.kernels.reference.matmul import ACTIVATIONS
from tests.cuda.conftest import close, held, is_usable, placed, wide

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]
HALVES = [mt.bfloat16, mt.float16]
STEPS = [*LADDER["matmul_mma"], *LADDER["matmul_wgmma"]]
LAST = {"causal": True, "lower_right": True}
# heads, kv_heads, time_q, time_k, dim, value_dim, mask, sinks, options
ATTENTION = [
    (2, 2, 256, 256, 64, 64, None, False, {"causal": True}),
    (4, 1, 200, 333, 96, 96, None, True, LAST),
    (2, 1, 300, 300, 128, 128, None, False, {}),
    (2, 2, 150, 270, 128, 128, "float", False, {"softcap": 5.0, **LAST}),
    (2, 1, 222, 222, 192, 128, "keys", True, {"causal": True, "window": (100, 0)}),
    (1, 1, 130, 200, 256, 256, None, False, LAST),
]


@pytest.fixture
def gpu(request):
    """Whether it is one."""
    if is_usable("cuda"):
        return True
    if os.environ.get("MT_GPU_TESTS") != "stand-in":
        pytest.skip("no GPU here; MT_GPU_TESTS=stand-in runs this on a stand-in")
    request.getfixturevalue("stand_in")
    return False


def numbers(seed, dtype, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def run(name, *arrays, **options):
    return kernels.lookup(name, "cuda")(*[placed(x, "cuda") for x in arrays], **options)


def laid(x, turned):
    """x on the device, in columns if turned."""
    return placed(np.ascontiguousarray(x.T), "cuda").T if turned else placed(x, "cuda")


@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("step", STEPS)
def test_products(step, turned):
    a, b = numbers(0, mt.bfloat16, 392, 328), numbers(1, mt.bfloat16, 328, 520)
    with matmul_step(step):
        out = run("matmul", laid(a, turned[0]), laid(b, turned[1]))
    close(placed(out, "cpu"), wide(a) @ wide(b), mt.bfloat16)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("step", ["staged", "ordered"])
def test_what_follows_a_product(step, activation):
    a, b = numbers(2, mt.float16, 3, 200, 136), numbers(3, mt.float16, 136, 264)
    bias, residual = numbers(4, mt.float16, 264), numbers(5, mt.float16, 3, 200, 264)
    with matmul_step(step):
        out = run("matmul", a, b, **on_device(bias=bias, residual=residual), activation=activation)
    exact = kernels.implementations("matmul")["numpy"](
        *map(wide, (a, b)), bias=wide(bias), residual=wide(residual), activation=activation
    )
    close(placed(out, "cpu"), exact, mt.float16)


def on_device(**arrays):
    return {name: placed(x, "cuda") for name, x in arrays.items()}


def test_tf32():
    a, b = numbers(6, mt.float32, 300, 264), numbers(7, mt.float32, 264, 200)
    with matmul_step("staged"):
        out = run("matmul", a, b)
    close(placed(out, "cpu"), wide(a) @ wide(b), mt.float16)  # 10 bits of a fraction


def test_numbers_of_8_bits():
    """The kernel against the reference, of the same bits and scales."""
    a, b = numbers(8, mt.bfloat16, 300, 520), numbers(9, mt.bfloat16, 520, 264)
    left, right, *scales = (placed(x, "cpu") for x in as_scaled(*map(placed, (a, b), ["cuda"] * 2)))
    held("scaled_mm", left, right.T, *scales, device="cuda", like=mt.float32)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_experts(dtype):
    ends = np.array([70, 70, 300, 513])
    x, grad = numbers(10, dtype, 513, 136), numbers(11, dtype, 513, 264)
    held("grouped_mm", x, numbers(12, dtype, 4, 136, 264), ends, device="cuda")
    held("grouped_outer", x, grad, ends, device="cuda")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", ATTENTION, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_attention(kernel, case, dtype):
    """Both directions, and the same bits when it is done again."""
    heads, kv_heads, time_q, time_k, dim, value_dim, masked, with_sinks, options = case
    query = numbers(13, dtype, 2, heads, time_q, dim)
    key = numbers(14, dtype, 2, kv_heads, time_k, dim)
    value = numbers(15, dtype, 2, kv_heads, time_k, value_dim)
    mask = {
        None: None,
        "float": numbers(16, np.float32, 2, 1, time_q, time_k),
        "keys": numbers(17, np.float32, heads, 1, time_k),
    }[masked]
    arrays = [query, key, value, mask, numbers(18, dtype, heads) if with_sinks else None]
    grad = numbers(19, dtype, 2, heads, time_q, value_dim)
    forward, backward = (f"scaled_dot_product_attention{end}" for end in ("", "_backward"))
    bits = []
    for _ in range(2):
        with attention_kernel(kernel):
            out, lse = run(forward, *arrays, **options)
            found = run(backward, grad, *arrays, out, lse, **options)
        results = [x if x is None else placed(x, "cpu") for x in (out, lse, *found)]
        bits.append([x if x is None else x.tobytes() for x in results])
    assert bits[0] == bits[1]
    reference = {name: kernels.implementations(name)["numpy"] for name in (forward, backward)}
    exact = reference[forward](*map(wide, arrays), **options)
    gradients = reference[backward](wide(grad), *map(wide, arrays), *exact, **options)
    for one, exactly in zip(results, (*exact, *gradients), strict=True):
        assert (one is None) == (exactly is None)
        if one is not None:
            seen = np.isfinite(exactly)
            close(one[seen], exactly[seen], mt.bfloat16)


def test_decoding_latents_and_pages():
    options = {**LAST, "device": "cuda"}
    one = numbers(20, mt.bfloat16, 2, 8, 1, 128)
    past = numbers(21, mt.bfloat16, 2, 2, 1500, 128)
    held("scaled_dot_product_attention", one, past, past, **options)
    query, latents = (
        numbers(22, mt.bfloat16, 2, 64, 1, 576),
        numbers(23, mt.bfloat16, 2, 1, 999, 576),
    )
    there = placed(latents, "cuda")
    out, _ = run("scaled_dot_product_attention", query, there, there[..., :512], **LAST)
    exact = kernels.implementations("scaled_dot_product_attention")["numpy"](
        *map(wide, (query, latents, latents[..., :512])), **LAST
    )
    close(placed(out, "cpu"), exact[0], mt.bfloat16)
    pool = numbers(24, mt.bfloat16, 2, 40, 2, 16, 64)
    table = np.random.default_rng(25).permutation(40).reshape(2, 20)
    query, lengths = numbers(26, mt.bfloat16, 2, 8, 1, 64), np.array([320, 77])
    held("paged_attention", query, *pool, None, table, lengths, **options)


@pytest.mark.parametrize("dtype", [mt.float32, mt.bfloat16], ids=str)
def test_long_rows(dtype):
    x, residual = numbers(27, dtype, 5, 131072), numbers(28, dtype, 5, 131072)
    weight, target = numbers(29, np.float32, 131072), np.array([0, -100, 7, 131071, 50])
    held("softmax", x, device="cuda")
    held("logsumexp", x, device="cuda")
    held("add_rms_norm", x, residual, weight, device="cuda", like=dtype)
    held("cross_entropy", x, target, device="cuda", like=dtype)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_ranks_on_streams(gpu, ranks, algorithm):
    """Call after call; sums of whole numbers, which are exact in any order."""
    spaces = [collective_space(placed(np.zeros(1), "cuda"), 1 << 20) for _ in range(ranks)]
    for size in (1, 1000, 3_000_001 if gpu else 5_001):
        arrays = [np.arange(size, dtype=np.float32) % 97 + rank for rank in range(ranks)]
        given = [placed(x, "cuda") for x in arrays]
        outs = kernels.lookup("all_reduce", "cuda")(spaces, given, algorithm=algorithm)
        for out in outs:
            np.testing.assert_array_equal(placed(out, "cpu"), sum(arrays))
