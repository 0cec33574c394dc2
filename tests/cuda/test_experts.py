"""The CUDA kernels of mixture of experts in the emulator's check build, against the reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import to_device
from minitorch.errors import ShapeError
from minitorch.kernels.cuda import experts as module
from minitorch.kernels.cuda.extension import checked
from minitorch.nn import functional as F
from tests.cuda.conftest import close, wide

DTYPES = ["float64", "float32", "bfloat16", "float16"]
SHAPES = [(1, 1, 1, 1), (5, 3, 2, 7), (9, 4, 3, 40), (70, 2, 1, 16)]  # tokens, experts, k, features


def sample(dtype, tokens, experts, k, features):
    rng = np.random.default_rng(0)
    x, w, rows = (
        rng.standard_normal(shape).astype(getattr(mt, dtype))
        for shape in ((tokens, features), (tokens, k), (tokens * k, features))
    )
    indices = rng.random((tokens, experts)).argsort(1)[:, :k]
    return x, w, rows, indices


@pytest.mark.parametrize(("count", "experts"), [(1, 1), (5, 8), (300, 3), (257, 40), (0, 4)])
def test_places(hold, count, experts):
    indices = np.random.default_rng(0).integers(0, experts, (count, 2))
    hold("moe_places", indices, num_experts=experts, like=mt.float64)
    hold("moe_places", indices.astype(np.int32), num_experts=experts, like=mt.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back(hold, dtype, shape):
    x, w, rows, indices = sample(dtype, *shape)
    places, _ = kernels.lookup("moe_places")(indices, num_experts=shape[1])
    for weights in (w, None):
        hold("moe_permute", x, weights, places)
        hold("moe_unpermute", rows, weights, places)
    hold("moe_dot", rows, x, places)


@pytest.mark.parametrize("ends", [[5], [0, 3, 3, 70], [64, 64, 129]], ids=str)
@pytest.mark.parametrize(("k", "n"), [(3, 5), (16, 70)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_grouped_products(hold, dtype, ends, k, n):
    rng = np.random.default_rng(0)
    x, weight, grad = (
        rng.standard_normal(shape).astype(getattr(mt, dtype))
        for shape in ((ends[-1], k), (len(ends), k, n), (ends[-1], n))
    )
    hold("grouped_mm", x, weight, np.int32(ends))
    hold("grouped_mm", grad, weight.swapaxes(1, 2), np.int64(ends))
    hold("grouped_outer", x, grad, np.int64(ends))


@pytest.mark.parametrize("ends", [[5], [0, 3, 3, 70], [64, 64, 129]], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_grouped_products_of_warpgroups(hold, dtype, ends):
    test_grouped_products(hold, dtype, ends, 72, 136)


def test_rows_of_other_groups_count_as_zeros():
    """They come with the tiles of a group, and may hold what is no number."""
    rng = np.random.default_rng(1)
    x, grad = (rng.standard_normal((40, 16)).astype(mt.bfloat16) for _ in range(2))
    x[9:] = grad[9:] = np.inf
    with checked():
        out = kernels.lookup("grouped_outer", "simt")(
            *(to_device(x, "simt") for x in (x, grad, np.int64([9, 40])))
        )
    exact = wide(x[:9]).T @ wide(grad[:9])
    close(out[0], exact, x.dtype)


@pytest.mark.parametrize("norm_topk_prob", [True, False])
@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_routing_weights(hold, dtype, score_function, norm_topk_prob):
    options = {
        "score_function": score_function,
        "norm_topk_prob": norm_topk_prob,
        "scaling_factor": 2.5,
    }
    for tokens, experts, k in [(1, 1, 1), (5, 8, 2), (3, 70, 40)]:
        logits, grad, _, indices = sample(dtype, tokens, experts, k, experts)
        hold("routing_weights", 3 * logits, indices, **options)
        hold("routing_weights_backward", grad, 3 * logits, indices, **options)


@pytest.mark.parametrize("norm_topk_prob", [True, False])
@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_route(hold, dtype, score_function, norm_topk_prob):
    rng = np.random.default_rng(2)
    for tokens, experts, k, groups, kept, best in [
        (1, 1, 1, 1, 1, 1),
        (5, 8, 2, 1, 1, 1),
        (9, 16, 3, 8, 3, 2),
        (3, 40, 20, 4, 2, 10),
    ]:
        # every score and every sum of scores apart from the others, in 16 bits too
        logits = rng.permuted(np.tile(np.linspace(-2, 2, experts), (tokens, 1)), axis=1)
        bias = rng.permutation(experts) / (16 * experts)
        for added in (None, bias):
            hold(
                "route",
                logits.astype(getattr(mt, dtype)),
                None if added is None else added.astype(getattr(mt, dtype)),
                k=k,
                groups=groups,
                kept_groups=kept,
                group_best=best,
                score_function=score_function,
                norm_topk_prob=norm_topk_prob,
                scaling_factor=2.5,
            )


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan, 0.0])
def test_route_with_ties_and_what_is_no_number(hold, special):
    """Of equal scores the first; NaN before all others, as in topk."""
    logits = np.array([[0.5, special, -1.0, special, 0.5, 2.0]] * 2)
    options = {"norm_topk_prob": False, "scaling_factor": 1.0, "groups": 3, "kept_groups": 2}
    hold("route", logits, None, k=3, group_best=1, score_function="sigmoid", **options)


def test_more_experts_than_fit_go_by_the_reference(hold, monkeypatch):
    monkeypatch.setattr(module, "_MOST_EXPERTS", 8)
    logits = np.random.default_rng(0).permuted(np.linspace(-9, 9, 9)[None], axis=1)
    options = {"groups": 3, "kept_groups": 2, "group_best": 2, "score_function": "softmax"}
    hold("route", logits, None, k=2, norm_topk_prob=True, scaling_factor=1.0, **options)


def test_an_index_that_is_no_expert():
    with pytest.raises(ShapeError, match=r"expected indices in \[0, 3\)"):
        kernels.lookup("moe_places", "simt")(to_device(np.array([[0, 3]]), "simt"), num_experts=3)


def layer(x, router, weight_1, weight_2):
    weights, indices = F.topk_routing(F.linear(x, router), 2, norm_topk_prob=True)
    rows, places, offs = F.moe_permute(x, indices, 4)
    hidden = F.silu(F.grouped_mm(rows, weight_1, offs))
    return F.moe_unpermute(F.grouped_mm(hidden, weight_2, offs), places, weights)


def test_a_layer_of_experts():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s) for s in ((6, 5), (4, 5), (4, 5, 3), (4, 3, 5))]
    inputs = [mt.Tensor(to_device(x, "simt"), requires_grad=True) for x in arrays]
    with checked("random", 3):
        out = layer(*inputs)
        out.backward(mt.Tensor(to_device(arrays[0], "simt")))
    assert {out.device, *(x.grad.device for x in inputs)} == {"simt"}
    expected = [mt.Tensor(x, requires_grad=True) for x in arrays]
    layer(*expected).backward(mt.Tensor(arrays[0]))
    for x, other in zip(inputs, expected, strict=True):
        np.testing.assert_allclose(x.grad.numpy(), other.grad.numpy(), rtol=0, atol=1e-12)
    assert mt.gradcheck(layer, inputs)
