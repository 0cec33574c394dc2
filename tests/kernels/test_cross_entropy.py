"""The compiled cross-entropy, with smoothing and z-loss, against its reference in float64."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minitorch as mt
from minitorch import kernels
from minitorch.errors import ShapeError
from minitorch.kernels.reference import cross_entropy as reference

DTYPES = [np.dtype(np.float32), np.dtype(np.float64), mt.bfloat16]
FIXTURES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SHAPES = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 130)), st.sampled_from([(3, 5000), (900, 30)])
)


@FIXTURES
@given(
    SHAPES,
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from([0.0, 1e-2]),
    st.sampled_from(["mean", "sum", "none"]),
    st.booleans(),
    st.sampled_from([np.int64, np.int32]),
)
def test_cross_entropy(hold, shape, dtype, smoothing, z_loss, reduction, strided, kind):
    rows, classes = shape
    rng = np.random.default_rng(shape)
    logits = (5 * rng.standard_normal((rows, 2 * classes))).astype(dtype)
    logits = logits[:, ::2] if strided else logits[:, :classes].copy()
    target = rng.integers(0, classes, rows).astype(kind)
    target[1::3] = -100
    meta = {"label_smoothing": smoothing, "z_loss": z_loss, "reduction": reduction}
    loss, lse = hold("cross_entropy", logits, target, **meta)
    assert loss.dtype == dtype
    assert lse.dtype == (np.float32 if dtype == mt.bfloat16 else dtype)
    grad = rng.standard_normal(loss.shape).astype(dtype)
    slope = hold("cross_entropy_backward", grad, logits, target, lse, **meta)
    assert slope.dtype == dtype
    assert not slope[target == -100].any()

    backward = kernels.implementations("cross_entropy_backward")["cpu"]
    into = logits.copy()
    assert backward(grad, into, target, lse, out=into, **meta) is into
    assert (into == slope).all()


def test_extreme_logits(instruction_set):
    logits = np.array([[1e30, 0, -1e30], [-np.inf, 0, 0]], np.float32)
    forward, backward = (
        kernels.implementations(name)["cpu"] for name in ("cross_entropy", "cross_entropy_backward")
    )
    target = np.array([0, 1])
    loss, lse = forward(logits, target, reduction="none")
    np.testing.assert_allclose(loss, [0, np.log(2)], atol=1e-6)
    slope = backward(np.ones(2, np.float32), logits, target, lse, reduction="none")
    np.testing.assert_allclose(slope, [[0, 0, 0], [0, -0.5, 0.5]], atol=1e-6)


def test_nan_reaches_the_loss(instruction_set):
    logits = np.zeros((3, 40), np.float32)
    logits[1, 39] = np.nan
    loss, _ = kernels.implementations("cross_entropy")["cpu"](
        logits, np.array([0, 1, 2]), reduction="none"
    )
    assert np.isnan(loss).tolist() == [False, True, False]


def test_all_rows_ignored_and_no_rows(instruction_set):
    for rows in (0, 3):
        logits, target = np.ones((rows, 4), np.float32), np.full(rows, -100)
        with np.errstate(invalid="ignore"):
            loss, lse = kernels.implementations("cross_entropy")["cpu"](logits, target)
            expected, _ = reference.cross_entropy(logits, target)
        assert np.isnan(loss)
        assert np.isnan(expected)
        slope = kernels.implementations("cross_entropy_backward")["cpu"](
            np.float32(1), logits, target, lse
        )
        assert slope.shape == (rows, 4)
        assert not slope.any()


def test_a_class_out_of_range(instruction_set):
    logits = np.zeros((2, 3), np.float32)
    for bad in (3, -1):
        with pytest.raises(ShapeError, match=r"targets in \[0, 3\)"):
            kernels.implementations("cross_entropy")["cpu"](logits, np.array([0, bad]))
