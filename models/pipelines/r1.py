r"""DeepSeek-R1's pipeline on a toy: sums, thought of in two alphabets, and words beside them.

    web text ──▶ base ──▶ zero            RL: right answers and the layout, nothing else
                  │
                  ├─▶ dev1                SFT on a few good chains of thought (cold start)
                  │    └─▶ dev2           RL: right, laid out, and thinking in one language
                  │         └─ samples    what dev2 writes and is right, of one language, and short
                  │                 + general data
                  ├─▶ dev3                SFT on these, from the base again, two epochs
                  │    └─▶ r1             RL on all tasks together
                  │         └─ lessons    what r1 writes and is right
    web text ──▶ small ──▶ distilled      SFT on these, of a model a fraction of the size

Beside them run three controls: `no language`, which is dev2 without the reward for one language;
`small`, the small model without r1's lessons; `small, RL`, which is R1-Zero's recipe on it.

The task is `bilingual` of `models.environments.tasks`: 27+85 is thought of as "cbb", the digits of
112 from the last on, in small or capital letters. The web text that the base has learnt from is
wrong about most sums and shows its thinking now and then; what it spells, it spells in a mixture.
The general data is `strings`: words after one of eight operations, answered without thinking.
All rewards are rules. Source: DeepSeek-AI 2025, "DeepSeek-R1" (arXiv 2501.12948), sections 2 and
3, and the names of the stages from its version in Nature 645, 633 (2025).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from minitorch.kernels.philox import stream
from minitorch.tokenizers import CharTokenizer
from models.environments.answers import TAGS, is_laid_out, tagged_answer, thinking
from models.environments.rewards import Reward, exact_match, language_consistency, layout
from models.environments.tasks import SMALL, Row, Task, bilingual, strings
from models.families import from_pretrained
from models.generate import END_OF_TEXT
from models.options import Settings, option
from models.pipelines.mixture import Mixture, only
from models.pipelines.pipeline import Pipeline
from models.pipelines.stages import Stages
from models.pipelines.toys import fine_tuning, misprinted, steps_of, write_untrained
from models.pipelines.written import Written, write
from models.recipes.grpo import Grpo
from models.recipes.grpo_config import GrpoConfig
from models.recipes.prompts import Prompt
from models.recipes.recipe import Recipe
from models.recipes.start import load_base

SUMS, WORDS = "sums", "words"
RIGHT, LAID_OUT, LANGUAGE, GENERAL = "right", "laid out", "language", "words right"
LAYOUT_WEIGHT = 0.2
SAMPLED, MEASURED = 1 << 40, 1 << 41
"""Prompts that are sampled from, and those that are measured, are drawn with numbers from here."""


@dataclass(frozen=True, kw_only=True)
class R1Config(Settings):
    """All that decides what `minitorch r1` computes."""

    command: ClassVar[str] = "r1"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toy": {},
        "quick": {
            "width": 16,
            "small_width": 8,
            "web_rows": 60,
            "cold_rows": 20,
            "sampled_prompts": 12,
            "general_rows": 10,
            "measured_prompts": 8,
            "base_steps": 3,
            "cold_steps": 2,
            "rl_steps": 2,
            "final_steps": 2,
            "distill_steps": 2,
            "prompts": 4,
            "group_size": 2,
        },
    }

    seed: int = option(0, "of the weights and of all that is drawn", at_least=0)
    width: int = option(64, "of the model", at_least=8)
    layers: int = option(2, "of the model", at_least=1)
    small_width: int = option(32, "of the model that is distilled into", at_least=8)
    small_layers: int = option(2, "of the model that is distilled into", at_least=1)
    heads: int = option(4, "of both", at_least=1)

    web_rows: int = option(40000, "texts that the base learns from", at_least=2)
    web_words: float = option(0.25, "share of words in it", at_least=0, at_most=1)
    web_right: float = option(0.4, "share of its answers that are right", at_least=0, at_most=1)
    web_thinking: float = option(0.3, "share of them with thinking", at_least=0, at_most=1)
    capitals: float = option(0.4, "share of capital letters in thinking", at_least=0, at_most=1)
    cold_rows: int = option(300, "chains of thought of the cold start", at_least=2)
    sampled_prompts: int = option(2000, "sums that dev2 and r1 are asked to teach", at_least=1)
    samples: int = option(2, "answers to each of them", at_least=1)
    longest: int = option(11, "tokens of an answer that is not overlong", at_least=1)
    general_rows: int = option(6000, "rows of general data", at_least=1)
    measured_prompts: int = option(1000, "of each task, for the table", at_least=1)

    base_steps: int = option(600, "of learning the web text", at_least=1)
    cold_steps: int = option(50, "of the cold start", at_least=1)
    epochs: int = option(2, "of the fine-tuning from the base", at_least=1)
    rl_steps: int = option(150, "of zero, of dev2 and of the controls", at_least=1)
    final_steps: int = option(150, "of RL on all tasks", at_least=1)
    distill_steps: int = option(800, "of the distillation", at_least=1)
    prompts: int = option(32, "of a step of RL", at_least=1)
    group_size: int = option(8, "completions of a prompt", at_least=2)

    base_learning_rate: float = option(4e-3, "of learning the web text", above=0)
    sft_learning_rate: float = option(1e-3, "of fine-tuning", above=0)
    rl_learning_rate: float = option(5e-4, "of RL", above=0)
    beta: float = option(0.01, "weight of the KL divergence from where RL begins", at_least=0)
    language_weight: float = option(0.5, "of the reward for one language", at_least=0)


def run(config: R1Config, stages: Stages) -> list[dict[str, Any]]:
    """All stages; the rows of the table, in the order of the stages."""
    return _R1(config, stages).run()


class _R1(Pipeline):
    """The pipeline at work. Folders are those of checkpoints."""

    def __init__(self, config: R1Config, stages: Stages):
        super().__init__(config, stages)
        self.tasks = {SUMS: bilingual(mixed=config.capitals), WORDS: strings()}
        alphabet = "".join(task.alphabet for task in self.tasks.values())
        self.tokenizer = CharTokenizer(sorted(set(alphabet)), [END_OF_TEXT, *TAGS])
        self.prompt_length = max(task.longest_prompt for task in self.tasks.values())
        self.max_tokens = max(task.longest_completion for task in self.tasks.values()) + 1

    def run(self) -> list[dict[str, Any]]:
        config, rows = self.config, self.stages.rows
        correct, one_language = self.rewards(), self.rewards(config.language_weight)

        web = rows("01-web-text", self.web_text)
        large = lambda: self.untrained("02-base", config.width, config.layers)  # noqa: E731
        base = self.train("base", "02-base", lambda: self.pretrained(web, large()))
        self.train("zero", "03-zero", lambda: self.rl(base, correct, config.rl_steps))

        cold = rows("04-cold-start", self.cold_start)
        dev1 = self.train("dev1", "05-dev1", lambda: self.sft(base, cold, config.cold_steps))
        dev2 = self.train("dev2", "06-dev2", lambda: self.rl(dev1, one_language, config.rl_steps))
        self.train("no language", "07-no-language", lambda: self.rl(dev1, correct, config.rl_steps))

        samples = rows("08-samples", lambda: [*self.accepted(dev2), *self.general()])
        dev3 = self.train("dev3", "09-dev3", lambda: self.sft(base, samples))
        r1 = self.train(
            "r1", "10-r1", lambda: self.rl(dev3, one_language, config.final_steps, self.tasks)
        )

        lessons = rows("11-lessons", lambda: [*self.accepted(r1), *self.general()])
        tiny = lambda: self.untrained("12-small", config.small_width, config.small_layers)  # noqa: E731
        small = self.train("small", "12-small", lambda: self.pretrained(web, tiny()))
        self.train("small, RL", "13-small-rl", lambda: self.rl(small, correct, config.rl_steps))
        self.train(
            "distilled", "14-distilled", lambda: self.sft(small, lessons, config.distill_steps)
        )
        return self.table

    def untrained(self, stage: str, width: int, layers: int) -> Path:
        """A model with random weights."""
        return write_untrained(
            self.stages.out / stage / "untrained",
            self.tokenizer,
            width=width,
            layers=layers,
            heads=self.config.heads,
            positions=self.prompt_length + self.max_tokens,
            seed=self.config.seed,
        )

    def pretrained(self, web: Path, untrained: Path) -> Recipe:
        """The recipe of a base model."""
        config = self.config
        rate = config.base_learning_rate
        return fine_tuning(
            untrained, web, steps=config.base_steps, learning_rate=rate, seed=config.seed
        )

    def sft(self, model: Path, rows: Path, steps: int = 0) -> Recipe:
        """The recipe that learns rows; without steps, for as many epochs as are configured."""
        return fine_tuning(
            model,
            rows,
            steps=steps or steps_of(rows, self.config.epochs),
            learning_rate=self.config.sft_learning_rate,
            seed=self.config.seed,
        )

    def rl(
        self,
        model: Path,
        rewards: Sequence[tuple[Reward, float]],
        steps: int,
        tasks: Mapping[str, Task] | None = None,
    ) -> Recipe:
        """GRPO from a model, of sums unless other tasks are given."""
        config = self.config
        settings = GrpoConfig(
            model=str(model),
            steps=steps,
            prompts=config.prompts,
            group_size=config.group_size,
            max_tokens=self.max_tokens,
            learning_rate=config.rl_learning_rate,
            beta=config.beta,
            eval_interval=50,
            eval_prompts=config.prompts,
            seed=config.seed,
        )
        policy, tokenizer = load_base(model, config.seed)
        reference = from_pretrained(model).requires_grad_(False) if config.beta else None
        source = Mixture(tasks or {SUMS: self.tasks[SUMS]}, tokenizer, config.seed)
        return Grpo(settings, policy, tokenizer, source, rewards, reference=reference)

    def rewards(self, language_weight: float = 0.0) -> list[tuple[Reward, float]]:
        """Rules: right and laid out for sums, right for words, and thinking in one language."""
        language = [(only(SUMS, language_consistency(SMALL)), language_weight)]
        return [
            (only(SUMS, exact_match(tagged_answer)), 1.0),
            (only(WORDS, exact_match()), 1.0),
            (only(SUMS, layout()), LAYOUT_WEIGHT),
            *(language if language_weight else []),
        ]

    def web_text(self) -> Iterator[Row]:
        """Sums, few of them with thinking, and words; most have one digit or letter misprinted."""
        config, random = self.config, stream(self.config.seed, 1)
        for _ in range(config.web_rows):
            task = self.tasks[WORDS if random.random() < config.web_words else SUMS]
            row = task.draw(random)
            if random.random() >= config.web_right:
                row["answer"] = misprinted(row["answer"], random)
            thinks = task.name == "bilingual" and random.random() < config.web_thinking
            completion = task.demonstrate(row, random) if thinks else row["answer"]
            yield {"prompt": row["prompt"], "completion": completion}

    def cold_start(self) -> Iterator[Row]:
        """Sums with thinking, all right, spelt in a mixture of alphabets."""
        task, random = self.tasks[SUMS], stream(self.config.seed, 2)
        for _ in range(self.config.cold_rows):
            row = task.draw(random)
            yield {"prompt": row["prompt"], "completion": task.demonstrate(row, random)}

    def general(self) -> Iterator[Row]:
        """Words and their answers."""
        task, random = self.tasks[WORDS], stream(self.config.seed, 3)
        for _ in range(self.config.general_rows):
            row = task.draw(random)
            yield {"prompt": row["prompt"], "completion": row["answer"]}

    def accepted(self, model: Path) -> Iterator[Row]:
        """What a model answers to sums, where it is right, of one language, and not overlong."""
        config = self.config
        prompts = Mixture({SUMS: self.tasks[SUMS]}, self.tokenizer, config.seed).take(
            SAMPLED, config.sampled_prompts
        )
        for written in self.write(model, prompts, config.samples):
            scores = judge(written)
            if scores[RIGHT] and scores[LANGUAGE] == 1 and written.length <= config.longest:
                yield {"prompt": written.prompt.text, "completion": written.text}

    def write(self, model: Path, prompts: Sequence[Prompt], samples: int = 1) -> list[Written]:
        """Answers, sampled at temperature 1."""
        seed = self.config.seed + 1
        return write(model, prompts, max_tokens=self.max_tokens, seed=seed, samples=samples)

    def measure(self, model: Path) -> dict[str, Any]:
        """Shares over prompts that nothing was trained on by number, sampled at temperature 1."""
        found: dict[str, Any] = {}
        for name, task in self.tasks.items():
            source = Mixture({name: task}, self.tokenizer, self.config.seed)
            written = self.write(model, source.take(MEASURED, self.config.measured_prompts))
            if name == WORDS:
                right = [one.text.strip() == one.prompt.columns["answer"] for one in written]
                found[GENERAL] = float(np.mean(right))
                continue
            scores = [judge(one) for one in written]
            for key in (RIGHT, LAID_OUT, LANGUAGE):
                known = [value for score in scores if (value := score[key]) is not None]
                found[key] = float(np.mean(known)) if known else None
            found["length"] = float(np.mean([one.length for one in written]))
        return found


def judge(written: Written) -> dict[str, float | None]:
    """Of an answer to a sum: right, laid out, and the share of its thinking in small letters.

    The last is None where it has shown no thinking.
    """
    (language,) = language_consistency(SMALL)([written.prompt.text], [written.text])
    return {
        RIGHT: float(tagged_answer(written.text) == written.prompt.columns["answer"]),
        LAID_OUT: float(is_laid_out(written.text)),
        LANGUAGE: None if thinking(written.text) is None else language,
    }
