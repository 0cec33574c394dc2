"""Mixed precision: what is lowered, what is raised, and gradients that stay float32."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import autograd, kernels, nn, optim
from minitorch.errors import DtypeError, GraphError
from minitorch.nn import functional as F


def test_products_are_lowered_and_losses_raised():
    x, w = mt.randn(4, 8), mt.randn(3, 8, requires_grad=True)
    with mt.autocast():
        logits = F.linear(x, w)
        assert logits.dtype == mt.bfloat16
        assert (x @ w.mT).dtype == mt.bfloat16
        assert mt.einsum("ij,kj->ik", x, w).dtype == mt.bfloat16
        assert x.softmax(-1).dtype == logits.softmax(-1).dtype == mt.float32
        loss = F.cross_entropy(logits, mt.tensor([0, 1, 2, 0]))
        assert loss.dtype == mt.float32
        assert (x + x).dtype == mt.float32
        assert (x.double() @ w.double().mT).dtype == mt.float64
    assert F.linear(x, w).dtype == mt.float32
    loss.backward()
    assert w.grad.dtype == mt.float32


def test_gradients_follow_those_of_float32():
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    x, target = mt.randn(64, 16), mt.randint(0, 4, (64,))
    gradients = []
    for lower in (False, True):
        model.zero_grad()
        if lower:
            with mt.autocast("bfloat16"):
                loss = F.cross_entropy(model(x), target)
        else:
            loss = F.cross_entropy(model(x), target)
        loss.backward()
        gradients.append([p.grad.numpy() for p in model.parameters()])
    for full, lowered in zip(*gradients, strict=True):
        assert lowered.dtype == np.float32
        assert 0 < np.linalg.norm(lowered - full) < 0.02 * np.linalg.norm(full)


def as_seen(*tensors):
    """What a product of bfloat16 reads, in float64."""
    return [x.detach().to("bfloat16").double().numpy() for x in tensors]


compiled = pytest.mark.skipif(
    "cpu" not in kernels.implementations("linear_backward"),
    reason="minitorch._cpu was not built: NumPy's products of bfloat16 are rounded to it",
)


@compiled
def test_gradients_of_weights_are_not_rounded_on_their_way():
    """Sums are made in float32, and the weight is float32: bfloat16 need not come between."""
    x, w, b = (mt.randn(*s, requires_grad=True) for s in ((96, 24), (40, 24), (40,)))
    with mt.autocast():
        out = F.linear(x, w, b)
    cotangent = mt.randn(96, 40).to("bfloat16")
    out.backward(cotangent)
    g, x_read, w_read = as_seen(cotangent, x, w)
    for leaf, exact in ((w, g.T @ x_read), (b, g.sum(0)), (x, g @ w_read)):
        assert leaf.grad.dtype == mt.float32
        np.testing.assert_allclose(leaf.grad.numpy(), exact, rtol=0, atol=1e-5 * abs(exact).max())


@compiled
@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
def test_attention_with_its_projections_is_lowered_like_its_parts(dtype):
    """The same bits, and the gradient of x, which all three projections read, summed in float32."""
    shapes = (2, 9, 24), (32, 24), (32,), (16, 24), (16,), (16, 24), (16,), (9, 4), (9, 4)
    arrays = [mt.randn(*shape).numpy() for shape in shapes]
    cotangent = mt.randn(2, 9, 32).to("bfloat16")

    def whole(x, q, q_bias, k, k_bias, v, v_bias, cos, sin):
        return F.rotary_self_attention(x, (q, q_bias), (k, k_bias), (v, v_bias), cos, sin, 4, 2)

    def parts(x, q, q_bias, k, k_bias, v, v_bias, cos, sin):
        scaled = dtype == "float8"
        pairs = (q, q_bias), (k, k_bias), (v, v_bias)
        heads = [F.linear(x, *pair, scaled=scaled) for pair in pairs]
        return F.rotary_attention(*heads, cos, sin, 4, 2)

    results = []
    for function in (whole, parts):
        leaves = [mt.tensor(array, requires_grad=True) for array in arrays]
        with mt.autocast(dtype):
            out = function(*leaves)
        assert out.dtype == mt.bfloat16
        out.backward(cotangent)
        assert all(leaf.grad.dtype == mt.float32 for leaf in leaves)
        results.append([t.detach().float().numpy() for t in (out, *(x.grad for x in leaves))])
    np.testing.assert_array_equal(results[0][0], results[1][0])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * abs(other).max())


@compiled
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float8", None])
def test_latent_attention_with_its_projections_is_lowered_like_its_parts(dtype, compressed):
    """The same bits, of 16 bits without autocast too."""
    shapes = {
        "x": (2, 9, 24), "q_a": (12, 24), "q_norm": (12,), "q_b": (24, 12 if compressed else 24),
        "kv_a": (8 + 4, 24), "kv_norm": (8,), "kv_b": (2 * 16, 8), "cos": (9, 2), "sin": (9, 2),
    }  # fmt: skip
    arrays = {name: mt.randn(*shape).numpy() for name, shape in shapes.items()}
    options = {"scale": 0.3, "interleaved": True}

    def whole(x, q_a, q_norm, q_b, kv_a, kv_norm, kv_b, cos, sin):
        to_query = (q_a, q_norm, q_b) if compressed else q_b
        made = kv_a, kv_norm, kv_b
        return F.latent_self_attention(x, to_query, made, cos, sin, 2, eps=1e-3, **options)

    def parts(x, q_a, q_norm, q_b, kv_a, kv_norm, kv_b, cos, sin):
        scaled = dtype == "float8"
        latent, key = F.linear(x, kv_a, scaled=scaled).split([8, 4], -1)
        made = F.linear(F.rms_norm(latent, 8, kv_norm, 1e-3), kv_b, scaled=scaled)
        if compressed:
            x = F.rms_norm(F.linear(x, q_a, scaled=scaled), 12, q_norm, 1e-3)
        query = F.linear(x, q_b, scaled=scaled)
        return F.latent_attention(query, made, key, cos, sin, 2, **options)

    results = []
    for function in (whole, parts):
        leaves = {name: mt.tensor(array, requires_grad=True) for name, array in arrays.items()}
        if dtype:
            with mt.autocast(dtype):
                out = function(**leaves)
        else:
            out = function(**{name: leaf.to("bfloat16") for name, leaf in leaves.items()})
        assert out.dtype == mt.bfloat16
        out.float().square().sum().backward()
        grads = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
        assert len(grads) == (9 if compressed else 7)
        results.append([t.detach().float().numpy() for t in (out, *grads)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@compiled
@pytest.mark.parametrize("seen", ["target", "hook", "retained", "nobody"])
def test_whoever_looks_at_a_half_gradient_sees_half_precision(seen):
    x, w = mt.randn(96, 24), mt.randn(40, 24, requires_grad=True)
    half, found = w.to("bfloat16"), []
    if seen == "hook":
        half.register_hook(lambda gradient: found.append(gradient))
    if seen == "retained":
        half.retain_grad()
    loss = F.linear(x.to("bfloat16"), half).float().sum()
    if seen == "target":
        found = autograd.grad(loss, [half], retain_graph=True)
    loss.backward()
    if seen == "retained":
        found = [half.grad]
    assert [gradient.dtype for gradient in found] == [mt.bfloat16] * (seen != "nobody")
    exact = np.ones((40, 1)) * as_seen(x)[0].sum(0)
    bound = 1e-5 if seen == "nobody" else 2**-8
    np.testing.assert_allclose(w.grad.numpy(), exact, rtol=0, atol=bound * abs(exact).max())


def test_gradients_between_two_casts_are_rounded():
    """What somebody asked to be half precision is, also backwards, as in PyTorch."""
    x, factor = mt.randn(8, requires_grad=True), mt.randn(8)
    (x.to("bfloat16").float() * factor).sum().backward()
    assert (x.grad.double().numpy() == as_seen(factor)[0]).all()


def test_a_half_copy_that_is_used_several_times():
    """Gradients of both dtypes meet; what a leaf gets is its own."""
    x, w = mt.randn(8, 24), mt.randn(24, 24, requires_grad=True)
    half = w.to("bfloat16")
    loss = (F.linear(x.to("bfloat16"), half) + F.mlp(half, half, half)[:8] + half.exp()[:8]).float()
    loss.sum().backward(retain_graph=True)
    once = w.grad.numpy().copy()
    y = w.detach().requires_grad_()
    wide = F.linear(x, y) + F.mlp(y, y, y)[:8] + y.exp()[:8]
    wide.sum().backward()
    assert np.linalg.norm(once - y.grad.numpy()) < 0.03 * np.linalg.norm(once)
    loss.sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), 2 * once, rtol=1e-6)
    p, q = (mt.randn(3, requires_grad=True) for _ in range(2))
    (p.to("bfloat16") + q.to("bfloat16")).sum().backward()
    assert not np.shares_memory(p.grad.data, q.grad.data)


def test_8_bits_in_linear_layers_and_mlp_alone():
    """All three products, whatever the context when gradients are asked for."""
    x, layer = mt.randn(6, 130), nn.Linear(130, 4)
    with mt.autocast():
        expected = layer(x)
        hidden = F.mlp(x, layer.weight, layer.weight.mT)
    with mt.autocast("float8"):
        plain = F.linear(x, layer.weight, layer.bias)
        scaled = layer(x)
        assert (F.mlp(x, layer.weight, layer.weight.mT) != hidden).any()
        with mt.autocast():
            assert (layer(x) == expected).all()
    assert (plain == expected).all()
    assert scaled.dtype == mt.bfloat16
    gradients = []
    for out in (expected, scaled):
        layer.zero_grad()
        (out.float() * mt.arange(4.0)).sum().backward()
        gradients.append(layer.weight.grad.numpy().copy())
    full, rounded = gradients
    assert rounded.dtype == np.float32
    assert 0.001 < np.linalg.norm(rounded - full) / np.linalg.norm(full) < 0.05
    with mt.autocast("float8"):
        again = mt.jvp(
            lambda x: layer(x), (x,), (x,)
        )  # derivatives of any order: the product's own
    np.testing.assert_allclose(again[1].float().detach(), (x @ layer.weight.mT).detach(), atol=0.1)


def test_a_dtype_that_is_not_lower_is_refused():
    with pytest.raises(DtypeError, match="expected bfloat16, float16 or float8; got float64"):
        mt.autocast("float64")


def test_it_is_a_decorator_and_ends_with_the_block():
    @mt.autocast()
    def product(x):
        return x @ x

    assert product(mt.ones(2, 2)).dtype == mt.bfloat16
    with pytest.raises(ZeroDivisionError), mt.autocast():
        raise ZeroDivisionError
    assert (mt.ones(2, 2) @ mt.ones(2, 2)).dtype == mt.float32


OPTIMIZERS = {
    "AdamW": lambda params: optim.AdamW(params, 0.1),
    "Adam": lambda params: optim.Adam(params, 0.1),
    "SGD": lambda params: optim.SGD(params, 0.1, momentum=0.9),
    "Lion": lambda params: optim.Lion(params, 0.1),
    "Muon": lambda params: optim.Muon(params, 0.1),
    "Adafactor": lambda params: optim.Adafactor(params),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_writes_the_copy_of_a_weight_along_with_it(name, dtype):
    """Trained with the copy kept and with a fresh cast in every step: the same bits."""
    x = mt.randn(16, 40)
    results = []
    for keep in (True, False):
        weight = mt.tensor(mt.randn(30, 40, generator=mt.Generator(0)).numpy(), requires_grad=True)
        optimizer, arrays = OPTIMIZERS[name]([weight]), set()
        for _ in range(3):
            if not keep:
                weight.bump_version()
            with mt.autocast(dtype):
                (x @ weight.mT).float().square().sum().backward()
                F.linear(x, weight)
            arrays.add(id(weight._lowered.array))
            optimizer.step()
            optimizer.zero_grad()
        assert (len(arrays) == 1) == keep or not keep
        results.append(weight.detach().numpy())
        copy = weight._lowered.array
        assert (copy == results[-1].astype(copy.dtype)).all()
    assert (results[0] == results[1]).all()


def test_a_copy_follows_every_change_of_its_weight():
    x, weight = mt.eye(3), mt.ones(3, 3, requires_grad=True)

    def product():
        with mt.autocast():
            return F.linear(x, weight).float().numpy()[0, 0]

    with mt.no_grad():
        assert product() == 1
        weight.mul_(2)
        assert product() == 2
        weight[...] = 3.0
        assert product() == 3
        nn.init.constant_(weight, 4.0)
        assert product() == 4
        ema = optim.EMA([weight])
        weight.fill_(5.0)
        with ema.applied():
            assert product() == 4
        assert product() == 5
    with mt.inference_mode():
        assert product() == 5


def test_a_tape_that_holds_an_overwritten_copy_says_so():
    x, weight = mt.randn(2, 3, requires_grad=True), mt.randn(4, 3, requires_grad=True)
    optimizer = optim.AdamW([weight])
    with mt.autocast():
        loss = F.linear(x, weight).float().square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(GraphError, match="changed in place"):
        loss.backward()
