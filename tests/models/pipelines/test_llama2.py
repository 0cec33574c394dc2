"""Llama 2's pipeline in tiny sizes: it goes on, it compares as it says, it hides what it should."""

import json

import numpy as np
import pytest
from rich.console import Console

from minitorch.io import read_json
from models.chat import Message, render_prompt
from models.environments.requests import STYLES, Request, is_safe
from models.pipelines import llama2
from models.pipelines.answering import (
    REQUEST,
    Requests,
    is_plain,
    measured_dialogues,
    more_helpful,
    prompt_of,
    safer,
)
from models.pipelines.llama2 import Combined, Llama2Config
from models.pipelines.stages import Stages
from models.pipelines.written import Written
from models.recipes.prompts import Prompt
from models.rollouts import Rollout
from tests.models.conftest import run_cli

QUICK = Llama2Config.resolve("quick")
SILENT = Console(quiet=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder and the table of a pipeline that was not interrupted."""
    out = tmp_path_factory.mktemp("llama2")
    return out, llama2.run(QUICK, Stages(out, QUICK, SILENT))


def test_the_table_has_a_row_for_each_model(whole):
    _, rows = whole
    assert [row["variant"] for row in rows] == [
        "sft",
        "rs 1",
        "ppo",
        "PPO alone",
        "one reward model",
        "helpfulness alone",
        "ghost attention",
        "no ghosts",
        "all turns learnt",
    ]
    assert all(row.keys() == rows[0].keys() for row in rows)


def test_what_is_done_is_not_done_again(whole, monkeypatch):
    out, rows = whole

    def fail(*_, **__):
        raise AssertionError("a stage that was done is done again")

    for name in ("sft", "tuned", "ppo", "ghosted", "measure", "demonstrations", "pairs", "ghosts"):
        monkeypatch.setattr(llama2._Llama2, name, fail)
    assert llama2.run(QUICK, Stages(out, QUICK, SILENT)) == rows


ASKED = Request("rev abg", "gba", "asked")
PROMPT = Prompt(ASKED.text, (), {REQUEST: ASKED})


def answer(text):
    return Written(PROMPT, text, length=len(text) + 1, finished=True)


@pytest.mark.parametrize(
    ("compare", "chosen", "rejected", "margin"),
    [
        (more_helpful, "gba", "-ba", 1.0),
        (more_helpful, "gba", "---", 3.0),
        (more_helpful, "-ba", "-bb", 1 / 3),
        (safer, "-ba", "gba", 3.0),
        (safer, "---", "gba", 3.0),
        (safer, "gba", "ggg", 2 / 3),
        (safer, "-ba", "-bb", 1 / 3),
    ],
)
def test_answers_are_compared(compare, chosen, rejected, margin):
    for pair in ((chosen, rejected), (rejected, chosen)):
        row = compare(*map(answer, pair))
        assert (row["chosen"], row["rejected"]) == (chosen, rejected)
        assert row["prompt"] == ASKED.text


def test_answers_as_good_and_what_only_a_template_may_write_are_not_compared():
    assert more_helpful(answer("-ba"), answer("gb-")) is None
    assert safer(answer("a"), answer("<|user|>")) is None
    assert not is_plain("")


def test_safety_decides_where_it_is_tagged_or_in_doubt(monkeypatch):
    helpful, safe = np.array([1.0, 2.0, 3.0]), np.array([4.0, -5.0, 6.0])
    scores = iter([helpful, safe])

    def of_a_model(*_):
        given = next(scores)
        return lambda *_: given

    monkeypatch.setattr(llama2, "by_model", of_a_model)
    combined = Combined(None, None, None, threshold=0.15)
    kinds = ["asked", "ordinary", "hidden"]
    prompts = [Prompt("", (), {REQUEST: Request("", "", kind)}) for kind in kinds]
    assert combined(prompts, [Rollout(0, ())] * 3).tolist() == [4.0, -5.0, 3.0]


def test_the_best_of_all_rounds_is_kept(tmp_path):
    rounds = []
    for number, scores in enumerate(([1.0, 5.0], [2.0, 4.0, 3.0])):
        rounds.append(tmp_path / f"{number}.jsonl")
        rows = [
            {"prompt": f"p{i}", "completion": f"round {number}", "score": score}
            for i, score in enumerate(scores)
        ]
        rounds[-1].write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = {row["prompt"]: (row["completion"], row["score"]) for row in llama2._best(rounds)}
    assert found == {"p0": ("round 1", 2.0), "p1": ("round 0", 5.0), "p2": ("round 1", 3.0)}


@pytest.mark.parametrize("everywhere", [True, False])
def test_an_instruction_is_before_every_question_or_the_first(everywhere, tmp_path, monkeypatch):
    asked = []

    def answered(_, prompts, **__):
        asked.extend(prompts)
        return [Written(prompt, "dcba", length=5, finished=True) for prompt in prompts]

    monkeypatch.setattr(llama2, "write", answered)
    pipeline = llama2._Llama2(QUICK, Stages(tmp_path, QUICK, SILENT))
    rows = list(pipeline.ghosts(tmp_path, everywhere=everywhere))
    assert len(rows) == QUICK.ghosts
    for number, (row, prompt) in enumerate(zip(rows, asked, strict=True)):
        messages = [Message(**fields) for fields in row["messages"]]
        roles = [message.role for message in messages]
        instructed = number % 4 > 0
        assert roles == ["system"] * instructed + ["user", "assistant"] * (len(roles) // 2)
        assert all(is_safe(message.content) for message in messages if message.role == "assistant")
        seen = messages[:-1]
        if instructed and everywhere:
            first, *rest = seen
            seen = [m for said in rest for m in ((first, said) if said.role == "user" else (said,))]
        assert list(prompt.ids) == render_prompt(seen, pipeline.tokenizer)
        assert len(prompt.ids) + 7 <= QUICK.turns * llama2.LONGEST_TURN


def test_a_dialogue_is_measured_turn_by_turn(tmp_path, monkeypatch):
    """A model that keeps to its instruction for two turns, by an oracle in its place."""
    tokenizer = llama2._Llama2(QUICK, Stages(tmp_path, QUICK, SILENT)).tokenizer

    def answered(_, prompts, **__):
        texts = [tokenizer.decode(prompt.ids) for prompt in prompts]
        for text in texts:
            assert text.startswith("<|system|>")
        styles = [STYLES[text[10:14]] for text in texts]
        keeps = [text.count("<|user|>") <= 2 for text in texts]
        return [
            Written(prompt, style.apply("dcba") if kept else "dcba", length=5, finished=True)
            for prompt, style, kept in zip(prompts, styles, keeps, strict=True)
        ]

    monkeypatch.setattr("models.pipelines.answering.write", answered)
    found = measured_dialogues(tmp_path, 0, count=5, turns=4, late=2, tokenizer=tokenizer)
    assert found["kept"] == [1.0, 1.0, 0.0, 0.0]
    assert found["kept at first"] == 1.0
    assert found["kept late"] == pytest.approx(1 / 3)


def test_requests_are_the_same_by_their_number(tmp_path):
    tokenizer = llama2._Llama2(QUICK, Stages(tmp_path, QUICK, SILENT)).tokenizer
    source = Requests(tokenizer, 0)
    assert source.take(3, 2) == source.take(2, 3)[1:]
    assert source.validation(2) != source.take(0, 2)
    assert {p.columns[REQUEST].kind for p in Requests(tokenizer, 0, "asked").take(0, 9)} == {
        "asked"
    }
    earlier = [Message("system", "caps")]
    assert tokenizer.decode(prompt_of(ASKED, tokenizer, earlier).ids) == (
        "<|system|>caps<|end|><|user|>rev abg<|end|><|assistant|>"
    )


def test_the_command_prints_the_table_and_goes_on(whole):
    out, rows = whole
    result = run_cli("llama2", "--resume", out, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] == rows
    saved = read_json(out / "llama2.json")
    assert saved["rows"] == rows
    assert saved["claims"] == []
    assert (out / "llama2.png").read_bytes().startswith(b"\x89PNG")


def test_help_has_an_example():
    assert "minitorch llama2 --resume runs/llama2" in run_cli("llama2", "--help").output
