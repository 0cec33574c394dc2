r"""Mixture of experts: the way of tokens to their experts and back, grouped products.

    weights, indices, places, offs = route(logits, k)              # ops/routing.py
    out = moe_swiglu(x, weights, gate_up, down, places, offs)

or, where experts are something else,

    rows, places, offs = moe_permute(x, indices, num_experts)
    rows = grouped_mm(rows, weight, offs)                          # and whatever else experts do
    out = moe_unpermute(rows, places, weights)

Behind the latter are two forms that are linear in each of their parts. With places[t, j] the row of
choice j of token t, and e(r) the expert of row r, they are

    \sum_{t, j} w_{t j} \langle r_{places[t, j]}, x_t \rangle
    \sum_r \langle x_r W_{e(r)}, v_r \rangle

Their derivatives are the primitives here, each bilinear, and the transpose of each is another one
of them: so there are derivatives of every order.

Source: Shazeer et al. 2017, "Outrageously large neural networks"; Gale et al. 2022, "MegaBlocks".
"""

from functools import partial
from typing import Any

import numpy as np

from minitorch import backend, modes
from minitorch.errors import DtypeError, ShapeError
from minitorch.ops.definition import Primitive, _kernel
from minitorch.ops.fused import linear, swiglu, swiglu_packed
from minitorch.ops.primitive import bilinear, fused
from minitorch.ops.promotion import promote
from minitorch.ops.routing import expert_places, rows_of
from minitorch.ops.samples import real, sample
from minitorch.tape import apply
from minitorch.tensor import Tensor

_PLACES = np.array([[2, 7], [0, 4], [1, 3], [6, 5]])
_OFFS = np.array([2, 2, 5])
_ENDS = np.array([3, 3, 8])

_permute: Primitive = bilinear(
    "moe_permute",
    _kernel("moe_permute"),
    lambda grad, weights, places: apply(_unpermute, [grad, weights, places], {}),
    lambda grad, x, places: apply(_dot, [grad, x, places], {}),
    None,
    kernel="moe_permute",
    inputs=("x", "weights", "places"),
    formula=r"r_{p_{tj}} = w_{tj} x_t",
    samples=lambda: [
        sample(real(4, 3), real(4, 2), _PLACES),
        sample(real(8, 2), None, _PLACES.reshape(8, 1)),
    ],
)

_unpermute: Primitive = bilinear(
    "moe_unpermute",
    _kernel("moe_unpermute"),
    lambda grad, weights, places: apply(_permute, [grad, weights, places], {}),
    lambda grad, rows, places: apply(_dot, [rows, grad, places], {}),
    None,
    kernel="moe_unpermute",
    inputs=("rows", "weights", "places"),
    formula=r"x_t = \sum_j w_{tj} r_{p_{tj}}",
    samples=lambda: [
        sample(real(8, 3), real(4, 2), _PLACES),
        sample(real(8, 2), None, _PLACES.reshape(2, 4)),
    ],
)

_dot: Primitive = bilinear(
    "moe_dot",
    _kernel("moe_dot"),
    lambda grad, x, places: apply(_permute, [x, grad, places], {}),
    lambda grad, rows, places: apply(_unpermute, [rows, grad, places], {}),
    None,
    kernel="moe_dot",
    inputs=("rows", "x", "places"),
    formula=r"w_{tj} = \langle r_{p_{tj}}, x_t \rangle",
    samples=lambda: [sample(real(8, 3), real(4, 3), _PLACES)],
)


def _one_of(plain: str, in_8_bits: str) -> Any:
    """The forward function of a grouped product."""
    return lambda x, y, offs, *, scaled=False: _kernel(in_8_bits if scaled else plain)(x, y, offs)


def _product(primitive: Primitive, x: Tensor, y: Tensor, offs: Tensor, scaled: bool) -> Tensor:
    return apply(primitive, [x, y, offs], {"scaled": True} if scaled else {})


_grouped_mm: Primitive = bilinear(
    "grouped_mm",
    _one_of("grouped_mm", "scaled_grouped_mm"),
    lambda grad, weight, offs, scaled: _product(_grouped_mm, grad, weight.mT, offs, scaled),
    lambda grad, x, offs, scaled: _product(_grouped_outer, x, grad, offs, scaled),
    None,
    kernel="grouped_mm",
    autocast="lower",
    inputs=("x", "weight", "offs"),
    formula=r"y_r = x_r W_{e(r)}",
    samples=lambda: [sample(real(5, 4), real(3, 4, 2), _OFFS)],
)

_grouped_outer: Primitive = bilinear(
    "grouped_outer",
    _one_of("grouped_outer", "scaled_grouped_outer"),
    lambda grad, y, offs, scaled: _product(_grouped_mm, y, grad.mT, offs, scaled),
    lambda grad, x, offs, scaled: _product(_grouped_mm, x, grad, offs, scaled),
    None,
    kernel="grouped_outer",
    autocast="lower",
    inputs=("x", "y", "offs"),
    formula=r"W_e = \sum_{r : e(r) = e} x_r y_r^\top",
    samples=lambda: [sample(real(5, 4), real(5, 2), _OFFS)],
)


def _swiglu_reference(
    x: Tensor, weights: Tensor | None, gate_up: Tensor, down: Tensor, places: Tensor, offs: Tensor,
    *shared: Any, scaled: bool = False,
) -> Tensor:  # fmt: skip
    shape, x = x.shape, rows_of(x)
    rows = apply(_permute, [x, None, places], {})
    both = _product(_grouped_mm, rows, gate_up.mT, offs, scaled)
    rows = _product(_grouped_mm, swiglu_packed(both), down.mT, offs, scaled)
    if weights is not None:
        weights = weights.to(rows.dtype)
    out = apply(_unpermute, [rows, weights, places], {})
    if not shared or shared[0] is None:
        return out.reshape(shape)
    affine = partial(linear, scaled=scaled)
    gate, up, down, scale = shared
    common = affine(swiglu(affine(x, gate), affine(x, up)), down)
    out = out + (common if scale is None else affine(x, scale).sigmoid() * common)
    return out.reshape(shape)


def _swiglu_forward(x: Any, *others: Any) -> tuple[Any, dict[str, Any]]:
    out, *kept = _kernel("moe_swiglu")(rows_of(x), *others)
    names = ("both", "shared_both", "shares")
    return out.reshape(x.shape), {
        name: array for name, array in zip(names, kept, strict=True) if array is not None
    }


def _swiglu_backward(
    grad: Any, x: Any, weights: Any, gate_up: Any, down: Any, places: Any, offs: Any,
    shared_gate: Any, shared_up: Any, shared_down: Any, shared_scale: Any, both: Any,
    shared_both: Any, shares: Any, needs: Any,
) -> Any:  # fmt: skip
    dx, *others = _kernel("moe_swiglu_backward")(
        *(rows_of(grad), rows_of(x), weights, gate_up, down, places, offs),
        *(shared_gate, shared_up, shared_down, shared_scale, both, shared_both, shares),
        needs=needs,
    )
    return None if dx is None else dx.reshape(x.shape), *others


_moe_swiglu = fused(
    "moe_swiglu",
    _swiglu_forward,
    kernel="moe_swiglu",
    reference=_swiglu_reference,
    backward=_swiglu_backward,
    extras=("both", "shared_both", "shares"),
    autocast="lower",
    inputs=(
        *("x", "weights", "gate_up", "down", "places", "offs"),
        *("shared_gate", "shared_up", "shared_down", "shared_scale"),
    ),
    formula=r"\sum_j w_{tj} W_{e_{tj}} (\sigma(g) g \odot u) + \sigma(s^\top x_t) E(x_t), \;"
    r" (g, u) = V_{e_{tj}} x_t",
    samples=lambda: [
        sample(
            *(real(4, 3), real(4, 2), real(3, 10, 3), real(3, 3, 5), _PLACES, _ENDS),
            *(None, None, None, None),
        ),
        sample(
            *(real(2, 2, 3), None, real(3, 4, 3), real(3, 3, 2), _PLACES, _ENDS),
            *(real(3, 3, seed=1), real(3, 3, seed=2), real(3, 3, seed=3), None),
        ),
        sample(
            *(real(4, 3), real(4, 2), real(3, 4, 3), real(3, 3, 2), _PLACES, _ENDS),
            *(real(4, 3, seed=1), real(4, 3, seed=2), real(3, 4, seed=3), real(1, 3, seed=4)),
        ),
    ],
)


def moe_permute(x: Tensor, indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each token once for every expert that it goes to, sorted by expert.

    x: (tokens, features); indices: (tokens, k), integers below num_experts. Returns rows,
    (tokens k, features), of which those of expert e are offs[e - 1] to offs[e]; places, (tokens,
    k), where in rows each token is; and offs, (num_experts,). The tokens of an expert keep their
    order.
    Raises ShapeError where x and indices disagree or an index is no expert.
    In Transformer Engine: moe_permute, with places as row_id_map.
    """
    if backend.is_float(indices.dtype):
        raise DtypeError(f"moe_permute: expected integer indices; got {indices.dtype}")
    if x.ndim != 2 or indices.ndim != 2 or x.shape[0] != indices.shape[0]:
        raise ShapeError(
            "moe_permute: expected x (tokens, features) and indices (tokens, k); got "
            f"{x.shape} and {indices.shape}"
        )
    places, offs = expert_places(indices, num_experts)
    return apply(_permute, [x, None, places], {}), places, offs


def moe_unpermute(rows: Tensor, places: Tensor, weights: Tensor | None = None) -> Tensor:
    """The sum over a token's experts of its rows, times weights: (tokens, features).

    rows: (tokens k, features), as moe_permute gives them, places likewise; weights: (tokens, k), in
    the dtype of rows or converted to it. In Transformer Engine: moe_unpermute.
    """
    if (
        rows.ndim != 2
        or places.ndim != 2
        or rows.shape[0] != places.numel()
        or (weights is not None and weights.shape != places.shape)
    ):
        raise ShapeError(
            "moe_unpermute: expected rows (tokens k, features), places (tokens, k) and weights "
            f"(tokens, k); got {rows.shape}, {places.shape} and "
            f"{None if weights is None else weights.shape}"
        )
    if weights is not None:
        weights = weights.to(rows.dtype)
    return apply(_unpermute, [rows, weights, places], {})


SharedExpert = tuple[Tensor, Tensor, Tensor]
"""Gate and up, (hidden, width), and down, (width, hidden), of an expert that sees every token."""


def check_shared(
    operation: str, width: int, shared: SharedExpert | None, scale: Tensor | None
) -> None:
    """ShapeError unless these are the weights of a shared expert, or there is none."""
    if shared is None and scale is None:
        return
    given = [part.shape for part in shared or ()]
    inner = given[0][0] if given and given[0] else 0
    wanted = [(inner, width), (inner, width), (width, inner)]
    if given != wanted or not inner or (scale is not None and scale.shape != (1, width)):
        raise ShapeError(
            f"{operation}: expected of a shared expert gate and up (hidden, {width}) and down "
            f"({width}, hidden), and a scale (1, {width}) or none; got {given or None} and "
            f"{None if scale is None else scale.shape}"
        )


def moe_swiglu(
    x: Tensor,
    weights: Tensor | None,
    gate_up: Tensor,
    down: Tensor,
    places: Tensor,
    offs: Tensor,
    shared: SharedExpert | None = None,
    shared_scale: Tensor | None = None,
) -> Tensor:
    """Each token through its experts, gated feed-forward layers, and their sum: the shape of x.

    x: (..., width), the tokens; weights: (tokens, k), or None for 1; gate_up: (experts, 2 hidden,
    width); down: (experts, width, hidden); places: (tokens, k) and offs: (experts,), of moe_permute
    or `route`. shared: the weights of an expert that sees every token, gate and up (its hidden,
    width), down (width, its hidden); shared_scale: (1, width), the logistic function of whose
    product with x scales what that one gives. The same as moe_permute, grouped_mm, swiglu_packed,
    grouped_mm and moe_unpermute, and linear, swiglu and linear for the shared expert; on the CPU
    one kernel, which keeps gate and up of every row and nothing else.
    Raises ShapeError where these disagree. In vLLM: fused_experts.
    """
    experts, both, width = gate_up.shape if gate_up.ndim == 3 else (0, 0, 0)
    if (
        x.ndim < 2
        or x.shape[-1] != width
        or down.shape != (experts, width, both // 2)
        or both % 2
        or places.ndim != 2
        or len(places) * width != x.numel()
        or offs.shape != (experts,)
        or (weights is not None and weights.shape != places.shape)
    ):
        raise ShapeError(
            "moe_swiglu: expected x (..., width), weights and places (tokens, k), gate_up "
            "(experts, 2 hidden, width), down (experts, width, hidden) and offs (experts,); got "
            f"{x.shape}, {None if weights is None else weights.shape}, {places.shape}, "
            f"{gate_up.shape}, {down.shape} and {offs.shape}"
        )
    check_shared("moe_swiglu", width, shared, shared_scale)
    x, gate_up, down, *parts = promote(
        [x, gate_up, down, *(shared or ()), *([] if shared_scale is None else [shared_scale])]
    )
    if weights is not None:
        weights = weights.to(x.dtype)
    parts += [None] * (4 - len(parts))
    if modes.thread.mode.scaled:
        return _swiglu_reference(x, weights, gate_up, down, places, offs, *parts, scaled=True)
    return apply(_moe_swiglu, [x, weights, gate_up, down, places, offs, *parts], {})


def grouped_mm(x: Tensor, weight: Tensor, offs: Tensor, *, scaled: bool = False) -> Tensor:
    """x[r] weight[e] for each row r, e being the group of the row: (rows, n).

    x: (rows, k); weight: (groups, k, n), a view such as weight.mT perhaps; offs: (groups,)
    integers, where each group ends: it begins where the one before ends, the last ends with x.
    scaled: operands of this product and of its gradients' are rounded to 8 bits, as in `linear`.
    Raises ShapeError where these disagree. In PyTorch: torch.nn.functional.grouped_mm.
    """
    if (
        x.ndim != 2
        or weight.ndim != 3
        or x.shape[1] != weight.shape[1]
        or offs.shape != weight.shape[:1]
    ):
        raise ShapeError(
            "grouped_mm: expected x (rows, k), weight (groups, k, n) and offs (groups,); got "
            f"{x.shape}, {weight.shape} and {offs.shape}"
        )
    if isinstance(offs.data, np.ndarray):
        ends = offs.data
        if not ends.size or ends[-1] != len(x) or (np.diff(ends, prepend=0) < 0).any():
            raise ShapeError(
                f"grouped_mm: expected offs that do not fall and end with {len(x)}, the rows; got "
                f"{ends.tolist()}"
            )
    x, weight = promote([x, weight])
    return _product(_grouped_mm, x, weight, offs, scaled)
