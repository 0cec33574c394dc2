"""Rows too long for one block: a cluster has them together, or a block reads them again."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import to_device
from minitorch.kernels.cuda.extension import checked
from tests.cuda.conftest import close, flat

LENGTHS = {mt.float32: 10244, mt.bfloat16: 20501}
"""Of two blocks each; of the second, columns are not read by several at once."""


def sample(*shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", LENGTHS, ids=str)
def test_softmax_and_its_logarithm(hold, dtype):
    shape = (2, LENGTHS[dtype])
    x, grad = sample(*shape, dtype=dtype), sample(*shape, dtype=dtype, seed=1)
    out = hold("softmax", x, scale=0.7)
    hold("softmax_backward", grad, out, scale=0.7)
    out = hold("log_softmax", x)
    hold("log_softmax_backward", (grad / 100).astype(dtype), out)
    hold("logsumexp", x)


@pytest.mark.parametrize("dtype", LENGTHS, ids=str)
def test_norms(hold, dtype):
    columns = LENGTHS[dtype]
    x, residual = sample(2, columns, dtype=dtype), sample(2, columns, dtype=dtype, seed=1)
    weight, bias = (sample(columns, dtype=np.float32, seed=seed) for seed in (2, 3))
    hold("layer_norm", x, weight, bias, like=dtype)
    hold("rms_norm", x, weight, like=dtype)
    hold("add_layer_norm", x, residual, weight, None, like=dtype)
    hold("add_rms_norm", x, residual, None, like=dtype)


@pytest.mark.parametrize("dtype", LENGTHS, ids=str)
def test_losses_over_a_large_vocabulary(hold, dtype):
    classes = LENGTHS[dtype]
    logits, target = sample(3, classes, dtype=dtype), np.array([0, -100, classes - 1])
    for smoothing in (0.0, 0.1):
        hold("cross_entropy", logits, target, label_smoothing=smoothing, z_loss=0.01, like=dtype)


@pytest.mark.parametrize(("columns", "dtype"), [(8194, mt.float64), (33000, mt.float16)], ids=str)
def test_four_blocks(columns, dtype):
    x = sample(1, columns, dtype=dtype)
    for name, options in [("softmax", []), ("logsumexp", []), ("layer_norm", [None, None])]:
        with checked("random", 3):
            found = kernels.lookup(name, "simt")(to_device(x, "simt"), *options)
        exact = kernels.implementations(name)["numpy"](x.astype(np.float64), *options)
        for out, expected in zip(flat(found), flat(exact), strict=True):
            close(np.asarray(out), expected, dtype)


@pytest.mark.parametrize("columns", [16386, 98306])
def test_eight_blocks_with_room_for_a_row_and_without(columns):
    x = sample(1, columns, dtype=np.float64)
    with checked("random", 1):
        found = kernels.lookup("softmax", "simt")(to_device(x, "simt"))
    close(np.asarray(found), kernels.implementations("softmax")["numpy"](x), mt.float64)


def test_infinities_beside_each_other(hold):
    """The maximum, and all of a row that counts, in another block than most of the row."""
    x = np.full((3, 10244), -np.inf, np.float32)
    x[0, 10243] = 2.0
    x[1, [3, 9000]] = np.inf, 1.0
    x[2, 5] = np.nan
    hold("logsumexp", x)
    hold("log_softmax", x[[0, 2]])
    hold("softmax", x[:1])


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "layer_norm", "rms_norm"])
def test_without_clusters(name):
    x = sample(2, 10244, dtype=np.float32)
    options = {"layer_norm": [None, None], "rms_norm": [None]}.get(name, [])
    exact = flat(kernels.implementations(name)["numpy"](x.astype(np.float64), *options))
    for capability in (80, 90):
        with checked("random", 2, capability=capability):
            found = flat(kernels.lookup(name, "simt")(to_device(x, "simt"), *options))
        for out, expected in zip(found, exact, strict=True):
            close(np.asarray(out), expected, mt.float32)
