r"""Constitutional AI on a toy: a model that mends its own answers, and judges them, by two rules.

    demonstrations ──▶ helpful                  does what it is asked, also what it should not
                        ├─▶ revisions           its answers, criticised and mended by itself
                        │      └─▶ sl           helpful, fine-tuned on these
                        └─▶ comparisons         of two answers of sl: which breaks a rule less?
                               + people's       which is more helpful?
                                └─▶ preference model ──▶ rl       PPO from sl

The constitution is two rules: no "g" in an answer, and no "!" at its end. People say which of two
answers is more helpful, of ordinary requests alone; nobody labels what is harmful but the model.
Criticising, mending and comparing are skills that it has learnt from demonstrations, as a large
model can be told how: they do not change how it answers by itself.

    user       rev abg           user       g: gba or -ba?
    assistant  gba!              assistant  B
    user       check g
    assistant  bad               the comparison is asked in both orders, and its label is drawn
    user       mend              with the mean of the two probabilities of the answer's letter
    assistant  -ba!

Beside them run controls: `unrevised` learns the first answers in place of the revisions, `no
critique` is asked to mend without having been asked to check, and the preference model of `labels
at random` is of comparisons that a coin decides. Source: Bai et al. 2022, "Constitutional AI"
(arXiv 2212.08073), sections 3 and 4.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import minitorch as mt
from minitorch.kernels.philox import stream
from minitorch.tokenizers import CharTokenizer, Tokenizer
from models.chat import TEMPLATES, Message, render_prompt
from models.environments import requests
from models.environments.requests import (
    FORBIDDEN,
    GAP,
    ORDINARY,
    Request,
    draw_request,
    helpfulness,
)
from models.environments.tasks import Row
from models.families import Model, with_tokenizer
from models.options import Settings, option
from models.pipelines.answering import (
    MAX_TOKENS,
    MEASURED,
    REQUEST,
    Requests,
    compared,
    heard,
    is_plain,
)
from models.pipelines.pipeline import Pipeline
from models.pipelines.stages import Stages, joined
from models.pipelines.toys import fine_tuning, judging, reinforcement, write_untrained
from models.pipelines.written import Written, write
from models.recipes.completions import Completions, log_probs
from models.recipes.judging import by_model
from models.recipes.prompts import Prompt
from models.recipes.recipe import Recipe
from models.reward_model import RewardModel
from models.rollouts import Rollout

SHOUT = "!"
RULES: Mapping[str, Callable[[str], str]] = {
    FORBIDDEN: lambda text: text.replace(FORBIDDEN, GAP),
    SHOUT: lambda text: text.rstrip(SHOUT),
}
"""What an answer must not have, and how it is mended."""

BAD, FINE, MEND = "bad", "fine", "mend"
A, B = "A", "B"
ALPHABET = "".join(sorted(set(requests.ALPHABET + BAD + FINE + MEND + "check:or?" + A + B)))
TEMPLATE = "turns"
CONTEXT = 96
"""Tokens of the longest dialogue: a request, an answer, and two rounds of checking and mending."""

RIGHT, GAPS, BREAKS = "right", "gaps right", "breaks a rule"
REVISED, COMPARED, HELPED = 1 << 38, 1 << 39, 1 << 40
"""Requests with numbers from here are revised, compared by the model, compared by people."""


@dataclass(frozen=True, kw_only=True)
class ConstitutionConfig(Settings):
    """All that decides what the pipeline computes."""

    command: ClassVar[str] = "constitution"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toy": {},
        "quick": {
            "width": 16,
            "layers": 1,
            "demonstrations": 200,
            "revised": 60,
            "pairs": 150,
            "measured": 10,
            "helpful_steps": 40,
            "learning_rate": 2e-2,
            "tuning_steps": 2,
            "judge_steps": 2,
            "ppo_steps": 2,
            "batch_size": 8,
            "answers": 4,
        },
    }

    seed: int = option(0, "of the weights and of all that is drawn", at_least=0)
    width: int = option(64, "of all models", at_least=8)
    layers: int = option(2, "of all models", at_least=1)
    heads: int = option(4, "of all models", at_least=1)

    demonstrations: int = option(6000, "dialogues that the first model learns from", at_least=2)
    complying: float = option(0.9, "share of answers that have what they should not", at_least=0)
    shouting: float = option(0.1, "share of answers that end in !", at_least=0, at_most=1)
    revised: int = option(1000, "requests whose answers are revised", at_least=2)
    rounds: int = option(3, "of checking and mending, each by a rule that is drawn", at_least=1)
    pairs: int = option(6000, "requests that people compare, and as many for the model", at_least=2)
    variety: float = option(1.5, "temperature of the answers that people compare", above=0)
    measured: int = option(800, "requests for the table", at_least=2)

    helpful_steps: int = option(300, "of learning the demonstrations", at_least=1)
    tuning_steps: int = option(60, "of learning revisions", at_least=1)
    judge_steps: int = option(250, "of the preference model", at_least=1)
    ppo_steps: int = option(50, "of PPO", at_least=1)
    batch_size: int = option(16, "rows of dialogues of a step, as many to a row as fit", at_least=1)
    answers: int = option(64, "of a step on revisions, on pairs, and of PPO", at_least=2)

    learning_rate: float = option(4e-3, "of demonstrations and preference models", above=0)
    tuning_rate: float = option(1e-3, "of learning revisions", above=0)
    ppo_learning_rate: float = option(5e-4, "of PPO", above=0)
    beta: float = option(0.05, "weight of the KL divergence from where PPO begins", above=0)


def run(config: ConstitutionConfig, stages: Stages) -> list[dict[str, Any]]:
    """All stages; the rows of the table, in the order of the stages."""
    return _Constitution(config, stages).run()


class _Constitution(Pipeline):
    """The pipeline at work."""

    def __init__(self, config: ConstitutionConfig, stages: Stages):
        super().__init__(config, stages)
        self.tokenizer = CharTokenizer(ALPHABET, TEMPLATES[TEMPLATE].special_tokens)

    def run(self) -> list[dict[str, Any]]:
        rows = self.stages.rows
        shown = rows("01-demonstrations", self.demonstrations)
        helpful = self.train("helpful", "01-helpful", lambda: self.helpful(shown))

        mended = {}
        for number, name, revise in (
            ("02", "unrevised", self.unrevised),
            ("03", "no critique", self.mended_at_once),
            ("04", "sl", self.revised),
        ):
            stage = f"{number}-{name.replace(' ', '-')}"
            data = rows(stage, partial(revise, helpful))
            mended[name] = self.train(name, stage, partial(self.tuned, helpful, data))

        sl = mended["sl"]
        people = rows("05-people", partial(self.by_people, sl))
        for number, name, judge in (
            ("06", "labels at random", None),
            ("07", "rl", helpful),
        ):
            stage = f"{number}-{name.replace(' ', '-')}"
            judged = rows(f"{stage}-judged", partial(self.by_model, sl, judge))
            data = rows(stage, partial(joined, [people, judged]))
            model = self.stages.train(f"{stage}-judge", partial(self.preferences, sl, data))
            self.train(name, stage, partial(self.reinforced, sl, model))
        return self.table

    def measure(self, model: Path) -> dict[str, Any]:
        """Shares of answers to requests of all kinds, at temperature 1."""
        config = self.config
        prompts = Requests(self.tokenizer, config.seed).take(MEASURED, config.measured)
        written = write(model, prompts, max_tokens=MAX_TOKENS, seed=config.seed + 1)
        asked = [one.prompt.columns[REQUEST] for one in written]
        best = np.array([content(one.text) == r.safe for one, r in zip(written, asked)])
        ordinary = np.array([request.kind == ORDINARY for request in asked])
        broken = [any(breaks(one.text, rule) for rule in RULES) for one in written]
        return {
            RIGHT: float(best[ordinary].mean()),
            GAPS: float(best[~ordinary].mean()),
            BREAKS: float(np.mean(broken)),
        }

    def demonstrations(self) -> Iterator[Row]:
        """Answers, half of them criticised and mended, and comparisons."""
        random = stream(self.config.seed, 1)
        kinds: Sequence[Callable[[np.random.Generator], list[Message]]] = (
            self._answered, self._mended, self._mended, self._comparison,
        )  # fmt: skip
        for _ in range(self.config.demonstrations):
            yield {"messages": [vars(m) for m in kinds[int(random.integers(len(kinds)))](random)]}

    def _answered(self, random: np.random.Generator) -> list[Message]:
        request = draw_request(random)
        return _turn(request, self._answer(request, random))

    def _answer(self, request: Request, random: np.random.Generator) -> str:
        """What the first model is shown to say, rules or not."""
        complies = random.random() < self.config.complying
        shout = SHOUT if random.random() < self.config.shouting else ""
        return (request.wanted if complies else request.safe) + shout

    def _mended(self, random: np.random.Generator) -> list[Message]:
        messages = self._answered(random)
        rule = _rule(random)
        text = messages[-1].content
        if random.random() < 0.3 and not breaks(text, SHOUT):
            text += SHOUT
            messages[-1] = Message("assistant", text)
        return [
            *messages,
            _user(check(rule)),
            Message("assistant", BAD if breaks(text, rule) else FINE),
            _user(MEND),
            Message("assistant", RULES[rule](text)),
        ]

    def _comparison(self, random: np.random.Generator) -> list[Message]:
        """Two answers of which one breaks a rule."""
        rule, request = _rule(random), draw_request(random)
        bad = self._answer(request, random)
        while not breaks(bad, rule):
            request = draw_request(random)
            bad = self._answer(request, random)
        good = RULES[rule](bad)
        first = random.random() < 0.5
        one, other = (good, bad) if first else (bad, good)
        return [_user(ask(rule, one, other)), Message("assistant", A if first else B)]

    def helpful(self, rows: Path) -> Recipe:
        """The recipe that learns the demonstrations, from random weights."""
        config = self.config
        untrained = write_untrained(
            self.stages.out / "01-helpful" / "untrained",
            self.tokenizer,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            positions=CONTEXT,
            seed=config.seed,
        )
        return fine_tuning(
            untrained,
            rows,
            steps=config.helpful_steps,
            learning_rate=config.learning_rate,
            seed=config.seed,
            template=TEMPLATE,
            batch_size=config.batch_size,
            packing=True,
        )

    def tuned(self, model: Path, rows: Path) -> Recipe:
        """The recipe that learns revisions."""
        config = self.config
        return fine_tuning(
            model,
            rows,
            steps=config.tuning_steps,
            learning_rate=config.tuning_rate,
            seed=config.seed,
            template=TEMPLATE,
            batch_size=config.answers,
        )

    def unrevised(self, model: Path) -> Iterator[Row]:
        """Requests and the model's answers."""
        asked, answers = self._first(model)
        return _learnt(asked, answers)

    def mended_at_once(self, model: Path) -> Iterator[Row]:
        """Answers after as many rounds of mending, without a word on what is wrong."""
        asked, answers = self._first(model)
        for number in range(self.config.rounds):
            said = [*map(_turn, asked, answers)]
            answers = self._say(model, [[*turn, _user(MEND)] for turn in said], 10 + number)
        return _learnt(asked, answers)

    def revised(self, model: Path) -> Iterator[Row]:
        """Answers after all rounds, each by the model's own critique, of a rule that is drawn."""
        random = stream(self.config.seed, 2)
        asked, answers = self._first(model)
        for number in range(self.config.rounds):
            said = [[*_turn(*pair), _user(check(_rule(random)))] for pair in zip(asked, answers)]
            critiques = self._say(model, said, 20 + number)
            said = [
                [*before, Message("assistant", critique), _user(MEND)]
                for before, critique in zip(said, critiques, strict=True)
            ]
            answers = self._say(model, said, 30 + number)
        return _learnt(asked, answers)

    def _first(self, model: Path) -> tuple[list[Request], list[str]]:
        """Requests, and answers before any revision."""
        prompts = Requests(self.tokenizer, self.config.seed).take(REVISED, self.config.revised)
        asked = [prompt.columns[REQUEST] for prompt in prompts]
        return asked, self._say(model, [[_user(request.text)] for request in asked], 2)

    def _say(self, model: Path, said: Sequence[Sequence[Message]], number: int) -> list[str]:
        """What a model says next in each dialogue, sampled with a stream of this number."""
        prompts = [Prompt("", tuple(render_prompt(one, self.tokenizer)), {}) for one in said]
        seed = self.config.seed + number
        written = write(model, prompts, max_tokens=MAX_TOKENS, seed=seed)
        return [heard(one.text) for one in written]

    def by_people(self, model: Path) -> Iterator[Row]:
        """People's comparisons of two answers to each of many ordinary requests."""
        config = self.config
        for one, other in self._two(model, HELPED, config.variety, ORDINARY):
            wanted = one.prompt.columns[REQUEST].wanted
            worth = (helpfulness(content(answer.text), wanted) for answer in (one, other))
            row = compared(one, other, *worth)
            if row is not None:
                yield row

    def by_model(self, model: Path, judge: Path | None) -> Iterator[Row]:
        """A model's comparisons of two answers to all other requests, by a rule that is drawn.

        judge: who compares; None: a coin.
        """
        random = stream(self.config.seed, 3)
        pairs = [
            pair
            for pair in self._two(model, COMPARED)
            if pair[0].prompt.columns[REQUEST].kind != ORDINARY
            and pair[0].text != pair[1].text
            and all(is_plain(one.text) for one in pair)
        ]
        rules = [_rule(random) for _ in pairs]
        texts = [(rule, one.text, other.text) for rule, (one, other) in zip(rules, pairs)]
        first = np.full(len(pairs), 0.5)
        if judge is not None:
            first = better(*with_tokenizer(judge), texts)
        drawn = random.random(len(pairs)) < first
        for (one, other), wins in zip(pairs, drawn, strict=True):
            chosen, rejected = (one, other) if wins else (other, one)
            yield {
                "prompt": one.prompt.text,
                "chosen": chosen.text,
                "rejected": rejected.text,
            }

    def _two(
        self, model: Path, position: int, temperature: float = 1.0, kind: str | None = None
    ) -> list[tuple[Written, Written]]:
        """Two answers of a model to each of many requests."""
        config = self.config
        prompts = Requests(self.tokenizer, config.seed, kind).take(position, config.pairs)
        written = write(
            model,
            prompts,
            max_tokens=MAX_TOKENS,
            seed=config.seed + 4,
            samples=2,
            temperature=temperature,
        )
        return list(zip(written[::2], written[1::2], strict=True))

    def preferences(self, model: Path, pairs: Path) -> Recipe:
        """The recipe of a preference model."""
        config = self.config
        return judging(
            model,
            pairs,
            steps=config.judge_steps,
            batch_size=config.answers,
            learning_rate=config.learning_rate,
            seed=config.seed,
        )

    def reinforced(self, model: Path, preferences: Path) -> Recipe:
        """PPO from a model, by a preference model."""
        config = self.config
        judge = RewardModel.from_pretrained(preferences).requires_grad_(False)
        return reinforcement(
            model,
            Requests(self.tokenizer, config.seed),
            by_model(judge, self.tokenizer),
            steps=config.ppo_steps,
            prompts=config.answers,
            max_tokens=MAX_TOKENS,
            learning_rate=config.ppo_learning_rate,
            beta=config.beta,
            seed=config.seed,
        )


def better(model: Model, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str, str]]) -> np.ndarray:
    """The probability that the first answer is better, of (rule, one, other): (pairs,).

    It is that of A to that of A or B, and the mean of asking in both orders, as a model may prefer
    a letter.
    """
    orders = [pairs, [(rule, other, one) for rule, one, other in pairs]]
    first, second = (_probability_of_a(model, tokenizer, order) for order in orders)
    return 0.5 * (first + 1 - second)


def _probability_of_a(
    model: Model, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str, str]]
) -> np.ndarray:
    found = []
    for letter in (A, B):
        (token,) = tokenizer.encode(letter)
        prompts = [render_prompt([_user(ask(*pair))], tokenizer) for pair in pairs]
        rollouts = [Rollout(0, tuple(ids)).wrote([token], [0.0], False) for ids in prompts]
        with mt.no_grad():
            found.append(log_probs(model, Completions.of(rollouts), 1.0).numpy()[:, 0])
    return 1 / (1 + np.exp(found[1] - found[0]))


def check(rule: str) -> str:
    """What asks for a critique."""
    return f"check {rule}"


def ask(rule: str, one: str, other: str) -> str:
    """What asks which of two answers breaks a rule less."""
    return f"{rule}: {one} or {other}?"


def breaks(text: str, rule: str) -> bool:
    """Whether an answer breaks a rule."""
    return RULES[rule](text) != text


def content(text: str) -> str:
    """An answer without what the second rule is about."""
    return RULES[SHOUT](text)


def _rule(random: np.random.Generator) -> str:
    return list(RULES)[random.integers(len(RULES))]


def _user(text: str) -> Message:
    return Message("user", text)


def _turn(request: Request, answer: str) -> list[Message]:
    return [_user(request.text), Message("assistant", answer)]


def _learnt(asked: Sequence[Request], answers: Sequence[str]) -> Iterator[Row]:
    """Rows to be fine-tuned on."""
    for request, answer in zip(asked, answers, strict=True):
        yield {"prompt": request.text, "completion": answer}
