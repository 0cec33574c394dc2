"""A block of a GPT for one new token, as one operation, which Python cannot slow down."""

import numpy as np

from minitorch.errors import ConfigError
from minitorch.kernels.reference.mlp import ACTIVATIONS
from minitorch.ops.definition import _kernel
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


_decode_block = nondifferentiable(
    "decode_block",
    _kernel("decode_block"),
    kernel="decode_block",
    inputs=(
        *("x", "norm_1", "shift_1", "qkv", "qkv_bias", "proj", "proj_bias"),
        *("norm_2", "shift_2", "up", "up_bias", "down", "down_bias", "keys", "values"),
    ),
    formula=r"y + W_2 f(W_1 n(y) + b_1) + b_2,\quad y = x + W_o A(n(x)) + b_o",
    samples=lambda: [
        sample(
            real(2, 1, 4),
            *_parameters(4, 6, biased),
            real(2, 2, 3, 2, seed=7),
            real(2, 2, 3, 2, seed=8),
            eps=1e-5,
            activation=activation,
        )
        for biased, activation in [(True, "gelu_tanh"), (False, "silu")]
    ],
    why="a cache is on no tape; the operations that it is made of have derivatives",
)


Affine = tuple[Tensor, Tensor | None]
"""The weight and the bias of a norm or of a linear layer."""


def decode_block(
    x: Tensor,
    norms: tuple[Affine, Affine],
    attention: tuple[Affine, Affine],
    feed_forward: tuple[Affine, Affine],
    keys: Tensor,
    values: Tensor,
    *,
    eps: float = 1e-5,
    activation: str = "gelu_tanh",
) -> Tensor:
    """One new token of each sequence through a block of a GPT, in one call; without derivatives.

        y = x + W_o attention(layer_norm(x)) + b_o
        out = y + W_2 f(W_1 layer_norm(y) + b_1) + b_2

    x: (batch, 1, width). norms: (width,) each. attention: the projection to queries, keys and
    values, (3 width, width), and that of the heads, (width, width). feed_forward: (hidden, width)
    and (width, hidden). keys, values: (batch, heads, time, head_dim), those of the positions before
    and room for one more, **which is written**: the last row of each is the new token's. All of one
    dtype. activation: "gelu", "gelu_tanh", "silu" or "relu". Returns the shape of x. Raises
    ShapeError for shapes that do not fit. It computes what `layer_norm`, `linear`,
    `scaled_dot_product_attention` and `mlp` would; in half precision it rounds less often.
    """
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"decode_block: expected an activation among {', '.join(ACTIVATIONS)}; got "
            f"{activation!r}"
        )
    inputs = [
        *(x, *norms[0], *attention[0], *attention[1]),
        *(*norms[1], *feed_forward[0], *feed_forward[1], keys, values),
    ]
    return apply(_decode_block, inputs, {"eps": eps, "activation": activation})
