"""The head's product fused with the loss, against the formula in float64, and what it keeps."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minitorch as mt
from minitorch import kernels
from minitorch.errors import ShapeError
from minitorch.nn import functional as F

TOLERANCE = {np.dtype(np.float32): 4e-6, np.dtype(np.float64): 2e-14, mt.bfloat16: 1e-2}
EVERYTHING = (True, True, True)


def normal(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def targets(rows, classes, ignored=0.3):
    rng = np.random.default_rng(rows)
    target = rng.integers(0, classes, rows)
    target[rng.random(rows) < ignored] = -100
    return target


def formula(x, weight, target, bias, smoothing, z_loss, grad):
    """Losses of the rows, and the gradients of their product with grad, written out in float64."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    logits = x @ weight.T + (0 if bias is None else bias.astype(np.float64))
    peak = logits.max(1, keepdims=True)
    lse = np.log(np.exp(logits - peak).sum(1)) + peak[:, 0]
    classes = len(weight)
    truth = (1 - smoothing) * (target[:, None] == np.arange(classes)) + smoothing / classes
    kept = target != -100
    loss = np.where(kept, lse - (truth * logits).sum(1) + z_loss * lse**2, 0)
    dlogits = np.exp(logits - lse[:, None]) * (1 + 2 * z_loss * lse[:, None]) - truth
    dlogits *= np.where(kept, grad, 0)[:, None]
    return loss, (dlogits @ weight, dlogits.T @ x, dlogits.sum(0))


def close(found, expected, dtype):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    scale = 1 + np.abs(expected).max(initial=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * scale)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.one_of(st.integers(1, 40), st.sampled_from([255, 256, 257, 513, 700])),
    classes=st.integers(1, 90),
    features=st.integers(1, 40),
    dtype=st.sampled_from(list(TOLERANCE)),
    biased=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.2]),
    z_loss=st.sampled_from([0.0, 0.05]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
)
def test_against_the_formula(
    instruction_set, small_chunks, rows, classes, features, dtype, biased, smoothing, z_loss,
    reduction,
):  # fmt: skip
    x = normal(rows, features, dtype=dtype)
    weight = normal(classes, features, dtype=dtype, seed=1)
    bias = normal(classes, dtype=dtype, seed=2) if biased else None
    target = targets(rows, classes)
    target[0] = 0
    options = {"label_smoothing": smoothing, "z_loss": z_loss, "reduction": reduction}
    grad = normal(rows, dtype=dtype, seed=3) if reduction == "none" else np.asarray(0.5, dtype)
    share = {"mean": 1 / np.count_nonzero(target != -100), "sum": 1, "none": 1}[reduction]
    scale = np.broadcast_to(grad.astype(np.float64) * share, rows)
    losses, gradients = formula(x, weight, target, bias, smoothing, z_loss, scale)

    needs = (True, True, biased)
    ahead = needs if reduction != "none" else (False, False, False)
    loss, log_normaliser, early = kernels.lookup("linear_cross_entropy")(
        x, weight, target, bias, **options, ahead=ahead
    )
    late = kernels.lookup("linear_cross_entropy_backward")(
        grad, x, weight, target, bias, log_normaliser, needs=needs, **options
    )
    assert loss.dtype == dtype
    close(loss, losses if reduction == "none" else losses.sum() * share, dtype)
    for needed, one, other, expected in zip(needs, early, late, gradients, strict=True):
        assert (other is not None) == needed
        if needed:
            assert other.dtype == dtype
            close(other, expected, dtype)
        if needed and any(ahead):
            assert one.dtype == dtype
            close(0.5 * one.astype(np.float64), expected, dtype)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of as few rows as they ever have, also where there are few classes."""
    from minitorch.kernels.cpu import linear_cross_entropy

    monkeypatch.setattr(linear_cross_entropy._DEVICE, "chunk_bytes", 0)


def test_lowered_factors(instruction_set, small_chunks):
    x, weight = normal(600, 48, dtype=np.float32), normal(70, 48, dtype=np.float32, seed=1)
    bias, target = normal(70, dtype=np.float32, seed=2), targets(600, 70)
    options = {"lower": mt.bfloat16, "reduction": "sum", "ahead": EVERYTHING}
    found = kernels.lookup("linear_cross_entropy")(x, weight, target, bias, **options)
    rounded = [a.astype(mt.bfloat16) for a in (x, weight)]
    losses, gradients = formula(*rounded, target, bias, 0, 0, np.ones(600))
    assert found[0].dtype == np.float32
    close(found[0], losses.sum(), np.dtype(np.float32))
    for gradient, expected in zip(found[2], gradients, strict=True):
        assert gradient.dtype == np.float32
        close(gradient, expected, mt.bfloat16)


@pytest.mark.parametrize("implementation", ["numpy", "cpu"])
def test_nothing_to_learn(implementation):
    run = kernels.implementations("linear_cross_entropy").get(implementation)
    if run is None:
        pytest.skip("minitorch._cpu was not built: no C++20 compiler at installation")
    x, weight = normal(5, 3), normal(4, 3)
    ignored = np.full(5, -100)
    loss, _, gradients = run(x, weight, ignored, reduction="mean", ahead=(True, True, False))
    assert np.isnan(loss)
    assert not any(gradient.any() for gradient in gradients[:2])
    loss, _, gradients = run(x[:0], weight, ignored[:0], reduction="sum", ahead=(True, True, False))
    assert loss == 0
    assert gradients[0].shape == (0, 3)
    assert not gradients[1].any()
    with pytest.raises(ShapeError, match="expected targets in"):
        run(x, weight, np.full(5, 4))


def test_threads_do_not_change_a_bit(instruction_set, small_chunks, threads):
    x, weight = normal(600, 64, dtype=np.float32), normal(300, 64, dtype=np.float32, seed=1)
    results = []
    for count in (1, 2, 3):
        threads(count)
        loss, lse, gradients = kernels.lookup("linear_cross_entropy")(
            x, weight, targets(600, 300), ahead=(True, True, False)
        )
        results.append([a.tobytes() for a in (loss, lse, *gradients[:2])])
    assert results[0] == results[1] == results[2]


def losses_and_gradients(x, weight, target, bias, fused, factor, **options):
    leaves = [mt.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    if fused:
        loss = F.linear_cross_entropy(leaves[0], leaves[1], mt.tensor(target), leaves[2], **options)
    else:
        logits = F.linear(*leaves)
        loss = F.cross_entropy(
            logits.reshape(-1, len(weight)), mt.tensor(target.ravel()), **options
        )
    (loss * factor).sum().backward()
    return [loss.detach().numpy().ravel(), *(leaf.grad.numpy() for leaf in leaves)]


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_it_equals_linear_and_then_cross_entropy(reduction, factor):
    arrays = normal(2, 150, 24), normal(30, 24, seed=1), targets(300, 30).reshape(2, 150)
    options = {"reduction": reduction, "label_smoothing": 0.1, "z_loss": 0.01}
    one, other = (
        losses_and_gradients(*arrays, normal(30, seed=2), fused, factor, **options)
        for fused in (True, False)
    )
    for found, expected in zip(one, other, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_a_tape_that_is_kept_gives_the_same_gradient_twice():
    x, weight = (mt.tensor(normal(*shape), requires_grad=True) for shape in [(6, 3), (4, 3)])
    loss = 2 * F.linear_cross_entropy(x, weight, mt.tensor([0, 1, 2, 3, 0, 1]))
    loss.backward(retain_graph=True)
    first = [leaf.grad.numpy().copy() for leaf in (x, weight)]
    for leaf in (x, weight):
        leaf.grad.zero_()
    loss.backward()
    for leaf, gradient in zip((x, weight), first, strict=True):
        np.testing.assert_array_equal(leaf.grad.numpy(), gradient)


def test_gradients_are_computed_ahead_only_where_they_are_wanted(monkeypatch):
    from minitorch.ops import losses

    asked = []
    apply = losses.apply
    monkeypatch.setattr(
        losses, "apply", lambda p, xs, meta: (asked.append(meta["ahead"]), apply(p, xs, meta))[1]
    )
    x, weight = mt.tensor(normal(4, 3)), mt.tensor(normal(5, 3), requires_grad=True)
    target = mt.tensor([0, 1, 2, 3])
    F.linear_cross_entropy(x, weight, target)
    F.linear_cross_entropy(x, weight, target, reduction="none")
    with mt.no_grad():
        F.linear_cross_entropy(x, weight, target)
    loss = mt.checkpoint(F.linear_cross_entropy, x, weight, target)
    nothing = (False, False, False)
    assert asked == [(False, True, False), nothing, nothing, nothing]
    loss.backward()
    again = mt.tensor(weight.detach().numpy(), requires_grad=True)
    F.linear_cross_entropy(x, again, target).backward()
    np.testing.assert_allclose(weight.grad.numpy(), again.grad.numpy(), rtol=1e-12, atol=1e-15)


def test_autocast_lowers_the_product_and_nothing_else():
    x, weight = (
        mt.tensor(normal(*shape, dtype=np.float32), requires_grad=True)
        for shape in [(64, 32), (50, 32)]
    )
    target = mt.tensor(targets(64, 50))
    full = F.linear_cross_entropy(x, weight, target)
    with mt.autocast():
        loss = F.linear_cross_entropy(x, weight, target)
        assert F.linear_cross_entropy(x.bfloat16(), weight, target).item() == loss.item()
        assert F.linear_cross_entropy(x.double(), weight.double(), target).dtype == mt.float64
    assert loss.dtype == mt.float32
    assert 0 < abs(loss.item() - full.item()) < 0.02
    loss.backward()
    assert x.grad.dtype == weight.grad.dtype == mt.float32


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_logits_are_never_whole_in_memory(reduction):
    if not kernels.instruction_sets():
        pytest.skip("minitorch._cpu was not built: no C++20 compiler at installation")
    tokens, classes, features = 2048, 4096, 32
    x = mt.tensor(normal(tokens, features, dtype=np.float32), requires_grad=True)
    weight = mt.tensor(normal(classes, features, dtype=np.float32), requires_grad=True)
    target = mt.tensor(targets(tokens, classes))
    logits = 4 * tokens * classes
    tracemalloc.start()
    try:
        loss = F.linear_cross_entropy(x, weight, target, reduction=reduction)
        loss.backward(mt.ones_like(loss))
        _, peak = tracemalloc.get_traced_memory()
        assert peak < logits / 4
        tracemalloc.reset_peak()
        F.cross_entropy(F.linear(x, weight), target).backward()
        assert tracemalloc.get_traced_memory()[1] > logits
    finally:
        tracemalloc.stop()


def test_shapes_that_do_not_fit():
    x, weight = mt.randn(2, 3, 4), mt.randn(5, 4)
    with pytest.raises(ShapeError, match=r"expected input \(..., features\)"):
        F.linear_cross_entropy(x, weight, mt.zeros(6, dtype=mt.int64))
    with pytest.raises(ShapeError, match=r"bias \(classes,\); got"):
        F.linear_cross_entropy(x, weight, mt.zeros(2, 3, dtype=mt.int64), mt.randn(4))
