"""The CUDA cross-entropy in the emulator's check build, against the float64 reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import to_device
from minitorch.errors import ShapeError
from minitorch.nn import functional as F

SHAPES = [(3, 5), (1, 1), (7, 40), (2, 1043), (40, 8)]
OPTIONS = [{}, {"label_smoothing": 0.1, "z_loss": 0.01, "ignore_index": 0}]


def sample(dtype, shape):
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal(shape)).astype(getattr(mt, dtype))
    return logits, rng.integers(0, shape[1], shape[0])


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "all"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_cross_entropy(hold, dtype, shape, reduction, options):
    logits, target = sample(dtype, shape)
    options = {"reduction": reduction, **options}
    loss, log_normaliser = hold("cross_entropy", logits, target, **options)
    assert loss.dtype == logits.dtype
    grad = (np.random.default_rng(1).random(loss.shape) + 0.5).astype(logits.dtype)
    hold("cross_entropy_backward", grad, logits, target, log_normaliser, **options)


def test_rows_that_do_not_count(hold):
    logits, target = np.float32([[1, np.nan], [-np.inf, 2], [0, 0]]), np.int64([-100, 1, 0])
    for reduction in ("mean", "none"):
        loss, log_normaliser = hold("cross_entropy", logits, target, reduction=reduction)
        grad = np.ones(loss.shape, np.float32)
        dx = kernels.lookup("cross_entropy_backward", "simt")(
            *(to_device(np.asarray(x), "simt") for x in (grad, logits, target, log_normaliser)),
            reduction=reduction,
        )
        assert not dx[0].any()
        assert np.isfinite(dx).all()
    ignored = np.full(3, -100)
    loss, _ = hold("cross_entropy", np.float32([[1, 2]] * 3), ignored)
    assert np.isnan(loss)


def test_into_the_logits_and_elsewhere():
    logits, target = (to_device(x, "simt") for x in sample("float32", (5, 8)))
    run, back = (kernels.lookup(f"cross_entropy{end}", "simt") for end in ("", "_backward"))
    _, log_normaliser = run(logits, target)
    grad = to_device(np.asarray(1.5, np.float32), "simt")
    expected = back(grad, logits, target, log_normaliser)
    turned = to_device(np.empty((8, 5), np.float32), "simt").T
    assert back(grad, logits, target, log_normaliser, out=turned) is turned
    assert back(grad, logits, target, log_normaliser, out=logits) is logits
    np.testing.assert_array_equal(turned, expected)
    np.testing.assert_array_equal(logits, expected)


def test_a_target_that_is_no_class():
    logits, target = (to_device(x, "simt") for x in sample("float32", (5, 8)))
    with pytest.raises(ShapeError, match="expected targets in"):
        kernels.lookup("cross_entropy", "simt")(logits, target + 8)


def test_gradcheck():
    logits, target = (to_device(x, "simt") for x in sample("float64", (4, 6)))

    def loss(logits):
        return F.cross_entropy(logits, mt.Tensor(target), label_smoothing=0.1, z_loss=0.1)

    assert mt.gradcheck(loss, mt.Tensor(logits, requires_grad=True))
