"""Collectives between ranks, each a grid of its own, in the emulator's check build."""

from contextlib import nullcontext
from functools import reduce
from operator import add

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import to_device
from minitorch.errors import ConfigError, DtypeError
from minitorch.kernels.cuda.collectives import ALGORITHMS, choose_all_reduce, collective_space
from minitorch.kernels.cuda.extension import checked
from tests.cuda.conftest import ORDERS, TOLERANCE

DTYPES = [mt.float32, mt.float64, mt.bfloat16, mt.float16]
LEAST_SPACE = 10240
"""Flags, and 128 bytes for each half of each block's buffer."""


def spaces_for(ranks, size=LEAST_SPACE):
    return [collective_space(to_device(np.zeros(1), "simt"), size) for _ in range(ranks)]


def sample(ranks, shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(ranks)]


def run(name, spaces, arrays, **options):
    on_device = [to_device(x, "simt") for x in arrays]
    return [np.asarray(x) for x in kernels.lookup(name, "simt")(spaces, on_device, **options)]


def bits(x):
    return x.reshape(-1).view(np.uint8).tobytes()


def in_turn(arrays, first=0):
    """The sum that begins with array `first`, in float32 for half precision and rounded once."""
    order = [*arrays[first:], *arrays[:first]]
    wide = [x.astype(np.promote_types(x.dtype, np.float32)) for x in order]
    return reduce(add, wide).astype(arrays[0].dtype)


def check_sums(outs, arrays, algorithm):
    """The same bits for all, near the float64 sum; in the documented order to the last bit."""
    assert len({bits(out) for out in outs}) == 1
    dtype = arrays[0].dtype
    exact = sum(x.astype(np.float64) for x in arrays)
    atol = TOLERANCE[dtype] * (1 + np.abs(exact).max(initial=0))
    np.testing.assert_allclose(np.float64(outs[0]), exact, rtol=0, atol=atol)
    orders = range(len(arrays)) if algorithm == "ring" else [0]
    assert np.any([outs[0] == in_turn(arrays, first) for first in orders], axis=0).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_reduce(dtype, algorithm, order):
    for ranks, size, blocks in [(3, 37, 2), (4, 8, 1), (2, 300, 3)]:
        arrays = sample(ranks, size, dtype)
        with checked(*ORDERS[order]):
            outs = run("all_reduce", spaces_for(ranks), arrays, algorithm=algorithm, blocks=blocks)
        check_sums(outs, arrays, algorithm)


@pytest.mark.parametrize("ranks", range(1, 9))
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_any_number_of_ranks_and_numbers(algorithm, ranks):
    spaces = spaces_for(ranks)
    with checked("random", ranks):
        for size in (0, 1, 7, 130):
            arrays = sample(ranks, size, np.float32)
            check_sums(run("all_reduce", spaces, arrays, algorithm=algorithm), arrays, algorithm)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [mt.float32, mt.bfloat16], ids=str)
def test_call_after_call_in_the_same_spaces(dtype, seed):
    """Sizes, algorithms and blocks that change, and flags that count on through 2 ** 32."""
    rng, ranks = np.random.default_rng(seed), 4
    spaces = spaces_for(ranks)
    for space in spaces:
        flags = space[: 32 * 64].view(np.uint32)
        flags.reshape(32, 16)[:, :9] = 2**32 - 3
    with checked("random", seed):
        for call in range(8):
            algorithm = ALGORITHMS[rng.integers(3)]
            arrays = sample(ranks, rng.integers(1, 200), dtype, call)
            options = {"algorithm": algorithm, "blocks": int(rng.integers(1, 4))}
            check_sums(run("all_reduce", spaces, arrays, **options), arrays, algorithm)
            arrays = sample(ranks, (ranks * 3, 5), dtype, call)
            outs = run("reduce_scatter", spaces, arrays)
            assert bits(np.concatenate(outs)) == bits(in_turn(arrays))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_in_place_and_as_a_mean(algorithm):
    arrays = sample(3, (5, 7), np.float32)
    given = [to_device(x, "simt") for x in arrays]
    views = [to_device(x, "simt").T for x in arrays]
    all_reduce = kernels.lookup("all_reduce", "simt")
    with checked("random", 1):
        outs = all_reduce(spaces_for(3), given, average=True, algorithm=algorithm, out=given)
        turned = all_reduce(spaces_for(3), views, average=True, algorithm=algorithm, out=views)
    assert outs[0] is given[0]
    assert turned[2] is views[2]
    expected = np.mean(arrays, axis=0, dtype=np.float64)
    for out, other in zip(outs, turned, strict=True):
        np.testing.assert_allclose(out, expected, atol=1e-6)
        np.testing.assert_allclose(other, expected.T, atol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reduce_scatter_and_all_gather_are_all_reduce(dtype, order):
    for ranks, shape, blocks in [(3, (6, 5), 1), (2, (8, 40), 3), (8, (8,), None), (1, (3,), 1)]:
        arrays, spaces = sample(ranks, shape, dtype), spaces_for(ranks)
        with checked(*ORDERS[order]):
            parts = run("reduce_scatter", spaces, arrays, blocks=blocks)
            outs = run("all_gather", spaces, parts, blocks=blocks)
        assert parts[0].shape == (shape[0] // ranks, *shape[1:])
        assert outs[0].shape == shape
        check_sums(outs, arrays, "one-shot")


@pytest.mark.parametrize("dtype", [np.int64, np.float32, mt.bfloat16, np.bool_], ids=str)
def test_all_gather_and_broadcast_of_any_dtype(dtype):
    for shape in [(), (0,), (3, 5), (16, 13)]:
        arrays = [(10 * x).astype(dtype) for x in sample(3, shape, np.float32)]
        spaces = spaces_for(3)
        with checked("random", 5):
            gathered = run("all_gather", spaces, arrays)
            sent = run("broadcast", spaces, arrays, source=2)
            with_blocks = run("broadcast", spaces, arrays, source=1, blocks=2)
        for found, expected in [
            (gathered, np.concatenate([np.atleast_1d(x) for x in arrays])),
            (sent, arrays[2]),
            (with_blocks, arrays[1]),
        ]:
            assert len(found) == 3
            for x in found:
                np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("name", ["all_reduce", "reduce_scatter", "all_gather", "broadcast"])
def test_against_the_reference(device, name):
    watch = checked("reversed") if device == "simt" else nullcontext()
    arrays = sample(3, (6, 2), np.float32)
    given = [to_device(x, device) for x in arrays]
    spaces = [collective_space(given[0], LEAST_SPACE) for _ in given]
    with watch:
        outs = kernels.lookup(name, device)(spaces, given)
    expected = kernels.implementations(name)["numpy"](spaces, arrays)
    for found, reference in zip(outs, expected, strict=True):
        np.testing.assert_array_equal(to_device(found, "cpu"), reference)


def test_the_choice_by_size():
    assert choose_all_reduce(2, 1 << 30) == "one-shot"
    assert choose_all_reduce(4, (512 << 10) - 16) == "one-shot"
    assert choose_all_reduce(4, 512 << 10) == "two-shot"
    assert choose_all_reduce(8, (256 << 10) - 16) == "one-shot"
    assert choose_all_reduce(5, 256 << 10) == "two-shot"


def test_errors():
    arrays = sample(2, 3, np.float32)
    with pytest.raises(ConfigError, match="one-shot, two-shot, ring; got 'tree'"):
        run("all_reduce", spaces_for(2), arrays, algorithm="tree")
    with pytest.raises(DtypeError, match="all_reduce: expected a floating dtype; got int64"):
        run("all_reduce", spaces_for(2), [np.arange(3)] * 2)
    with pytest.raises(ValueError, match="at least 10240 bytes"):
        run("all_reduce", spaces_for(2, 10239), arrays)
    with pytest.raises(ValueError, match="at most 8 ranks"):
        run("all_reduce", spaces_for(9), sample(9, 3, np.float32))
