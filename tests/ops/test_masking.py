"""Diagonals: views that are easily mistaken for copies."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import GraphError


def test_a_diagonal_is_a_view_that_can_be_written():
    x = mt.zeros(3, 4)
    view = x.diagonal(1)
    assert np.shares_memory(view.data, x.data)
    view.fill_(5.0)
    np.testing.assert_array_equal(x.numpy(), 5 * np.eye(3, 4, k=1))
    assert view.version == x.version == 1
    x[0, 1] = 7.0
    assert view.tolist() == [7.0, 5.0, 5.0]
    assert view.version == x.version == 2


def test_a_diagonal_of_memory_that_cannot_be_written_cannot_either():
    array = np.eye(3)
    array.flags.writeable = False
    assert not mt.from_numpy(array).diagonal().data.flags.writeable


def test_a_write_through_a_diagonal_is_seen_by_the_tape():
    x = mt.ones(2, 2, requires_grad=True)
    a = mt.ones(2, 2)
    y = x * a
    a.diagonal().fill_(3.0)
    with pytest.raises(GraphError, match="mul needs input 1"):
        y.sum().backward()


def test_a_diagonal_taken_before_a_write_cannot_be_used():
    x = mt.ones(2, 2, requires_grad=True)
    y = x * 2
    view = y.diagonal()
    y.mul_(3)
    with pytest.raises(GraphError, match="changed in place"):
        view.exp()
    y.diagonal().sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 6 * np.eye(2))


def test_writing_into_a_recorded_diagonal_is_refused():
    y = mt.ones(2, 2, requires_grad=True) * 2
    with pytest.raises(GraphError, match="view"):
        y.diagonal().mul_(3)
