"""The NumPy attention against the formula, score by score, and against finite differences."""

import itertools

import numpy as np
import pytest

from minitorch.kernels.reference import attention as reference


def formula(q, k, v, mask, sinks, *, causal, scale, window, softcap, lower_right):
    """Loops over everything; (heads, time, dim) each."""
    heads, time_q, dim = q.shape
    kv_heads, time_k, _ = k.shape
    out = np.zeros((heads, time_q, v.shape[2]))
    for h, i in itertools.product(range(heads), range(time_q)):
        group = h * kv_heads // heads
        position = i + (time_k - time_q if lower_right else 0)
        total = np.exp(sinks[h]) if sinks is not None else 0.0
        for j in range(time_k):
            score = (dim**-0.5 if scale is None else scale) * (q[h, i] @ k[group, j])
            if softcap:
                score = softcap * np.tanh(score / softcap)
            seen = not (causal and j > position)
            seen &= not 0 <= window[0] < position - j
            seen &= not 0 <= window[1] < j - position
            if mask is not None and mask.dtype == bool:
                seen &= mask[h, i, j]
            elif mask is not None:
                score += mask[h, i, j]
            if seen:
                total += np.exp(score)
                out[h, i] += np.exp(score) * v[group, j]
        out[h, i] /= total if total else 1
    return out


def slope(f, grad, x, step=1e-5):
    """grad J, by central differences."""
    out = np.empty(x.shape)
    for place in np.ndindex(x.shape):
        moved = x.copy()
        moved[place] += step
        up = f(moved)
        moved[place] -= 2 * step
        out[place] = (grad * (up - f(moved))).sum() / (2 * step)
    return out


OPTIONS = {"causal": False, "scale": None, "window": (-1, -1), "softcap": 0.0, "lower_right": False}
CASES = {
    "plain": {},
    "causal": {"causal": True},
    "causal, at the end": {"causal": True, "lower_right": True},
    "window": {"window": (1, 0), "scale": 0.3},
    "window both ways": {"window": (0, 1), "lower_right": True},
    "window on the right alone": {"window": (-1, 1)},
    "causal window with a cap": {"causal": True, "window": (1, 5), "softcap": 0.7},
}


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("masked", [None, "bool", "float"])
@pytest.mark.parametrize("case", CASES)
def test_against_loops_and_finite_differences(case, masked, with_sinks):
    options = OPTIONS | CASES[case]
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(s) for s in [(4, 3, 5), (2, 4, 5), (2, 4, 2)])
    mask = {None: None, "bool": rng.random((4, 3, 4)) < 0.7, "float": rng.random((4, 3, 4))}[masked]
    sinks = rng.standard_normal(4) if with_sinks else None
    out, log_normaliser = reference.scaled_dot_product_attention(q, k, v, mask, sinks, **options)
    np.testing.assert_allclose(out, formula(q, k, v, mask, sinks, **options), atol=1e-14)

    grad = rng.standard_normal(out.shape)
    inputs = [q, k, v, mask, sinks]
    gradients = reference.scaled_dot_product_attention_backward(
        grad, *inputs, out, log_normaliser, needs_mask=masked == "float", **options
    )
    for i, gradient in enumerate(gradients):
        if gradient is None:
            assert inputs[i] is None or inputs[i].dtype == bool
            continue

        def of_one(x, i=i):
            return formula(*[x if i == j else y for j, y in enumerate(inputs)], **options)

        np.testing.assert_allclose(gradient, slope(of_one, grad, inputs[i]), atol=1e-8)


def test_the_gradient_of_a_mask_is_summed_where_it_was_broadcast():
    rng = np.random.default_rng(0)
    q, k, v, grad = rng.standard_normal((4, 2, 4, 3, 5))
    small = rng.standard_normal((4, 1, 3))
    found = []
    for mask in (small, np.broadcast_to(small, (2, 4, 3, 3))):
        out, lse = reference.scaled_dot_product_attention(q, k, v, mask)
        *_, dmask, _ = reference.scaled_dot_product_attention_backward(
            grad, q, k, v, mask, None, out, lse, needs_mask=True
        )
        found.append(dmask)
    np.testing.assert_allclose(found[0], found[1].sum((0, 2))[:, None], atol=1e-14)


def test_sequences_of_any_lengths_are_what_they_are_alone():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(s) for s in [(7, 4, 3), (9, 2, 3), (9, 2, 2)])
    starts = np.array([[0, 3, 3, 7], [0, 1, 5, 9]])
    options = OPTIONS | {"causal": True, "lower_right": True}
    out, _ = reference.varlen_attention(q, k, v, None, *starts, **options)
    for i in range(3):
        a, b, c, d = starts[0, i], starts[0, i + 1], starts[1, i], starts[1, i + 1]
        alone = (x.transpose(1, 0, 2) for x in (q[a:b], k[c:d], v[c:d]))
        expected = formula(*alone, None, None, **options)
        np.testing.assert_allclose(out[a:b].transpose(1, 0, 2), expected, atol=1e-14)
