"""Long to short: which answers are learnt from."""

import json

import pytest
from rich.console import Console

from models.chat import Message, content_ids
from models.environments.answers import is_laid_out, tagged_answer, thinking
from models.experiments import long_to_short
from models.experiments.long_to_short import Setup, chosen, grouped, pairs
from models.pipelines.stages import Stages
from models.pipelines.written import Written

SILENT = Console(quiet=True)


def answer(completion, length, right, prompt="1+1="):
    return {"prompt": prompt, "completion": completion, "length": length, "right": right}


SHORT, LONGER, WRONG = answer("s", 10, True), answer("l", 15, True), answer("w", 9, False)
ALIKE = answer("a", 14, True)


def test_the_shortest_of_the_right_is_chosen():
    groups = [[WRONG, LONGER, SHORT, ALIKE], [{**WRONG, "prompt": "2+2="}]]
    found = list(chosen(groups, long_to_short._shortest))
    assert found == [{"prompt": "1+1=", "completion": "s"}]
    drawn = list(chosen(groups, lambda right: right[0]))
    assert drawn == [{"prompt": "1+1=", "completion": "l"}]


def test_what_is_wrong_or_much_longer_is_rejected():
    found = list(pairs([[WRONG, LONGER, SHORT, ALIKE, answer("", 1, False)], [WRONG]]))
    assert [(row["chosen"], row["rejected"]) for row in found] == [("s", "w"), ("s", "l")]


def test_answers_to_one_prompt_are_a_group(tmp_path):
    path = tmp_path / "rows.jsonl"
    other = answer("o", 3, True, prompt="2+2=")
    path.write_text("".join(json.dumps(row) + "\n" for row in (SHORT, WRONG, other)))
    assert grouped(path) == [[SHORT, WRONG], [other]]


@pytest.fixture
def toy(tmp_path):
    setup = Setup(rows=2000)
    return long_to_short._Toy(setup, Stages(tmp_path, setup, SILENT))


def test_the_long_model_learns_from_all_numbers_of_times(toy):
    rows = list(toy.rows(2000, 8))
    assert all(is_laid_out(row["completion"]) for row in rows)
    times = [thinking(row["completion"]).split(".") for row in rows]
    assert all(len(set(each)) == 1 for each in times)
    counts = [sum(len(each) == n for each in times) for n in range(1, 9)]
    assert sum(counts) == 2000
    assert min(counts) > 200
    sums = [str(sum(map(int, row["prompt"][:-1].split("+"))))[::-1] for row in rows]
    right = [tagged_answer(row["completion"]) == s for row, s in zip(rows, sums, strict=True)]
    assert 0.87 < sum(right) / 2000 < 0.93


def longest_of(toy, times):
    rows = toy.rows(500, times)
    said = [Message("assistant", row["completion"]) for row in rows]
    return max(len(content_ids(message, toy.tokenizer)) for message in said) + 1


def test_all_texts_fit_and_the_shortest_is_within_the_cap(toy):
    assert longest_of(toy, 8) == toy.max_tokens - 1
    once = [
        content_ids(Message("assistant", r["completion"]), toy.tokenizer) for r in toy.rows(500, 1)
    ]
    assert max(map(len, once)) + 1 <= long_to_short.SHORT


def test_a_sum_that_is_never_right_gets_its_answer(toy, tmp_path, monkeypatch):
    (prompt,) = long_to_short.Mixture({"sums": toy.task}, toy.tokenizer, 0).take(0, 1)
    wrong = Written(prompt, "no", 3, True)
    monkeypatch.setattr(toy, "write", lambda *_: [wrong] * toy.setup.samples)
    rows = list(toy.answers(tmp_path))
    assert [row["right"] for row in rows] == [False] * toy.setup.samples + [True]
    assert tagged_answer(rows[-1]["completion"]) == prompt.columns["answer"]
