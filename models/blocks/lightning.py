r"""Lightning attention: linear attention with a decay, whose memory does not grow with the text.

    q, k, v = silu(x W_qkv)                        no softmax, no rotation
    o_t = Σ_{s ≤ t} λ^{t-s} (q_t · k_s) v_s        λ = exp(-slope), one for each head
    out = W_o (sigmoid(W_g x) ⊙ norm(concat(o)))

Three forms of the same sum. Quadratic: all products q_t · k_s, times λ^{t-s}. Recurrent: one matrix
per head remembers everything,

    S_t = λ S_{t-1} + k_t v_tᵀ,    o_t = q_t S_t

And block by block, which is how it is computed: quadratic within a block of n tokens, and what was
before it through the matrix S, with i = 1, ..., n counted within the block:

    o_i = Σ_{j ≤ i} λ^{i-j} (q_i · k_j) v_j + λ^i q_i S,    S ← λ^n S + Σ_j λ^{n-j} k_j v_jᵀ

All powers are of differences that are not negative; λ^i / λ^j would overflow. Padding neither adds
to S nor makes it decay. S is float32 at least.

Sources: Qin et al. 2024, "Lightning Attention-2" (arXiv 2401.04658), equation 5 and algorithm 1;
MiniMax 2025, "MiniMax-01" (2501.08313), section 2.2. Parameters have Hugging Face's names.
"""

import numpy as np

from minitorch import modes, nn
from minitorch.backend import half_precision
from minitorch.errors import ConfigError, GraphError, ShapeError
from minitorch.nn import functional as F
from minitorch.ops.joining import cat
from minitorch.ops.lightning_attention import decays, unpadded_decays
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.context import Context


def decay_slopes(heads: int, layer: int, layers: int) -> np.ndarray:
    """slope_h = 2^(-8 h / heads) (1 - layer / (layers - 1 + 1e-5) + 1e-5), h = 1, ..., heads.

    Later layers (counted from 0) remember longer, the last one almost everything.
    """
    factor = 1 - layer / (layers - 1 + 1e-5) + 1e-5
    return 2.0 ** (-8 / heads * np.arange(1, heads + 1)) * factor


def quadratic(query: Tensor, key: Tensor, value: Tensor, slopes: np.ndarray) -> Tensor:
    """The definition. query, key, value: (batch, heads, time, head_dim); slopes: (heads,)."""
    within = unpadded_decays(tuple(slopes), query.shape[2], query.dtype, query.device).within
    return (query @ key.mT * within) @ value


def recurrent(
    query: Tensor, key: Tensor, value: Tensor, slopes: np.ndarray, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Token by token: the outputs, and the state (batch, heads, head_dim, head_dim) after them."""
    if state is None:
        shape = (*query.shape[:2], query.shape[3], value.shape[3])
        dtype = np.dtype(np.float32) if half_precision(value.dtype) else value.dtype
        state = Tensor(np.zeros(shape, dtype)).to(query.device)
    decay = Tensor(np.exp(-np.asarray(slopes))[:, None, None].astype(state.dtype))
    outputs = []
    for t in range(query.shape[2]):
        q, k, v = (x[:, :, t : t + 1].to(state.dtype) for x in (query, key, value))
        state = decay * state + k.mT @ v
        outputs.append((q @ state).to(query.dtype))
    return cat(outputs, 2), state


def blockwise(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: np.ndarray,
    block_size: int = 256,
    state: Tensor | None = None,
    real: np.ndarray | None = None,
    keep: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Block by block; shapes as for `recurrent`. real: (batch, time) bool, what is no padding.

    keep: whether the state after the last block is wanted; without, it is None.
    """
    outputs = []
    for start in range(0, query.shape[2], block_size):
        q, k, v = (x[:, :, start : start + block_size] for x in (query, key, value))
        if real is None:
            powers = unpadded_decays(tuple(slopes), q.shape[2], q.dtype, q.device)
        else:
            powers = decays(slopes, real[:, start : start + block_size], q.dtype, q.device)
        out = (q @ k.mT * powers.within) @ v
        outputs.append(out if state is None else out + (q * powers.query) @ state.to(q.dtype))
        if start + block_size < query.shape[2] or keep:
            added = (k * powers.key).mT @ v
            added = added.float() if half_precision(added.dtype) else added
            state = added if state is None else powers.whole.to(added.dtype) * state + added
    joined = cat(outputs, 2) if len(outputs) > 1 else outputs[0]
    return joined, state if keep else None


class LightningCache:
    """The state of one layer: as large after a million tokens as after one."""

    def __init__(self) -> None:
        self.state: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """The memory it has taken."""
        return 0 if self.state is None else self.state.data.nbytes

    def take(self, rows: np.ndarray) -> None:
        """Keep these rows alone, in this order."""
        if self.state is not None:
            self.state = Tensor(self.state.data[rows])

    def adopt(self, places: np.ndarray, other: "LightningCache", rows: np.ndarray) -> None:
        """Hold at `places` what `other` holds of `rows`."""
        assert self.state is not None
        assert other.state is not None
        state = self.state.data.copy()
        state[places] = other.state.data[rows]
        self.state = Tensor(state)

    def keep_last(self, columns: int) -> None:
        """Nothing: no column is held."""

    def check(self, query: Tensor) -> None:
        """Whether a step may follow: GraphError while recording, ShapeError for another batch."""
        if modes.is_grad_enabled() and query.requires_grad:
            raise GraphError("cache: expected no_grad(); what it holds is on no tape")
        if self.state is not None and self.state.shape[0] != query.shape[0]:
            raise ShapeError(
                f"cache: expected a step of {self.state.shape[0]} rows, as many as it holds; got "
                f"{query.shape[0]}. Begin another sequence with new_cache()"
            )


class LightningAttention(nn.Module):
    """(batch, time, width) -> the same. slopes: (heads,), see `decay_slopes`."""

    def __init__(
        self,
        width: int,
        head_dim: int,
        slopes: np.ndarray,
        block_size: int,
        dtype: np.dtype,
        generator: Generator | None,
    ):
        inner = len(slopes) * head_dim
        self.slopes, self.block_size = slopes, block_size
        self.qkv_proj = nn.Linear(width, 3 * inner, False, dtype, generator)
        self.norm = nn.RMSNorm(inner, eps=1e-6, dtype=dtype)
        self.output_gate = nn.Linear(width, inner, False, dtype, generator)
        self.out_proj = nn.Linear(inner, width, False, dtype, generator)

    def new_cache(self) -> LightningCache:
        """Empty, for forward()."""
        return LightningCache()

    def forward(self, x: Tensor, context: Context, cache: LightningCache | None = None) -> Tensor:
        """With a cache, x are the columns that follow those in it, and are added to it."""
        if context.segments is not None:
            raise ConfigError(
                "lightning attention: expected one text to a row; its state would carry the first "
                "of several into the next. Train without packing"
            )
        batch, time, _ = x.shape
        qkv = F.silu(self.qkv_proj(x))
        if cache is None and not context.padded:
            return self._gated(x, F.lightning_attention(qkv, tuple(self.slopes), self.block_size))
        qkv = qkv.reshape(batch, time, len(self.slopes), -1)
        query, key, value = qkv.transpose(1, 2).chunk(3, -1)
        if cache is not None:
            cache.check(query)
        out, state = blockwise(
            query,
            key,
            value,
            self.slopes,
            self.block_size,
            None if cache is None else cache.state,
            context.real() if context.padded else None,
            keep=cache is not None,
        )
        if cache is not None:
            cache.state = state
        return self._gated(x, out.transpose(1, 2).reshape(batch, time, -1))

    def _gated(self, x: Tensor, heads: Tensor) -> Tensor:
        """What becomes of the heads, put together: (batch, time, width)."""
        gate, norm = self.output_gate(x), self.norm
        return self.out_proj(F.gated_rms_norm(heads, gate, norm.weight, norm.eps))

    def extra_repr(self) -> str:
        return f"{len(self.slopes)} heads, block_size={self.block_size}"
