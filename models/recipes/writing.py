"""What recipes share that learn from what they write: prompts are completed and judged in groups.

o_1 … o_G ~ policy(· | prompt)               G = group_size completions, at the temperature
r_i = Σ weight · reward(prompt, o_i)         what is added and taken for lengths included
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

import minitorch as mt
from minitorch import rl
from minitorch.errors import ConfigError
from minitorch.random import Generator
from minitorch.tokenizers import Tokenizer
from models import checkpoints, lora
from models.chat import end_id
from models.environments.rewards import Reward
from models.environments.tasks import Task
from models.environments.turns import converse
from models.families import Model
from models.recipes.carried import Carried, Opened
from models.recipes.groups import Batch, Group
from models.recipes.grpo_config import GrpoConfig
from models.recipes.judging import Given, Score, by_rewards
from models.recipes.post_training import Adapted, adapters_of
from models.recipes.problems import Problems
from models.recipes.prompts import FileSource, Prompt, Source
from models.recipes.recipe import Metrics
from models.recipes.supervision import Supervision
from models.rollouts import Rollout, begin, extend
from models.sampling import Sampler

VALIDATION_NUMBERS = 1 << 64
"""Rollouts of evaluations are numbered from here on, so that no training draws the same."""


class Writing(Adapted):
    """A recipe that writes: what it samples from, and how completions are judged.

    A subclass defines `update`. source: of prompts. task: where they are of one, for its tool and
    the length of its answers. supervision: what judges single steps, where anything does. score:
    gives numbers to completions, as reward models do, besides the rewards or instead.
    """

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
        supervision: Supervision | None = None,
        score: Score | None = None,
    ):
        self.adapters = adapters_of(config)
        if self.adapters is not None:
            lora.attach(model, self.adapters, Generator(config.seed))
        super().__init__(config, model, tokenizer)
        self.source, self.rewards, self.task = source, rewards, task
        self.supervision, self.score = supervision, score
        if not rewards and score is None:
            raise ConfigError(
                "reward: expected reward functions, a reward model, or both; got none"
            )
        if config.length_weight and not rewards:
            raise ConfigError(
                "length_weight: expected a reward function that is 1 where a completion is right, "
                "since only those gain by being short; got none. Give one by --reward"
            )
        if (config.advantage == "process") == (supervision is None):
            raise ConfigError(
                "supervision: expected something that judges steps with advantage=process, and "
                f"only then; got {config.advantage} and {supervision or 'none'}"
            )
        self.max_tokens = config.max_tokens or (task.longest_completion if task else 0)
        if self.max_tokens < 1:
            raise ConfigError("max_tokens: expected the length of the longest completion; got 0")
        self.validation = source.validation(config.eval_prompts)
        self._check_room()
        self.position = self.written = 0
        self.carried = self._carrying()
        self.problems = self._choosing()

    def _check_room(self) -> None:
        context = self.model.config.max_position_embeddings
        longest = max((len(prompt.ids) for prompt in self.validation), default=0)
        if longest + self.max_tokens > context:
            raise ConfigError(
                f"max_tokens: expected prompts, of up to {longest} tokens, and completions to fit "
                f"into the model's context of {context}; got {self.max_tokens}"
            )

    def _carrying(self) -> Carried | None:
        segment = self.config.segment_tokens
        if segment and self.task is not None and self.task.tool is not None:
            raise ConfigError(
                f"segment_tokens: expected 0 where there is a tool, as {self.task.name} has, since "
                f"a call and its answer are one; got {segment}"
            )
        return Carried(segment, self.max_tokens) if segment else None

    def _choosing(self) -> Problems | None:
        config, source = self.config, self.source
        if not (config.priority or config.curriculum):
            return None
        count = len(source) if isinstance(source, FileSource) else config.problems
        if not count:
            raise ConfigError(
                "problems: expected how many prompts of the task there are to choose from, as "
                "nothing is to be known of one that never comes again; got 0"
            )
        if config.priority and not self.rewards:
            raise ConfigError(
                "priority: expected a reward function that is 1 where a completion is right; got "
                "none. Give one by --reward"
            )
        return Problems(
            source.take(0, count),
            config.seed,
            priority=config.priority,
            memory=config.success_memory,
            curriculum=config.curriculum,
            pace=config.curriculum_steps,
        )

    @property
    def fingerprint(self) -> Any:
        return self.source.fingerprint

    def state(self) -> dict[str, Any]:
        found = {"position": self.position, "written": self.written}
        return found if self.carried is None else {**found, "carried": self.carried.state()}

    def arrays(self) -> dict[str, np.ndarray]:
        found = super().arrays()
        if self.problems is None:
            return found
        return found | checkpoints.named({"problems": {"rates": self.problems.rates}})

    def restore(self, saved: checkpoints.Checkpoint) -> None:
        super().restore(saved)
        self.position, self.written = saved.state["position"], saved.state["written"]
        if self.problems is not None:
            self.problems.rates = saved.part("problems")["rates"].copy()
        if self.carried is not None:
            self.carried.restore(saved.state["carried"], self._prompt)

    def sample(self) -> tuple[Batch, Metrics]:
        """Completions of the next prompts, those of equal rewards replaced as configured.

        The metrics are of what was written first.
        """
        count = self.config.prompts
        batch = self._written(count)
        metrics = batch.metrics()
        for _ in range(self.config.dynamic_sampling):
            if batch.teaching == 1:
                break
            batch = batch.mended(self._written(count))
        if self.carried is not None:
            self.carried.settle()
        if self.problems is not None:
            metrics |= self.problems.metrics(self.step)
        return batch, {**metrics, "used_groups": batch.teaching}

    def _written(self, count: int) -> Batch:
        """Completions of so many prompts, with their rewards."""
        sampler = Sampler(temperature=self.config.temperature, top_p=self.config.top_p)
        if self.carried is None:
            opened = self._open(count)
            rollouts = self.write([r for group in opened for r in group.rollouts], sampler)
            return self._judged(opened, rollouts)
        whole = self.carried.take(
            count, self._open, lambda begun, limits: self.complete(begun, sampler, limits)
        )
        return self._judged(whole, [r for group in whole for r in group.rollouts])

    def _open(self, count: int) -> list[Opened]:
        """The next prompts, and nothing after them yet."""
        size, opened = self.config.group_size, []
        for row in self._rows(count):
            prompt = self._prompt(row)
            opened.append(Opened(row, prompt, begin([prompt.ids], size, self.written), [0] * size))
            self.written += size
        self.position += count
        return opened

    def _rows(self, count: int) -> Sequence[int]:
        if self.problems is None:
            return range(self.position, self.position + count)
        return self.problems.choose(count, self.step, self.position)

    def _prompt(self, row: int) -> Prompt:
        return self.source.take(row, 1)[0] if self.problems is None else self.problems.prompts[row]

    def _judged(self, opened: Sequence[Opened], rollouts: Sequence[Rollout]) -> Batch:
        """The groups with what was written and its rewards."""
        size = self.config.group_size
        repeated = [group.prompt for group in opened for _ in range(size)]
        total, given = self.judge(repeated, rollouts)
        rewards = total.reshape(-1, size) + self._length_terms(rollouts, given, size)
        steps = self.supervision(repeated, rollouts) if self.supervision else []
        groups = []
        for i, group in enumerate(opened):
            part = slice(i * size, (i + 1) * size)
            said = {name: values[part] for name, values in given.items()}
            groups.append(
                Group(group.prompt, rollouts[part], group.earlier, rewards[i], said, steps[part])
            )
            if self.problems is not None:
                self.problems.judged(group.row, float(np.mean(_right(said))))
        return Batch(groups)

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
        self, rollouts: Sequence[Rollout], sampler: Sampler, max_tokens: int | Sequence[int]
    ) -> list[Rollout]:
        """The rollouts with up to max_tokens more, of all or of each, and no tool."""
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
    ) -> tuple[np.ndarray, Given]:
        """What completions are worth in all, and by each function and the reward model."""
        total, given = np.zeros(len(rollouts)), Given()
        if self.rewards:
            total, given = by_rewards(self.rewards, prompts, rollouts, self.tokenizer)
        if self.score is not None:
            scores = self.score(prompts, rollouts)
            total, given = total + scores, {**given, "reward_model": scores.tolist()}
        return total, given

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
            right = _right(given).reshape(-1, size)
            terms = rl.length_reward(mt.from_numpy(lengths), mt.from_numpy(right))
            found += config.length_weight * terms.numpy()
        return found

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


def _right(given: Mapping[str, Sequence[float | None]]) -> np.ndarray:
    """Which completions the first function gave 1."""
    return np.array([value == 1.0 for value in next(iter(given.values()))])
