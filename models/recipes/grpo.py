r"""Reinforcement learning from rewards that a program gives: GRPO and its relatives.

One step, for each of `prompts` prompts:

    o_1 … o_G ~ policy(· | prompt)               G = group_size completions, at the temperature
    r_i = Σ weight · reward(prompt, o_i)         what penalties and KL take away included
    A_i = advantage(r_1 … r_G)                   how much better than the others of its group
    θ  ← optimizer(θ, ∇ loss(A, p_θ / p_sampled))    `epochs` times, in `minibatches` parts each

The members of the family are choices of advantage, loss and average, and are presets here:

    preset        advantage              loss            average    besides
    grpo          (r - mean) / std       clip            sequence   KL k3 in the loss
    dr_grpo       r - mean               clip            constant
    dapo          (r - mean) / std       clip, .28 up    token      groups that teach, overlong
    gspo          (r - mean) / std       gspo            sequence
    cispo         (r - mean) / std       cispo           token
    rloo          r - mean of others     reinforce       token      KL in the reward
    reinforce++   whitened               clip            token      KL in the reward, by token
    kimi          r - mean               mirror_descent  group      length reward

Sources: `minitorch.rl`, with the papers at each function. Dropout is off throughout: with it the
ratio to the policy that sampled would be noise. With LoRA one copy of the weights is policy and
reference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import minitorch as mt
from minitorch import rl
from minitorch.errors import ConfigError
from minitorch.random import Generator
from minitorch.tensor import Tensor
from minitorch.tokenizers import Tokenizer
from models import lora
from models.chat import end_id
from models.environments.rewards import Reward
from models.environments.tasks import Task
from models.environments.turns import converse
from models.families import Model
from models.options import option
from models.recipes.completions import Completions, log_probs
from models.recipes.judging import by_rewards
from models.recipes.objective import Objective, Total
from models.recipes.post_training import Adapted, AdapterSettings, adapters_of
from models.recipes.prompts import Prompt, Source
from models.recipes.recipe import Metrics
from models.rollouts import Rollout, begin, extend
from models.sampling import Sampler

ADVANTAGES = ("grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline", "none")


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(AdapterSettings):
    """All that decides what a run of reinforcement learning computes."""

    model: str = option("", "folder of the model to begin with", fixed=True)
    reference: str = option("", "folder of the model to stay near; none: the one that it began as")
    task: str = option("", "name of a task: `addition`, `countdown`, ...", fixed=True)
    data: str = option("", "JSONL file of prompts with the columns that the rewards read")
    reward: str = option("", "rewards: FILE.py:function, with =weight, several with commas")
    val_fraction: float = option(0.1, "share of the file for validation", above=0, below=1)

    prompts: int = option(32, "prompts of one step", at_least=1, fixed=True)
    group_size: int = option(8, "completions of each prompt", at_least=1, fixed=True)
    max_tokens: int = option(0, "longest completion; 0: that of the task", at_least=0)
    temperature: float = option(1.0, "of sampling, and of the policy that is trained", above=0)
    top_p: float = option(1.0, "share of the probability that is sampled from", above=0, at_most=1)
    places: int = option(256, "completions written at once", at_least=1)
    max_calls: int = option(2, "of a task's tool, in one completion", at_least=0)

    advantage: str = option("grpo", "what a reward is compared with", choices=ADVANTAGES)
    loss: str = option(
        "clip",
        "what is minimised",
        choices=("clip", "gspo", "cispo", "reinforce", "mirror_descent"),
    )
    aggregation: str = option(
        "sequence", "what is averaged over", choices=("sequence", "token", "constant")
    )
    clip_low: float = option(0.2, "how far below 1 a ratio may go", above=0)
    clip_high: float = option(0.2, "how far above", above=0)
    dual_clip: float = option(0.0, "the most a bad token weighs, above 1; 0: no bound", at_least=0)
    max_ratio: float = option(5.0, "with `cispo`, the greatest weight", above=0)
    tau: float = option(0.1, "with `mirror_descent`, how much the policy may move", above=0)
    sampler_cap: float = option(
        0.0, "greatest correction for what the sampler computes otherwise; 0: none", at_least=0
    )
    epochs: int = option(1, "times that completions are learnt from", at_least=1)
    minibatches: int = option(1, "optimizer steps of one epoch", at_least=1)

    beta: float = option(0.04, "weight of the KL divergence from the reference", at_least=0)
    kl: str = option("k3", "its estimator", choices=("k1", "k2", "k3", "k3_with_gradient_of_k2"))
    kl_ratio: bool = option(False, "multiply the estimate by p / p_sampled, for its true gradient")
    kl_in_reward: bool = option(False, "take beta k1 from the rewards, not from the loss")

    dynamic_sampling: int = option(
        0, "times that groups of equal rewards are replaced by others", at_least=0
    )
    overlong_margin: int = option(
        0, "tokens before max_tokens in which the reward falls by 1; 0: none", at_least=0
    )
    overlong_filter: bool = option(False, "learn nothing from completions that were cut off")
    length_weight: float = option(0.0, "weight of Kimi's reward for being short", at_least=0)
    length_from: int = option(0, "the step from which it counts", at_least=0)

    steps: int = option(200, "batches of completions", at_least=1)
    batch_size: int = option(256, "completions in one forward pass", at_least=1)
    optimizer: str = option(
        "adamw", "update rule", choices=("adamw", "muon", "lion", "adafactor", "sgd"), fixed=True
    )
    learning_rate: float = option(2e-4, "the highest learning rate", above=0)
    schedule: str = option(
        "constant", "of the learning rate", choices=("cosine", "linear", "wsd", "constant")
    )
    warmup_fraction: float = option(
        0.0, "share of the steps in which it rises to learning_rate", at_least=0, at_most=1
    )
    weight_decay: float = option(0.0, "of matrices and embeddings, not of vectors", at_least=0)
    eval_interval: int = option(20, "steps between evaluations", at_least=1)
    eval_prompts: int = option(200, "prompts of an evaluation", at_least=1)
    rollout_interval: int = option(10, "steps between rollouts that are written down", at_least=1)
    checkpoint_interval: int = option(50, "steps between checkpoints", at_least=1)

    command: ClassVar[str] = "grpo"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "grpo": {},
        "dr_grpo": {"advantage": "dr_grpo", "aggregation": "constant", "beta": 0.0},
        "dapo": {
            "clip_high": 0.28,
            "aggregation": "token",
            "beta": 0.0,
            "dynamic_sampling": 4,
            "overlong_margin": 4,
        },
        "gspo": {"loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "beta": 0.0},
        "cispo": {"loss": "cispo", "aggregation": "token", "beta": 0.0},
        "rloo": {
            "advantage": "rloo",
            "loss": "reinforce",
            "aggregation": "token",
            "kl_in_reward": True,
        },
        "reinforce++": {"advantage": "reinforce++", "aggregation": "token", "kl_in_reward": True},
        "kimi": {
            "advantage": "dr_grpo",
            "loss": "mirror_descent",
            "beta": 0.0,
            "length_weight": 0.5,
        },
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.advantage == "rloo" and self.group_size == 1:
            raise ConfigError(
                "group_size: with advantage=rloo expected at least 2, as a completion is compared "
                "with the others of its group; got 1"
            )
        if self.prompts % self.minibatches:
            raise ConfigError(
                f"minibatches: expected a divisor of prompts = {self.prompts}, as a group is not "
                f"divided; got {self.minibatches}"
            )
        if self.gradient_accumulation != 1:
            raise ConfigError(
                "gradient_accumulation: expected 1, as batch_size says how many completions one "
                f"forward pass has; got {self.gradient_accumulation}"
            )
        if self.dual_clip and self.dual_clip <= 1:
            raise ConfigError(f"dual_clip: expected 0, or more than 1; got {self.dual_clip}")
        per_token = self.advantage.startswith("reinforce++")
        if per_token and self.loss in ("gspo", "mirror_descent"):
            raise ConfigError(
                f"loss: {self.loss} takes one advantage for a completion, and {self.advantage} "
                "gives each token its own"
            )


@dataclass(frozen=True)
class Batch:
    """Completions in groups, and what they earned.

    rewards: (groups, size), with all that is added and taken. given: by function, as it came.
    """

    prompts: Sequence[Prompt]
    rollouts: Sequence[Rollout]
    rewards: np.ndarray
    given: Mapping[str, Sequence[float | None]]


class Grpo(Adapted):
    """The recipe that learns from groups of its own completions.

    reference: the model of the KL term, needed where beta is above 0; with LoRA the model itself
    without its adapters, if none is given. on_rollouts(step, batch,
    completions, advantages): is told of the batches of every rollout_interval-th step.
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
    }
    best_by: ClassVar[str] = "val_reward"
    higher_is_better: ClassVar[bool] = True
    config: GrpoConfig

    def __init__(
        self,
        config: GrpoConfig,
        model: Model,
        tokenizer: Tokenizer,
        source: Source,
        rewards: Sequence[tuple[Reward, float]],
        *,
        task: Task | None = None,
        reference: Model | None = None,
        on_rollouts: Callable[[int, Batch, Completions, np.ndarray], None] | None = None,
    ):
        self.adapters = adapters_of(config)
        if self.adapters is not None:
            lora.attach(model, self.adapters, Generator(config.seed))
        elif config.beta and reference is None:
            raise ConfigError(f"grpo: beta = {config.beta} needs a reference; got none")
        super().__init__(config, model, tokenizer)
        self.source, self.rewards, self.task = source, rewards, task
        self.reference = reference if reference is None else reference.to(config.device)
        self.on_rollouts = on_rollouts
        self.max_tokens = config.max_tokens or (task.longest_completion if task else 0)
        if self.max_tokens < 1:
            raise ConfigError("max_tokens: expected the length of the longest completion; got 0")
        self.validation = source.validation(config.eval_prompts)
        self._check_room()
        self.objective = Objective(config, self.max_tokens)
        self.position = self.written = 0

    def _check_room(self) -> None:
        context = self.model.config.max_position_embeddings
        longest = max((len(prompt.ids) for prompt in self.validation), default=0)
        if longest + self.max_tokens > context:
            raise ConfigError(
                f"max_tokens: expected prompts, of up to {longest} tokens, and completions to fit "
                f"into the model's context of {context}; got {self.max_tokens}"
            )

    @property
    def fingerprint(self) -> Any:
        return self.source.fingerprint

    def state(self) -> dict[str, Any]:
        return {"position": self.position, "written": self.written}

    def restore(self, saved: Any) -> None:
        super().restore(saved)
        self.position, self.written = saved.state["position"], saved.state["written"]

    def update(self) -> Metrics:
        """Write, judge, and learn; "tokens" are those that were written and learnt from."""
        batch, metrics = self.sample()
        completions = Completions.of(batch.rollouts)
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
        if reference is not None:
            log_ratio = (reference - completions.log_probs)[mask].astype(np.float64)
            metrics["kl"] = float((np.expm1(log_ratio) - log_ratio).mean())
        return metrics

    def sample(self) -> tuple[Batch, Metrics]:
        """Completions of the next prompts, those of equal rewards replaced as configured."""
        config, size = self.config, self.config.group_size
        batch = self._written(config.prompts)
        differ = _differ(batch.rewards)
        metrics = _metrics(batch, differ)
        for _ in range(config.dynamic_sampling):
            if differ.all():
                break
            more = self._written(config.prompts)
            batch = _replaced(batch, np.flatnonzero(~differ), more, _differ(more.rewards), size)
            differ = _differ(batch.rewards)
        metrics["used_groups"] = float(differ.mean())
        return batch, metrics

    def _written(self, count: int) -> Batch:
        """Completions of so many prompts, with their rewards."""
        config, size = self.config, self.config.group_size
        prompts = self.source.take(self.position, count)
        begun = begin([prompt.ids for prompt in prompts], size, self.written)
        self.position += count
        self.written += len(begun)
        sampler = Sampler(temperature=config.temperature, top_p=config.top_p)
        rollouts = self.write(begun, sampler)
        repeated = [prompt for prompt in prompts for _ in range(size)]
        total, given = self.judge(repeated, rollouts)
        rewards = total.reshape(count, size) + self._length_terms(rollouts, given, size)
        return Batch(prompts, rollouts, rewards, given)

    def write(self, rollouts: Sequence[Rollout], sampler: Sampler) -> list[Rollout]:
        """The rollouts with their completions, the tool's answers among them."""
        if self.task is None or self.task.tool is None:
            return self.complete(rollouts, sampler, self.max_tokens)
        with self.precision(), lora.merged(self.model):
            return converse(
                self.model,
                rollouts,
                self.task.tool,
                self.tokenizer,
                call_id=self.tokenizer.encode(self.task.call)[-1],
                max_calls=self.config.max_calls,
                max_tokens=self.max_tokens,
                **self._writing(sampler),
            )

    def complete(
        self, rollouts: Sequence[Rollout], sampler: Sampler, max_tokens: int
    ) -> list[Rollout]:
        """The rollouts with up to max_tokens more, and no tool."""
        options = self._writing(sampler)
        with self.precision(), lora.merged(self.model):
            return extend(self.model, rollouts, max_tokens=max_tokens, **options)

    def _writing(self, sampler: Sampler) -> dict[str, Any]:
        return {
            "stop_ids": {end_id(self.tokenizer)},
            "sampler": sampler,
            "seed": self.config.seed,
            "vocab_size": self.tokenizer.vocab_size,
            "places": self.config.places,
        }

    def judge(
        self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]
    ) -> tuple[np.ndarray, dict[str, list[float | None]]]:
        """The weighted rewards of completions, and those of each function."""
        return by_rewards(self.rewards, prompts, rollouts, self.tokenizer)

    def _length_terms(
        self, rollouts: Sequence[Rollout], given: Mapping[str, Sequence], size: int
    ) -> np.ndarray:
        """What lengths add to rewards: (groups, size)."""
        config = self.config
        lengths = np.array([float(sum(r.mask)) for r in rollouts]).reshape(-1, size)
        found = np.zeros(lengths.shape)
        if config.overlong_margin:
            limit, margin = self.max_tokens, config.overlong_margin
            found += rl.overlong_penalty(
                mt.from_numpy(lengths), max_length=limit, margin=margin
            ).numpy()
        if config.length_weight and self.step >= config.length_from:
            right = np.array([value == 1.0 for value in next(iter(given.values()))])
            terms = rl.length_reward(mt.from_numpy(lengths), mt.from_numpy(right.reshape(-1, size)))
            found += config.length_weight * terms.numpy()
        return found

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
        config = self.config
        mask, rewards = mt.from_numpy(completions.mask), mt.from_numpy(batch.rewards)
        if config.kl_in_reward and reference is not None:
            penalty = config.beta * (completions.log_probs - reference) * completions.mask
        else:
            penalty = np.zeros(completions.mask.shape)
        if config.advantage == "reinforce++":
            shaped = _at_the_end(batch.rewards.ravel(), completions.mask) - penalty
            return rl.reinforce_plus_plus_advantages(mt.from_numpy(shaped), mask).numpy()
        rewards = rewards - mt.from_numpy(penalty.sum(1).reshape(batch.rewards.shape))
        if config.advantage == "reinforce++_baseline":
            return rl.reinforce_plus_plus_baseline_advantages(rewards, mask).numpy()
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "grpo": rl.grpo_advantages,
            "dr_grpo": rl.dr_grpo_advantages,
            "rloo": rl.rloo_advantages,
            "none": rl.reinforce_advantages,
        }
        each = functions[config.advantage](rewards).numpy().reshape(-1, 1)
        return np.where(completions.mask, each, 0.0)

    def _minibatch(
        self,
        rows: np.ndarray,
        completions: Completions,
        batch: Batch,
        old: np.ndarray,
        advantages: np.ndarray,
        reference: np.ndarray | None,
    ) -> Metrics:
        """One optimizer step on some of the completions, a piece at a time."""
        config = self.config
        self.model.eval()
        self.optimizer.zero_grad()
        mask = completions.mask[rows]
        if config.overlong_filter:
            mask = mask & np.array([batch.rollouts[i].finished for i in rows])[:, None]
        total = self.objective.total(mask)
        metrics: Metrics = dict.fromkeys(("loss", "clip_fraction", "mismatch"), 0.0)
        for piece in _pieces(len(rows), _whole_groups(config.batch_size, config.group_size)):
            chosen = rows[piece]
            with self.precision():
                found = log_probs(self.model, completions.rows(chosen), config.temperature)
            loss, seen = self.objective(
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
            metrics["clip_fraction"] += seen["clip_fraction"] * len(piece) / len(rows)
            metrics["mismatch"] = max(metrics["mismatch"], seen["mismatch"])
        metrics["grad_norm"] = self.descend(metrics["loss"])
        return metrics

    def besides(
        self, found: Tensor, rows: np.ndarray, mask: np.ndarray, total: Total
    ) -> Tensor | float:
        """What a relative adds to the loss of a piece: found are the log-probabilities of rows."""
        return 0.0

    def evaluate(self, stop: Callable[[], bool] = lambda: False) -> Metrics | None:
        """Rewards of validation prompts, sampled and greedy; "greedy" counts the first reward."""
        if not self.validation:
            return {}
        found: Metrics = {}
        for name, sampler in (
            ("val", Sampler(temperature=self.config.temperature, top_p=self.config.top_p)),
            ("greedy", Sampler(temperature=0)),
        ):
            if stop():
                return None
            begun = begin([prompt.ids for prompt in self.validation], 1, VALIDATION_NUMBERS)
            rollouts = self.write(begun, sampler)
            total, given = self.judge(self.validation, rollouts)
            first = [value for value in next(iter(given.values())) if value is not None]
            lengths = [sum(rollout.mask) for rollout in rollouts]
            found |= {
                f"{name}_reward": float(total.mean()),
                f"{name}_length": float(np.mean(lengths)),
            }
            found |= {name if name == "greedy" else "val_first": float(np.mean(first or [0.0]))}
        return found


VALIDATION_NUMBERS = 1 << 64
"""Rollouts of evaluations are numbered from here on, so that no training draws the same."""


def _differ(rewards: np.ndarray) -> np.ndarray:
    """Which groups have rewards that differ; a group of one counts as such."""
    if rewards.shape[1] == 1:
        return np.ones(len(rewards), bool)
    return rl.informative_groups(mt.from_numpy(rewards)).numpy()


def _metrics(batch: Batch, differ: np.ndarray) -> Metrics:
    """Of a batch as it was written."""
    found = {
        "reward": float(batch.rewards.mean()),
        "zero_variance": float(1 - differ.mean()),
        "finished": float(np.mean([rollout.finished for rollout in batch.rollouts])),
    }
    for name, values in batch.given.items():
        said = [value for value in values if value is not None]
        if said:
            found[f"reward/{name}"] = float(np.mean(said))
    return found


def _replaced(batch: Batch, places: np.ndarray, more: Batch, good: np.ndarray, size: int) -> Batch:
    """The batch with the good groups of another at `places`, as far as they go."""
    prompts, rollouts = list(batch.prompts), list(batch.rollouts)
    rewards, given = batch.rewards.copy(), {k: list(v) for k, v in batch.given.items()}
    for place, source in zip(places.tolist(), np.flatnonzero(good).tolist()):
        to, at = slice(place * size, (place + 1) * size), slice(source * size, (source + 1) * size)
        prompts[place], rollouts[to] = more.prompts[source], more.rollouts[at]
        rewards[place] = more.rewards[source]
        for name, values in given.items():
            values[to] = more.given[name][at]
    return Batch(prompts, rollouts, rewards, given)


def _at_the_end(rewards: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Each completion's reward at its last token that counts, 0 elsewhere."""
    found = np.zeros(mask.shape)
    last = mask.shape[1] - 1 - mask[:, ::-1].argmax(1)
    found[np.arange(len(mask)), last] = np.where(mask.any(1), rewards, 0.0)
    return found


def _whole_groups(count: int, size: int) -> int:
    """The largest multiple of the group that is at most count, and one group at least."""
    return max(count // size, 1) * size


def _pieces(count: int, size: int) -> list[np.ndarray]:
    return [np.arange(i, min(i + size, count)) for i in range(0, count, size)]
