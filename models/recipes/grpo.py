r"""Reinforcement learning from rewards that a program gives: GRPO and its relatives.

One step, of groups that were written and judged (models/recipes/writing.py):

    A_i = advantage(r_1 … r_G)                   how much better than the others of its group
    θ  ← optimizer(θ, ∇ loss(A, p_θ / p_sampled))    `epochs` times, in `minibatches` parts each

The members of the family are choices of advantage, loss and average; see grpo_config.py there.
Dropout is off throughout: with it the ratio to the policy that sampled would be noise. With LoRA
one copy of the weights is policy and reference. With reference_interval the reference follows the
policy (iterative GRPO: Shao et al. 2024, arXiv 2402.03300, algorithm 1). With optimizer_interval
what the optimizer remembers is forgotten, as a policy that samples anew poses another problem
(Kimi Team 2025, arXiv 2501.12599, section 2.3.2, after each batch of problems).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np

import minitorch as mt
from minitorch import rl
from minitorch.errors import ConfigError
from minitorch.tensor import Tensor
from minitorch.tokenizers import Tokenizer
from models import checkpoints, lora
from models.environments.rewards import Reward
from models.environments.tasks import Task
from models.families import Model
from models.recipes.completions import Completions, log_probs
from models.recipes.credit import advantages_of
from models.recipes.groups import Batch
from models.recipes.grpo_config import GrpoConfig
from models.recipes.judging import Score
from models.recipes.objective import Objective, Total
from models.recipes.prompts import Source
from models.recipes.recipe import Metrics
from models.recipes.supervision import Supervision
from models.recipes.writing import Writing


class Grpo(Writing):
    """The recipe that learns from groups of its own completions.

    reference: the model of the KL term, needed where beta is above 0; with LoRA the model itself
    without its adapters, if none is given. on_rollouts(step, batch, completions, advantages): is
    told of the batches of every rollout_interval-th step.
    """

    columns: ClassVar[Mapping[str, str]] = {
        "reward": "reward {:.3f}",
        "val_reward": "val {:.3f}",
        "greedy": "greedy {:.3f}",
        "kl": "kl {:.4f}",
        "entropy": "entropy {:.3f}",
        "length": "length {:.1f}",
        "clip_fraction": "clipped {:.3f}",
        "zero_variance": "equal {:.2f}",
        "earlier": "earlier {:.2f}",
        "step_score": "steps {:.3f}",
        "success": "success {:.2f}",
        "admitted": "admitted {:.2f}",
    }

    def __init__(
        self,
        config: GrpoConfig,
        model: Model,
        tokenizer: Tokenizer,
        source: Source,
        rewards: Sequence[tuple[Reward, float]],
        *,
        task: Task | None = None,
        supervision: Supervision | None = None,
        score: Score | None = None,
        reference: Model | None = None,
        on_rollouts: Callable[[int, Batch, Completions, np.ndarray], None] | None = None,
    ):
        if config.beta and reference is None and not config.lora_rank:
            raise ConfigError(f"grpo: beta = {config.beta} needs a reference; got none")
        super().__init__(
            config,
            model,
            tokenizer,
            source,
            rewards,
            task=task,
            supervision=supervision,
            score=score,
        )
        self.reference = reference if reference is None else reference.to(config.device)
        self.on_rollouts = on_rollouts
        self.objective = Objective(config, self.max_tokens)

    def update(self) -> Metrics:
        """Write, judge, and learn; "tokens" are those that were written and learnt from."""
        self._renew_reference()
        self._renew_optimizer()
        batch, metrics = self.sample()
        completions = Completions.of(batch.rollouts, batch.earlier)
        reference = self._reference_log_probs(completions)
        old, correction = self._old_log_probs(completions)
        advantages = self._advantages(batch, completions, reference) * correction
        if self.on_rollouts is not None and (self.step + 1) % self.config.rollout_interval == 0:
            self.on_rollouts(self.step + 1, batch, completions, advantages)
        learnt = [
            self._minibatch(rows, completions, batch, old, advantages, reference)
            for _ in range(self.config.epochs)
            for rows in np.split(np.arange(len(completions)), self.config.minibatches)
        ]
        means = {name: float(np.mean([m[name] for m in learnt])) for name in learnt[0]}
        mask = completions.mask
        metrics |= {**means, "tokens": float(mask.sum()), "mismatch": learnt[0]["mismatch"]}
        metrics["entropy"] = float(-completions.log_probs[mask].mean()) if mask.any() else 0.0
        metrics["length"] = float(completions.lengths.mean())
        if self.carried is not None:
            metrics["earlier"] = 1 - float(completions.fresh.sum() / max(mask.sum(), 1))
            metrics["open"] = float(len(self.carried))
        if reference is not None:
            log_ratio = (reference - completions.log_probs)[mask].astype(np.float64)
            metrics["kl"] = float((np.expm1(log_ratio) - log_ratio).mean())
        return metrics

    def _renew_reference(self) -> None:
        interval = self.config.reference_interval
        if interval and self.step and self.step % interval == 0 and self.reference is not None:
            self.reference.load_state_dict(self.model.state_dict())

    def _renew_optimizer(self) -> None:
        interval = self.config.optimizer_interval
        if interval and self.step % interval == 0:
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": {}, "param_groups": groups})

    def arrays(self) -> dict[str, np.ndarray]:
        if not self.config.reference_interval or self.reference is None:
            return super().arrays()
        return super().arrays() | checkpoints.named({"reference": self.reference.state_dict()})

    def restore(self, saved: checkpoints.Checkpoint) -> None:
        super().restore(saved)
        if self.config.reference_interval and self.reference is not None:
            self.reference.load_state_dict(saved.part("reference"))

    def _reference_log_probs(self, completions: Completions) -> np.ndarray | None:
        if not self.config.beta:
            return None
        if self.reference is not None:
            return self._log_probs_of(self.reference, completions)
        with lora.adapters_off(self.model):
            return self._log_probs_of(self.model, completions)

    def _old_log_probs(self, completions: Completions) -> tuple[np.ndarray, np.ndarray | float]:
        """Those of the policy that sampled, and the factors that correct for the sampler's.

        They are the sampler's own, unless it draws from a part of the policy's distribution.
        """
        config = self.config
        if config.top_p == 1 and not config.sampler_cap:
            return completions.log_probs, 1.0
        old = self._log_probs_of(self.model, completions)
        if not config.sampler_cap:
            return old, 1.0
        arrays = (old, completions.log_probs, completions.mask)
        factors = rl.sampler_correction(*map(mt.from_numpy, arrays), cap=config.sampler_cap)
        return old, factors.numpy()

    def _log_probs_of(self, model: Model, completions: Completions) -> np.ndarray:
        model.eval()
        with mt.no_grad(), self.precision():
            parts = [
                log_probs(model, completions.rows(rows), self.config.temperature).numpy()
                for rows in _pieces(len(completions), self.config.batch_size)
            ]
        return np.concatenate(parts)

    def _advantages(
        self, batch: Batch, completions: Completions, reference: np.ndarray | None
    ) -> np.ndarray:
        """(completions, time), 0 where nothing is to be learnt."""
        return advantages_of(self.config, batch.rewards, completions, reference, batch.steps)

    def _minibatch(
        self,
        rows: np.ndarray,
        completions: Completions,
        batch: Batch,
        old: np.ndarray,
        advantages: np.ndarray,
        reference: np.ndarray | None,
    ) -> Metrics:
        """One optimizer step on some of the completions, a piece at a time.

        "mismatch" is the furthest that a log-probability is from that of the same policy when it
        wrote: before the first update, what sampler and training compute differently.
        """
        config = self.config
        self.model.eval()
        self.optimizer.zero_grad()
        mask = self.counted(rows, completions, batch)
        total = self.objective.total(mask)
        metrics: Metrics = dict.fromkeys(("loss", "clip_fraction", "mismatch"), 0.0)
        for piece in _pieces(len(rows), _whole_groups(config.batch_size, config.group_size)):
            chosen = rows[piece]
            with self.precision():
                found = log_probs(self.model, completions.rows(chosen), config.temperature)
            loss, clipped = self.objective(
                found,
                old[chosen],
                advantages[chosen],
                mask[piece],
                total,
                rewards=batch.rewards.ravel()[chosen].reshape(-1, config.group_size),
                reference=None if reference is None else reference[chosen],
            )
            loss = loss + self.besides(found, chosen, mask[piece], total)
            loss.backward()
            metrics["loss"] += loss.item()
            metrics["clip_fraction"] += clipped * len(piece) / len(rows)
            apart = np.abs((found.detach().numpy() - old[chosen]) * completions.fresh[chosen])
            metrics["mismatch"] = max(metrics["mismatch"], float(apart.max(initial=0.0)))
        metrics |= self.mix_in()
        metrics["grad_norm"] = self.descend(metrics["loss"])
        return metrics

    def counted(self, rows: np.ndarray, completions: Completions, batch: Batch) -> np.ndarray:
        """Which tokens of some of the completions are learnt from: (rows, time)."""
        mask = (completions.mask if self.config.learn_earlier else completions.fresh)[rows]
        if self.config.overlong_filter:
            mask = mask & np.array([batch.rollouts[i].finished for i in rows])[:, None]
        return mask

    def mix_in(self) -> Metrics:
        """What a relative adds to the gradient of an optimizer step, and its metrics."""
        return {}

    def besides(
        self, found: Tensor, rows: np.ndarray, mask: np.ndarray, total: Total
    ) -> Tensor | float:
        """What a relative adds to the loss of a piece: found are the log-probabilities of rows."""
        return 0.0


def _whole_groups(count: int, size: int) -> int:
    """The largest multiple of the group that is at most count, and one group at least."""
    return max(count // size, 1) * size


def _pieces(count: int, size: int) -> list[np.ndarray]:
    return [np.arange(i, min(i + size, count)) for i in range(0, count, size)]
