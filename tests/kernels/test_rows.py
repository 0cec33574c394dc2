"""The compiled norms, activations, cross-entropy and sums against their references in float64."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minitorch as mt
from minitorch import kernels
from minitorch.kernels import reference, reference_optimizers

TOLERANCE = {np.dtype(np.float32): 4e-6, np.dtype(np.float64): 2e-14, mt.bfloat16: 1e-2}
FIXTURES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 130))
FLOATS = st.sampled_from([np.dtype(np.float32), np.dtype(np.float64)])


def normal(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(found, expected, dtype):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    scale = 1 + np.abs(expected[np.isfinite(expected)]).max(initial=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * scale)


def both(name, *arrays, **meta):
    """The compiled kernel's result, and the reference's on the same numbers in float64."""
    found = kernels.implementations(name)["cpu"](*arrays, **meta)
    exact = [
        a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype in TOLERANCE else a
        for a in arrays
    ]
    expected = getattr(reference, name)(*exact, **meta)
    if not isinstance(found, tuple):
        found, expected = (found,), (expected,)
    return zip(found, expected, strict=True)


@FIXTURES
@given(SHAPES, FLOATS, st.booleans(), st.booleans())
def test_layer_norm(instruction_set, shape, dtype, weighted, biased):
    x = 3 + normal(*shape, dtype=dtype)
    weight = normal(shape[1], dtype=dtype, seed=1) if weighted else None
    bias = normal(shape[1], dtype=dtype, seed=2) if biased else None
    for found, expected in both("layer_norm", x, weight, bias, eps=1e-2):
        close(found, expected, dtype)
    _, mean, rstd = reference.layer_norm(x.astype(np.float64), None, None, eps=1e-2)
    mean, rstd = mean.astype(dtype), rstd.astype(dtype)
    grad = normal(*shape, dtype=dtype, seed=3)
    for found, expected in both("layer_norm_backward", grad, x, weight, mean, rstd):
        close(found, expected, dtype)


@FIXTURES
@given(SHAPES, FLOATS, st.booleans())
def test_rms_norm(instruction_set, shape, dtype, weighted):
    x = normal(*shape, dtype=dtype)
    weight = normal(shape[1], dtype=dtype, seed=1) if weighted else None
    for found, expected in both("rms_norm", x, weight, eps=1e-2):
        close(found, expected, dtype)
    _, rstd = reference.rms_norm(x.astype(np.float64), None, eps=1e-2)
    grad = normal(*shape, dtype=dtype, seed=3)
    for found, expected in both("rms_norm_backward", grad, x, weight, rstd.astype(dtype)):
        close(found, expected, dtype)


@FIXTURES
@given(SHAPES, FLOATS, st.sampled_from([0, 1, -1]), st.sampled_from([1.0, 0.3]))
def test_softmax_backward(instruction_set, shape, dtype, dim, scale):
    grad, x = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    out = reference.softmax(x, dim=dim, scale=scale)
    for found, expected in both("softmax_backward", grad, out, dim=dim, scale=scale):
        close(found, expected, dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_activations(instruction_set, name, dtype):
    meta = {"approximate": "tanh"} if name == "gelu" else {}
    extremes = [0.0, -0.0, 1e30, -1e30, 40, -40, 1e-30]
    x = np.concatenate([8 * normal(1003), extremes]).astype(dtype)
    ((found, expected),) = both(name, x, **meta)
    close(found[np.abs(x) < 1e3], expected[np.abs(x) < 1e3], dtype)
    assert (found[x.astype(np.float64) < -1e29] == 0).all()
    modest = x[np.abs(x.astype(np.float64)) < 100]
    grad = normal(len(modest), dtype=dtype, seed=1)
    for found, expected in both(f"{name}_backward", grad, modest, **meta):
        close(found, expected, dtype)
    assert np.isnan(kernels.lookup(name)(np.full(3, np.nan, dtype), **meta)).all()


@FIXTURES
@given(SHAPES, FLOATS, st.sampled_from([0.0, 0.2]), st.sampled_from(["mean", "sum", "none"]))
def test_cross_entropy(instruction_set, shape, dtype, smoothing, reduction):
    rows, classes = shape
    logits = 5 * normal(rows, classes, dtype=dtype)
    target = np.random.default_rng(rows).integers(0, classes, rows)
    target[::3] = -100
    target[0] = 0
    meta = {"label_smoothing": smoothing, "reduction": reduction}
    for found, expected in both("cross_entropy", logits, target, **meta):
        close(found, expected, dtype)
    _, lse = reference.cross_entropy(logits.astype(np.float64), target, **meta)
    grad = normal(rows, dtype=dtype) if reduction == "none" else np.asarray(0.7, dtype)
    for found, expected in both(
        "cross_entropy_backward", grad, logits, target, lse.astype(dtype), **meta
    ):
        close(found, expected, dtype)
        assert not found[target == -100].any()


def test_cross_entropy_of_extreme_logits(instruction_set):
    logits = np.array([[1e30, 0, -1e30], [-np.inf, 0, 0]], np.float32)
    loss, lse = kernels.lookup("cross_entropy")(logits, np.array([0, 1]), reduction="none")
    np.testing.assert_allclose(loss, [0, np.log(2)], atol=1e-6)
    grad = np.ones(2, np.float32)
    slope = kernels.lookup("cross_entropy_backward")(
        grad, logits, np.array([0, 1]), lse, reduction="none"
    )
    np.testing.assert_allclose(slope, [[0, 0, 0], [0, -0.5, 0.5]], atol=1e-6)


def test_threads_do_not_change_a_bit(instruction_set, threads):
    x, grad = (normal(700, 96, dtype=np.float32, seed=i) for i in range(2))
    target = np.arange(700) % 96
    results = []
    for count in (1, 2, 3):
        threads(count)
        out, mean, rstd = kernels.lookup("layer_norm")(x, None, None)
        results.append(
            [
                out,
                *kernels.lookup("layer_norm_backward")(grad, x, None, mean, rstd),
                kernels.lookup("gelu")(x, approximate="tanh"),
                *kernels.lookup("cross_entropy")(x, target),
                np.float64(kernels.lookup("l2_norm")([x, grad])),
                kernels.lookup("add")(x, grad),
            ]
        )
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            assert (np.asarray(one) == np.asarray(other)).all()


def test_exp_is_within_two_units_in_the_last_place(instruction_set):
    """Through softmax of (x, 0): its ratio of probabilities is exp(x)."""
    x = -np.linspace(0, 80, 200_001, dtype=np.float32)
    pairs = np.stack([x, np.zeros_like(x)], axis=1)
    probabilities = kernels.lookup("softmax")(pairs).astype(np.float64)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(probabilities[:, 0] / probabilities[:, 1] / exact - 1)
    assert error.max() < 4 * 2.0**-24 + 2 * 2.0**-24  # exp, then two rounded divisions


def test_adamw_over_many_arrays(instruction_set, threads):
    shapes = [(3,), (70, 90), (1,), (20000,)]
    numbers = [
        {
            "step": 3 + i,
            "lr": 0.1 / (i + 1),
            "betas": (0.9, 0.99),
            "eps": 1e-6,
            "weight_decay": i / 9,
        }
        for i in range(len(shapes))
    ]
    for dtype in (np.float32, np.float64):
        start = [
            [np.abs(normal(*s, dtype=dtype, seed=4 * i + j)) for i, s in enumerate(shapes)]
            for j in range(4)
        ]
        expected = [[a.astype(np.float64) for a in arrays] for arrays in start]
        reference_optimizers.adamw_steps(*expected, numbers, grad_scale=0.3)
        results = []
        for count in (1, 2):
            threads(count)
            found = [[a.copy() for a in arrays] for arrays in start]
            kernels.implementations("adamw_steps")["cpu"](*found, numbers, grad_scale=0.3)
            results.append(found)
        for ours, theirs, again in zip(results[0], expected, results[1], strict=True):
            for one, other, same in zip(ours, theirs, again, strict=True):
                close(one, other, np.dtype(dtype))
                assert (one == same).all()


def test_l2_norm(instruction_set):
    arrays = [normal(5, 7, dtype=np.float32), normal(30000, dtype=mt.bfloat16), normal(3)]
    expected = np.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in arrays))
    assert abs(kernels.lookup("l2_norm")(arrays) / expected - 1) < 1e-6
    assert kernels.lookup("l2_norm")([]) == 0
