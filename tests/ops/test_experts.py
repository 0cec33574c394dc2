"""Mixture of experts: identities that need no reference, and a loop over the tokens."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.errors import ConfigError, DtypeError, ShapeError
from minitorch.nn import functional as F

TOKENS, EXPERTS, K, FEATURES, HIDDEN = 11, 5, 3, 4, 6


def tensors(*shapes, dtype=np.float64):
    rng = np.random.default_rng(0)
    return [mt.Tensor(rng.standard_normal(s).astype(dtype), requires_grad=True) for s in shapes]


def experts(x, router, weight_1, weight_2, **options):
    weights, indices = F.topk_routing(F.linear(x, router), K, **options)
    rows, places, offs = F.moe_permute(x, indices, len(router))
    rows = F.grouped_mm(F.gelu(F.grouped_mm(rows, weight_1, offs)), weight_2, offs)
    return F.moe_unpermute(rows, places, weights)


def one_by_one(x, router, weight_1, weight_2, **options):
    weights, indices = F.topk_routing(F.linear(x, router), K, **options)
    out = []
    for t in range(len(x)):
        parts = [
            weights[t, j] * (F.gelu(x[t] @ weight_1[int(e)]) @ weight_2[int(e)])
            for j, e in enumerate(indices.detach().numpy()[t])
        ]
        out.append(sum(parts[1:], parts[0]))
    return mt.stack(out)


PARAMETERS = (
    (TOKENS, FEATURES),
    (EXPERTS, FEATURES),
    (EXPERTS, FEATURES, HIDDEN),
    (
        EXPERTS,
        HIDDEN,
        FEATURES,
    ),
)
OPTIONS = [
    {"norm_topk_prob": True},
    {},
    {"score_function": "sigmoid", "norm_topk_prob": True, "scaling_factor": 2.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_a_loop_over_tokens(options):
    mine, loop = tensors(*PARAMETERS), tensors(*PARAMETERS)
    out, expected = experts(*mine, **options), one_by_one(*loop, **options)
    np.testing.assert_allclose(out.detach().numpy(), expected.detach().numpy(), atol=1e-12)
    cotangent = mt.Tensor(np.random.default_rng(1).standard_normal(out.shape))
    out.backward(cotangent)
    expected.backward(cotangent)
    for a, b in zip(mine, loop, strict=True):
        np.testing.assert_allclose(a.grad.detach().numpy(), b.grad.detach().numpy(), atol=1e-11)


def test_equal_experts_are_one_dense_layer():
    x, router, weight_1, weight_2 = tensors(*PARAMETERS)
    same = [w[:1].expand(w.shape) for w in (weight_1, weight_2)]
    out = experts(x, router, *same, norm_topk_prob=True)
    dense = F.gelu(x @ weight_1[0]) @ weight_2[0]
    np.testing.assert_allclose(out.detach().numpy(), dense.detach().numpy(), atol=1e-12)


def test_the_order_of_the_experts_does_not_matter():
    x, *parameters = tensors(*PARAMETERS)
    order = mt.tensor([3, 0, 4, 1, 2])
    out, other = experts(x, *parameters), experts(x, *[p[order] for p in parameters])
    np.testing.assert_allclose(out.detach().numpy(), other.detach().numpy(), atol=1e-12)


def test_rows_are_sorted_by_expert_and_stable():
    x = mt.arange(4).reshape(4, 1).float()
    rows, places, offs = F.moe_permute(x, mt.tensor([[2, 0], [0, 1], [2, 1], [0, 2]]), 4)
    assert rows.detach().numpy()[:, 0].tolist() == [0, 1, 3, 1, 2, 0, 2, 3]
    assert offs.tolist() == [3, 5, 8, 8]
    assert places.tolist() == [[5, 0], [1, 3], [6, 4], [2, 7]]
    assert F.moe_unpermute(rows, places).tolist() == [[0], [2], [4], [6]]


ROUTERS = [
    {"k": 3, "norm_topk_prob": True},
    {"k": 8, "scaling_factor": 1.7},
    {"k": 4, "groups": 4, "kept_groups": 2},
    {"k": 2, "score_function": "sigmoid", "norm_topk_prob": True, "bias": True, "groups": 2,
     "kept_groups": 1, "group_best": 3},
]  # fmt: skip


def routed(options, tokens=40, dtype=np.float64, implementation="cpu"):
    """What the kernel gives for logits among which there are ties, and its derivative."""
    rng = np.random.default_rng(0)
    how = {"score_function": "softmax", "norm_topk_prob": False, "scaling_factor": 1.0} | options
    bias = rng.standard_normal(8).astype(dtype) / 4 if how.pop("bias", False) else None
    logits, grad = rng.integers(-3, 4, (tokens, 8)) / 2, rng.standard_normal((tokens, how["k"]))
    limits = {name: how.pop(name, 1) for name in ("groups", "kept_groups", "group_best")}
    k = how.pop("k")
    with kernels.prefer(implementation):
        found = kernels.lookup("route")(logits.astype(dtype), bias, k=k, **how, **limits)
        back = kernels.lookup("routing_weights_backward")
        back = back(grad.astype(dtype), logits.astype(dtype), found[1], **how)
        again = kernels.lookup("routing_weights")(logits.astype(dtype), found[1], **how)
    np.testing.assert_allclose(found[0], again, rtol=1e-6)
    return *found, back


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", ROUTERS, ids=str)
def test_the_kernel_routes_like_its_reference(options, dtype):
    mine, reference = (routed(options, 40, dtype, name) for name in ("cpu", "numpy"))
    for a, b in zip(mine[1:4], reference[1:4], strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in ((mine[0], reference[0]), (mine[4], reference[4])):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_what_is_not_a_number_goes_somewhere():
    logits = np.zeros((2, 4))
    logits[1] = np.nan
    weights, indices, places, offs = F.route(mt.Tensor(logits), 2)
    assert indices.tolist() == [[0, 1], [0, 1]]
    assert places.tolist() == [[0, 2], [1, 3]]
    assert offs.tolist() == [2, 4, 4, 4]
    assert np.isnan(weights.numpy()).tolist() == [[False] * 2, [True] * 2]


@pytest.mark.parametrize("options", ROUTERS, ids=str)
def test_one_kernel_routes_like_its_parts(options):
    """The parts are what a profile sees."""
    logits, other = tensors((TOKENS, 8), (TOKENS, 8))
    other.data[...] = logits.data
    options = dict(options)
    if options.pop("bias", False):
        options["expert_bias"] = mt.Tensor(np.linspace(-0.2, 0.2, 8))
    mine = F.route(logits, **options)
    with mt.debug.profile():
        parts = F.route(other, **options)
    for a, b in zip(mine, parts, strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-12)
    cotangent = mt.Tensor(np.random.default_rng(2).standard_normal(mine.weights.shape))
    mine.weights.backward(cotangent)
    parts.weights.backward(cotangent)
    np.testing.assert_allclose(logits.grad.numpy(), other.grad.numpy(), rtol=1e-10, atol=1e-15)


def test_the_bias_chooses_and_does_not_weigh():
    (logits,) = tensors((TOKENS, EXPERTS))
    bias = mt.tensor([0.0, 0, 9, 0, 0], dtype=mt.float64, requires_grad=True)
    weights, indices = F.topk_routing(logits, 2, "sigmoid", expert_bias=bias)
    assert (indices.detach().numpy()[:, 0] == 2).all()
    expected = logits.sigmoid().gather(1, indices)
    np.testing.assert_allclose(weights.detach().numpy(), expected.detach().numpy(), atol=1e-15)
    weights.backward(mt.Tensor(np.random.default_rng(2).standard_normal(weights.shape)))
    assert bias.grad is None


def test_normalised_weights_are_the_softmax_of_the_chosen():
    (logits,) = tensors((TOKENS, EXPERTS))
    weights, indices = F.topk_routing(logits, K, norm_topk_prob=True)
    expected = logits.gather(1, indices).softmax(1)
    np.testing.assert_allclose(weights.detach().numpy(), expected.detach().numpy(), atol=1e-15)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradcheck(options):
    shapes = (3, 4), (4, 4), (4, 4, 2), (4, 2, 4)
    assert mt.gradcheck(lambda *p: experts(*p, **options), tensors(*shapes), order=2)


def test_half_precision_and_autocast():
    exact = experts(*tensors(*PARAMETERS)).detach().numpy()
    with mt.autocast("bfloat16"):
        lowered = experts(*tensors(*PARAMETERS, dtype=np.float32))
    np.testing.assert_allclose(
        lowered.float().detach().numpy(), exact, atol=0.03 * np.abs(exact).max()
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [mt.float32, mt.float64, mt.bfloat16, mt.float16])
@pytest.mark.parametrize("sizes", [(0, 5, 1, 0, 40), (300, 0, 7), (4,), (0, 0)], ids=str)
def test_grouped_products_are_products_of_groups(sizes, dtype, threads):
    """Of empty groups, single rows, groups large enough for threads; of transposed weights."""
    rng = np.random.default_rng(0)
    ends = np.cumsum(sizes)
    x, y = (rng.standard_normal((ends[-1], n)).astype(dtype) for n in (96, 130))
    weight = rng.standard_normal((len(sizes), 130, 96)).astype(dtype).swapaxes(1, 2)
    before = mt.get_num_threads()
    mt.set_num_threads(threads)
    try:
        found = F.grouped_mm(mt.Tensor(x), mt.Tensor(weight), mt.Tensor(ends)).numpy()
        leaf = mt.Tensor(np.ascontiguousarray(weight), requires_grad=True)
        F.grouped_mm(mt.Tensor(x), leaf, mt.Tensor(ends)).backward(mt.Tensor(y))
    finally:
        mt.set_num_threads(before)
    wide = np.float64 if dtype == np.float64 else np.float32
    tolerance = {2: 0.03, 4: 1e-5, 8: 1e-13}[dtype.itemsize]
    for e, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        rows, given = x[begin:end].astype(wide), y[begin:end].astype(wide)
        for mine, expected in (
            (found[begin:end], rows @ weight[e].astype(wide)),
            (leaf.grad.numpy()[e], rows.T @ given),
        ):
            scale = np.abs(expected).max(initial=1.0)
            np.testing.assert_allclose(mine.astype(wide), expected, atol=tolerance * scale)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [mt.float32, mt.float64, mt.bfloat16, mt.float16])
@pytest.mark.parametrize("tokens", [1, 9, 300])
@pytest.mark.parametrize("shared", [0, 3, 4], ids=["alone", "shared", "scaled"])
def test_experts_in_one_kernel_are_their_parts(tokens, dtype, threads, shared):
    """With an expert that nobody chooses, one that all choose, and rows in several blocks.

    shared: how many weights the shared expert has.
    """
    rng = np.random.default_rng(0)
    width, hidden, experts, wide = 21, 13, 4, 90
    shapes = (tokens, width), (tokens, 2), (experts, 2 * hidden, width), (experts, width, hidden)
    shapes += ((wide, width), (wide, width), (width, wide), (1, width))[:shared]
    indices = mt.Tensor(np.stack([np.full(tokens, 2), rng.integers(0, 2, tokens)], 1))
    cotangent = rng.standard_normal((tokens, width))

    def run(function, dtype):
        leaves = [p.to(dtype).detach().requires_grad_() for p in tensors(*shapes)]
        rows, places, offs = F.moe_permute(leaves[0], indices, experts)
        out = function(*leaves[:4], *leaves[4:], rows=rows, places=places, offs=offs)
        out.backward(mt.Tensor(cotangent).to(dtype))
        return [a.double().numpy() for a in (out.detach(), *(p.grad for p in leaves))]

    def parts(x, weights, gate_up, down, *shared, rows, places, offs):
        rows = F.swiglu_packed(F.grouped_mm(rows, gate_up.mT, offs))
        out = F.moe_unpermute(F.grouped_mm(rows, down.mT, offs), places, weights)
        if not shared:
            return out
        gate, up, down, *scale = shared
        common = F.linear(F.swiglu(F.linear(x, gate), F.linear(x, up)), down)
        return out + (F.linear(x, *scale).sigmoid() * common if scale else common)

    def at_once(x, weights, gate_up, down, *shared, rows, places, offs):
        more = {"shared": shared[:3], "shared_scale": shared[3] if shared[3:] else None}
        return F.moe_swiglu(x, weights, gate_up, down, places, offs, **more if shared else {})

    before = mt.get_num_threads()
    mt.set_num_threads(threads)
    try:
        found = run(at_once, dtype)
    finally:
        mt.set_num_threads(before)
    tolerance = {2: 0.03, 4: 1e-5, 8: 1e-13}[dtype.itemsize]
    for mine, expected in zip(found, run(parts, mt.float64), strict=True):
        np.testing.assert_allclose(mine, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("implementation", ["numpy", "cpu"])
def test_a_shared_expert_may_be_frozen_in_part(implementation):
    if implementation not in kernels.implementations("moe_swiglu"):
        pytest.skip("the compiled kernels are not here")
    shapes = (6, 3), (2, 8, 3), (2, 3, 4), (5, 3), (5, 3), (3, 5), (1, 3)

    def gradients(frozen):
        leaves = tensors(*shapes)
        for i in frozen:
            leaves[i].requires_grad_(False)
        x, gate_up, down, *shared, scale = leaves
        _, places, offs = F.moe_permute(x, mt.tensor([[0, 1]] * 6), 2)
        out = F.moe_swiglu(x, None, gate_up, down, places, offs, shared, scale)
        out.backward(mt.ones(6, 3).double())
        return [leaf.grad for leaf in leaves]

    with kernels.prefer(implementation):
        everything = gradients([])
        for frozen in ([0], [3, 4], [5], [6], [0, 1, 2, 6]):
            for i, (mine, full) in enumerate(zip(gradients(frozen), everything, strict=True)):
                if i in frozen:
                    assert mine is None
                else:
                    np.testing.assert_array_equal(mine.numpy(), full.numpy())


def test_frozen_experts_have_no_gradient():
    x, weights, gate_up, down = tensors((6, 3), (6, 2), (2, 8, 3), (2, 3, 4))
    _, places, offs = F.moe_permute(x, mt.tensor([[0, 1]] * 6), 2)
    F.moe_swiglu(x, weights, gate_up.detach(), down, places, offs).backward(mt.ones(6, 3).double())
    some = [x.grad, weights.grad, down.grad]
    for p in (x, weights, down):
        p.grad = None
    F.moe_swiglu(x, weights, gate_up, down, places, offs).backward(mt.ones(6, 3).double())
    for mine, p in zip(some, (x, weights, down), strict=True):
        np.testing.assert_array_equal(mine.numpy(), p.grad.numpy())


def test_errors():
    x, router, weight_1, _ = tensors(*PARAMETERS)
    index = mt.zeros(TOKENS, 2, dtype=mt.int64)
    _, places, offs = F.moe_permute(x, index, EXPERTS)
    with pytest.raises(ConfigError, match="expected score_function"):
        F.topk_routing(router, 2, "tanh")
    with pytest.raises(ShapeError, match="k from 1 to the experts"):
        F.topk_routing(router, 9)
    with pytest.raises(ShapeError, match="expected expert_bias"):
        F.topk_routing(router, 2, expert_bias=x)
    with pytest.raises(ShapeError, match="groups that divide the experts"):
        F.route(router, 2, groups=3)
    with pytest.raises(DtypeError, match="expected integer indices"):
        F.moe_permute(x, x, EXPERTS)
    with pytest.raises(ShapeError, match=r"expected x \(tokens, features\)"):
        F.moe_permute(x[1:], index, EXPERTS)
    with pytest.raises(ShapeError, match=r"expected indices in \[0, 5\)"):
        F.moe_permute(x, index + 5, EXPERTS)
    with pytest.raises(ShapeError, match="expected rows"):
        F.moe_unpermute(x, places)
    with pytest.raises(ShapeError, match="moe_swiglu: expected x"):
        F.moe_swiglu(x, None, weight_1, weight_1, places, offs)
    pair = mt.ones(EXPERTS, 4, FEATURES), mt.ones(EXPERTS, FEATURES, 2)
    gate, down = mt.ones(7, FEATURES), mt.ones(FEATURES, 7)
    for wrong in [
        {"shared": (gate, gate, gate)},
        {"shared": (gate[:6], gate, down)},
        {"shared": (gate, gate, down), "shared_scale": gate[0]},
        {"shared_scale": gate[:1]},
    ]:
        with pytest.raises(ShapeError, match="moe_swiglu: expected of a shared expert"):
            F.moe_swiglu(x, None, *pair, places, offs, **wrong)
    with pytest.raises(ShapeError, match=r"expected x \(rows, k\)"):
        F.grouped_mm(x, weight_1[:2], offs)
    with pytest.raises(ShapeError, match="expected offs that do not fall"):
        F.grouped_mm(x, weight_1, offs)


@pytest.mark.parametrize("favoured", [0, 3], ids=["even", "skewed"])
def test_threads_change_no_bit_of_the_experts(favoured):
    """Whole experts to a thread, or their rows and matrices shared out where one has too many."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((40, 6)).astype(np.float32)
    logits[:, 0] += favoured
    shapes = (40, 8), (6, 10, 8), (6, 8, 5), (90, 8), (90, 8), (8, 90), (1, 8)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    results = []
    before = mt.get_num_threads()
    try:
        for threads in (1, 3):
            mt.set_num_threads(threads)
            routed = F.route(mt.Tensor(logits), 2)
            leaves = [mt.Tensor(a.copy(), requires_grad=True) for a in arrays]
            x, gate_up, down, *shared, scale = leaves
            rows = routed.places, routed.offs
            out = F.moe_swiglu(x, routed.weights, gate_up, down, *rows, shared, scale)
            out.backward(mt.Tensor(arrays[0]))
            results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    finally:
        mt.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
