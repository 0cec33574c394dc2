"""Attention as an operation: its options, its gradients through the kernel, what it refuses."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.autograd import grad
from minitorch.errors import ConfigError, DtypeError, ShapeError
from minitorch.gradcheck import gradcheck
from minitorch.nn import functional as F


def real(*shape, seed=0):
    return mt.tensor(np.random.default_rng([seed, *shape]).standard_normal(shape))


@pytest.mark.parametrize("time_q", [1, 2, 40])
@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True, "align": "lower_right"},
        {"window_size": (3, 1), "softcap": 1.5},
        {"window_size": (2, -1), "is_causal": True, "scale": 0.4},
    ],
)
def test_the_kernels_gradients_with_a_bias_and_sinks(time_q, options):
    """40 queries go the way of many, one and two the way of few."""

    def attention(q, k, v, mask, sinks):
        return F.scaled_dot_product_attention(q, k, v, mask, sinks=sinks, **options)

    inputs = [real(1, 4, time_q, 3), real(1, 2, 5, 3), real(1, 2, 5, 2), real(4, 1, 5), real(4)]
    assert gradcheck(attention, inputs, order=1).ok


def test_new_queries_against_a_cache_are_the_last_ones_of_all():
    q, k, v = (real(2, 3, 9, 4, seed=i) for i in range(3))
    options = {"is_causal": True, "window_size": (4, 0), "align": "lower_right"}
    whole = F.scaled_dot_product_attention(q, k, v, **options).numpy()
    for new in (1, 2, 5):
        last = F.scaled_dot_product_attention(q[:, :, -new:], k, v, **options).numpy()
        np.testing.assert_allclose(last, whole[:, :, -new:], atol=1e-14)


def test_packed_sequences_do_not_see_each_other():
    q, k, v = real(7, 4, 3), real(7, 2, 3, seed=1), real(7, 2, 5, seed=2)
    starts = mt.tensor([0, 2, 2, 7])
    out = F.varlen_attn(q, k, v, starts, is_causal=True).numpy()
    for a, b in [(0, 2), (2, 7)]:
        alone = (x[a:b].transpose(0, 1) for x in (q, k, v))
        expected = F.scaled_dot_product_attention(*alone, is_causal=True)
        np.testing.assert_allclose(out[a:b], expected.transpose(0, 1).numpy(), atol=1e-14)


def test_pages_hold_the_same_keys_in_another_order():
    q, k, v, sinks = real(2, 4, 2, 3), real(2, 2, 6, 3, seed=1), real(2, 2, 6, 5, seed=2), real(4)
    table, lengths = np.array([[4, 1, 0], [2, 5, 3]]), np.array([6, 3])
    key_pages, value_pages = (mt.full((6, 2, 2, x.shape[3]), float("nan")) for x in (k, v))
    for page, (i, n) in zip(table.flat, np.ndindex(2, 3), strict=True):
        for pages, x in ((key_pages, k), (value_pages, v)):
            pages[page] = x[i, :, 2 * n : 2 * n + 2].float()
    options = {"scale": 0.7, "window_size": (2, 0), "sinks": sinks.float()}
    out = F.paged_attention(
        q.float(), key_pages, value_pages, mt.tensor(table), mt.tensor(lengths), **options
    )
    for i, n in enumerate(lengths):
        alone = (x[i : i + 1].float() for x in (q, k[:, :, :n], v[:, :, :n]))
        expected = F.scaled_dot_product_attention(
            *alone, is_causal=True, enable_gqa=True, align="lower_right", **options
        )
        np.testing.assert_allclose(out[i].numpy(), expected[0].numpy(), atol=1e-6)


def test_paged_attention_says_what_does_not_fit():
    q, pages = real(2, 4, 1, 3), real(5, 2, 2, 3)
    table, lengths = mt.tensor([[0, 1], [2, 3]]), mt.tensor([3, 4])
    with pytest.raises(ShapeError, match="paged_attention: expected query"):
        F.paged_attention(q, pages, pages[:, :1], table, lengths)
    with pytest.raises(ShapeError, match=r"block_table \(2, n\) and lengths \(2,\); got \(1, 2\)"):
        F.paged_attention(q, pages, pages, table[:1], lengths)
    with pytest.raises(ShapeError, match="float"):
        F.paged_attention(q, pages, pages, table, lengths.float())


def test_dropout_leaves_the_options_alone():
    q, k, v, sinks = real(1, 2, 6, 3), real(1, 2, 6, 3), mt.ones(1, 2, 6, 400), real(2)
    options = {"window_size": (1, 1), "softcap": 2.0, "sinks": sinks}
    expected = F.scaled_dot_product_attention(q, k, v.double(), **options).numpy()
    mt.manual_seed(0)
    draws = [
        F.scaled_dot_product_attention(q, k, v.double(), dropout_p=0.2, **options).numpy()
        for _ in range(400)
    ]
    np.testing.assert_allclose(np.mean(draws, 0)[..., 0], expected[..., 0], atol=0.05)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window_size": (1,)}, ConfigError, r"expected window_size \(left, right\)"),
        ({"softcap": -1.0}, ConfigError, "expected a softcap above 0"),
        ({"align": "middle"}, ConfigError, 'expected align "upper_left" or "lower_right"'),
        ({"sinks": mt.ones(3)}, ShapeError, r"expected sinks \(4,\), one for each head"),
        ({"enable_gqa": False}, ShapeError, "heads equal to kv_heads"),
        ({"attn_mask": mt.ones(3, 4)}, ShapeError, r"broadcastable to the scores \(1, 4, 3, 5\)"),
        ({"attn_mask": mt.tensor([1])}, DtypeError, "expected attn_mask of bool"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        F.scaled_dot_product_attention(
            real(1, 4, 3, 2), real(1, 2, 5, 2), real(1, 2, 5, 2), **options
        )


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([0, 2], "rise from 0 to 3"),
        ([0, 2, 1, 3], "rise from 0 to 3"),
        ([1, 3], "rise from 0 to 3"),
        ([], "of integers"),
        ([0.0, 3.0], "of integers"),
    ],
)
def test_starts_that_do_not_fit_are_refused(starts, message):
    x = real(3, 2, 4)
    with pytest.raises(ShapeError, match=message):
        F.varlen_attn(x, x, x, mt.tensor(starts))


def test_varlen_shapes_that_do_not_fit_are_refused():
    x, starts = real(3, 2, 4), mt.tensor([0, 3])
    with pytest.raises(ShapeError, match="varlen_attn: expected query"):
        F.varlen_attn(x, x[:, :, :2], x, starts)
    with pytest.raises(ShapeError, match="as many sequences of keys as of queries"):
        F.varlen_attn(x, x, x, starts, mt.tensor([0, 1, 3]))


def test_the_width_of_packed_heads_is_checked():
    with pytest.raises(ShapeError, match="attention_qkvpacked: expected"):
        F.attention_qkvpacked(mt.ones(1, 2, 10), 3)


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 3, 10), (1, 3, 8), (1, 3, 2), (3, 2)],
        [(1, 3, 10), (1, 2, 8), (1, 3, 2), (3, 1)],
        [(1, 3, 9), (1, 3, 8), (1, 3, 2), (3, 1)],
        [(1, 3, 10), (1, 3, 4), (1, 3, 2), (3, 1)],
        [(1, 3, 10), (1, 3, 8), (1, 3, 12), (3, 6)],
    ],
    ids=str,
)
def test_latent_attention_of_parts_that_do_not_fit(shapes):
    """Tables, times, a width that heads do not divide, values below 0, more turned than all."""
    query, made, key, table = (mt.ones(*shape) for shape in shapes)
    with pytest.raises(ShapeError, match="latent_attention: expected query"):
        F.latent_attention(query, made, key, table, table, 2, scale=1.0)


SELF = [(1, 3, 4), (5, 4), (5,), (2 * 5, 5), (3 + 2, 4), (3,), (2 * 8, 3), (3, 1)]


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        *((0, (3, 4)), (1, (5, 3)), (2, (4,)), (3, (9, 5)), (3, (10, 4)), (4, (6, 4)), (5, (2,))),
        *((6, (15, 3)), (6, (4, 3)), (7, (2, 1)), (7, (3, 3))),
    ],
    ids=str,
)
def test_latent_self_attention_of_parts_that_do_not_fit(part, shape):
    def run(*shapes):
        x, *weights, table = (mt.ones(*s) for s in shapes)
        return F.latent_self_attention(x, weights[:3], weights[3:], table, table, 2, scale=1.0)

    assert run(*SELF).shape == (1, 3, 2 * 5)
    with pytest.raises(ShapeError, match="latent_self_attention: expected x"):
        run(*SELF[:part], shape, *SELF[part + 1 :])


def test_latent_self_attention_is_of_one_dtype():
    x, *weights, table = (mt.ones(*s) for s in SELF)
    with pytest.raises(DtypeError, match="latent_self_attention: expected tensors of one dtype"):
        F.latent_self_attention(
            x.to(mt.float64), tuple(weights[:3]), tuple(weights[3:]), table, table, 2, scale=1.0
        )


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 3, 8), (1, 3, 4), (1, 3, 4), (2, 2)],
        [(1, 3, 8), (1, 2, 4), (1, 3, 4), (3, 2)],
        [(1, 3, 8), (1, 3, 2), (1, 3, 4), (3, 1)],
        [(1, 3, 8), (1, 3, 4), (1, 3, 4), (3, 3)],
    ],
    ids=str,
)
def test_rotary_attention_of_parts_that_do_not_fit(shapes):
    """Tables and keys of other times, keys of another width, angles for more than there is."""
    query, key, value, table = (mt.ones(*shape) for shape in shapes)
    with pytest.raises(ShapeError, match="rotary_attention: expected query"):
        F.rotary_attention(query, key, value, table, table, 2, 1)


ROTARY_SELF = [(1, 3, 5), (8, 5), (4, 5), (6, 5), (8,), (4,), (6,), (3, 2)]


def rotary_self(x, q, k, v, q_bias, k_bias, v_bias, table):
    pairs = (q, q_bias), (k, k_bias), (v, v_bias)
    return F.rotary_self_attention(x, *pairs, table, table, 2, 1)


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        *((0, (3, 5)), (0, (1, 3, 4)), (1, (7, 5)), (1, (4, 5)), (2, (4, 4)), (3, (6,))),
        *((4, (4,)), (5, (1, 4)), (6, (4,)), (7, (2, 2)), (7, (3, 3))),
    ],
    ids=str,
)
def test_rotary_self_attention_of_parts_that_do_not_fit(part, shape):
    assert rotary_self(*(mt.ones(*s) for s in ROTARY_SELF)).shape == (1, 3, 2 * 6)
    shapes = [*ROTARY_SELF[:part], shape, *ROTARY_SELF[part + 1 :]]
    with pytest.raises(ShapeError, match="rotary_self_attention: expected x"):
        rotary_self(*(mt.ones(*s) for s in shapes))


def test_rotary_self_attention_is_of_one_dtype():
    x, *parts = (mt.ones(*s) for s in ROTARY_SELF)
    with pytest.raises(DtypeError, match="rotary_self_attention: expected tensors of one dtype"):
        rotary_self(x.to(mt.float64), *parts)
    with mt.autocast(), pytest.raises(DtypeError, match="got bfloat16, float64; convert them"):
        rotary_self(x.to(mt.float64), *parts)


def test_rotary_self_attention_adds_what_came_by_other_paths():
    """As in a residual stream: the gradient of x is of all its uses."""
    x, *parts = (real(*s) for s in ROTARY_SELF)
    v, x = real(1, 3, 12), x.requires_grad_() * 2.0
    out = rotary_self(x, *parts)
    (alone,) = grad(out, x, v, retain_graph=True)
    (both,) = grad([out, x], x, [v, mt.Tensor(np.full(x.shape, 3.0))])
    np.testing.assert_allclose(both.numpy(), alone.numpy() + 3, rtol=1e-12)
