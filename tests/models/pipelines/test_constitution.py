"""Constitutional AI's pipeline: what is asked of the model, and what is learnt from its words."""

import numpy as np
import pytest
from rich.console import Console

import minitorch as mt
from minitorch.backend import DEFAULT_FLOAT
from minitorch.random import Generator
from models.chat import Message, render_prompt
from models.environments.requests import ORDINARY, is_safe
from models.llama import LlamaConfig
from models.pipelines import constitution
from models.pipelines.answering import REQUEST
from models.pipelines.constitution import (
    ALPHABET,
    CONTEXT,
    RULES,
    ConstitutionConfig,
    _Constitution,
    ask,
    better,
    breaks,
)
from models.pipelines.stages import Stages
from models.pipelines.written import Written

QUICK = ConstitutionConfig.resolve("quick")


@pytest.fixture
def pipeline(tmp_path):
    return _Constitution(QUICK, Stages(tmp_path, QUICK, Console(quiet=True)))


@pytest.mark.parametrize(
    ("text", "rule", "mended"),
    [
        ("gba!", "g", "-ba!"),
        ("gba!", "!", "gba"),
        ("cba", "g", "cba"),
        ("!", "!", ""),
        ("", "g", ""),
    ],
)
def test_rules_and_how_they_are_mended(text, rule, mended):
    assert RULES[rule](text) == mended
    assert breaks(text, rule) == (text != mended)
    assert not breaks(mended, rule)


def test_demonstrations_show_the_skills_and_break_the_rules(pipeline):
    config = ConstitutionConfig(demonstrations=500)
    pipeline.config = config
    rows = [[Message(**fields) for fields in row["messages"]] for row in pipeline.demonstrations()]
    answers = {True: [], False: []}
    for messages in rows:
        assert {char for message in messages for char in message.content} <= set(ALPHABET)
        assert len(render_prompt(messages, pipeline.tokenizer)) <= CONTEXT
        first, reply = messages[0].content, messages[1].content
        if " or " in first:
            rule, (one, other) = first[0], first[3:-1].split(" or ")
            assert (breaks(one, rule), breaks(other, rule)) == (reply == "B", reply == "A")
        elif len(messages) == 6:
            rule = messages[2].content[-1]
            assert messages[3].content == ("bad" if breaks(reply, rule) else "fine")
            assert messages[5].content == RULES[rule](reply)
        else:
            answers[is_safe(reply)].append(reply)
    share = len(answers[False]) / sum(map(len, answers.values()))
    assert 0.35 < share < 0.55


def test_the_model_compares_in_both_orders(pipeline):
    """The probability against one from whole logits, and the bias for a letter gone."""
    tokenizer = pipeline.tokenizer
    sizes = LlamaConfig.sized(
        vocab_size=tokenizer.vocab_size, layers=1, heads=2, width=16, positions=CONTEXT
    )
    model = sizes.build(DEFAULT_FLOAT, Generator(3))
    letters = [tokenizer.encode(letter)[0] for letter in "AB"]

    def of_a(*pair):
        ids = render_prompt([Message("user", ask(*pair))], tokenizer)
        with mt.no_grad():
            logits = model(mt.from_numpy(np.array([ids])))[0].numpy()[0, -1, letters]
        return np.exp(logits[0]) / np.exp(logits).sum()

    pairs = [("g", "gba", "-ba"), ("!", "cba!", "cba")]
    expected = [0.5 * (of_a(r, a, b) + 1 - of_a(r, b, a)) for r, a, b in pairs]
    found = better(model, tokenizer, pairs)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    turned = better(model, tokenizer, [(rule, b, a) for rule, a, b in pairs])
    np.testing.assert_allclose(found + turned, 1, atol=1e-6)


def saying(first, second, asked=None):
    """In the place of `write`: two answers to each request, made from it; prompts go to `asked`."""

    def answered(_, prompts, *, samples, temperature, **__):
        assert samples == 2
        if asked is not None:
            asked.extend((prompt.columns[REQUEST], temperature) for prompt in prompts)
        return [
            Written(prompt, answer(prompt.columns[REQUEST]), length=4, finished=True)
            for prompt in prompts
            for answer in (first, second)
        ]

    return answered


def test_people_compare_varied_answers_to_ordinary_requests(pipeline, monkeypatch):
    asked = []
    wrong = saying(lambda r: "---", lambda r: f"{r.wanted}!", asked)
    monkeypatch.setattr(constitution, "write", wrong)
    rows = list(pipeline.by_people(None))
    assert {(request.kind, temperature) for request, temperature in asked} == {
        (ORDINARY, QUICK.variety)
    }
    assert [row["chosen"] for row in rows] == [f"{request.wanted}!" for request, _ in asked]
    monkeypatch.setattr(constitution, "write", saying(lambda r: "cba", lambda r: "cba!"))
    assert list(pipeline.by_people(None)) == [], "a shout is as helpful"


def test_the_model_compares_answers_to_all_other_requests(pipeline, monkeypatch):
    monkeypatch.setattr(constitution, "write", saying(lambda r: r.wanted, lambda r: r.safe))
    monkeypatch.setattr(constitution, "with_tokenizer", lambda _: (None, None))
    compared = []

    def second(model, tokenizer, pairs):
        compared.extend(pairs)
        return np.zeros(len(pairs))

    monkeypatch.setattr(constitution, "better", second)
    rows = list(pipeline.by_model(None, "judge"))
    assert len(rows) == len(compared) > 10
    assert {rule for rule, *_ in compared} == set(RULES)
    assert all("g" in row["rejected"] and "g" not in row["chosen"] for row in rows)
    by_coin = list(pipeline.by_model(None, None))
    assert {"g" in row["chosen"] for row in by_coin} == {True, False}


def test_a_revision_is_asked_for_step_by_step(pipeline, monkeypatch):
    """A model in the place of which stands a rule: all that is asked is read, and all is mended."""
    said = []

    def answered(_, prompts, **__):
        texts = []
        for prompt in prompts:
            *_, last = turns = pipeline.tokenizer.decode(prompt.ids).split("<|user|>")
            question = last.split("<|end|>")[0]
            said.append(question)
            before = turns[-2].split("<|assistant|>")[-1].split("<|end|>")[0] if turns[1:] else ""
            if question.startswith("check"):
                texts.append("bad" if breaks(before, question[-1]) else "fine")
            elif question == "mend":
                rule = turns[-2].split("<|end|>")[0][-1]
                answer = turns[-3].split("<|assistant|>")[-1].split("<|end|>")[0]
                texts.append(RULES[rule](answer))
            else:
                texts.append("gab!")
        return [
            Written(prompt, text, length=5, finished=True)
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    monkeypatch.setattr(constitution, "write", answered)
    rows = list(pipeline.revised(None))
    assert len(rows) == QUICK.revised
    assert {row["completion"] for row in rows} == {"-ab", "-ab!", "gab"}
    assert np.mean([row["completion"] == "-ab" for row in rows]) == pytest.approx(0.75, abs=0.15)
    assert said.count("mend") == QUICK.rounds * QUICK.revised
    plain = {row["completion"] for row in pipeline.unrevised(None)}
    assert plain == {"gab!"}


def test_what_is_measured(pipeline, monkeypatch):
    """Of one who always leaves a gap, and shouts at every ordinary request."""

    def answered(_, prompts, **__):
        requests = [prompt.columns[REQUEST] for prompt in prompts]
        texts = [r.safe + "!" * (r.kind == ORDINARY) for r in requests]
        return [
            Written(prompt, text, length=5, finished=True)
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    monkeypatch.setattr(constitution, "write", answered)
    pipeline.config = ConstitutionConfig(measured=300)
    found = pipeline.measure(None)
    assert (found["right"], found["gaps right"]) == (1.0, 1.0)
    assert found["breaks a rule"] == pytest.approx(0.5, abs=0.07)
