r"""What a model gave to the tokens that were chosen, and how sure it was.

    log p_t = z_t[token] / T - logsumexp(z_t / T),   H_t = -sum_v p_v log p_v

The logits z_t that count are those of the position *before* the token: logits[:, :-1] belong to
tokens[:, 1:]. T is the temperature at which the tokens were sampled; log-probabilities at another
one are those of another policy.
"""

from minitorch.errors import ConfigError, DtypeError, ShapeError
from minitorch.nn.functional import linear_cross_entropy
from minitorch.tensor import Tensor


def token_log_probs(logits: Tensor, tokens: Tensor, *, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at the tokens.

    logits: (..., vocabulary); tokens: (...) of indices. Returns (...). Raises ShapeError where
    these disagree, DtypeError for tokens that are not integers.
    """
    _check_temperature("token_log_probs", temperature)
    if logits.ndim == 0 or tokens.shape != logits.shape[:-1]:
        raise ShapeError(
            "token_log_probs: expected logits (..., vocabulary) and tokens (...); got "
            f"{logits.shape} and {tokens.shape}. Shift one against the other before"
        )
    if tokens.is_floating_point():
        raise DtypeError(f"token_log_probs: expected integer tokens; got {tokens.dtype}")
    log_probs = _scaled(logits, temperature).log_softmax(-1)
    return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def linear_token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """token_log_probs of the logits hidden @ weightᵀ + bias, which are never all held at once.

    hidden: (..., features); weight: (vocabulary, features), the model's head; bias: (vocabulary,);
    tokens: (...) of indices. Returns (...). The gradient makes the logits again, a few hundred
    rows at a time. Raises ShapeError where the shapes disagree. Source: Wijmans et al. 2024, "Cut
    your losses in large-vocabulary language models" (arXiv 2411.09009), by
    `minitorch.nn.functional.linear_cross_entropy`.
    """
    _check_temperature("linear_token_log_probs", temperature)
    if bias is not None:
        bias = _scaled(bias, temperature)
    return -linear_cross_entropy(
        _scaled(hidden, temperature), weight, tokens, bias, ignore_index=-1, reduction="none"
    )


def entropy(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """-sum p log p of p = softmax(logits / temperature), in nats.

    logits: (..., vocabulary), in which -inf forbids a token. Returns (...).
    """
    _check_temperature("entropy", temperature)
    log_probs = _scaled(logits, temperature).log_softmax(-1)
    probs = log_probs.exp()
    return -(probs * log_probs.masked_fill(probs == 0, 0.0)).sum(-1)


def _scaled(x: Tensor, temperature: float) -> Tensor:
    return x if temperature == 1 else x / temperature


def _check_temperature(operation: str, temperature: float) -> None:
    if not temperature > 0:
        raise ConfigError(
            f"{operation}: expected a temperature above 0; got {temperature}. Greedy choices have "
            "no log-probabilities: take those at temperature 1"
        )
