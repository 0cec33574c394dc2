"""Blocks of a GPT for one new token, as one operation, which Python cannot slow down."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minitorch.errors import ConfigError
from minitorch.ops.definition import _kernel
from minitorch.ops.feed_forward import ACTIVATIONS
from minitorch.ops.primitive import nondifferentiable
from minitorch.ops.samples import real, sample
from minitorch.tape import apply
from minitorch.tensor import Tensor


def _parameters(width: int, hidden: int, biased: bool) -> list[np.ndarray | None]:
    shapes = ((width,), (3 * width, width), (width, width)), ((width,), (hidden, width))
    weights = [*shapes[0], *shapes[1], (width, hidden)]
    found: list[np.ndarray | None] = []
    for seed, shape in enumerate(weights):
        found += [real(*shape, seed=seed) / 2, real(shape[0], seed=9) / 2 if biased else None]
    return found


def _sample(batch: int, blocks: int, biased: bool, activation: str) -> Any:
    arrays: list[Any] = [real(batch, 1, 4)]
    for seed in range(blocks):
        arrays += _parameters(4, 6, biased)
        arrays += [real(batch, 2, 3, 2, seed=7 + seed), real(batch, 2, 3, 2, seed=8 + seed)]
    arrays += [real(4), real(4, seed=1), real(5, 4)] if biased else [None, None, None]
    return sample(*arrays, eps=1e-5, activation=activation)


_decode_blocks = nondifferentiable(
    "decode_blocks",
    _kernel("decode_blocks"),
    kernel="decode_blocks",
    inputs=("x", "*blocks"),
    formula=r"y + W_2 f(W_1 n(y) + b_1) + b_2,\quad y = x + W_o A(n(x)) + b_o",
    samples=lambda: [_sample(2, 1, True, "gelu_tanh"), _sample(1, 2, False, "silu")],
    why="a cache is on no tape; the operations that it is made of have derivatives",
)


Affine = tuple[Tensor, Tensor | None]
"""The weight and the bias of a norm or of a linear layer."""


class DecodedBlock(NamedTuple):
    """What a token meets in a block of a GPT, all of one dtype.

    norm_1, norm_2: (width,). qkv: the projection to queries, keys and values, (3 width, width);
    proj: that of the heads, (width, width). up, down: (hidden, width) and (width, hidden). keys,
    values: (batch, heads, time, head_dim), those of the positions before and room for one more.
    """

    norm_1: Affine
    qkv: Affine
    proj: Affine
    norm_2: Affine
    up: Affine
    down: Affine
    keys: Tensor
    values: Tensor


def decode_blocks(
    x: Tensor,
    blocks: Sequence[DecodedBlock],
    *,
    norm: Affine | None = None,
    head: Tensor | None = None,
    eps: float = 1e-5,
    activation: str = "gelu_tanh",
) -> Tensor:
    """One new token of each sequence through blocks of a GPT, in one call; without derivatives.

        y = x + W_o attention(layer_norm(x)) + b_o
        out = y + W_2 f(W_1 layer_norm(y) + b_1) + b_2

    x: (batch, 1, width), of the blocks' dtype. The blocks' keys and values **are written**: the
    last row of each is the new token's. norm: weight and bias of a norm after the last block; head:
    (vocabulary, width), what is multiplied with at the very end. activation: "gelu", "gelu_tanh",
    "silu" or "relu". Returns the shape of x, with a head (batch, 1, vocabulary). Raises ShapeError
    for shapes that do not fit. It computes what `layer_norm`, `linear`,
    `scaled_dot_product_attention` and `mlp` would; in half precision it rounds less often.
    """
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"decode_blocks: expected an activation among {', '.join(ACTIVATIONS)}; got "
            f"{activation!r}"
        )
    inputs: list[Tensor | None] = [x]
    for block in blocks:
        for affine in block[:6]:
            inputs += affine
        inputs += block[6:]
    inputs += (*(norm or (None, None)), head)
    return apply(_decode_blocks, inputs, {"eps": eps, "activation": activation})
