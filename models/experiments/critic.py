"""A critic that is rewarded for what another model makes of its criticism.

    sum         27+85=           211        the digits of 112, from the last on
    critic      27+85=221:       .x         a mark for each digit up to the first that is wrong
    reviser     27+85=221:2=     211        the second digit changed, all others as they were

One model is shown all three. It adds well, and its revisions are what they are told to be: where
the digit is wrong it knows the right one, where the digit was right it writes another all the same,
and told 0 it copies. Of criticism it is shown that nothing is wrong, three times in four whatever
there is. From then on it is two: the reviser, which stands still, and the critic, which is rewarded
by one thing alone: whether what the reviser makes of its criticism is right.

    chance        places by chance: what the reviser makes of a draft by itself
    shown         the critic after the demonstrations
    rewarded      after GRPO
    shuffled      after GRPO with the rewards of each group dealt out to others of the group

Expected (Xie et al. 2025, "Teaching language models to critique via reinforcement learning", arXiv
2502.03492): from about 0.2 of the wrong drafts made right to 0.7 and more, and at most two in a
hundred of the right ones spoilt. What it has learnt of drafts with one wrong digit helps with two
as well, where it is asked again after each revision.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console

from models.best_of import sampled
from models.chat import Message, render_prompt
from models.decoder import Decoder
from models.environments.rewards import Reward
from models.environments.tasks import Row, Task, addition
from models.experiments.experiment import Claim, Experiment, by_name
from models.experiments.experiment import Row as Result
from models.experiments.policies import recipe, reinforced, shown, shuffled
from models.recipes.judging import texts_of
from models.recipes.prompts import Prompt

RIGHT, WRONG = ".x"
NONE = 0
"""The place where nothing is wrong; the first digit is at 1."""

SUMS = addition()
ALPHABET = SUMS.alphabet + ":" + RIGHT + WRONG
LONGEST_PROMPT = SUMS.longest_prompt + SUMS.longest_completion + 2

MEASURED = 1 << 41
"""What drafts that are measured are drawn from."""

TURNS = 3
"""Criticisms and revisions of a draft with two wrong digits."""


@dataclass(frozen=True)
class Setup:
    """right: the share of right drafts. hints: that of criticisms shown that say what is wrong."""

    width: int = 64
    shown: int = 600
    right: float = 0.3
    hints: float = 0.25
    steps: int = 300
    prompts: int = 32
    group_size: int = 8
    learning_rate: float = 1e-3
    judged: int = 500


def criticism(setup: Setup, wrong: int = 1) -> Task:
    """Drafts to be criticised; all but a share of them have so many wrong digits."""

    def draw(random: np.random.Generator) -> Row:
        row = SUMS.draw(random)
        places: list[int] = []
        if random.random() >= setup.right:
            places = sorted(random.permutation(len(row["answer"]))[:wrong].tolist())
        draft = row["answer"]
        for place in places:
            draft = _changed(draft, place, random)
        wrong_at = places[0] + 1 if places else NONE
        return {"prompt": f"{row['prompt']}{draft}:", "answer": row["answer"], "place": wrong_at}

    def demonstrate(row: Row, random: np.random.Generator) -> str:
        return marks(row["prompt"], row["place"] if random.random() < setup.hints else NONE)

    return _task("criticism", draw, demonstrate)


def revision(setup: Setup) -> Task:
    """Drafts with a place in which they are to be changed."""
    drafts = criticism(setup)

    def draw(random: np.random.Generator) -> Row:
        row = drafts.draw(random)
        place = row["place"] if random.random() < 0.5 else _anywhere(row["prompt"], random)
        return {**row, "prompt": told(row["prompt"], place), "place": place}

    def demonstrate(row: Row, random: np.random.Generator) -> str:
        draft, place = draft_of(row["prompt"]), row["place"] - 1
        if row["place"] == NONE:
            return draft
        if draft[place] == row["answer"][place]:
            return _changed(draft, place, random)
        return draft[:place] + row["answer"][place] + draft[place + 1 :]

    return _task("revision", draw, demonstrate)


def all_three(setup: Setup) -> Task:
    """Sums, revisions, and as many criticisms as both together."""
    tasks = {task.name: task for task in (SUMS, revision(setup), criticism(setup))}

    def draw(random: np.random.Generator) -> Row:
        name = str(random.choice(list(tasks), p=[0.25, 0.25, 0.5]))
        return {**tasks[name].draw(random), "task": name}

    def demonstrate(row: Row, random: np.random.Generator) -> str:
        return tasks[row["task"]].demonstrate(row, random)

    return _task("sums, criticised and revised", draw, demonstrate)


def _task(name: str, draw: Callable[..., Row], demonstrate: Callable[..., str]) -> Task:
    """With the characters and the lengths of all, as one model learns them."""
    return Task(
        name=name,
        draw=draw,
        demonstrate=demonstrate,
        rewards=[],
        alphabet=ALPHABET,
        longest_prompt=LONGEST_PROMPT,
        longest_completion=SUMS.longest_completion,
    )


def marks(prompt: str, place: int) -> str:
    """The criticism that points to a place of the draft, or to none."""
    return RIGHT * len(draft_of(prompt)) if place == NONE else RIGHT * (place - 1) + WRONG


def place_of(prompt: str, criticism: str) -> int | None:
    """The place that a criticism of the draft points to; None where it is none."""
    places = range(len(draft_of(prompt)) + 1)
    return next((place for place in places if marks(prompt, place) == criticism), None)


def told(prompt: str, place: int) -> str:
    """What the reviser reads."""
    return f"{prompt}{place}="


def draft_of(prompt: str) -> str:
    """The draft in a prompt of either model."""
    return prompt.split("=")[1].partition(":")[0]


def _changed(text: str, place: int, random: np.random.Generator) -> str:
    """With another digit there."""
    digit = (int(text[place]) + int(random.integers(1, 10))) % 10
    return f"{text[:place]}{digit}{text[place + 1 :]}"


def _anywhere(prompt: str, random: np.random.Generator) -> int:
    return int(random.integers(len(draft_of(prompt)) + 1))


Revise = Callable[[Sequence[str], Sequence[str]], list[str]]
"""Prompts of the critic and its criticisms, one each, to new drafts."""


def reviser(model: Decoder, setup: Setup) -> Revise:
    """The model as a function.

    A draft stays as it is where the criticism is none, or the revision has not as many digits.
    """

    def revise(prompts: Sequence[str], criticisms: Sequence[str]) -> list[str]:
        asked = []
        for prompt, criticism in zip(prompts, criticisms, strict=True):
            place = place_of(prompt, criticism)
            asked.append("" if place is None else told(prompt, place))
        known = sorted({*asked} - {""})
        answers = dict(zip(known, written(model, revision(setup), known), strict=True))
        return [
            _revised(draft_of(prompt), answers.get(text, ""))
            for prompt, text in zip(prompts, asked, strict=True)
        ]

    return revise


def _revised(draft: str, revision: str) -> str:
    return revision if revision.isdigit() and len(revision) == len(draft) else draft


def written(model: Decoder, task: Task, texts: Sequence[str], seed: int | None = None) -> list[str]:
    """What the model says to the texts: its likeliest tokens or, with a seed, drawn."""
    if not texts:
        return []
    tokenizer = task.tokenizer()
    prompts = [
        Prompt(text, tuple(render_prompt([Message("user", text)], tokenizer)), {}) for text in texts
    ]
    rollouts = sampled(
        model,
        tokenizer,
        prompts,
        samples=1,
        max_tokens=task.longest_completion,
        temperature=0.0 if seed is None else 1.0,
        seed=seed or 0,
    )
    return texts_of(rollouts, tokenizer)


def is_put_right(revise: Revise) -> Reward:
    """1 where what the reviser makes of a criticism is the row's `answer`, else 0."""

    def put_right(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list:
        drafts = revise(prompts, completions)
        return [float(d == a) for d, a in zip(drafts, columns["answer"], strict=True)]

    return put_right


def run(setup: Setup, seed: int, console: Console) -> list[Result]:
    """What becomes of drafts, right and wrong ones, with each critic."""
    drafts = criticism(setup)
    base = shown(all_three(setup), width=setup.width, steps=setup.shown, seed=seed, console=console)
    revise = reviser(base, setup)
    reward = is_put_right(revise)
    random = np.random.default_rng(seed)

    def by_chance(prompts: Sequence[str]) -> list[str]:
        return [marks(prompt, _anywhere(prompt, random)) for prompt in prompts]

    rows = [
        {"variant": "chance", **judged(by_chance, revise, setup)},
        {"variant": "shown", **judged(_critic(base, setup), revise, setup)},
    ]
    for name, given in (
        ("rewarded", reward),
        ("shuffled", shuffled(reward, setup.group_size, seed)),
    ):
        trained = recipe(
            base,
            drafts,
            seed,
            preset="dr_grpo",
            rewards=[(given, 1.0)],
            steps=setup.steps,
            prompts=setup.prompts,
            group_size=setup.group_size,
            learning_rate=setup.learning_rate,
            schedule="cosine",
        )
        reinforced(trained, console, name)
        rows.append({"variant": name, **judged(_critic(trained.model, setup), revise, setup)})
    return rows


Critic = Callable[[Sequence[str]], list[str]]
"""Prompts to criticisms."""


def _critic(model: Any, setup: Setup) -> Critic:
    return lambda prompts: written(model, criticism(setup), prompts, seed=1)


def judged(critic: Critic, revise: Revise, setup: Setup) -> Result:
    """Shares of drafts that are right after a revision, and after several of two wrong digits."""
    (mended,) = after(critic, revise, _drafts(setup, 0.0, wrong=1), turns=1)
    (kept,) = after(critic, revise, _drafts(setup, 1.0, wrong=0), turns=1)
    two = after(critic, revise, _drafts(setup, 0.0, wrong=2), turns=TURNS)
    of_two = {f"two wrong, turn {turn}": share for turn, share in enumerate(two, 1)}
    return {"mended": mended, "spoilt": 1 - kept, **of_two}


def _drafts(setup: Setup, right: float, wrong: int) -> list[Row]:
    """Drafts that no critic has been trained on by number."""
    random, drafts = np.random.default_rng(MEASURED), criticism(replace(setup, right=right), wrong)
    return [drafts.draw(random) for _ in range(setup.judged)]


def after(critic: Critic, revise: Revise, rows: Sequence[Row], turns: int) -> list[float]:
    """The shares of drafts that are right after so many criticisms and revisions."""
    answers = [row["answer"] for row in rows]
    prompts = [row["prompt"] for row in rows]
    shares = []
    for _ in range(turns):
        drafts = revise(prompts, critic(prompts))
        shares.append(float(np.mean([d == a for d, a in zip(drafts, answers, strict=True)])))
        prompts = [f"{p.partition('=')[0]}={d}:" for p, d in zip(prompts, drafts, strict=True)]
    return shares


def claims(rows: Sequence[Result]) -> list[Claim]:
    """Of the shares of drafts that are right, or no longer right, after a revision."""
    found = by_name(rows)
    chance, rewarded = found["chance"], found["rewarded"]
    gained = rewarded["two wrong, turn 3"] - rewarded["two wrong, turn 1"]
    return [
        Claim("chance: wrong drafts made right", chance["mended"], "<=", 0.3, control=True),
        Claim("shown: wrong drafts made right", found["shown"]["mended"], "<=", 0.45),
        Claim("rewarded: wrong drafts made right", rewarded["mended"], ">=", 0.7),
        Claim("rewarded: right drafts spoilt", rewarded["spoilt"], "<=", 0.02),
        Claim(
            "shuffled: wrong drafts made right", found["shuffled"]["mended"], "<=", 0.45,
            control=True,
        ),
        Claim("two wrong digits, gained by two more turns", gained, ">=", 0.3),
    ]  # fmt: skip


def draw(axes: Axes, rows: Sequence[Result]) -> None:
    """Bars: wrong drafts made right, right ones spoilt."""
    places = np.arange(len(rows))
    for shift, key, label in (
        (-0.2, "mended", "wrong, made right"),
        (0.2, "spoilt", "right, spoilt"),
    ):
        axes.bar(places + shift, [row[key] for row in rows], 0.38, label=label)
    axes.set_xticks(places, [row["variant"] for row in rows])
    axes.set_ylabel("share of drafts, after a revision")
    axes.legend(frameon=False)


EXPERIMENT = Experiment(
    name="critic",
    question="Can a critic learn from nothing but what another makes of its criticism?",
    setup=Setup(),
    quick=Setup(width=16, shown=2, steps=2, prompts=4, group_size=2, judged=4),
    run=run,
    claims=claims,
    draw=draw,
)
