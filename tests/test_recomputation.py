"""Checkpointing, and norms made again: the same gradients to the bit, from fewer arrays."""

import gc
import itertools
import weakref

import pytest

import minitorch as mt
from minitorch import autograd, debug, tape
from minitorch.errors import GraphError
from minitorch.nn import functional as F


def gradients(run, *tensors):
    mt.manual_seed(7)
    return [g.tolist() for g in autograd.grad(run(), tensors)]


def inputs():
    generator = mt.Generator(1)
    x, w = mt.randn(4, 5, generator=generator), mt.randn(5, 5, generator=generator)
    return x.requires_grad_(), w.requires_grad_()


def test_gradients_are_equal_to_the_bit_with_dropout_and_a_closed_over_weight():
    x, w = inputs()

    def block(x):
        return F.dropout((x @ w).tanh(), 0.5, training=True) @ w

    plain = gradients(lambda: (block(block(x)) ** 2).mean(), x, w)
    kept = gradients(lambda: (mt.checkpoint(block, mt.checkpoint(block, x)) ** 2).mean(), x, w)
    assert plain == kept


def test_nested_and_second_order():
    x, w = inputs()

    def inner(x):
        return (x @ w).tanh()

    def outer(x):
        return mt.checkpoint(inner, x).exp()

    def second(f):
        (first,) = autograd.grad(f(x).mean(), x, create_graph=True)
        return autograd.grad((first**2).mean(), w)[0]

    expected = second(lambda x: inner(x).exp())
    found = second(lambda x: mt.checkpoint(outer, x))
    assert (found - expected).abs().max().item() < 1e-6


def saved_arrays(out):
    nodes = autograd.ancestors([out._node])
    return sum(
        isinstance(s, tuple) and hasattr(s[0], "nbytes")
        for node in nodes
        for s in node.saved.values()
    )


def test_fewer_arrays_are_held():
    x, w = inputs()

    def block(x):
        return (x @ w).tanh().exp().sigmoid().tanh()

    assert saved_arrays(mt.checkpoint(block, x)) == 0 < saved_arrays(block(x))


def test_a_function_that_changes_is_an_error():
    x, _ = inputs()
    runs = itertools.count()
    out = mt.checkpoint(lambda x: x.exp() if next(runs) == 0 else x.exp().tanh(), x)
    with pytest.raises(GraphError, match="did not do the same"):
        out.mean().backward()


@pytest.fixture(params=["layer_norm", "rms_norm"])
def norm(request, monkeypatch):
    """A norm of the last dimension, whose results are made again however small they are."""
    monkeypatch.setattr(tape.Remade, "LEAST_BYTES", 0)
    return lambda x, weight: getattr(F, request.param)(x, x.shape[-1:], weight)


def readers(norm, x, w):
    """The loss and the result of a norm that two products read."""
    normed = norm(x, w[0])
    return ((normed @ w) * (normed @ w.mT)).sum(), normed


def test_what_reads_a_norm_does_not_keep_its_result(norm, monkeypatch):
    x, w = inputs()
    loss, _ = readers(norm, x, w)
    remade = debug.saved(loss)
    assert [r.kept for r in remade.rows if r.operation == "matmul"] == [("a (recomputed)", "b")] * 2
    found = autograd.grad(loss, [x, w])
    monkeypatch.setattr(tape.Remade, "LEAST_BYTES", 1 << 62)
    loss, _ = readers(norm, x, w)
    assert debug.saved(loss).total == remade.total + x.numel() * x.data.itemsize
    for a, b in zip(found, autograd.grad(loss, [x, w]), strict=True):
        assert a.tolist() == b.tolist()


@pytest.mark.parametrize("dtype", [mt.float16, mt.bfloat16])
def test_a_norm_in_half_precision_is_made_again_to_the_bit(norm, dtype):
    x = (mt.randn(4, 5, generator=mt.Generator(1)) * 30).to(dtype).requires_grad_()
    w = mt.randn(5, 5, generator=mt.Generator(2)).to(dtype).requires_grad_()
    normed = norm(x, w[0])
    assert normed._node.remade.run_again()[0].tolist() == normed.tolist()
    assert normed._node.remade.run_again()[0].dtype == normed.dtype


def test_a_norm_is_made_again_once_for_all_that_read_it(norm, monkeypatch):
    x, w = inputs()
    loss, normed = readers(norm, x, w)
    primitive, calls = normed._node.primitive, []
    forward = primitive.forward

    def counted(*args, **options):
        calls.append(args)
        return forward(*args, **options)

    monkeypatch.setattr(primitive, "forward", counted)
    first = autograd.grad(loss, [x, w], retain_graph=True)
    assert len(calls) == 1
    second = autograd.grad(loss, [x, w])
    assert len(calls) == 2
    assert [g.tolist() for g in first] == [g.tolist() for g in second]


def test_second_derivatives_through_a_norm_that_is_made_again(norm, monkeypatch):
    x, w = inputs()

    def second():
        (slope,) = autograd.grad(readers(norm, x, w)[0], [x], create_graph=True)
        return autograd.grad((slope**2).sum(), [x, w])

    found = second()
    monkeypatch.setattr(tape.Remade, "LEAST_BYTES", 1 << 62)
    for a, b in zip(found, second(), strict=True):
        assert a.tolist() == b.tolist()


def test_a_norm_whose_result_was_changed_is_not_made_again(norm):
    x, w = inputs()
    loss, normed = readers(norm, x, w)
    normed.mul_(2)
    with pytest.raises(GraphError, match="changed in place"):
        loss.backward()
    twice = norm(x, w[0]).mul_(2)
    (found,) = autograd.grad((twice @ w).sum(), [w])
    (expected,) = autograd.grad(((norm(x, w[0]) * 2) @ w).sum(), [w])
    assert found.tolist() == expected.tolist()


def test_a_norm_of_an_input_that_was_changed_is_an_error(norm):
    x, w = inputs()
    between = x * 1.0
    loss, _ = readers(norm, between, w)
    with mt.no_grad():
        between.mul_(2)
    with pytest.raises(GraphError, match="_norm needs input 0"):
        autograd.grad(loss, [w])


def test_a_tape_with_a_norm_that_is_made_again_goes_with_its_last_reference(norm):
    x, w = inputs()
    loss, normed = readers(norm, x, w)
    node = weakref.ref(normed._node)
    gc.disable()
    try:
        del loss, normed
        assert node() is None
    finally:
        gc.enable()
