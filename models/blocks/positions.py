"""Positions: rotations of queries and keys, their stretching to longer texts, and the older kinds.

Rotary embedding turns pair i of a query or key at position m by the angle m θ_i. The product of a
query at m and a key at n then depends on m - n alone. Plain, for a head of d features,

    θ_i = base^(-2 i / d)                      wavelengths from 2π to nearly 2π base

A model that was trained on texts of L tokens has seen each angle m θ_i up to L θ_i. To read s L
tokens, angles have to be squeezed back into what it knows:

    linear    θ_i / s                          position interpolation; blurs neighbours
    ntk       base → base s^(d / (d - 2))      the fastest pair keeps its angle, the slowest gets
                                               θ / s, those between something between
    dynamic   the same for s = n / L, n being the text's length, once n > L
    yarn      θ_i / s where a wavelength is longer than L (less than beta_slow turns), θ_i where it
              fits beta_fast times, a ramp over i between; cos and sin times 0.1 ln s + 1
    llama3    the same idea with a ramp over wavelengths, and no factor

Training on with a larger base (adjusted base frequency, ABF) needs nothing but the base. Sources:
rotations, Su et al. 2021, equation 34; linear, Chen et al. 2023 (arXiv 2306.15595); ntk, dynamic
and yarn, Peng et al. 2023 (2309.00071), sections 3 and A; ABF, Xiong et al. 2023 (2309.16039);
llama3, meta-llama/llama-models, apply_scaling. The names of kinds and settings are Hugging Face's.
"""

import inspect
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np

from minitorch import nn
from minitorch.errors import ConfigError, ShapeError
from minitorch.nn import functional as F
from minitorch.ops.joining import cat
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.context import Context

Scaled = tuple[np.ndarray, float]
"""Frequencies (dim / 2,) in radians per position, and a factor of cos and sin."""


def frequencies(dim: int, base: float) -> np.ndarray:
    """θ_i = base^(-2 i / dim): (dim / 2,) float64."""
    return base ** (-np.arange(0, dim, 2) / dim)


def ntk_base(base: float, factor: float, dim: int) -> float:
    """The base with which the slowest pair turns factor times as slowly; of one pair none can."""
    return base * factor ** (dim / (dim - 2)) if dim > 2 else base


def linear(dim: int, base: float, length: int, *, factor: float) -> Scaled:
    """Position interpolation."""
    return frequencies(dim, base) / factor, 1.0


def ntk(dim: int, base: float, length: int, *, factor: float) -> Scaled:
    """NTK-aware scaling by a larger base."""
    return frequencies(dim, ntk_base(base, factor, dim)), 1.0


def dynamic(
    dim: int, base: float, length: int, *, factor: float, original_max_position_embeddings: int
) -> Scaled:
    """NTK-aware scaling that grows with the text: s = factor n / L - (factor - 1) for n > L."""
    stretch = factor * max(length / original_max_position_embeddings, 1.0) - (factor - 1)
    return frequencies(dim, ntk_base(base, stretch, dim)), 1.0


def qwen_dynamic(
    dim: int, base: float, length: int, *, original_max_position_embeddings: int
) -> Scaled:
    """Qwen 1's: s = 2^ceil(log2(n / L) + 1) - 1, so that it changes at powers of two alone.

    Source: QwenLM/Qwen, modeling_qwen.py, get_ntk_alpha.
    """
    stretch = 2.0 ** math.ceil(math.log2(length / original_max_position_embeddings) + 1) - 1
    return frequencies(dim, ntk_base(base, max(stretch, 1.0), dim)), 1.0


def yarn(
    dim: int,
    base: float,
    length: int,
    *,
    factor: float,
    original_max_position_embeddings: int,
    beta_fast: float = 32,
    beta_slow: float = 1,
    truncate: bool = True,
    attention_factor: float | None = None,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
) -> Scaled:
    """Interpolation where a pair turns less than once in the original length, none where often.

    Between the two the ramp is over pairs, as in the authors' and everybody's code; the paper's
    equation 18 has it over turns.
    """

    def pair_that_turns(times: float) -> float:
        turns = original_max_position_embeddings / (times * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(base))

    low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low or 1e-3), 0, 1)
    plain = frequencies(dim, base)
    if attention_factor is None:
        attention_factor = yarn_temperature(factor, mscale if mscale and mscale_all_dim else 1.0)
        if mscale and mscale_all_dim:
            attention_factor /= yarn_temperature(factor, mscale_all_dim)
    return plain / factor * ramp + plain * (1 - ramp), attention_factor


def yarn_temperature(factor: float, mscale: float = 1.0) -> float:
    """0.1 mscale ln(factor) + 1, for both queries and keys: logits grow by its square."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def llama3(
    dim: int,
    base: float,
    length: int,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> Scaled:
    """Interpolation of wavelengths above L / low_freq_factor, none below L / high_freq_factor."""
    plain = frequencies(dim, base)
    turns = original_max_position_embeddings * plain / (2 * math.pi)
    kept = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return plain / factor * (1 - kept) + plain * kept, 1.0


def default(dim: int, base: float, length: int) -> Scaled:
    """No scaling."""
    return frequencies(dim, base), 1.0


SCALINGS: dict[str, Callable[..., Scaled]] = {
    "default": default,
    "linear": linear,
    "ntk": ntk,
    "dynamic": dynamic,
    "qwen_dynamic": qwen_dynamic,
    "yarn": yarn,
    "llama3": llama3,
}


TRAINED_LENGTH = "original_max_position_embeddings"


def read_rope(content: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling that a config.json names: rope_theta and rope_scaling, or rope_parameters.

    The latter, of newer files, holds both. Raises ConfigError where it is by kinds of layers.
    """
    scaling = dict(content.get("rope_parameters") or content.get("rope_scaling") or {})
    if any(isinstance(value, Mapping) for value in scaling.values()):
        raise ConfigError("rope_parameters: expected one kind of rotation for all layers")
    theta = scaling.pop("rope_theta", content.get("rope_theta"))
    kind = scaling.pop("type", "default")
    scaling = {"rope_type": kind, **scaling}
    plain = scaling == {"rope_type": "default"}
    return 10_000.0 if theta is None else theta, None if plain else scaling


class Rotary:
    """Turns queries and keys by the angles of their positions.

    dim: how many features are turned, the first ones of a head. scaling: {"rope_type": one of
    SCALINGS, ...its settings}, or None. trained_length: the original_max_position_embeddings of a
    scaling that wants one and does not name it. interleaved: pairs are features 2i and 2i + 1, as
    in the paper and in Meta's files; otherwise i and i + dim / 2, as in Hugging Face's. Raises
    ConfigError for a kind or a setting that is unknown or missing.
    """

    def __init__(
        self,
        dim: int,
        base: float = 10_000.0,
        scaling: Mapping[str, Any] | None = None,
        trained_length: int | None = None,
        interleaved: bool = False,
    ):
        settings = dict(scaling or {})
        kind = settings.pop("rope_type", settings.pop("type", "default"))
        if kind not in SCALINGS:
            raise ConfigError(f"rope_type: expected one of {', '.join(SCALINGS)}; got {kind!r}")
        if dim < 2 or dim % 2:
            raise ConfigError(f"rotary: expected an even number of features to turn; got {dim}")
        self.dim, self.base, self.interleaved = dim, base, interleaved
        self._scale, self._settings = SCALINGS[kind], settings
        if TRAINED_LENGTH in inspect.signature(self._scale).parameters and trained_length:
            settings.setdefault(TRAINED_LENGTH, trained_length)
        self._name = (dim, base, kind, *sorted(settings.items()))
        self._made: dict[Hashable, tuple[np.ndarray, tuple[Any, ...], tuple[Tensor, Tensor]]] = {}
        try:
            self.scaled(1)
        except TypeError as error:
            raise ConfigError(f"rope_type {kind!r}: {error}".replace(f"{kind}() ", "")) from None

    def scaled(self, length: int) -> Scaled:
        """Frequencies and factor for a text of this length; only dynamic kinds depend on it."""
        return self._scale(self.dim, self.base, length, **self._settings)

    def tables(self, positions: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin of positions (n,) in a text of a length: (n, dim / 2) float64 each."""
        theta, factor = self.scaled(length)
        angles = positions[:, None] * theta
        return np.cos(angles) * factor, np.sin(angles) * factor

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        """x: queries or keys of the step, (batch, heads, time, head_dim). Returns its shape."""
        return self.at(context.query, x, context, "own")

    def at(self, positions: np.ndarray, x: Tensor, context: Context, name: Hashable) -> Tensor:
        """The same at other positions than the step's own: (1 or batch, time).

        name: of these positions in this step; all layers share the angles of one name.
        """
        return self._turned(x, *self._tables(positions, x.dtype, context, name))

    def step(self, dtype: np.dtype, context: Context) -> tuple[Tensor, Tensor]:
        """cos and sin of the step's own positions: (time, dim / 2), where no row is padded."""
        return self._tables(context.query, dtype, context, "own")

    def _tables(
        self, positions: np.ndarray, dtype: np.dtype, context: Context, name: Hashable
    ) -> tuple[Tensor, Tensor]:
        return context.once(
            (self._name, dtype, name), lambda: self._as_tensors(positions, dtype, context, name)
        )

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.dim < x.shape[-1]:
            turned, rest = x.split([self.dim, x.shape[-1] - self.dim], -1)
            return cat([_turn(turned, cos, sin, self.interleaved), rest], -1)
        return _turn(x, cos, sin, self.interleaved)

    def _as_tensors(
        self, positions: np.ndarray, dtype: np.dtype, context: Context, name: Hashable
    ) -> tuple[Tensor, Tensor]:
        """Those of the step before, where it asked the same, as every step of training does."""
        settings = dtype, context.planned, context.device
        before = self._made.get(name)
        if before and before[1] == settings and np.array_equal(before[0], positions):
            return before[2]
        cos, sin = self.tables(np.maximum(positions, 0).ravel(), context.planned)
        found = _placed(cos, dtype, context), _placed(sin, dtype, context)
        if context.device == "cpu":  # a captured step goes on reading those that it was given
            self._made[name] = positions.copy(), settings, found
        return found


def _placed(table: np.ndarray, dtype: np.dtype, context: Context) -> Tensor:
    return Tensor(table.astype(dtype)).to(context.device)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """cos, sin: (time, dim / 2), or with every row at its own positions (batch * time, dim / 2)."""
    batch, heads, time, dim = x.shape
    if len(cos) == time:
        return F.apply_rotary_emb(x, cos, sin, interleaved)
    if time == 1:  # the rows of the batch in the place of time
        return F.apply_rotary_emb(x.transpose(0, 2), cos, sin, interleaved).transpose(0, 2)
    rows = x.transpose(0, 1).reshape(heads, batch * time, dim)
    turned = F.apply_rotary_emb(rows, cos, sin, interleaved)
    return turned.reshape(heads, batch, time, dim).transpose(0, 1)


def alibi_slopes(heads: int) -> np.ndarray:
    """2^(-8 h / heads) for h = 1, ..., heads; other numbers than powers of two take every second
    slope of the next power.

    Attention with linear biases adds -slope · distance to the scores and has no other positions.
    Source: Press et al. 2021 (arXiv 2108.12409), and ofirpress/attention_with_linear_biases.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = 2.0 ** (-8 / power * np.arange(1, power + 1))
    between = 2.0 ** (-4 / power * np.arange(1, 2 * (heads - power) + 1, 2))
    return np.concatenate([slopes, between])


def log_scaling(positions: np.ndarray, trained: int) -> np.ndarray:
    """log(i) / log(trained) for the i-th token beyond the trained length, 1 up to it.

    Queries are multiplied by it: over more keys a softmax of the same logits is flatter. i counts
    from 1. Source: Su 2021 (kexue.fm/archives/8823); QwenLM/Qwen, use_logn_attn.
    """
    return np.maximum(np.log(np.maximum(positions + 1, 1)) / math.log(trained), 1.0)


class LearnedPositions(nn.Embedding):
    """A table with a vector for each position, added to the embeddings, as in GPT-2."""

    def __init__(
        self, positions: int, width: int, dtype: np.dtype, generator: Generator | None = None
    ):
        super().__init__(positions, width, dtype, generator)

    def forward(self, context: Context) -> Tensor:  # type: ignore[override]
        """(1 or batch, time, width). Raises ShapeError for a position beyond the table."""
        at = np.maximum(context.query, 0)
        if at.max(initial=0) >= self.num_embeddings:
            raise ShapeError(
                f"positions: expected at most {self.num_embeddings} tokens, the length of the "
                f"table; got a text of {at.max() + 1}. Crop the oldest tokens"
            )
        return super().forward(Tensor(at).to(context.device))


class SinusoidalPositions(nn.Module):
    """`sinusoids` of each position, added to the embeddings; there is no longest text."""

    def __init__(self, width: int, dtype: np.dtype):
        self.width, self.dtype = width, dtype

    def forward(self, context: Context) -> Tensor:
        """(1 or batch, time, width)."""
        at = np.maximum(context.query, 0)
        table = sinusoids(int(at.max(initial=0)) + 1, self.width).astype(self.dtype)
        return Tensor(table[at]).to(context.device)


def sinusoids(positions: int, dim: int, base: float = 10_000.0) -> np.ndarray:
    """sin(m θ_i) at features 2i and cos(m θ_i) at 2i + 1: (positions, dim) float64.

    Added to embeddings. Source: Vaswani et al. 2017, section 3.5.
    """
    angles = np.arange(positions)[:, None] * frequencies(dim, base)
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(positions, -1)[:, :dim]
