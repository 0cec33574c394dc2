r"""Which tokens count, and how the values of those that do become one number.

A mask m is 1 at the tokens that the model chose: those of the completion, up to and including the
first end-of-text token. Not the prompt's, not a tool's, not padding. What stands behind a mask is
never read, so it may be NaN.

    sequence_mean        1/B sum_i 1/|m_i| sum_t m_it x_it     each sequence weighs the same
    token_mean           sum_it m_it x_it / sum_it m_it        each token weighs the same
    constant_length(L)   sum_it m_it x_it / (B L)              nothing depends on the lengths

The choice is not cosmetic. With the first, a token of a long answer counts less than one of a short
answer, so that long wrong answers are punished less.
Where a batch is cut into pieces whose gradients are added up, the mean of the pieces' token_means
is not the token mean: take `share_of(total)`, with the number of tokens of all pieces.

Sources: sequence_mean: Shao et al. 2024, "DeepSeekMath" (arXiv 2402.03300), eq. 3; token_mean: Yu
et al. 2025, "DAPO" (arXiv 2503.14476), section 3.3; constant_length: Liu et al. 2025,
"Understanding R1-Zero-like training" (arXiv 2503.20783), section 3.
"""

from collections.abc import Callable

from minitorch.errors import ConfigError, ShapeError
from minitorch.ops.joining import stack
from minitorch.ops.masking import where
from minitorch.tensor import Tensor

Aggregation = Callable[[Tensor, Tensor], Tensor]
"""(values, mask), both (batch, time), to a single number."""


def completion_mask(tokens: Tensor, *end_tokens: int) -> Tensor:
    """True up to and including the first end token of each row; all of a row without one.

    tokens: (batch, time), completions without their prompts; end_tokens: those of the model, such
    as end of text and end of turn. Returns bools of the shape of tokens.
    """
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise ShapeError(
            "completion_mask: expected integer tokens (batch, time); got "
            f"{tokens.shape} of {tokens.dtype}"
        )
    if not end_tokens:
        raise ConfigError("completion_mask: expected at least one end token; got none")
    ends = stack([tokens == end for end in end_tokens]).any(0).long()
    return ends.cumsum(1) - ends == 0


def checked_mask(operation: str, mask: Tensor, *values: Tensor) -> Tensor:
    """The mask as bools, after a look at its shape: (batch, time), that of all the values."""
    if mask.ndim != 2 or any(x.shape != mask.shape for x in values):
        raise ShapeError(
            f"{operation}: expected a mask and values of one shape (batch, time); got "
            f"{mask.shape} and {', '.join(str(x.shape) for x in values)}"
        )
    return mask.bool()


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """The sum where the mask is set, over all or along dim. values and mask: (batch, time)."""
    mask = checked_mask("masked_sum", mask, values)
    return where(mask, values, 0.0).sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """The mean where the mask is set, over all or along dim; 0 where nothing is."""
    return masked_sum(values, mask, dim) / mask.bool().sum(dim).clamp(min=1)


def sequence_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over sequences of their means over tokens. values, mask: (batch, time).

    A sequence with an empty mask contributes 0, and is counted.
    """
    return masked_mean(values, mask, dim=1).mean()


def token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over the batch's tokens; 0 if there are none. values, mask: (batch, time)."""
    return masked_mean(values, mask)


def constant_length(length: int) -> Aggregation:
    """The sum over tokens, divided by batch * length, whatever the sequences' own lengths."""
    if not length > 0:
        raise ConfigError(f"constant_length: expected a length above 0; got {length}")

    def aggregate(values: Tensor, mask: Tensor) -> Tensor:
        return masked_sum(values, mask) / (values.shape[0] * length)

    return aggregate


def share_of(total: float) -> Aggregation:
    """The sum over tokens, divided by total: a piece's part of the mean over all pieces.

    total: the tokens in the masks of all pieces for the token mean, or sequences times a length.
    """
    if not total > 0:
        raise ConfigError(f"share_of: expected a total above 0; got {total}")
    return lambda values, mask: masked_sum(values, mask) / total
