"""Post-training: the mathematics of reinforcement learning, preferences and distillation.

Pure functions of tensors: nothing here holds a model, samples, or keeps state.
"""

from minitorch.rl.advantages import (
    Advantages,
    decoupled_gae,
    dr_grpo_advantages,
    gae,
    grpo_advantages,
    length_adaptive_lambda,
    process_advantages,
    reinforce_advantages,
    reinforce_plus_plus_advantages,
    reinforce_plus_plus_baseline_advantages,
    returns_to_go,
    rloo_advantages,
    whiten,
)
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
from minitorch.rl.rewards import (
    joined_rewards,
    kl_shaped_rewards,
    length_reward,
    overlong_penalty,
)

__all__ = [
    "Advantages",
    "Aggregation",
    "Estimator",
    "adapted_coefficient",
    "completion_mask",
    "constant_length",
    "decoupled_gae",
    "dr_grpo_advantages",
    "entropy",
    "gae",
    "grpo_advantages",
    "joined_rewards",
    "k1",
    "k2",
    "k3",
    "k3_with_gradient_of_k2",
    "kl_divergence",
    "kl_shaped_rewards",
    "length_adaptive_lambda",
    "length_reward",
    "linear_token_log_probs",
    "masked_mean",
    "masked_sum",
    "overlong_penalty",
    "process_advantages",
    "reinforce_advantages",
    "reinforce_plus_plus_advantages",
    "reinforce_plus_plus_baseline_advantages",
    "returns_to_go",
    "rloo_advantages",
    "sequence_mean",
    "share_of",
    "token_log_probs",
    "token_mean",
    "whiten",
]
