r"""PEER: a feed-forward layer of up to a million experts of one hidden unit each.

    q_h = W_h x                                     for some heads; batch-normalised, perhaps
    s_ij = q_h¹ · c_i + q_h² · c'_j                 the score of expert i n + j, of N = n²
    y = Σ_h Σ_chosen softmax(s)_e gelu(u_e · x) v_e

The k best of the N scores are found among 2 n products (minitorch.ops.product_keys). Of the
tables u and v a token reads k rows for each head, and only those have a gradient (nn.RowEmbedding),
so that a step costs O(√N) however many experts there are.

Sources: He 2024, "Mixture of a million experts" (arXiv 2407.04153), section 2: all heads share the
keys, and scores go through a softmax (some implementations have keys for each head, or a ReLU);
product keys and the batch norm of queries, Lample et al. 2019 (1907.05242).
"""

import math

import numpy as np

from minitorch import nn
from minitorch.backend import DEFAULT_FLOAT
from minitorch.errors import ConfigError
from minitorch.nn import functional as F
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.context import Context

INIT_STD = 0.02


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) of each feature, over the rows: (rows, features).

    In training those of the batch, whose running means are what is used afterwards. No weights.
    Padding does not count: real, (rows,) bool, says which rows are none; None: all.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, features: int, momentum: float = 0.1, eps: float = 1e-5):
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", Tensor(np.zeros(features, np.float32)))
        self.register_buffer("var", Tensor(np.ones(features, np.float32)))

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        mean, var = self.mean.to(x.dtype), self.var.to(x.dtype)
        if self.training and (real is None or real.any()):
            mean, var = _moments(x, real)
            for kept, now in ((self.mean, mean), (self.var, var)):
                kept.data += self.momentum * (now.data.astype(kept.dtype) - kept.data)
        return (x - mean) / (var + self.eps).sqrt()


def _moments(x: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance of each feature over the real rows."""
    if real is None:
        return x.mean(0), x.var(0, correction=0)
    share = (real.to(x.dtype) / real.sum()).unsqueeze(0)
    mean = (share @ x)[0]
    return mean, (share @ (x - mean).square())[0]


class PEER(nn.Module):
    """(batch, time, width) -> the same. num_experts: a square number; key_dim: of a query, even.

    query_norm: whether queries are batch-normalised, so that more experts are used, more evenly.
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        heads: int = 8,
        k: int = 16,
        key_dim: int = 128,
        query_norm: bool = True,
        dtype: np.dtype = DEFAULT_FLOAT,
        generator: Generator | None = None,
    ):
        n = math.isqrt(num_experts)
        if n * n != num_experts or key_dim % 2 or not 1 <= k <= num_experts:
            raise ConfigError(
                "PEER: expected a square number of experts, an even key_dim and k from 1 to the "
                f"experts; got {num_experts}, {key_dim} and {k}"
            )
        self.num_experts, self.heads, self.k = num_experts, heads, k
        self.query = nn.Linear(width, heads * key_dim, False, dtype, generator)
        self.query_norm = BatchNorm(heads * key_dim) if query_norm else None
        self.keys = nn.Parameter(nn.init.empty((2, n, key_dim // 2), dtype))
        self.down = nn.RowEmbedding(num_experts, width, dtype, generator)
        self.up = nn.RowEmbedding(num_experts, width, dtype, generator)
        nn.init.normal_(self.keys, std=(key_dim // 2) ** -0.5, generator=generator)
        for table in (self.down, self.up):
            nn.init.normal_(table.weight, std=INIT_STD, generator=generator)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, experts = self.retrieve(flat, None if context is None else context.counted())
        tables = self._tables(experts.flatten(1))
        return F.unit_experts(flat, weights.flatten(1), *tables).reshape(x.shape)

    def _tables(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Down, up, and the rows of a token in them; where they learn, of what is read alone."""
        if not (self.down.learns() or self.up.learns()):
            return self.down.weight, self.up.weight, index
        rows, places = np.unique(index.data, return_inverse=True)
        return self.down.leaf(rows), self.up.leaf(rows), Tensor(places.reshape(index.shape))

    def retrieve(self, x: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weights and experts of each token: (tokens, heads, k). x: (tokens, width).

        real: (tokens,) bool, which are no padding, for the batch norm; None: all.
        """
        query = self.query(x)
        if self.query_norm is not None:
            query = self.query_norm(query, real)
        by_head = query.reshape(len(x) * self.heads, -1)
        scores, experts = F.product_key_topk(by_head, self.keys, self.k)
        shape = len(x), self.heads, self.k
        return scores.softmax(-1).reshape(shape), experts.reshape(shape)

    def extra_repr(self) -> str:
        return f"{self.num_experts} experts, {self.heads} heads, k={self.k}"


def usage(weights: Tensor, experts: Tensor, num_experts: int) -> tuple[float, float]:
    """Of what `retrieve` gave for many tokens: how many experts are used, and how unevenly.

    The share of experts, and KL(share of all weights ‖ uniform) in nats, from 0 to
    log(num_experts). Source: He 2024, section 3.3.
    """
    flat = weights.detach().numpy().astype(np.float64).ravel()
    share = np.bincount(experts.numpy().ravel(), flat, minlength=num_experts)
    share = share[share > 0] / share.sum()
    return len(share) / num_experts, math.log(num_experts) + float((share * np.log(share)).sum())
