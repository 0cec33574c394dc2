"""Post-training: the mathematics of reinforcement learning, preferences and distillation.

Pure functions of tensors: nothing here holds a model, samples, or keeps state.
"""

from minitorch.rl.kl import (
    Estimator,
    adapted_coefficient,
    k1,
    k2,
    k3,
    k3_with_gradient_of_k2,
    kl_divergence,
)
from minitorch.rl.log_probs import entropy, linear_token_log_probs, token_log_probs
from minitorch.rl.masks import (
    Aggregation,
    completion_mask,
    constant_length,
    masked_mean,
    masked_sum,
    sequence_mean,
    share_of,
    token_mean,
)

__all__ = [
    "Aggregation",
    "Estimator",
    "adapted_coefficient",
    "completion_mask",
    "constant_length",
    "entropy",
    "k1",
    "k2",
    "k3",
    "k3_with_gradient_of_k2",
    "kl_divergence",
    "linear_token_log_probs",
    "masked_mean",
    "masked_sum",
    "sequence_mean",
    "share_of",
    "token_log_probs",
    "token_mean",
]
