"""vmap: every primitive and its derivatives against a loop over the samples; nesting; errors."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import ops
from minitorch.errors import ConfigError, GraphError, ShapeError
from minitorch.nn import functional as F
from minitorch.tape import apply

OURS = [p for p in ops.registry.values() if p.module.startswith("minitorch.")]
SAMPLES = [
    pytest.param(primitive, sample, id=f"{primitive.name}-{i}")
    for primitive in OURS
    for i, sample in enumerate(primitive.samples())
    if not sample.singular and any(getattr(x, "dtype", None) == np.float64 for x in sample.inputs)
]
BATCH = 3


def _random(*shape, seed=0):
    return mt.tensor(np.random.default_rng([seed, *shape]).standard_normal(shape))


def _integers(high, *shape):
    return mt.tensor(np.random.default_rng([high, *shape]).integers(0, high, shape))


def _assert_equal(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(
        found.detach().numpy(), expected.detach().numpy(), rtol=1e-11, atol=1e-12
    )


class Case:
    """A primitive on its sample, as a function of the float inputs alone."""

    def __init__(self, primitive, sample):
        self.primitive, self.sample = primitive, sample
        self.moving = [
            i
            for i, x in enumerate(sample.inputs)
            if isinstance(x, np.ndarray) and x.dtype == np.float64
        ]
        self.fixed = [mt.tensor(x) if isinstance(x, np.ndarray) else x for x in sample.inputs]

    def __call__(self, *floats):
        inputs = list(self.fixed)
        for i, x in zip(self.moving, floats):
            inputs[i] = x
        return apply(self.primitive, inputs, self.sample.meta)

    def arguments(self, shared=None, dim=0):
        """Perturbed copies of every float input, stacked at dim, but for one that is shared."""
        arguments, in_dims = [], []
        for i in self.moving:
            x = self.sample.inputs[i]
            place = min(dim, x.ndim)
            copies = np.stack([x * (1 + 0.02 * k) for k in range(BATCH)], place)
            arguments.append(mt.tensor(x if i == shared else copies))
            in_dims.append(None if i == shared else place)
        return arguments, tuple(in_dims)

    def variants(self):
        yield self.arguments()
        yield self.arguments(dim=1)
        for i in self.moving if len(self.moving) > 1 else ():
            yield self.arguments(shared=i)


def _sample_of(arguments, in_dims, k):
    return [
        x if dim is None else x[(slice(None),) * dim + (k,)]
        for x, dim in zip(arguments, in_dims, strict=True)
    ]


@pytest.mark.parametrize(("primitive", "sample"), SAMPLES)
def test_every_primitive_equals_the_loop(primitive, sample):
    case = Case(primitive, sample)
    for arguments, in_dims in case.variants():
        found = mt.vmap(case, in_dims)(*arguments)
        expected = mt.stack([case(*_sample_of(arguments, in_dims, k)) for k in range(BATCH)])
        _assert_equal(found, expected)


@pytest.mark.parametrize(
    ("primitive", "sample"), [p for p in SAMPLES if p.values[0].differentiable]
)
def test_derivatives_of_every_primitive(primitive, sample):
    """vmap of v J and of J u, and the gradient of a vmap, where a shared input gets a sum."""
    case = Case(primitive, sample)
    for arguments, in_dims in case.variants():
        rows = [_sample_of(arguments, in_dims, k) for k in range(BATCH)]
        v = _random(BATCH, *case(*rows[0]).shape, seed=3)

        def pulled(v, *x, case=case):
            return mt.vjp(case, *x)[1](v)

        found = mt.vmap(pulled, (0, *in_dims))(v, *arguments)
        expected = [pulled(v[k], *rows[k]) for k in range(BATCH)]
        for i, gradient in enumerate(found):
            _assert_equal(gradient, mt.stack([row[i] for row in expected]))

        _, pullback = mt.vjp(mt.vmap(case, in_dims), *arguments)
        for i, gradient in enumerate(pullback(v)):
            each = [row[i] for row in expected]
            _assert_equal(gradient, sum(each) if in_dims[i] is None else mt.stack(each, in_dims[i]))

        u = [_random(*x.shape, seed=4) for x in arguments]

        def pushed(*pairs, case=case):
            half = len(pairs) // 2
            return mt.jvp(case, pairs[:half], pairs[half:])[1]

        found = mt.vmap(pushed, (*in_dims, *in_dims))(*arguments, *u)
        expected = mt.stack([pushed(*rows[k], *_sample_of(u, in_dims, k)) for k in range(BATCH)])
        _assert_equal(found, expected)
        _assert_equal(mt.jvp(mt.vmap(case, in_dims), arguments, u)[1], expected)


X = _random(2, 3)
WITHOUT_A_LOOP = {
    "exp": lambda x: x.exp(),
    "add": lambda x: x + _random(3),
    "mul": lambda x: x * x,
    "matmul": lambda x: x @ _random(3, 4),
    "sum": lambda x: x.sum(1),
    "amax": lambda x: x.amax(0, keepdim=True),
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(0),
    "reshape": lambda x: x.reshape(3, 2),
    "permute": lambda x: x.mT,
    "expand": lambda x: x.expand(4, 2, 3),
    "where": lambda x: mt.where(x > 0, x, 0.0),
    "cat": lambda x: mt.cat([x, x], 1),
    "getitem": lambda x: x[:, 1],
    "gather": lambda x: x.gather(1, mt.zeros(2, 1).long()),
    "einsum": lambda x: mt.einsum("ij,kj->ik", x, _random(4, 3)),
}


@pytest.mark.parametrize("name", WITHOUT_A_LOOP)
def test_one_call_computes_all_samples(name, monkeypatch):
    calls = []
    compute = ops.registry[name].compute

    def counted(arrays, meta):
        if all(isinstance(x, np.ndarray) for x in arrays):
            calls.append(arrays[0].shape)
        return compute(arrays, meta)

    monkeypatch.setattr(ops.registry[name], "compute", counted)
    xs = _random(5, 2, 3)
    found = mt.vmap(WITHOUT_A_LOOP[name])(xs)
    assert len(calls) == 1
    _assert_equal(found, mt.stack([WITHOUT_A_LOOP[name](x) for x in xs]))


PARAMETERS = {"W1": _random(5, 3), "b1": _random(5), "W2": _random(4, 5)}
POINTS, CLASSES = _random(7, 3), _integers(4, 7)


def network(p, x):
    hidden = F.layer_norm(F.gelu(F.linear(x, p["W1"], p["b1"])), (5,))
    return F.linear(hidden, p["W2"])


def loss(p, x, y):
    return F.cross_entropy(network(p, x), y, label_smoothing=0.1)


def test_per_sample_gradients():
    found = mt.vmap(mt.grad(loss), in_dims=(None, 0, 0))(PARAMETERS, POINTS, CLASSES)
    for k, (x, y) in enumerate(zip(POINTS, CLASSES)):
        expected = mt.grad(loss)(PARAMETERS, x, y)
        for name in PARAMETERS:
            _assert_equal(found[name][k], expected[name])


def test_gradient_of_a_vmap_is_that_of_the_batch():
    def by_vmap(p):
        return mt.vmap(loss, in_dims=(None, 0, 0))(p, POINTS, CLASSES).mean()

    found = mt.grad(by_vmap)(PARAMETERS)
    expected = mt.grad(lambda p: loss(p, POINTS, CLASSES))(PARAMETERS)
    for name in PARAMETERS:
        _assert_equal(found[name], expected[name])


def test_backward_through_a_vmap_to_what_the_function_closes_over():
    weight = _random(3).requires_grad_()
    outputs = mt.vmap(lambda x: (x * weight).tanh().sum())(POINTS)
    outputs.backward(_random(7))
    expected = weight.detach().requires_grad_()
    (POINTS * expected).tanh().sum(1).backward(_random(7))
    _assert_equal(weight.grad, expected.grad)


def test_an_inner_gradient_is_kept_and_an_outer_one_summed():
    """d/dw of sum_k (d/dw f(w, x_k))^2: per sample inside, summed outside; also through w alone."""

    def f(w, x):
        return ((w * w).sin() * x).sum()

    def squares(gradients):
        return (gradients * gradients).sum()

    w = _random(3)
    found = mt.grad(lambda w: squares(mt.vmap(lambda x: mt.grad(f)(w, x))(POINTS)))(w)
    expected = mt.grad(lambda w: squares(mt.stack([mt.grad(f)(w, x) for x in POINTS])))(w)
    _assert_equal(found, expected)


def test_jacobian_and_hessian_from_one_batched_sweep():
    x = POINTS[0]
    _, pullback = mt.vjp(lambda x: network(PARAMETERS, x), x)
    rows = mt.vmap(lambda v: pullback(v)[0])(mt.eye(4, dtype=mt.float64))
    _assert_equal(rows, mt.jacobian(lambda x: network(PARAMETERS, x), x, chunk_size=1))

    def scalar(x):
        return loss(PARAMETERS, x, CLASSES[0])

    hessian = mt.vmap(lambda v: mt.hvp(scalar, x, v))(mt.eye(3, dtype=mt.float64))
    _assert_equal(hessian, mt.hessian(scalar, x))
    each = mt.vmap(lambda x: mt.hessian(scalar, x))(POINTS)
    _assert_equal(each, mt.stack([mt.hessian(scalar, x) for x in POINTS]))


def test_nested_vmaps_keep_their_samples_apart():
    a, b = _random(3, 4), _random(5, 4)
    f = lambda x, y: (x * y).softmax(0)[0] + x.sum()  # noqa: E731
    pairs = mt.vmap(lambda x: mt.vmap(lambda y: f(x, y))(b))(a)
    _assert_equal(pairs, mt.stack([mt.stack([f(x, y) for y in b]) for x in a]))
    both = mt.vmap(mt.vmap(f, in_dims=(None, 0), out_dims=0), in_dims=(0, None), out_dims=1)(a, b)
    _assert_equal(both, pairs.mT)

    def inner_gradients(x):
        return mt.vmap(mt.grad(lambda y: mt.vmap(lambda z: f(z, y))(a).sum() * f(x, y)))(b)

    _assert_equal(mt.vmap(inner_gradients)(a), mt.stack([inner_gradients(x) for x in a]))


@pytest.mark.parametrize(("primitive", "sample"), SAMPLES)
def test_every_primitive_nested(primitive, sample):
    case = Case(primitive, sample)
    arguments, in_dims = case.arguments()
    twice = [mt.stack([x, 0.97 * x], 1) for x in arguments]
    found = mt.vmap(mt.vmap(case, in_dims), in_dims=1)(*twice)
    expected = mt.stack([mt.vmap(case, in_dims)(*[x[:, i] for x in twice]) for i in range(2)])
    _assert_equal(found, expected)


def test_a_pullback_of_one_vmap_inside_of_another():
    weight = _random(3)
    _, pullback = mt.vjp(lambda w: mt.vmap(lambda x: (x * w).exp().sum())(POINTS), weight)
    jacobian = mt.vmap(lambda v: pullback(v)[0])(mt.eye(7, dtype=mt.float64))
    _assert_equal(jacobian, (POINTS * weight).exp() * POINTS)


def test_integers_and_truth_values():
    table, index = _random(6, 3), _integers(6, 4, 2)
    _assert_equal(mt.vmap(lambda i: F.embedding(i, table))(index), F.embedding(index, table))
    _assert_equal(mt.vmap(lambda i: table[i])(index), table[index])
    _assert_equal(mt.vmap(lambda i: table[i])(index[:, 0]), table[index[:, 0]])
    tables = _random(4, 6, 3)
    expected = mt.stack([F.embedding(i, t) for i, t in zip(index, tables)])
    _assert_equal(mt.vmap(F.embedding)(index, tables), expected)
    gradients = mt.vmap(mt.grad(lambda t, i: F.embedding(i, t).exp().sum()), (None, 0))
    expected = [mt.grad(lambda t: F.embedding(i, t).exp().sum())(table) for i in index]  # noqa: B023
    _assert_equal(gradients(table, index), mt.stack(expected))
    truth = mt.vmap(lambda x: (x > 0) & ~(x > 1))(POINTS)
    _assert_equal(truth, (POINTS > 0) & (POINTS <= 1))
    _assert_equal(mt.vmap(lambda x: x.sort(0).indices)(POINTS), POINTS.argsort(1))


def test_attention_with_a_mask_of_each_sample():
    q, k, v = (_random(3, 2, 4, 5, seed=i) for i in range(3))
    mask = mt.tensor(np.random.default_rng(0).random((3, 1, 4, 4)) < 0.7)
    attention = F.scaled_dot_product_attention
    found = mt.vmap(attention)(q, k, v, mask)
    _assert_equal(found, attention(q, k, v, mask))
    causal = mt.vmap(lambda q, k, v: attention(q, k, v, is_causal=True))(q, k, v)
    _assert_equal(causal, attention(q, k, v, is_causal=True))


def test_trees_and_dims():
    def f(pair, scale):
        x, y = pair["x"], pair["y"]
        return {"sum": (x + y) * scale, "both": [x, (y * y).sum()]}

    x, y = _random(3, 4), _random(4, 3)
    found = mt.vmap(f, in_dims=({"x": 0, "y": -1}, None), out_dims={"sum": 1, "both": [0, -1]})(
        {"x": x, "y": y}, mt.tensor(2.0, dtype=mt.float64)
    )
    _assert_equal(found["sum"], ((x + y.mT) * 2).mT)
    _assert_equal(found["both"][0], x)
    _assert_equal(found["both"][1], (y * y).sum(0))
    shared = mt.vmap(lambda x: (x, mt.ones(2)), out_dims=(0, None))(x)[1]
    assert shared.shape == (2,)
    assert mt.vmap(lambda x: mt.ones(2))(x).shape == (3, 2)


def test_writes_in_place():
    def f(x):
        out = x.clone()
        out[0] = x.sum()
        out[1:] *= 2
        return out

    expected = mt.stack([f(x) for x in POINTS])
    _assert_equal(mt.vmap(f)(POINTS), expected)
    with pytest.raises(GraphError, match="all samples share"):
        mt.vmap(lambda x: mt.zeros(3, dtype=mt.float64).add_(x))(POINTS)


def test_a_result_that_is_a_view_shares_the_version():
    x = _random(3, 2)
    out = mt.vmap(lambda row: row)(x)
    version = x.version
    out[0] = 1.0
    assert x.version == version + 1


def test_gradient_is_recorded_inside_of_a_checkpoint_and_under_anomaly_mode():
    def f(w, x):
        return mt.checkpoint(lambda w: (w * x).tanh().sum(), w)

    w = _random(3)
    with mt.detect_anomaly():
        found = mt.vmap(mt.grad(f), (None, 0))(w, POINTS)
    _assert_equal(found, (1 - (POINTS * w).tanh() ** 2) * POINTS)


def test_smaller_dtypes():
    for dtype in (mt.float32, mt.bfloat16, mt.float16):
        x = _random(3, 4, 5).to(dtype)
        w = _random(5, 2).to(dtype)
        found = mt.vmap(lambda x: (x @ w).softmax(-1) * 2)(x)  # noqa: B023
        assert found.dtype == dtype
        expected = ((x @ w).softmax(-1) * 2).float().numpy()
        np.testing.assert_allclose(found.float().numpy(), expected, rtol=1e-2)


def test_errors_say_what_to_do():
    with pytest.raises(ShapeError, match=r"one number of samples.*\[3, 4\]"):
        mt.vmap(lambda x, y: x)(_random(3), _random(4))
    with pytest.raises(ConfigError, match="no argument has a dimension"):
        mt.vmap(lambda x: x, in_dims=None)(_random(3))
    with pytest.raises(ConfigError, match="does not fit"):
        mt.vmap(lambda x: x, in_dims=(0, 0))(_random(3))
    with pytest.raises(ShapeError, match="out of range"):
        mt.vmap(lambda x: x, in_dims=1)(_random(3))
    with pytest.raises(ConfigError, match="depends on the sample"):
        mt.vmap(lambda x: x, out_dims=None)(_random(3))
    with pytest.raises(GraphError, match="no tensors"):
        mt.vmap(lambda x: 1.0)(_random(3))
    with pytest.raises(ConfigError, match="random draw"):
        mt.vmap(lambda x: F.dropout(x, 0.5))(_random(3))
    with pytest.raises(ShapeError, match="different shapes"):
        mt.vmap(lambda x: x[x > 0])(POINTS)
    for escape in (bool, float, lambda x: x.item(), lambda x: x.numpy(), lambda x: x.tolist()):
        with pytest.raises(GraphError, match="inside of the function"):
            mt.vmap(lambda x: mt.ones(1) * escape(x))(_random(3))  # noqa: B023
    weight = _random(3).requires_grad_()
    with pytest.raises(GraphError, match="each sample has its own gradient"):
        mt.vmap(lambda x: (x * weight).sum().backward())(POINTS)
    assert mt.rand(2).shape == (2,)


def test_printing_inside_shows_the_samples():
    seen = []
    mt.vmap(lambda x: (seen.append(repr(x)), x)[1])(mt.tensor([1.0, 2.0]))
    assert seen == ["tensor([1. 2.], the samples of a vmap)"]
