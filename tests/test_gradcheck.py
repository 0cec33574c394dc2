"""The public checker: what it accepts, what it reports, and kinks."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import gradcheck
from minitorch.errors import GradcheckError, GraphError
from minitorch.gradcheck import TOLERANCES
from minitorch.ops import registry
from minitorch.ops.primitive import Rule
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
