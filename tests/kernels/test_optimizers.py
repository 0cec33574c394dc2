"""The compiled optimizers against their references in float64: every rule, over many arrays."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minitorch as mt
from minitorch import kernels

TOLERANCE = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-14}
FIXTURES = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SHAPES = st.lists(
    st.sampled_from([(1,), (3,), (0,), (17,), (70, 90), (2, 3, 4), (40000,)]), max_size=5
)


def numbers(rule, i):
    """Numbers of the i-th parameter: no two have the same."""
    lr, betas, decay = 0.1 / (i + 1), (0.9, 0.99), i / 9
    return {
        "adamw": {"step": 3 + i, "lr": lr, "betas": betas, "eps": 1e-6, "weight_decay": decay},
        "sgd": {
            "step": 1 + i % 2,
            "lr": lr,
            "momentum": 0.8,
            "dampening": 0.0 if i % 3 else 0.3,
            "weight_decay": decay,
            "nesterov": i % 3 == 1,
        },
        "lion": {"lr": lr, "betas": betas, "weight_decay": decay},
        "direction": {"momentum": 0.9 - i / 20, "nesterov": i % 2 == 0},
    }[rule]


STATES = {"adamw": 2, "sgd": 1, "lion": 1, "direction": 1}


def draw(shape, dtype, seed, layout="plain"):
    """Positive numbers, since a second moment is one."""
    rng = np.random.default_rng([seed, *shape])
    if layout == "transposed":
        return np.abs(rng.standard_normal(shape[::-1])).astype(dtype).T
    return np.abs(rng.standard_normal(shape)).astype(dtype)


def same(found, expected, dtype):
    bound = TOLERANCE[np.dtype(dtype)]
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("rule", STATES)
@FIXTURES
@given(
    SHAPES,
    st.sampled_from(sorted(TOLERANCE, key=str)),
    st.sampled_from([1.0, 0.3]),
    st.sampled_from(["plain", "transposed"]),
    st.booleans(),
)
def test_rules(instruction_set, threads, rule, shapes, dtype, grad_scale, layout, copied):
    """Gradients of either sign; SGD with a buffer for some; a bfloat16 copy for some."""
    count = len(shapes)
    scalars = [numbers(rule, i) for i in range(count)]
    lists = [
        [draw(shape, dtype, 9 * i + j, layout) for i, shape in enumerate(shapes)]
        for j in range(2 + STATES[rule])
    ]
    for grad in lists[1]:
        grad.reshape(-1)[::2] *= -1
    if rule == "sgd":
        lists[2] = [None if i % 2 else buffer for i, buffer in enumerate(lists[2])]
    exact = [[None if a is None else a.astype(np.float64) for a in arrays] for arrays in lists]
    kernels.implementations(f"{rule}_steps")["numpy"](*exact, scalars, grad_scale=grad_scale)

    results = []
    for number in (1, 2):
        threads(number)
        found = [[None if a is None else a.copy() for a in arrays] for arrays in lists]
        copies = [
            np.zeros(shape, mt.bfloat16) if copied and i != 1 else None
            for i, shape in enumerate(shapes)
        ]
        kernels.implementations(f"{rule}_steps")["cpu"](
            *found, scalars, grad_scale=grad_scale, copies=copies if copied else None
        )
        for param, copy in zip(found[0], copies, strict=True):
            assert copy is None or (copy == param.astype(mt.bfloat16)).all()
        for grad, before in zip(found[1], lists[1], strict=True):
            assert (grad == before).all()
        results.append(found)
    for ours, again, theirs in zip(*results, exact, strict=True):
        for one, other, expected in zip(ours, again, theirs, strict=True):
            if expected is not None:
                same(one, expected, dtype)
                assert (one == other).all()


@pytest.mark.parametrize("dtype", sorted(TOLERANCE, key=str))
@pytest.mark.parametrize("rule", STATES)
def test_gradients_of_some_rows(instruction_set, threads, rule, dtype):
    """Dense on these rows, and nothing else is touched; of many widths, beside a whole array."""
    shapes = [(90, 33), (5, 4), (3, 20_000), (40, 1), (7,), (6, 2, 3), (9, 8)]
    rng = np.random.default_rng(0)
    rows = [None if len(s) == 1 else np.flatnonzero(rng.random(s[0]) < 0.6) for s in shapes]
    rows[1], rows[6] = np.array([4]), np.array([], np.int64)
    lists = [
        [draw(s, dtype, 9 * i + j) for i, s in enumerate(shapes)] for j in range(2 + STATES[rule])
    ]
    lists[1] = [g if at is None else g[at] for g, at in zip(lists[1], rows, strict=True)]
    scalars = [numbers(rule, i) for i in range(len(shapes))]
    expected = [[a.copy() for a in arrays] for arrays in lists]
    for i, at in enumerate(rows):
        own = ... if at is None else at
        parts = [arrays[i][own] if j != 1 else arrays[i] for j, arrays in enumerate(expected)]
        wide = [[part.astype(np.float64)] for part in parts]
        kernels.implementations(f"{rule}_steps")["numpy"](*wide, [scalars[i]], grad_scale=0.3)
        for j, (part,) in enumerate(wide):
            if j != 1:
                expected[j][i][own] = part
    for name in ("numpy", "cpu"):
        for number in (1, 2):
            threads(number)
            found = [[a.copy() for a in arrays] for arrays in lists]
            steps = kernels.implementations(f"{rule}_steps")[name]
            steps(*found, scalars, grad_scale=0.3, rows=rows)
            for ours, theirs, before in zip(found, expected, lists, strict=True):
                for i, at in enumerate(rows):
                    same(ours[i], theirs[i].astype(np.float64), dtype)
                    if at is not None and ours is not found[1]:
                        others = np.delete(np.arange(len(ours[i])), at)
                        np.testing.assert_array_equal(ours[i][others], before[i][others])


@pytest.mark.parametrize("wrong", [[1, 1], [2, 0], [-1, 2], [0, 4]], ids=str)
def test_rows_that_are_none_or_come_twice_are_refused(instruction_set, wrong):
    param, mean = np.ones((2, 4, 3), np.float32)
    steps = kernels.implementations("lion_steps")["cpu"]
    with pytest.raises(ValueError, match="do not fit"):
        steps([param], [np.ones((2, 3), np.float32)], [mean], [numbers("lion", 0)],
              rows=[np.array(wrong)])  # fmt: skip
    assert (param == 1).all()


MUON = {"coefficients": (3.4445, -4.7750, 2.0315), "eps": 1e-7}


@pytest.mark.parametrize("dtype", sorted(TOLERANCE, key=str))
@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 1), (5, 3), (3, 5), (40, 70), (70, 40), (64, 64)],
        [(200, 130), (3, 1), (130, 200), (96, 97), (65, 33)],
        [(300, 260), (2, 2)],
    ],
    ids=str,
)
def test_newton_schulz(instruction_set, threads, shapes, dtype):
    """Matrices of one thread each and of all; with one step the result lies elsewhere."""
    for steps in (1, 2, 5):
        given = [draw(shape, dtype, i) - dtype.type(0.5) for i, shape in enumerate(shapes)]
        exact = [x.astype(np.float64) for x in given]
        kernels.implementations("newton_schulz")["numpy"](exact, steps=steps, **MUON)
        for number in (1, 2):
            threads(number)
            found = [x.copy() for x in given]
            kernels.implementations("newton_schulz")["cpu"](found, steps=steps, **MUON)
            for x, expected in zip(found, exact, strict=True):
                same(x, expected, dtype)


def test_newton_schulz_of_zeros_strides_and_nan(instruction_set):
    run = kernels.implementations("newton_schulz")["cpu"]
    zeros, turned, odd = np.zeros((6, 9)), draw((5, 8), np.float64, 1).T, np.ones((40, 50))
    odd[3, 4] = np.nan
    expected = [turned.copy()]
    kernels.implementations("newton_schulz")["numpy"](expected, steps=5, **MUON)
    for matrix in (zeros, turned, odd):
        run([matrix], steps=5, **MUON)
    assert (zeros == 0).all()
    assert np.isnan(odd).all()
    np.testing.assert_allclose(turned, expected[0], atol=1e-14)


def test_lion_at_zero_does_not_move(instruction_set):
    param, grad, mean = np.ones((3, 5), np.float32)
    grad[:], mean[:] = 0, 0
    grad[4] = np.nan
    rule = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0}
    kernels.implementations("lion_steps")["cpu"]([param], [grad], [mean], [rule])
    np.testing.assert_array_equal(param, [1, 1, 1, 1, np.nan])


@FIXTURES
@given(SHAPES, st.sampled_from(sorted(TOLERANCE, key=str)), st.booleans())
def test_follow(instruction_set, threads, shapes, dtype, half):
    """Also of bfloat16 values, whose mean is float32."""
    means = [draw(shape, dtype, i) for i, shape in enumerate(shapes)]
    values = [
        draw(shape, mt.bfloat16 if half and i % 2 else dtype, i + 50)
        for i, shape in enumerate(shapes)
    ]
    exact = [mean.astype(np.float64) for mean in means]
    wide = [value.astype(np.float64) for value in values]
    kernels.implementations("follow")["numpy"](exact, wide, rate=0.05)
    results = []
    for number in (1, 2):
        threads(number)
        found = [mean.copy() for mean in means]
        kernels.implementations("follow")["cpu"](found, values, rate=0.05)
        results.append(found)
    for one, other, expected in zip(*results, exact, strict=True):
        same(one, expected, dtype)
        assert (one == other).all()


@FIXTURES
@given(SHAPES, st.sampled_from([np.float32, np.float64, mt.bfloat16, np.float16]), st.booleans())
def test_l2_norm(instruction_set, threads, shapes, dtype, mixed):
    arrays = [draw(shape, dtype, i) for i, shape in enumerate(shapes)]
    if mixed:
        arrays += [draw((5, 7), np.float32, 1).T, draw((3000,), mt.bfloat16, 2)]
    squares = sum(float((a.astype(np.float64) ** 2).sum()) for a in arrays)
    found = []
    for number in (1, 2):
        threads(number)
        found.append(kernels.implementations("l2_norm")["cpu"](arrays))
    np.testing.assert_allclose(found[0], np.sqrt(squares), rtol=1e-13)
    assert found[0] == found[1]


def test_l2_norm_of_what_overflows_when_squared(instruction_set):
    norm = kernels.implementations("l2_norm")["cpu"]
    assert norm([np.full(4, 1e30, np.float32)]) == pytest.approx(2e30)
    assert norm([np.full(4, 1e-30, np.float32)]) == pytest.approx(2e-30)
    assert np.isnan(norm([np.array([1, np.nan], np.float32)]))
    assert norm([]) == 0
