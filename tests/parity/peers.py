"""For every primitive of the registry the function of PyTorch that computes the same."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.ops.indexing import Slot
from tests.parity.peers_of_experts import (
    expected_cost,
    expert_balance,
    groups,
    moe_feed_forward,
    moe_swiglu,
    product_scores,
    routing_weights,
    unit_experts,
)
from tests.parity.peers_of_layers import (
    attention,
    cross_entropy,
    decode_blocks,
    latent_attention,
    latent_self_attention,
    lightning,
    linear_cross_entropy,
    mlp,
    normalise,
    packed,
    paged,
    rotary,
    rotary_attention,
    rotary_self_attention,
    varlen,
)

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")
F = torch.nn.functional


def same_name(name, module=torch):
    return lambda *xs, **meta: getattr(module, name)(*xs, **meta)


def of_tensors(name):
    """Functions that take no Python numbers: those become tensors of the other's dtype."""

    def run(a, b):
        a = a if isinstance(a, torch.Tensor) else torch.tensor(a, dtype=b.dtype)
        b = b if isinstance(b, torch.Tensor) else torch.tensor(b, dtype=a.dtype)
        return getattr(torch, name)(a, b)

    return run


def identity(x, **_):
    return x.clone()


def key_of(key, index, x):
    """A key with its index tensors in place; torch has no negative steps, so those are gathered."""
    parts = []
    for axis, part in enumerate(key):
        if isinstance(part, Slot):
            part = index[part]
        elif isinstance(part, slice) and part.step is not None and part.step < 0:
            part = torch.arange(x.shape[axis])[torch.tensor(range(*part.indices(x.shape[axis])))]
        parts.append(part)
    return tuple(parts)


def getitem(x, *index, key):
    return x[key_of(key, index, x)]


def setitem(x, value, *index, key):
    out = x.clone()
    out[key_of(key, index, x)] = value
    return out


def scatter_index(x, *index, key, to):
    out = torch.zeros(to, dtype=x.dtype)
    if index:
        return out.index_put(key_of(key, index, out), x, accumulate=True)
    out[key_of(key, index, out)] = x
    return out


def diagonal_scatter(x, shape, **meta):
    return torch.diagonal_scatter(torch.zeros(shape, dtype=x.dtype), x, **meta)


def pad(x, widths, value):
    flat = [width for pair in reversed(widths) for width in pair]
    return F.pad(x, flat, value=value)


def fold(x, shape, dim, size, step):
    zeros = torch.zeros(shape, dtype=x.dtype, requires_grad=True)
    windows = zeros.unfold(dim, size, step)
    return torch.autograd.grad(windows, zeros, x, create_graph=True)[0]


def reduce_all(name):
    return lambda x, dim, keepdim: getattr(torch, name)(x, dim=dim, keepdim=keepdim)


def kept(shape, p, seed, offset):
    """What dropout keeps, drawn from NumPy's generator in the state (seed, offset)."""
    bits = np.random.Philox(key=[seed, 0], counter=[0, 0, offset, 0])
    return torch.tensor(np.random.Generator(bits).random(shape, np.float32) >= p)


def categorical(x, temperature, top_k, top_p, min_p, seed, offset):
    """By way of a sort, on the noise of NumPy's generator in the state (seed, offset)."""
    rows, columns = x.shape
    bits = np.random.Philox(key=[seed, 0], counter=[0, 0, offset, 0])
    shape = (rows, -(-columns // 8) * 8)
    u = np.random.Generator(bits).integers(0, 2**32, shape, dtype=np.uint32)[:, :columns]
    noise = -torch.log(-torch.log1p(-(torch.tensor(u.astype(np.float64)) + 0.5) / 2**32))
    probs, order = (x.double() / temperature).softmax(-1).sort(-1, descending=True)
    probs[:, top_k or columns :] = 0
    probs = probs / probs.sum(-1, keepdim=True)
    probs[probs.cumsum(-1) - probs >= top_p] = 0
    probs[probs < min_p * probs[:, :1]] = 0
    best = (probs.log() + noise.gather(-1, order)).argmax(-1, keepdim=True)
    return order.gather(-1, best).squeeze(-1)


SAME_NAMES = (
    "permute", "flip", "tril", "triu", "diagonal", "exp", "expm1", "log", "log1p", "log2", "sqrt",
    "rsqrt", "square", "reciprocal", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh",
    "tanh", "sigmoid", "erf", "abs", "relu", "sign", "floor", "ceil", "round", "trunc", "clamp",
    "add", "sub", "neg", "div", "pow", "remainder", "bitwise_and", "bitwise_or", "bitwise_xor",
    "bitwise_not", "logical_not", "logical_and", "logical_or", "isnan", "isinf", "isfinite",
    "floor_divide", "cumsum", "prod", "amax", "amin", "argmax", "argmin", "logcumsumexp", "softmax",
    "log_softmax", "logsumexp", "argsort", "mul", "matmul",
)  # fmt: skip
OF_TENSORS = ("maximum", "minimum", "atan2", "eq", "ne", "lt", "le", "gt", "ge")
FUNCTIONAL = ("softplus", "logsigmoid", "leaky_relu", "gelu", "silu")

PEERS = {
    **{name: same_name(name) for name in SAME_NAMES},
    **{name: of_tensors(name) for name in OF_TENSORS},
    **{name: same_name(name, F) for name in FUNCTIONAL},
    **{name: reduce_all(name) for name in ("sum", "any", "all")},
    "alias": identity,
    "clone": identity,
    "move": identity,
    "cast": lambda x, dtype: x.to(getattr(torch, str(dtype))),
    "reshape": lambda x, to: x.reshape(to),
    "expand": lambda x, to: x.expand(to),
    "roll": lambda x, shifts, dims: torch.roll(x, shifts, dims),
    "diagonal_scatter": diagonal_scatter,
    "pad": pad,
    "cat": lambda *xs, dim: torch.cat(xs, dim),
    "where": lambda a, b, condition: torch.where(condition, a, b),
    "unfold": lambda x, dim, size, step: x.unfold(dim, size, step),
    "fold": fold,
    "linear": F.linear,
    "mlp": mlp,
    "linear_swiglu": lambda x, gate, up, keep: F.silu(F.linear(x, gate)) * F.linear(x, up),
    "swiglu": lambda gate, up: F.silu(gate) * up,
    "swiglu_packed": lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
    "apply_rotary_emb": rotary,
    "layer_norm": normalise(F.layer_norm),
    "rms_norm": normalise(F.rms_norm),
    "gated_rms_norm": lambda x, gate, weight, eps: (
        gate.sigmoid() * F.rms_norm(x, x.shape[-1:], weight, eps)
    ),
    "cross_entropy": cross_entropy,
    "linear_cross_entropy": linear_cross_entropy,
    "scaled_dot_product_attention": attention,
    "attention_qkvpacked": packed,
    "latent_attention": latent_attention,
    "latent_self_attention": latent_self_attention,
    "rotary_attention": rotary_attention,
    "rotary_self_attention": rotary_self_attention,
    "lightning_attention": lightning,
    "varlen_attention": varlen,
    "paged_attention": paged,
    "decode_blocks": decode_blocks,
    "dropout": lambda x, p, seed, offset: x * kept(x.shape, p, seed, offset) / (1 - p),
    "getitem": getitem,
    "setitem": setitem,
    "scatter_index": scatter_index,
    "gather": lambda x, index, dim: torch.gather(x, dim, index),
    "scatter_add": lambda x, source, index, dim: x.scatter_add(dim, index, source),
    "embedding": lambda weight, index: F.embedding(index, weight),
    "embedding_transpose": lambda x, index, rows: torch.zeros(
        rows, x.shape[-1], dtype=x.dtype
    ).index_add(0, index.flatten(), x.flatten(0, -2)),
    "categorical": categorical,
    "moe_permute": lambda x, weights, places: (
        (x[:, None] * (1 if weights is None else weights[..., None]))
        .expand(*places.shape, -1)
        .flatten(0, 1)[places.flatten().argsort()]
    ),
    "moe_unpermute": lambda rows, weights, places: (
        rows[places] * (1 if weights is None else weights[..., None])
    ).sum(1),
    "moe_dot": lambda rows, x, places: (rows[places] * x[:, None]).sum(-1),
    "grouped_mm": lambda x, weight, offs: torch.cat(
        [part @ w for part, w in zip(groups(x, offs), weight, strict=True)]
    ),
    "grouped_outer": lambda x, y, offs: torch.stack(
        [a.T @ b for a, b in zip(groups(x, offs), groups(y, offs), strict=True)]
    ),
    "moe_swiglu": moe_swiglu,
    "moe_feed_forward": moe_feed_forward,
    "product_scores": product_scores,
    "unit_experts": unit_experts,
    "routing_weights": routing_weights,
    "expected_cost": expected_cost,
    "expert_balance": expert_balance,
    "topk": lambda x, k, dim, largest: torch.topk(x, k, dim, largest).indices,
    "einsum": lambda *xs, terms, out: torch.einsum(f"{','.join(terms)}->{out}", *xs),
}


def array(tensor):
    """The numbers of a tensor of either library, in float64."""
    if isinstance(tensor, mt.Tensor):
        return np.asarray(tensor.detach().numpy(), np.float64)
    return tensor.detach().double().numpy()
