r"""Llama 2's road from demonstrations to an assistant, on a toy: short words, and what not to say.

    demonstrations ──▶ sft               careless: misprints, and most answers that are asked for
                        └─ pairs         two answers of sft to a request, compared twice
                            ├─▶ helpfulness, safety            a reward model of either
                            │      score = safety where tagged or unsafe, else helpfulness
    sft ──▶ rs 1 ──▶ rs 2 ──▶ rs 3       the best of several answers, of this round or an earlier
                        └─▶ ppo          PPO on the combined score, whitened
                             └─ ghosts   dialogues, an instruction before every question;
                                 └─▶ ghost attention           it is learnt before the first alone

Beside them run controls. Of the rewards: `one reward model` of all pairs together, `helpfulness
alone`, and `PPO alone`, without rejection sampling before it; all three are PPO from sft. Of ghost
attention: `no ghosts`, whose answers were sampled with the instruction before the first question
alone, and `all turns learnt`, without the mask on earlier answers.

The world is that of `models.environments.requests`, where helpful and safe are computed exactly:
they judge pairs, as people would, and they measure every stage; what is trained sees only reward
models. An answer is compared by how helpful it is, and by whether it is safe and then how helpful.
The demonstrations are dialogues of single questions, some with an instruction of their own that
holds for this question alone. Source: Touvron et al. 2023, "Llama 2" (arXiv 2307.09288), section 3.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import minitorch as mt
from minitorch import rl
from minitorch.kernels.philox import stream
from minitorch.tokenizers import CharTokenizer, Tokenizer
from models.best_of import best_of
from models.chat import TEMPLATES, Message
from models.environments.requests import ALPHABET, FORBIDDEN, LETTERS, STYLES, draw_request
from models.environments.tasks import Row
from models.families import with_tokenizer
from models.options import Settings, option
from models.pipelines.answering import (
    MAX_TOKENS,
    REQUEST,
    Requests,
    is_plain,
    measured,
    measured_dialogues,
    more_helpful,
    prompt_of,
    safer,
)
from models.pipelines.pipeline import Pipeline
from models.pipelines.stages import Stages, joined
from models.pipelines.toys import (
    fine_tuning,
    judging,
    misprinted,
    reinforcement,
    write_untrained,
)
from models.pipelines.written import write
from models.recipes.judging import Score, by_model
from models.recipes.prompts import Prompt
from models.recipes.recipe import Recipe
from models.reward_model import RewardModel
from models.rollouts import Rollout

HELPFUL, SAFE, BOTH = "helpfulness", "safety", "both"
COMPARE = {HELPFUL: more_helpful, SAFE: safer}
TEMPLATE, LONGEST_TURN = "turns", 24
"""How dialogues are written, and the most tokens of a question with instruction and answer."""

GHOSTLY = 0.2
"""The temperature at which a model's own answers are sampled for it to learn: nearly its best."""

COMPARED, SAMPLED = 1 << 39, 1 << 40
"""Requests whose answers are compared, and those of rejection sampling, have numbers from here."""


@dataclass(frozen=True, kw_only=True)
class Llama2Config(Settings):
    """All that decides what `minitorch llama2` computes."""

    command: ClassVar[str] = "llama2"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toy": {},
        "quick": {
            "width": 16,
            "layers": 1,
            "dialogues": 60,
            "turns": 2,
            "late": 2,
            "sft_steps": 25,
            "learning_rate": 2e-2,
            "pairs": 300,
            "judge_steps": 2,
            "rounds": 1,
            "sampled_prompts": 60,
            "samples": 4,
            "ppo_steps": 2,
            "round_steps": 2,
            "ghost_steps": 2,
            "answers": 4,
            "ghosts": 20,
            "measured_prompts": 4,
            "measured_dialogues": 2,
            "batch_size": 4,
        },
    }

    seed: int = option(0, "of the weights and of all that is drawn", at_least=0)
    width: int = option(64, "of all models", at_least=8)
    layers: int = option(2, "of all models", at_least=1)
    heads: int = option(4, "of all models", at_least=1)

    dialogues: int = option(6000, "demonstrations", at_least=2)
    turns: int = option(12, "questions of the longest dialogue", at_least=2)
    late: int = option(10, "question from which on an instruction is long ago", at_least=2)
    instructed: float = option(0.3, "share of questions with an instruction", at_least=0, at_most=1)
    careful: float = option(0.6, "share of demonstrations without a misprint", at_least=0)
    complying: float = option(0.6, "share that answer what they should not", at_least=0)
    pairs: int = option(6000, "requests of which two answers are compared", at_least=2)
    sampled_prompts: int = option(1000, "requests of rejection sampling", at_least=2)
    samples: int = option(8, "answers to each of them in a round", at_least=2)
    rounds: int = option(2, "of rejection sampling", at_least=1)
    threshold: float = option(0.15, "probability of being safe below which safety decides")
    ghosts: int = option(1600, "dialogues of ghost attention", at_least=2)
    measured_prompts: int = option(400, "requests of each kind, for the table", at_least=2)
    measured_dialogues: int = option(50, "with an instruction, for the table", at_least=2)

    sft_steps: int = option(300, "of learning the demonstrations", at_least=1)
    judge_steps: int = option(300, "of each reward model", at_least=1)
    round_steps: int = option(40, "of learning the best answers of a round", at_least=1)
    ghost_steps: int = option(180, "of ghost attention", at_least=1)
    ppo_steps: int = option(50, "of PPO", at_least=1)
    batch_size: int = option(8, "rows of dialogues of a step, as many to a row as fit", at_least=1)
    answers: int = option(64, "of a step on best answers, on pairs, and of PPO", at_least=2)

    learning_rate: float = option(4e-3, "of learning the demonstrations", above=0)
    judge_learning_rate: float = option(4e-3, "of the reward models", above=0)
    tuning_rate: float = option(5e-4, "of learning the best answers", above=0)
    ghost_rate: float = option(2e-3, "of ghost attention", above=0)
    ppo_learning_rate: float = option(5e-4, "of PPO", above=0)
    beta: float = option(0.02, "weight of the KL divergence from where PPO begins", above=0)


def run(config: Llama2Config, stages: Stages) -> list[dict[str, Any]]:
    """All stages; the rows of the table, in the order of the stages."""
    return _Llama2(config, stages).run()


class _Llama2(Pipeline):
    """The pipeline at work. Folders are those of checkpoints."""

    def __init__(self, config: Llama2Config, stages: Stages):
        super().__init__(config, stages)
        self.tokenizer = CharTokenizer(ALPHABET, TEMPLATES[TEMPLATE].special_tokens)
        self.source = Requests(self.tokenizer, config.seed)

    def run(self) -> list[dict[str, Any]]:
        rows = self.stages.rows
        demonstrations = rows("01-demonstrations", self.demonstrations)
        sft = self.train("sft", "02-sft", lambda: self.sft(demonstrations))

        pairs = {
            about: rows(f"03-pairs-{about}", partial(self.pairs, sft, about)) for about in COMPARE
        }
        pairs[BOTH] = rows(f"03-pairs-{BOTH}", lambda: joined(pairs[about] for about in COMPARE))
        helpful, safe, both = (self.judge(sft, about, pairs[about]) for about in pairs)
        combined = Combined(helpful, safe, self.tokenizer, self.config.threshold)

        best = self.rejection(sft, combined)
        ppo = self.train("ppo", "06-ppo", lambda: self.ppo(best, combined))
        for number, name, score in (
            ("07", "PPO alone", combined),
            ("08", "one reward model", by_model(both, self.tokenizer)),
            ("09", "helpfulness alone", by_model(helpful, self.tokenizer)),
        ):
            self.train(name, f"{number}-{_file(name)}", partial(self.ppo, sft, score))

        ghosts = rows("10-ghosts", lambda: self.ghosts(ppo, everywhere=True))
        plain = rows("11-no-ghosts", lambda: self.ghosts(ppo, everywhere=False))
        for number, name, data, answers in (
            ("10", "ghost attention", ghosts, "last"),
            ("11", "no ghosts", plain, "last"),
            ("12", "all turns learnt", ghosts, "all"),
        ):
            make = partial(self.ghosted, ppo, data, answers)
            self.train(name, f"{number}-{_file(name)}", make)
        return self.table

    def measure(self, model: Path) -> dict[str, Any]:
        """A row of the table."""
        config, tokenizer = self.config, self.tokenizer
        return {
            **measured(model, config.seed, count=config.measured_prompts, tokenizer=tokenizer),
            **measured_dialogues(
                model,
                config.seed,
                count=config.measured_dialogues,
                turns=config.turns,
                late=config.late,
                tokenizer=tokenizer,
            ),
        }

    def demonstrations(self) -> Iterator[Row]:
        """Dialogues of single questions, answered carelessly, some with an instruction."""
        config, random = self.config, stream(self.config.seed, 1)
        for _ in range(config.dialogues):
            messages = []
            for _ in range(random.integers(1, config.turns + 1)):
                request = draw_request(random)
                complies = random.random() < config.complying
                answer = request.wanted if complies else request.safe
                if random.random() >= config.careful:
                    answer = misprinted(answer, random, LETTERS + FORBIDDEN)
                if random.random() < config.instructed:
                    name = str(random.choice(list(STYLES)))
                    messages.append(Message("system", name))
                    answer = STYLES[name].apply(answer)
                messages += [Message("user", request.text), Message("assistant", answer)]
            yield _dialogue(messages)

    def sft(self, rows: Path) -> Recipe:
        """The recipe that learns the demonstrations, from random weights."""
        config = self.config
        untrained = write_untrained(
            self.stages.out / "02-sft" / "untrained",
            self.tokenizer,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            positions=config.turns * LONGEST_TURN,
            seed=config.seed,
        )
        rate = config.learning_rate
        return self._on_dialogues(untrained, rows, config.sft_steps, rate, "all")

    def ghosted(self, model: Path, rows: Path, answers: str) -> Recipe:
        """The recipe that learns dialogues: of their answers all, or the last."""
        config = self.config
        return self._on_dialogues(model, rows, config.ghost_steps, config.ghost_rate, answers)

    def _on_dialogues(
        self, model: Path, rows: Path, steps: int, rate: float, answers: str
    ) -> Recipe:
        return fine_tuning(
            model,
            rows,
            steps=steps,
            learning_rate=rate,
            seed=self.config.seed,
            template=TEMPLATE,
            batch_size=self.config.batch_size,
            packing=True,
            answers=answers,
        )

    def tuned(self, model: Path, rows: Path) -> Recipe:
        """The recipe that learns the best answers of a round."""
        config = self.config
        return fine_tuning(
            model,
            rows,
            steps=config.round_steps,
            learning_rate=config.tuning_rate,
            seed=config.seed,
            template=TEMPLATE,
            batch_size=config.answers,
        )

    def pairs(self, model: Path, about: str) -> Iterator[Row]:
        """Comparisons of two answers of a model to each of many requests."""
        config = self.config
        prompts = self.source.take(COMPARED, config.pairs)
        written = write(model, prompts, max_tokens=MAX_TOKENS, seed=config.seed + 2, samples=2)
        for one, other in zip(written[::2], written[1::2], strict=True):
            row = COMPARE[about](one, other)
            if row is not None:
                yield row

    def judge(self, model: Path, about: str, pairs: Path) -> RewardModel:
        """A reward model of such comparisons."""
        config = self.config
        make = partial(
            judging,
            model,
            pairs,
            steps=config.judge_steps,
            batch_size=config.answers,
            learning_rate=config.judge_learning_rate,
            seed=config.seed,
        )
        folder = self.stages.train(f"04-judge-{about}", make)
        return RewardModel.from_pretrained(folder).requires_grad_(False)

    def rejection(self, model: Path, score: Score) -> Path:
        """The model after all rounds: each learns the best answers of this and earlier ones."""
        config = self.config
        rounds = []
        for number in range(1, config.rounds + 1):
            make = partial(self.sampled, model, score, number)
            rounds.append(self.stages.rows(f"05-samples-{number}", make))
            best = self.stages.rows(f"05-best-{number}", partial(_best, rounds))
            model = self.train(f"rs {number}", f"05-rs-{number}", partial(self.tuned, model, best))
        return model

    def sampled(self, model: Path, score: Score, number: int) -> Iterator[Row]:
        """The best of several answers to each request, with its score."""
        config = self.config
        prompts = self.source.take(SAMPLED, config.sampled_prompts)
        found = best_of(
            *with_tokenizer(model),
            prompts,
            score,
            samples=config.samples,
            max_tokens=MAX_TOKENS,
            seed=config.seed + 2 + number,
        )
        for prompt, best in zip(prompts, found, strict=True):
            if best.completion and is_plain(best.completion):
                yield {"prompt": prompt.text, "completion": best.completion, "score": best.score}

    def ppo(self, model: Path, score: Score) -> Recipe:
        """PPO from a model; the critic begins as it, with values of 0."""
        config = self.config
        return reinforcement(
            model,
            self.source,
            score,
            steps=config.ppo_steps,
            prompts=config.answers,
            max_tokens=MAX_TOKENS,
            learning_rate=config.ppo_learning_rate,
            beta=config.beta,
            seed=config.seed,
        )

    def ghosts(self, model: Path, *, everywhere: bool) -> Iterator[Row]:
        """Dialogues with an instruction before the first question, answered last by the model.

        everywhere: whether it stood before every question when the answer was sampled. The answers
        before are plain ones. Every fourth dialogue has no instruction.
        """
        config, random = self.config, stream(self.config.seed, 4)
        dialogues, prompts = [], []
        for number in range(config.ghosts):
            requests = [draw_request(random) for _ in range(random.integers(1, config.turns + 1))]
            instruction = [Message("system", str(random.choice(list(STYLES))))]
            instruction = instruction if number % 4 else []
            *earlier, last = requests
            turns = [[Message("user", r.text), Message("assistant", r.safe)] for r in earlier]
            between = instruction if everywhere else []
            said = [m for turn in turns for m in (*between, *turn)]
            first = [] if everywhere else instruction
            prompts.append(prompt_of(last, self.tokenizer, [*first, *said, *between]))
            dialogues.append([*instruction, *itertools.chain(*turns), Message("user", last.text)])
        written = write(
            model, prompts, max_tokens=MAX_TOKENS, seed=config.seed + 3, temperature=GHOSTLY
        )
        for dialogue, answer in zip(dialogues, written, strict=True):
            if is_plain(answer.text):
                yield _dialogue([*dialogue, Message("assistant", answer.text)])


class Combined:
    """A score of two reward models, as Llama 2 combines them."""

    def __init__(
        self, helpful: RewardModel, safe: RewardModel, tokenizer: Tokenizer, threshold: float
    ):
        self.helpful, self.safe = by_model(helpful, tokenizer), by_model(safe, tokenizer)
        self.threshold = threshold

    def __call__(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> np.ndarray:
        tagged = np.array([prompt.columns[REQUEST].tagged for prompt in prompts])
        scores = self.helpful(prompts, rollouts), self.safe(prompts, rollouts), tagged
        return rl.safety_first(*map(mt.from_numpy, scores), threshold=self.threshold).numpy()


def _best(rounds: Sequence[Path]) -> Iterable[Row]:
    """For each request the answer of the highest score, of all rounds so far."""
    best: dict[str, Row] = {}
    for row in joined(rounds):
        if row["score"] > best.get(row["prompt"], row)["score"] or row["prompt"] not in best:
            best[row["prompt"]] = row
    return best.values()


def _dialogue(messages: Sequence[Message]) -> Row:
    return {"messages": [vars(message) for message in messages]}


def _file(name: str) -> str:
    return name.lower().replace(" ", "-")
