r"""PPO: completions are judged token by token, by a critic that learns beside the policy.

One step, after completions have been written and judged as of GRPO (models/recipes/grpo.py):

    r_t = -beta (log p(x_t) - log p_ref(x_t)),   and the score of the completion at its last token
    V_t = critic(prompt, x_1 … x_t-1)            before token t is chosen
    A   = GAE(r, V; lam), whitened;   R = GAE(r, V; critic_lam) + V
    policy ← clipped surrogate of A;  critic ← (V - R)² / 2, clipped to V_old ± value_clip

A critic is a reward model that reads prefixes: it begins as one where there is one. Presets:

    ppo       as above
    ppo_max   scores normalised by their running moments and bounded; a critic that is trained alone
              first; steps of bounded length on both sides (Zheng et al. 2023, arXiv 2307.04964)
    vapo      lam 1 for the critic and by length for the policy, several completions of a prompt,
              more room above, correct completions imitated (Yue et al. 2025, arXiv 2504.05118)

The entropy bonus is added to the advantages, as -entropy_weight · log p(x_t) of the token itself:
its gradient is on average that of the entropy of the state, and no logits have to be held. PPO-ptx
adds the gradient of text of pre-training to that of every minibatch,

    ptx_weight · mean of -log p(x_t | x_<t) over the text's tokens

against forgetting (Ouyang et al. 2022, "InstructGPT", arXiv 2203.02155, eq. 2, where the weight is
gamma = 27.8; that part of PPO-max is off in the preset, as it needs the text). Source of the rest:
Schulman et al. 2017 (arXiv 1707.06347); in the form for language models, Ziegler et al. 2019
(1909.08593).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import minitorch as mt
from minitorch import optim, rl
from minitorch.errors import ConfigError
from minitorch.tensor import Tensor
from models import checkpoints
from models.options import option
from models.recipes.completions import Completions
from models.recipes.data import collate
from models.recipes.groups import Batch
from models.recipes.grpo import Grpo
from models.recipes.grpo_config import GrpoConfig
from models.recipes.judging import Given
from models.recipes.objective import Total
from models.recipes.plain_text import PlainText
from models.recipes.prompts import Prompt
from models.recipes.recipe import Metrics
from models.recipes.scoring import next_token_losses
from models.reward_model import RewardModel
from models.rollouts import Rollout


@dataclass(frozen=True, kw_only=True)
class PpoConfig(GrpoConfig):
    """All that decides what `minitorch ppo` computes."""

    command: ClassVar[str] = "ppo"

    prompts: int = option(64, "prompts of one step", at_least=1, fixed=True)
    group_size: int = option(1, "completions of each prompt", at_least=1, fixed=True)
    advantage: str = option("gae", "what a reward is compared with", choices=("gae",))
    loss: str = option("clip", "what is minimised", choices=("clip", "cispo", "reinforce"))
    aggregation: str = option(
        "token", "what is averaged over", choices=("sequence", "token", "constant")
    )
    epochs: int = option(2, "times that completions are learnt from", at_least=1)
    minibatches: int = option(2, "optimizer steps of one epoch", at_least=1)
    kl_in_reward: bool = option(True, "take beta k1 from the rewards, not from the loss")

    end_penalty: float = option(0.0, "taken from what does not end by itself", at_least=0)
    normalise_rewards: bool = option(False, "by the mean and deviation of all scores so far")
    reward_clip: float = option(0.0, "greatest score after that; 0: no bound", at_least=0)

    critic: str = option(
        "", "folder of a reward model that the critic begins as; none: the reward model, or the "
        "policy with scores of 0", fixed=True,
    )  # fmt: skip
    critic_learning_rate: float = option(1e-3, "of the critic", above=0)
    value_clip: float = option(0.2, "how far a value moves from its old one; 0: free", at_least=0)
    value_steps: int = option(0, "steps at first in which the critic learns alone", at_least=0)
    gamma: float = option(1.0, "discount by token", above=0, at_most=1)
    lam: float = option(0.95, "of the policy's advantages", at_least=0, at_most=1)
    critic_lam: float = option(0.95, "of the critic's returns", at_least=0, at_most=1)
    lam_alpha: float = option(
        0.0, "with it lam is 1 - 1 / (lam_alpha · length); 0: lam as it is", at_least=0
    )
    whiten: bool = option(True, "advantages, over the tokens of a step")
    entropy_weight: float = option(0.0, "of the entropy bonus", at_least=0)
    positive_weight: float = option(0.0, "of imitating completions of score 1", at_least=0)
    ptx_weight: float = option(0.0, "of the loss on text of pre-training", at_least=0)
    ptx_text: str = option(
        "", "that text, as `data` of `minitorch train`, on which forgetting is measured", fixed=True
    )
    ptx_rows: int = option(16, "rows of it in each optimizer step", at_least=1, fixed=True)
    ptx_length: int = option(64, "tokens of a row", at_least=2, fixed=True)
    kl_target: float = option(
        0.0, "KL of a completion to which beta is steered; 0: beta stays", at_least=0
    )
    kl_horizon: int = option(
        10_000, "completions in which beta changes by up to a fifth", at_least=1
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ppo": {},
        "ppo_max": {"normalise_rewards": True, "reward_clip": 1.0, "value_steps": 10},
        "vapo": {
            "group_size": 4,
            "prompts": 32,
            "clip_high": 0.28,
            "beta": 0.0,
            "critic_lam": 1.0,
            "lam_alpha": 0.05,
            "value_steps": 20,
            "positive_weight": 0.1,
        },
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_target and not (self.beta and self.kl_in_reward):
            raise ConfigError(
                "kl_target: expected kl_in_reward and a beta above 0 to begin with; got "
                f"kl_in_reward={self.kl_in_reward} and beta={self.beta}"
            )
        if self.ptx_weight and not self.ptx_text:
            raise ConfigError(
                "ptx_weight: expected a text to draw from; give one by --set ptx_text=FILE"
            )


class Ppo(Grpo):
    """The recipe that learns from its own completions and a critic of them.

    critic: a reward model of its own weights.
    """

    columns: ClassVar[Mapping[str, str]] = {
        "reward": "reward {:.3f}",
        "val_reward": "val {:.3f}",
        "kl": "kl {:.4f}",
        "entropy": "entropy {:.3f}",
        "length": "length {:.1f}",
        "clip_fraction": "clipped {:.3f}",
        "value_loss": "value {:.4f}",
        "text_loss": "text {:.4f}",
        "explained": "explained {:.2f}",
        "earlier": "earlier {:.2f}",
        "success": "success {:.2f}",
        "admitted": "admitted {:.2f}",
    }
    config: PpoConfig

    def __init__(
        self,
        config: PpoConfig,
        *arguments: Any,
        critic: RewardModel,
        **options: Any,
    ):
        super().__init__(config, *arguments, **options)
        self.critic = critic.to(config.device).eval()
        rate = config.critic_learning_rate
        self.critic_optimizer = optim.AdamW(critic.parameters(), rate, eps=1e-5, weight_decay=0.0)
        self.beta = config.beta
        self.moments = Moments()
        self.text = self._plain_text() if config.ptx_text else None

    def _plain_text(self) -> PlainText:
        config, context = self.config, self.model.config.max_position_embeddings
        if config.ptx_length > context:
            raise ConfigError(
                f"ptx_length: expected at most the model's context of {context} tokens; got "
                f"{config.ptx_length}"
            )
        return PlainText(
            config.ptx_text, self.tokenizer, config.ptx_rows, config.ptx_length, config.seed
        )

    def state(self) -> dict[str, Any]:
        found = {**super().state(), "beta": self.beta, "moments": self.moments.state()}
        return found if self.text is None else {**found, "text": self.text.state_dict()}

    def arrays(self) -> dict[str, np.ndarray]:
        critic = dict(self.critic.named_parameters())
        state = self.critic_optimizer.state_dict()["state"]
        found = checkpoints.named({"critic": critic, "critic_optimizer": state})
        return super().arrays() | found

    def restore(self, saved: checkpoints.Checkpoint) -> None:
        super().restore(saved)
        self.critic.load_state_dict(saved.part("critic"), strict=False)
        groups = self.critic_optimizer.state_dict()["param_groups"]
        state = {"state": saved.part("critic_optimizer"), "param_groups": groups}
        self.critic_optimizer.load_state_dict(state)
        self.beta = saved.state["beta"]
        self.moments = Moments(*saved.state["moments"])
        if self.text is not None:
            self.text.load_state_dict(saved.state["text"])

    def judge(
        self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]
    ) -> tuple[np.ndarray, Given]:
        total, given = super().judge(prompts, rollouts)
        cut = np.array([not rollout.finished for rollout in rollouts])
        return total - self.config.end_penalty * cut, given

    @property
    def critic_alone(self) -> bool:
        """Whether the policy stands still in the step to come."""
        return self.step < self.config.value_steps

    def update(self) -> Metrics:
        metrics = super().update()
        if self.config.kl_target:
            divergence, count = self._seen["kl_of_completion"], len(self._targets.values)
            target, horizon = self.config.kl_target, self.config.kl_horizon
            self.beta = rl.adapted_coefficient(self.beta, divergence, target, count, horizon)
        return metrics | self._seen | {"beta": self.beta}

    def _advantages(
        self, batch: Batch, completions: Completions, reference: np.ndarray | None
    ) -> np.ndarray:
        """(completions, time); what the critic is to learn is kept for the minibatches."""
        config, mask = self.config, mt.from_numpy(completions.mask)
        scores = self._normalised(batch.rewards.ravel())
        own = completions.log_probs
        near = own if reference is None or not config.kl_in_reward else reference
        shaped = rl.kl_shaped_rewards(
            mt.from_numpy(scores.astype(np.float32)),
            mt.from_numpy(own),
            mt.from_numpy(near),
            mask,
            beta=self.beta,
            limit=config.reward_clip or None,
        )
        with mt.no_grad():
            values = self._values(completions)
        lam: Tensor | float = config.lam
        if config.lam_alpha:
            lam = rl.length_adaptive_lambda(mask, alpha=config.lam_alpha)
        critic_lam = 1.0 if self.critic_alone else config.critic_lam
        found = rl.decoupled_gae(
            shaped, values, mask, gamma=config.gamma, actor_lam=lam, critic_lam=critic_lam
        )
        right = (batch.rewards.ravel() >= 1) if config.positive_weight else None
        self._targets = _Targets(values.numpy(), found.returns.numpy(), right)
        self._seen = {"explained": rl.explained_variance(values, found.returns, mask)}
        if reference is not None:
            apart = (own - reference) * completions.mask
            self._seen["kl_of_completion"] = float(apart.sum(1).mean())
        advantages = found.advantages
        if config.whiten:
            advantages = rl.whiten(advantages, mask)
        return advantages.numpy() - config.entropy_weight * own * completions.mask

    def _normalised(self, scores: np.ndarray) -> np.ndarray:
        """By the moments of all scores so far, these included."""
        if not self.config.normalise_rewards:
            return scores
        self.moments.add(scores)
        return (scores - self.moments.mean) / (self.moments.deviation + 1e-6)

    def _values(self, completions: Completions) -> Tensor:
        """The critic's of the states before each token: (completions, time), 0 behind the mask."""
        with self.precision():
            scores, _ = self.critic(completions.ids)
        time = completions.mask.shape[1]
        at = np.minimum(completions.starts[:, None] + np.arange(time) - 1, scores.shape[1] - 1)
        found = scores.float().gather(1, mt.from_numpy(at).to(scores.device))
        return mt.where(mt.from_numpy(completions.mask).to(scores.device), found, 0.0)

    def _minibatch(
        self, rows: np.ndarray, completions: Completions, batch: Batch, *rest: Any
    ) -> Metrics:
        if self.critic_alone:
            metrics = dict.fromkeys(("loss", "clip_fraction", "mismatch", "grad_norm"), 0.0)
        else:
            right, mask = self._targets.right, self.counted(rows, completions, batch)
            self._right_tokens = 0 if right is None else int(mask[right[rows]].sum())
            metrics = super()._minibatch(rows, completions, batch, *rest)
        return {**metrics, "value_loss": self._learn_values(rows, completions)}

    def mix_in(self) -> Metrics:
        """The gradient of a few rows of plain text."""
        if self.text is None or not self.config.ptx_weight:
            return {}
        batch = collate([[row] for row in self.text.draw()])
        with self.precision():
            losses, _ = next_token_losses(self.model, batch)
        loss = losses.sum() / batch.counted
        (self.config.ptx_weight * loss).backward()
        return {"ptx_loss": loss.item()}

    def evaluate(self, stop: Callable[[], bool] = lambda: False) -> Metrics | None:
        """As of GRPO; "text_loss" is that of plain text which is not learnt from."""
        found = super().evaluate(stop)
        if found is None or self.text is None:
            return found
        return {**found, "text_loss": self.text.loss(self.model, self.config.ptx_rows)}

    def besides(self, found: Tensor, rows: np.ndarray, mask: np.ndarray, total: Total) -> Any:
        """Correct completions are imitated: their part of -log p over all their tokens."""
        right = self._targets.right
        if right is None or not self._right_tokens:
            return 0.0
        counted = mt.from_numpy(mask & right[rows, None]).to(found.device)
        average = rl.share_of(self._right_tokens)
        return self.config.positive_weight * average(-found, counted)

    def _learn_values(self, rows: np.ndarray, completions: Completions) -> float:
        """One step of the critic; its loss before."""
        config = self.config
        self.critic_optimizer.zero_grad()
        average = rl.share_of(max(int(completions.mask[rows].sum()), 1))
        total = 0.0
        for start in range(0, len(rows), config.batch_size):
            chosen = rows[start : start + config.batch_size]
            values = self._values(completions.rows(chosen))
            old, returns, mask = (
                mt.from_numpy(x[chosen]).to(values.device)
                for x in (self._targets.values, self._targets.returns, completions.mask)
            )
            loss = rl.value_loss(
                values,
                returns,
                mask,
                old_values=old if config.value_clip and not self.critic_alone else None,
                clip=config.value_clip,
                aggregate=average,
            )
            loss.backward()
            total += loss.item()
        norm, scale = optim.clip_grad_scale(self.critic.parameters(), config.grad_clip or math.inf)
        self.check(total, norm.item())
        self.critic_optimizer.step(scale)
        return total


@dataclass(frozen=True)
class _Targets:
    """Of a step's completions: values before it and returns, (completions, time), who is right."""

    values: np.ndarray
    returns: np.ndarray
    right: np.ndarray | None


@dataclass
class Moments:
    """Mean and deviation of all numbers so far. Source: Chan, Golub and LeVeque 1983."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: np.ndarray) -> None:
        """Take in more."""
        count = self.count + values.size
        apart = float(values.mean()) - self.mean
        self.squares += float(values.var()) * values.size
        self.squares += apart**2 * self.count * values.size / count
        self.mean += apart * values.size / count
        self.count = count

    @property
    def deviation(self) -> float:
        """The root of the mean square distance from the mean; 1 for fewer than two numbers."""
        return math.sqrt(self.squares / self.count) if self.count > 1 else 1.0

    def state(self) -> tuple[int, float, float]:
        """What to begin with again."""
        return self.count, self.mean, self.squares
