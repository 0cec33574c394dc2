"""The CUDA optimizers in the emulator's check build, against the float64 reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import to_device
from minitorch.kernels.cuda.extension import checked

SHAPES = [(3, 5), (), (0,), (4100,), *[(n,) for n in range(1, 66)]]
"""Odd and empty, more than one piece, more than one table."""

TOLERANCE = {mt.float32: 2e-6, mt.float64: 4e-15}

RULES = {
    "adamw": (2, {"step": 3, "lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}),
    "sgd": (1, {"step": 2, "lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1}),
    "lion": (1, {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.1}),
    "direction": (1, {"momentum": 0.95, "nesterov": True}),
}


def one_of(options, i):
    """The numbers of the i-th parameter: no two have the same."""
    if "lr" in options:
        return {**options, "lr": options["lr"] / (i + 1)}
    return {"momentum": options["momentum"] / (i + 1), "nesterov": i % 2 == 0}


def arrays(dtype, positive=False):
    rng = np.random.default_rng(4)
    values = [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]
    return [np.asarray(np.abs(x)) for x in values] if positive else values


def on_simt(values):
    return [to_device(np.asarray(x), "simt") for x in values]


@pytest.mark.parametrize("order", [("forward", 0), ("reversed", 0), ("random", 7)])
@pytest.mark.parametrize("dtype", [mt.float32, mt.float64])
@pytest.mark.parametrize("rule", [*RULES, "nesterov", "descent"])
def test_steps(rule, dtype, order):
    states, options = RULES["sgd" if rule in ("nesterov", "descent") else rule]
    if rule == "nesterov":
        options = {**options, "step": 1, "nesterov": True}
    lists = [arrays(dtype), arrays(dtype), *(arrays(dtype, positive=True) for _ in range(states))]
    numbers = [one_of(options, i) for i in range(len(SHAPES))]
    name = f"{'sgd' if rule in ('nesterov', 'descent') else rule}_steps"
    narrow = mt.bfloat16 if dtype == mt.float32 else mt.float16
    copies = [None if i % 2 else np.zeros(shape, narrow) for i, shape in enumerate(SHAPES)]

    exact = [[np.asarray(x, np.float64) for x in values] for values in lists]
    found = [on_simt(values) for values in lists]
    if rule == "descent":
        found[2] = exact[2] = [None] * len(SHAPES)
    own = [None if copy is None else to_device(copy, "simt") for copy in copies]
    kernels.implementations(name)["numpy"](*exact, numbers, grad_scale=0.5)
    with checked(*order):
        kernels.lookup(name, "simt")(*found, numbers, grad_scale=0.5, copies=own)
    for values, expected in zip(found, exact, strict=True):
        for x, wide in zip(values, expected, strict=True):
            if x is not None:
                np.testing.assert_allclose(x, wide, rtol=0, atol=TOLERANCE[dtype])
    for param, copy in zip(found[0], own, strict=True):
        if copy is not None:
            np.testing.assert_array_equal(copy, np.asarray(param).astype(narrow))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_newton_schulz(dtype):
    rng = np.random.default_rng(0)
    given = [rng.standard_normal(shape).astype(dtype) for shape in ((9, 20), (20, 9), (1, 3))]
    options = {"coefficients": (3.4445, -4.7750, 2.0315), "steps": 5, "eps": 1e-7}
    exact, found = [x.astype(np.float64) for x in given], on_simt(given)
    kernels.implementations("newton_schulz")["numpy"](exact, **options)
    with checked():
        kernels.lookup("newton_schulz", "simt")(found, **options)
    for x, wide in zip(found, exact, strict=True):
        np.testing.assert_allclose(x, wide, rtol=0, atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_some_rows(rule):
    """Beside one of a whole array."""
    states, options = RULES[rule]
    rng, rows = np.random.default_rng(0), [np.array([0, 3, 4]), None]
    lists = [[np.abs(rng.standard_normal(s)) for s in ((6, 5), (7,))] for _ in range(2 + states)]
    lists[1][0] = lists[1][0][rows[0]]
    exact = [[x.copy() for x in values] for values in lists]
    found = [on_simt(values) for values in lists]
    numbers = [options, options]
    kernels.implementations(f"{rule}_steps")["numpy"](*exact, numbers, rows=rows)
    with checked():
        kernels.lookup(f"{rule}_steps", "simt")(*found, numbers, rows=rows)
    for values, expected, before in zip(found, exact, lists, strict=True):
        for x, wide in zip(values, expected, strict=True):
            np.testing.assert_allclose(x, wide, rtol=0, atol=4e-15)
        if values is not found[1]:
            np.testing.assert_array_equal(values[0][[1, 2, 5]], before[0][[1, 2, 5]])
            assert (values[0][0] != before[0][0]).any()


def test_arrays_that_begin_anywhere_and_lie_apart():
    whole = to_device(np.arange(1.0, 22, dtype=np.float32), "simt")
    matrix = to_device(np.ones((4, 6), np.float32), "simt")
    means, values = [whole[1:20], matrix[:, ::2]], [whole[2:21].copy(), 3 * matrix[:, ::2]]
    with checked():
        kernels.lookup("follow", "simt")(means, values, rate=0.5)
    np.testing.assert_array_equal(means[0], np.arange(2.5, 21))
    np.testing.assert_array_equal(means[1], np.full((4, 3), 2))
    assert (whole[0], whole[20]) == (1, 21)


@pytest.mark.parametrize("order", [("forward", 0), ("reversed", 0), ("random", 7)])
def test_norm_of_all(order):
    lists = [
        x for dtype in (mt.float32, mt.bfloat16, mt.float16, mt.float64) for x in arrays(dtype)[:8]
    ]
    expected = kernels.implementations("l2_norm")["numpy"]([x.astype(np.float64) for x in lists])
    with checked(*order):
        found = kernels.lookup("l2_norm", "simt")(on_simt(lists))
    assert found == pytest.approx(expected, rel=1e-14)
    huge = [np.float32([1e30, 1e30]), np.float32([np.inf])]
    assert kernels.lookup("l2_norm", "simt")(on_simt(huge[:1])) == pytest.approx(2**0.5 * 1e30)
    assert kernels.lookup("l2_norm", "simt")(on_simt(huge)) == np.inf
