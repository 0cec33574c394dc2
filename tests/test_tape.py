"""The tape: memory, safety from writes in place, modes."""

import gc
import weakref

import pytest

import minitorch as mt
from minitorch.errors import GraphError


def leaf(*values):
    return mt.tensor(list(values), dtype=mt.float64, requires_grad=True)


def test_memory_goes_with_the_last_name():
    gc.collect()
    gc.disable()
    try:
        x = leaf(1.0, 2.0)
        y = (x * x).exp().softmax(0)
        node = weakref.ref(y._node)
        tensor = weakref.ref(y)
        y.sum().backward()
        del y
        assert tensor() is None
        assert node() is None
    finally:
        gc.enable()


def test_change_after_saving_is_an_error_that_names_the_operation():
    x = leaf(1.0, 2.0)
    y = x * 2
    z = y.exp()
    with mt.no_grad():
        z.mul_(2)
    with pytest.raises(GraphError, match="exp needs its result"):
        z.sum().backward()


def test_a_change_through_a_view_is_seen():
    x, a = leaf(1.0, 2.0), mt.ones(2, dtype=mt.float64)
    y = x * a
    a.view(2, 1).fill_(3.0)
    with pytest.raises(GraphError, match="mul needs input 1"):
        y.sum().backward()


def test_a_stale_view_cannot_be_used():
    x = leaf(1.0, 2.0)
    y = x * 2
    view = y[:1]
    y.mul_(3)
    with pytest.raises(GraphError):
        view.exp()


def test_in_place_gradients():
    x = leaf(1.0, 2.0)
    with pytest.raises(GraphError):
        x.add_(1)
    y = x * 2
    y.mul_(x)
    y[0] = 5.0
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 8.0]


def test_modes():
    x = leaf(1.0)
    with mt.no_grad():
        assert not (x * 2).requires_grad
        with mt.enable_grad():
            assert (x * 2).requires_grad
    assert mt.is_grad_enabled()
    with mt.inference_mode():
        y = x * 2
    with pytest.raises(GraphError, match="inference_mode"):
        y.requires_grad_()
    assert not mt.no_grad()(lambda: x * 2)().requires_grad
    with pytest.raises(ZeroDivisionError), mt.no_grad():
        raise ZeroDivisionError
    assert mt.is_grad_enabled()


def test_anomaly_mode_names_the_line_forward():
    with mt.detect_anomaly(), pytest.raises(GraphError, match="log made a NaN") as error:
        leaf(-1.0).log()
    assert "test_tape.py" in str(error.value)
    assert "leaf(-1.0).log()" in str(error.value)
