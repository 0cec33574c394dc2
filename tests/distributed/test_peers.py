"""Ranks in processes: handles, order and end of their memory, on the stand-in for CuPy.

Its memory is files that all processes map, so that what one writes the others read; kernels are
those of test_collectives.py.
"""

import gc
import multiprocessing
import os

import numpy as np
import pytest

from minitorch.distributed import peer_group
from minitorch.errors import ConfigError, DeviceError
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
