"""Every primitive, on all of its samples: both sweeps, two orders, every layout, every kernel."""

import numpy as np
import pytest

from minitorch import backend, kernels, ops
from minitorch.gradcheck import check_primitive
from minitorch.ops.definition import Primitive
from minitorch.tape import apply
from minitorch.tensor import Tensor

OURS = {name: p for name, p in ops.registry.items() if p.module.startswith("minitorch.")}
SMOOTH = [
    pytest.param(primitive, sample, id=f"{name}-{i}")
    for name, primitive in OURS.items()
    if primitive.differentiable
    for i, sample in enumerate(primitive.samples())
    if not sample.singular
]


@pytest.mark.parametrize("primitive", OURS.values(), ids=OURS)
def test_every_primitive_has_samples_and_a_formula(primitive: Primitive):
    samples = primitive.samples()
    assert any(not sample.singular for sample in samples)
    assert primitive.formula
    assert primitive.structure in {
        "elementwise",
        "linear",
        "bilinear",
        "general",
        "fused",
        "nondifferentiable",
    }


@pytest.mark.parametrize(("primitive", "sample"), SMOOTH)
def test_derivatives(primitive, sample):
    report = check_primitive(primitive, sample, order=2)
    assert report.ok, str(report)


@pytest.mark.parametrize("dtype", [backend.float32, backend.float16, backend.bfloat16], ids=str)
@pytest.mark.parametrize(("primitive", "sample"), SMOOTH)
def test_smaller_dtypes_keep_their_dtype(primitive, sample, dtype):
    arrays = [
        x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype == np.float64 else x
        for x in sample.inputs
    ]
    inputs = [
        Tensor(x, requires_grad=x.dtype == dtype) if isinstance(x, np.ndarray) else x
        for x in arrays
    ]
    if primitive.name == "cast":
        return
    out = apply(primitive, inputs, sample.meta)
    assert out.dtype == dtype
    cotangent = np.random.default_rng(0).standard_normal(out.shape)
    out.backward(Tensor(cotangent.astype(dtype)))
    for x in inputs:
        if isinstance(x, Tensor) and x.requires_grad:
            assert x.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [backend.float32, backend.float16, backend.bfloat16], ids=str)
@pytest.mark.parametrize(("primitive", "sample"), SMOOTH)
def test_gradients_in_smaller_dtypes(primitive, sample, dtype):
    report = check_primitive(primitive, sample, order=1, dtype=dtype)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    "primitive",
    [p for p in OURS.values() if p.structure == "fused" and p.kernel],
    ids=lambda p: p.name,
)
def test_the_kernel_that_is_asked_about_half_precision_is_the_one_that_runs(monkeypatch, primitive):
    seen, find = set(), kernels.lookup

    def lookup(name, device="cpu"):
        seen.add(name)
        return find(name, device)

    monkeypatch.setattr(kernels, "lookup", lookup)
    for sample in primitive.samples():
        inputs = [
            Tensor(x, requires_grad=x.dtype == np.float64) if isinstance(x, np.ndarray) else x
            for x in sample.inputs
        ]
        out = apply(primitive, inputs, sample.meta)
        out.backward(Tensor(np.ones(out.shape)))
    assert {primitive.kernel, f"{primitive.kernel}_backward"} <= seen


@pytest.mark.parametrize(
    "primitive", [p for p in OURS.values() if not p.differentiable], ids=lambda p: p.name
)
def test_what_has_no_derivative_says_why(primitive):
    assert primitive.why
    for sample in primitive.samples():
        inputs = [
            Tensor(x, requires_grad=x.dtype == np.float64) if isinstance(x, np.ndarray) else x
            for x in sample.inputs
        ]
        assert not apply(primitive, inputs, sample.meta).requires_grad
