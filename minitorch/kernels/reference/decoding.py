"""The reference of blocks of a GPT that take in one new token of each sequence."""

from typing import Any

import numpy as np

from minitorch.backend import bfloat16, float16, float32
from minitorch.kernels.reference.attention import join_heads, unpack_qkv
from minitorch.kernels.reference.parts import part
from minitorch.kernels.table import register

Array = np.ndarray

HALF = (bfloat16, float16)


BLOCK, LAST = 14, 3
"""Arrays of a block, and of what follows the last one."""


@register("decode_blocks", "numpy", half=HALF)
def decode_blocks(x: Array, *others: Any, eps: float, activation: str) -> Array:
    """Of each block y + W_2 f(W_1 norm(y) + b_1) + b_2, where y = x + W_o attention(norm(x)) + b_o.

    x: (batch, 1, width). others, of each block: weight and bias of the first norm, (width,) both;
    of the projection to queries, keys and values, (3 width, width), and of that of the heads; of
    the second norm; of the layers of the feed-forward part, (hidden, width) and (width, hidden);
    any bias may be None. Then keys and values, (batch, heads, time, head_dim), whose last rows are
    written: those of the new token. At last weight and bias of a norm that follows the blocks, and
    the weight of a head, (vocabulary, width); None leaves either out. Half precision is computed in
    float32, and rounded after each block. Returns the shape of x, with a head (batch, 1,
    vocabulary).
    """
    *blocks, norm, shift, head = others if len(others) > LAST else (None,) * (LAST + 1)
    if len(blocks) % BLOCK:
        raise ValueError(f"expected {BLOCK} arrays of each block, and {LAST} of what follows")
    for i in range(0, len(blocks), BLOCK):
        x = _through(x, *blocks[i : i + BLOCK], eps=eps, activation=activation)
    _check_last(x, norm, shift, head)
    out = _wide(x)
    if norm is not None:
        out, _, _ = part("layer_norm", out)(out, _wide(norm), _wide(shift), eps=eps)
    if head is not None:
        out = part("linear", out)(out.astype(x.dtype).astype(out.dtype), _wide(head), None)
    return out.astype(x.dtype, copy=False)


def _check_last(x: Array, norm: Array | None, shift: Array | None, head: Array | None) -> None:
    width = x.shape[-1]
    if (
        any(vector is not None and vector.shape != (width,) for vector in (norm, shift))
        or (norm is None and shift is not None)
        or (head is not None and (head.ndim != 2 or head.shape[1] != width))
    ):
        raise ValueError(
            f"expected of what follows a norm's weight and bias, ({width},) both, and a head, "
            f"(vocabulary, {width})"
        )


def _through(x: Array, *others: Any, eps: float, activation: str) -> Array:
    *parameters, keys, values = others
    _check(x, parameters, keys, values)
    x_wide, *wide = (_wide(array) for array in (x, *parameters))
    names = "layer_norm", "linear", "scaled_dot_product_attention", "mlp"
    layer_norm, linear, attention, mlp = (part(name, x_wide) for name in names)
    norm_1, shift_1, qkv, qkv_bias, proj, proj_bias, norm_2, shift_2, *feed_forward = wide
    normed, _, _ = layer_norm(x_wide, norm_1, shift_1, eps=eps)
    heads = keys.shape[1]
    query, key, value = unpack_qkv(linear(normed, qkv, qkv_bias), heads, heads)
    keys[:, :, -1:], values[:, :, -1:] = key, value
    mixed, _ = attention(query, _wide(keys), _wide(values))
    y = x_wide + linear(join_heads(mixed), proj, proj_bias)
    normed, _, _ = layer_norm(y, norm_2, shift_2, eps=eps)
    out, _ = mlp(normed, *feed_forward, activation=activation)
    return (y + out).astype(x.dtype, copy=False)


def _check(x: Array, parameters: list[Any], keys: Array, values: Array) -> None:
    weights, biases = parameters[::2], parameters[1::2]
    width, hidden = x.shape[-1], weights[4].shape[0]
    expected = [(width,), (3 * width, width), (width, width), (width,), (hidden, width)]
    expected.append((width, hidden))
    given = [weight.shape for weight in weights]
    pairs = zip(biases, expected, strict=True)
    if (
        x.shape[1:] != (1, width)
        or given != expected
        or any(bias is not None and bias.shape != shape[:1] for bias, shape in pairs)
        or keys.shape != values.shape
        or keys.shape != (len(x), keys.shape[1], max(keys.shape[2], 1), width // keys.shape[1])
    ):
        raise ValueError(
            f"expected x (batch, 1, width), weights of the shapes {', '.join(map(str, expected))}, "
            "a bias for each row of them or None, keys and values (batch, heads, time, head_dim)"
        )


def _wide(x: Array | None) -> Any:
    return x.astype(float32) if x is not None and x.dtype in HALF else x
