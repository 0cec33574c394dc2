"""The public checker: what it accepts, what it reports, and kinks."""

import warnings

import numpy as np
import pytest

import minitorch as mt
from minitorch import gradcheck, kernels
from minitorch.errors import GradcheckError, GraphError
from minitorch.gradcheck import TOLERANCES, check_primitive
from minitorch.nn import functional as F
from minitorch.ops import registry
from minitorch.ops.definition import Rule
from minitorch.ops.primitive import general
from minitorch.tensor import Tensor


def _random(*shape):
    return Tensor(np.random.default_rng(shape).standard_normal(shape))


def test_it_reports_how_well_things_agree():
    report = gradcheck(lambda x, w: (x @ w).tanh(), [_random(3, 4), _random(4, 2)], order=2)
    assert report.ok
    assert bool(report)
    assert 0 < report.worst < 1e-7
    assert "values agree" in str(report)


def test_large_inputs_are_projected():
    assert gradcheck(lambda x: x.softmax(-1), _random(20, 30)).ok


def test_the_report_shows_the_worst_entry(monkeypatch):
    primitive = registry["exp"]
    monkeypatch.setattr(primitive, "rules", [Rule(lambda out: 3 * out, primitive.inputs)])
    x = mt.tensor([0.0, 1.0], dtype="float64")
    report = gradcheck(lambda x: x.exp(), x, raise_exception=False)
    worst = report.findings[0]
    assert not report.ok
    assert worst.analytic == pytest.approx(3 * np.e)
    assert worst.expected == pytest.approx(np.e)
    assert worst.where == "input 0[1], output entry 1"
    with pytest.raises(GradcheckError, match=r"forward: at input 0\[1\].*analytic 8.15.*2.718"):
        gradcheck(lambda x: x.exp(), x)


@pytest.mark.parametrize(
    "f", [lambda x: x.relu(), lambda x: x.clamp(min=0), lambda x: x.abs() + x.relu()]
)
def test_a_kink_is_called_a_kink(f):
    report = gradcheck(f, mt.tensor([1.0, 0.0], dtype="float64"), raise_exception=False)
    assert not report.ok
    assert all(f.kink for f in report.findings)
    assert "a kink: no derivative exists" in str(report)
    assert gradcheck(f, mt.tensor([1.0, -0.5], dtype="float64")).ok


def test_a_wrong_rule_is_not_called_a_kink(monkeypatch):
    primitive = registry["sin"]
    monkeypatch.setattr(primitive, "rules", [Rule(lambda x: -x.cos(), primitive.inputs)])
    report = gradcheck(lambda x: x.sin(), _random(3), raise_exception=False)
    assert not any(finding.kink for finding in report.findings)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_every_floating_dtype(dtype):
    x = Tensor(np.random.default_rng(0).standard_normal((3, 5)), dtype=dtype)
    assert gradcheck(lambda x: (x * 0.5).tanh().sum(1), x).ok


def test_only_what_requires_a_gradient_is_differentiated():
    weight = _random(3).requires_grad_()
    ids = mt.tensor([0, 2, 2])
    assert gradcheck(lambda w, i, scale: w[i] * scale, [weight, ids, 2.0]).ok
    with pytest.raises(GraphError, match="none of the inputs"):
        gradcheck(lambda i: i, [ids])


def test_several_outputs_and_outputs_that_do_not_depend():
    assert gradcheck(lambda x: [x.sin(), mt.ones(2, dtype="float64")], _random(3), order=2).ok


def test_an_unrepeatable_function_is_caught():
    state = iter(range(1000))
    report = gradcheck(lambda x: x * (1 + 1e-3 * next(state)), _random(2), raise_exception=False)
    assert not report.ok


def test_a_nan_is_never_agreement():
    x = mt.tensor([0.0], dtype="float64")
    with np.errstate(all="ignore"):
        report = gradcheck(lambda x: x.abs().sqrt() * 0.0, x, raise_exception=False)
    assert not report.ok


SCALES = np.array([1e8, 1e-4, 1.0, 1e-12])
CHANGES = {"one percent": 1.01, "the sign": -1.0, "zeroed": 0.0}


def _scaled(wrong: float, entry: int, forward, slope):
    """y = forward(SCALES * x), with one entry of the derivative times `wrong`."""
    factors = np.ones(4)
    factors[entry] = wrong
    weights = Tensor(SCALES * factors)
    return general(
        "scaled for a test",
        lambda x: forward(SCALES, x),
        lambda grad, x: grad * weights * slope(x),
        inputs=("x",),
        samples=list,
    )


SHAPES = {
    "beside each other": (lambda scales, x: scales * np.sin(x), lambda x: x.cos()),
    "each other's summands": (lambda scales, x: (scales * x).sum(-1), lambda x: 1.0),
}


@pytest.fixture
def forget_primitives():
    before = dict(registry)
    yield
    registry.clear()
    registry.update(before)


@pytest.mark.usefixtures("forget_primitives")
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_small_entry_is_seen_beside_large_ones(shape, change, order):
    x = Tensor(np.array([0.3, -0.7, 1.1, 0.9]))
    assert gradcheck(_scaled(1.0, 1, *SHAPES[shape]), x, order=order).ok
    report = gradcheck(
        _scaled(CHANGES[change], 1, *SHAPES[shape]), x, order=order, raise_exception=False
    )
    assert {"forward", "reverse"} <= {finding.check for finding in report.findings}
    assert report.findings[0].where.startswith("input 0[1],")
    assert not any(finding.kink for finding in report.findings)


@pytest.mark.usefixtures("forget_primitives")
@pytest.mark.parametrize("change", CHANGES)
def test_the_smallest_of_all_is_seen_too(change):
    x = Tensor(np.array([0.3, -0.7, 1.1, 0.9]))
    f = _scaled(CHANGES[change], 3, *SHAPES["beside each other"])
    assert not gradcheck(f, x, raise_exception=False).ok


@pytest.mark.usefixtures("forget_primitives")
@pytest.mark.parametrize("change", CHANGES)
def test_random_projections_keep_the_scales_apart(change):
    scales = np.where(np.arange(120) % 10 == 3, 1e-4, 1e8)
    factors = np.ones(120)
    factors[73] = CHANGES[change]
    x = _random(120)
    for factor in (np.ones(120), factors):
        f = _sine(scales, Tensor(scales * factor))
        assert gradcheck(f, x, raise_exception=False).ok == (factor is not factors)


def _sine(scales, weights):
    return general(
        "large and scaled for a test",
        lambda x: scales * np.sin(x),
        lambda grad, x: grad * weights * x.cos(),
        inputs=("x",),
        samples=list,
    )


def test_what_rounding_hides_is_counted():
    x = Tensor(np.array([0.3, -0.7]))
    report = gradcheck(lambda x: (x * Tensor(np.array([1e8, 1e-9]))).sum(), x)
    assert report.unresolved == 2
    assert "rounding errors could hide" in str(report)
    assert gradcheck(lambda x: x * 2, x).unresolved == 0


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e3, 1e9])
@pytest.mark.parametrize(
    "f",
    [
        lambda x, s: (x / s).tanh(),
        lambda x, s: (x * x).sqrt() + 1 / x,
        lambda x, s: x.layer_norm(4, eps=0.0),
        lambda x, s: (x / s).softmax(-1) * s,
        lambda x, s: x * x * x - 3 * x,
        lambda x, s: (x / s).exp().sum() * Tensor(np.array([1.0, s, 1 / s])),
    ],
)
def test_right_derivatives_pass_at_every_scale(f, scale):
    x = Tensor(np.array([0.3, -0.7, 1.1, 0.9]) * scale)
    assert gradcheck(lambda x: f(x, scale), x, order=2).ok


@pytest.mark.parametrize(
    "f",
    [
        lambda x: (402.1238596594935 * x).sin(),  # 128 pi: a period of many round steps
        lambda x: (1e4 * x).sin(),
        lambda x: (x - 1) * (x - 1) * (x - 1),
        lambda x: x.cos() + 1e6,
    ],
)
def test_functions_that_long_steps_misjudge(f):
    assert gradcheck(f, mt.tensor([0.01, 1.0, np.pi], dtype="float64"), order=2).ok


@pytest.mark.parametrize("f", [lambda x: x.round(), lambda x: x.round() * x])
def test_a_jump_is_found_by_both_sweeps(f):
    report = gradcheck(f, mt.tensor([0.5, 1.3], dtype="float64"), raise_exception=False)
    assert {"forward", "reverse"} <= {finding.check for finding in report.findings}


def test_a_small_kink_is_a_kink():
    report = gradcheck(
        lambda x: x.relu() * Tensor(np.array([1.0, 1e-7])),
        mt.tensor([1.0, 0.0], dtype="float64"),
        raise_exception=False,
    )
    assert report.findings
    assert all(finding.kink for finding in report.findings)


def test_a_backward_kernel_is_compared_with_the_graph(monkeypatch):
    right = kernels.lookup("linear_backward")

    def broken(*arrays, **options):
        dx, *rest = right(*arrays, **options)
        return [np.where(abs(dx) < 1e-2, 1.01 * dx, dx), *rest]

    used = kernels.available()["linear_backward"][0]
    monkeypatch.setitem(kernels.table._table["linear_backward"], used, broken)
    monkeypatch.setitem(kernels.table._half, broken, frozenset())
    kernels.lookup.cache_clear()
    weight = Tensor(np.array([[1e8, 1e-4], [3.0, 1.0]]))
    try:
        report = gradcheck(F.linear, [_random(3, 2), weight], raise_exception=False)
    finally:
        kernels.lookup.cache_clear()
    found = {finding.check: finding for finding in report.findings}
    assert {"reverse", "create_graph=True"} <= set(found)
    assert found["create_graph=True"].where == "input 0[0, 1], cotangent 0"


@pytest.mark.parametrize("implementation", ["numpy", "cpu"])
def test_every_implementation_of_a_kernel_is_compared(monkeypatch, implementation):
    candidates = kernels.table._table["silu_backward"]
    if implementation not in candidates:
        pytest.skip(f"silu has no {implementation} kernel in this build")
    right = candidates[implementation]
    broken = lambda grad, x: right(grad, x) * np.where(abs(x) == abs(x).min(), 1.001, 1.0)  # noqa: E731
    monkeypatch.setitem(candidates, implementation, broken)
    monkeypatch.setitem(kernels.table._half, broken, frozenset())
    silu = registry["silu"]
    report = check_primitive(silu, silu.samples()[0], order=1)
    checks = {finding.check for finding in report.findings}
    assert f"{implementation} kernel, gradient" in checks


def test_no_warning_escapes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        centred = lambda x: x - x.mean(0)  # noqa: E731
        f = lambda x: centred(x) / (centred(x) ** 2).mean(0).sqrt()  # noqa: E731
        assert gradcheck(f, _random(3, 2), order=2).ok
        raw = general(
            "raw for a test", np.log, lambda grad, x: grad / x, inputs=("x",), samples=list
        )
        assert gradcheck(raw, Tensor(np.array([1e-3, 2.0]))).ok
        registry.pop("raw for a test")


@pytest.mark.parametrize("implementation", ["numpy", "cpu"])
def test_rounding_errors_of_another_layout_are_no_findings(implementation):
    """Causal attention: the first query sees one key; its gradient is zero, up to rounding."""
    attention = registry["scaled_dot_product_attention"]
    for seed in range(3):
        with kernels.prefer(implementation):
            report = check_primitive(attention, attention.samples()[0], order=1, seed=seed)
        assert report.ok, str(report)
