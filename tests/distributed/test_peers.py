"""Ranks in processes: handles, order and end of their memory, on the stand-in for CuPy.

Its memory is files that all processes map, so that what one writes the others read, kernels too:
those of each rank run in the emulator of its process. What order they need between them is tested
in test_collectives.py, where all ranks are in one.
"""

import gc
import multiprocessing
import os

import numpy as np
import pytest

import minitorch as mt
from minitorch.distributed import peer_group
from minitorch.errors import ConfigError, DeviceError
from minitorch.kernels.cuda.collectives import ALGORITHMS
from tests.cuda.conftest import stand_in  # noqa: F401

BYTES = 16384


def together(size, body):
    """What body(rank, exchange) gives in each of `size` processes; None where one is gone."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(size)]
    results = [context.SimpleQueue() for _ in range(size)]

    def run(rank):
        for i, (hub, end) in enumerate(pipes):
            hub.close()
            if i != rank:
                end.close()

        def exchange(given):
            pipes[rank][1].send_bytes(given)
            return [pipes[rank][1].recv_bytes() for _ in range(size)]

        results[rank].put(body(rank, exchange))
        os._exit(0)

    workers = [context.Process(target=run, args=(rank,)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for _, end in pipes:
        end.close()
    try:
        while True:  # what all have given goes to all
            given = [hub.recv_bytes() for hub, _ in pipes]
            for hub, _ in pipes:
                for one in given:
                    hub.send_bytes(one)
    except EOFError:  # one has ended: as with MPI, nobody hears of the others any more
        for hub, _ in pipes:
            hub.close()
    for worker in workers:
        worker.join(20)
    return [None if queue.empty() else queue.get() for queue in results]


def misuse(cupy):
    """What was freed while others had it open, and what is still open."""
    gc.collect()
    return cupy.Memory.misused, list(cupy._opened)


def test_all_reach_all_until_the_end(stand_in):  # noqa: F811
    def body(rank, exchange):
        with peer_group(rank, 3, exchange, space_bytes=BYTES) as group:
            group._spaces[rank][rank] = 10 + rank
            exchange(b"written")
            seen = [int(space[other]) for other, space in enumerate(group._spaces)]
        with pytest.raises(ConfigError, match="expected an open group; got one that was closed"):
            group._run("all_reduce", [])
        return seen, misuse(stand_in)

    assert together(3, body) == [([10, 11, 12], ([], []))] * 3


@pytest.fixture
def patience():
    """Threads of the emulator wait for what another process writes."""
    emulator = pytest.importorskip("minitorch._simt", reason="no C++20 compiler at installation")
    emulator.set_schedule("forward", patience=20_000)
    yield
    emulator.set_schedule("forward")


def test_collectives_between_processes(stand_in, patience):  # noqa: F811
    """Each with every rank's numbers in it, rounds of several steps, and the same bits for all."""
    size, count = 3, 700

    def given(rank):
        return mt.Tensor(np.random.default_rng(rank).standard_normal((size, count), np.float32))

    def body(rank, exchange):
        with peer_group(rank, size, exchange, space_bytes=BYTES) as group:
            found = []
            for algorithm in ALGORITHMS:
                x = given(rank).to(device="cuda")
                group.all_reduce([x], "avg", algorithm=algorithm)
                found.append(x.numpy())
            parts = group.reduce_scatter([given(rank).to(device="cuda")])
            (whole,) = group.all_gather(parts)
            x = given(rank).to(device="cuda")
            group.broadcast([x], src=1)
        return [*found, whole.numpy(), x.numpy()], misuse(stand_in)

    ranks = together(size, body)
    assert [left for _, left in ranks] == [([], [])] * size
    arrays = [given(rank).numpy() for rank in range(size)]
    exact = sum(x.astype(np.float64) for x in arrays)
    for outs in zip(*(found for found, _ in ranks), strict=True):
        assert len({x.tobytes() for x in outs}) == 1
    *means, whole, sent = ranks[0][0]
    for mean in means:
        np.testing.assert_allclose(mean, exact / size, rtol=0, atol=1e-6)
    np.testing.assert_allclose(whole, exact, rtol=0, atol=3e-6)
    np.testing.assert_array_equal(sent, arrays[1])


@pytest.mark.parametrize("when", ["share", "begin", "finish"])
def test_a_rank_that_dies(stand_in, when):  # noqa: F811
    """The others are told at which of the group's meetings, and keep nothing open."""

    def body(rank, exchange):
        def mortal(given):
            if rank == 1 and given.startswith(when.encode()):
                os._exit(1)
            return exchange(given)

        try:
            peer_group(rank, 2, mortal, space_bytes=BYTES).close()
        except DeviceError as error:
            return str(error), misuse(stand_in)[1]

    (said, still_open), dead = together(2, body)
    assert said.startswith(f"peer_group: rank 0 of 2 met nobody to {when}")
    assert "look for the one that ended first" in said
    assert still_open == []
    assert dead is None


def test_ranks_that_do_not_agree(stand_in):  # noqa: F811
    def body(rank, exchange):
        try:
            peer_group(rank, 2, exchange, space_bytes=BYTES * (1 + rank))
        except ConfigError as error:
            return str(error)

    expected = "one space_bytes on all ranks; got 16384 on rank 0 and 32768 on rank 1"
    assert expected in together(2, body)[0]
    with pytest.raises(ConfigError, match="expected 2 ranks to share their memory; got 1"):
        peer_group(0, 2, lambda given: [given])
    with pytest.raises(ConfigError, match="got 2: share their memory, something"):
        peer_group(0, 2, lambda given: [given, b"something"])


def test_memory_that_cannot_be_reached(stand_in):  # noqa: F811
    def exchange(given):
        return [given, given[: given.index(b"/tmp")] + b"nowhere"]

    with pytest.raises(DeviceError, match="rank 0 cannot reach the memory of rank 1"):
        peer_group(0, 2, exchange)
    assert np.array_equal(misuse(stand_in)[1], [])
