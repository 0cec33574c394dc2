"""Attention's variants against PyTorch's own, with masks in place of what its CPU kernel lacks."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.nn import functional as F

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")

DTYPES = {"float32": 2e-5, "float64": 1e-12, "bfloat16": 3e-2}


def both(dtype, *shapes):
    """The same numbers on either side, of this dtype."""
    mine, theirs = [], []
    for i, shape in enumerate(shapes):
        x = torch.tensor(np.random.default_rng(i).standard_normal(shape))
        theirs.append(x.to(getattr(torch, dtype)).requires_grad_())
        rounded = theirs[-1].detach().double().numpy()
        mine.append(mt.tensor(rounded, dtype=getattr(mt, dtype), requires_grad=True))
    return mine, theirs


def compare(ours, peer, mine, theirs, bound):
    out, expected = ours(*mine), peer(*theirs)
    grad = np.random.default_rng(9).standard_normal(out.shape)
    out.backward(mt.tensor(grad, dtype=out.dtype))
    expected.backward(torch.tensor(grad).to(expected.dtype))
    pairs = [(out.detach(), expected.detach())]
    pairs += [(x.grad, y.grad) for x, y in zip(mine, theirs, strict=True)]
    for x, y in pairs:
        y = y.double().numpy()
        np.testing.assert_allclose(x.double().numpy(), y, rtol=0, atol=bound * (1 + abs(y).max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("time_q", "time_k"), [(1, 1), (1, 37), (65, 65), (7, 130)])
def test_aligned_with_the_end(dtype, time_q, time_k):
    from torch.nn.attention.bias import causal_lower_right

    mine, theirs = both(dtype, (2, 4, time_q, 16), (2, 4, time_k, 16), (2, 4, time_k, 16))
    compare(
        lambda q, k, v: F.scaled_dot_product_attention(
            q, k, v, is_causal=True, align="lower_right"
        ),
        lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=causal_lower_right(time_q, time_k)
        ),
        mine,
        theirs,
        DTYPES[dtype],
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("window", [(0, 0), (5, 0), (40, 3), (-1, 2), (200, -1)])
def test_sliding_windows(dtype, window):
    time, (left, right) = 100, window
    distance = torch.arange(time) - torch.arange(time)[:, None]
    seen = (distance >= (-left if left >= 0 else -time)) & (
        distance <= (right if right >= 0 else time)
    )
    mine, theirs = both(dtype, (1, 4, time, 24), (1, 2, time, 24), (1, 2, time, 24))
    compare(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, window_size=window),
        lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, enable_gqa=True
        ),
        mine,
        theirs,
        DTYPES[dtype],
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_of_a_mask(dtype):
    mine, theirs = both(dtype, (2, 3, 33, 16), (2, 3, 50, 16), (2, 3, 50, 16), (3, 33, 50))
    compare(
        F.scaled_dot_product_attention,
        torch.nn.functional.scaled_dot_product_attention,
        mine,
        theirs,
        DTYPES[dtype],
    )


def test_gpt_oss_sinks():
    """The eager attention of transformers' gpt-oss, layer and mask stripped off."""
    gpt_oss = pytest.importorskip(
        "transformers.models.gpt_oss.modeling_gpt_oss",
        reason="peer not installed, or too old: pip install -e .[peers]",
    )

    class Layer(torch.nn.Module):
        num_key_value_groups = 2

    def peer(q, k, v, sinks):
        layer = Layer().eval()
        layer.sinks = sinks
        out, _ = gpt_oss.eager_attention_forward(layer, q, k, v, None, scaling=0.25)
        return out.transpose(1, 2)

    mine, theirs = both("float64", (2, 4, 9, 16), (2, 2, 9, 16), (2, 2, 9, 16), (4,))
    compare(
        lambda q, k, v, sinks: F.scaled_dot_product_attention(q, k, v, sinks=sinks),
        peer,
        mine,
        theirs,
        1e-12,
    )


def test_gemma_soft_cap():
    gemma = pytest.importorskip(
        "transformers.models.gemma2.modeling_gemma2",
        reason="peer not installed, or too old: pip install -e .[peers]",
    )

    class Layer(torch.nn.Module):
        num_key_value_groups, head_dim = 2, 16

    def peer(q, k, v):
        out, _ = gemma.eager_attention_forward(
            Layer().eval(), q, k, v, None, scaling=0.25, softcap=1.5
        )
        return out.transpose(1, 2)

    mine, theirs = both("float32", (2, 4, 9, 16), (2, 2, 9, 16), (2, 2, 9, 16))
    compare(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, softcap=1.5),
        peer,
        mine,
        theirs,
        1e-5,
    )
