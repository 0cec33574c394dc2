"""Rotary position embedding."""

import numpy as np

from minitorch.kernels.table import register

Array = np.ndarray


@register("rope", "numpy")
def rope(
    x: Array,
    cos: Array,
    sin: Array,
    *,
    interleaved: bool = False,
    inverse: bool = False,
    out: Array | None = None,
) -> Array:
    """Pairs of features turned by the angle of their position; by minus that angle for `inverse`.

        (a, b) -> (a cos - b sin, b cos + a sin)

    x: (..., time, features), of which i and i + features/2 are a pair, or, interleaved, 2i and
    2i + 1. cos, sin: (time, features/2). out: where to write, x itself perhaps; else a new array.
    The rotation back is the transpose, so that `inverse` is also the backward.
    Source: Su et al. 2021, equation 34.
    """
    half = x.shape[-1] // 2
    if interleaved:
        first, second = (..., slice(0, None, 2)), (..., slice(1, None, 2))
    else:
        first, second = (..., slice(0, half)), (..., slice(half, None))
    if inverse:
        sin = -sin
    a, b = x[first], x[second]
    turned = a * cos - b * sin, b * cos + a * sin
    if out is None:
        out = np.empty_like(x)
    out[first], out[second] = turned
    return out
