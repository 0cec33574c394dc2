"""Conversations: calls are answered, nobody learns the answers, no token is encoded twice."""

import numpy as np
import pytest

from minitorch.random import Generator
from models.environments import turns
from models.environments.tasks import TASKS
from models.llama import LlamaConfig
from models.rollouts import begin
from models.sampling import Sampler


@pytest.fixture(scope="module")
def task():
    return TASKS["calculator"]()


@pytest.fixture
def scripted(monkeypatch, task):
    """converse() with a model that says what it is told to, one text for each turn."""
    tokenizer = task.tokenizer()
    end = tokenizer.special_tokens["<|endoftext|>"]

    def run(*says, **options):
        lines = iter(says)

        def extend(model, rollouts, *, max_tokens, stop_ids, **_):
            written = []
            for rollout, room in zip(rollouts, max_tokens, strict=True):
                ids = tokenizer.encode(next(lines), allowed_special="all")[:room]
                stops = [i for i, token in enumerate(ids) if token in stop_ids]
                ids = ids[: stops[0] + 1] if stops else ids
                written.append(rollout.wrote(ids, [-1.0] * len(ids), bool(stops)))
            return written

        monkeypatch.setattr(turns, "extend", extend)
        (rollout,) = turns.converse(
            None,
            begin([tokenizer.encode("34*57=")]),
            task.tool,
            tokenizer,
            call_id=tokenizer.encode("=")[0],
            stop_ids={end},
            **{"max_tokens": 30, "max_calls": 2, **options},
        )
        return tokenizer.decode(rollout.completion_ids), rollout

    return run


def chosen(rollout, task):
    ids = [token for token, own in zip(rollout.completion_ids, rollout.mask) if own]
    return task.tokenizer().decode(ids)


def test_a_call_is_answered(scripted, task):
    text, rollout = scripted("<<34*57=", "1938<|endoftext|>")
    assert text == "<<34*57=1938>>1938<|endoftext|>"
    assert chosen(rollout, task) == "<<34*57=1938<|endoftext|>"
    assert rollout.finished
    assert [lp == 0.0 for lp in rollout.log_probs] == [not own for own in rollout.mask]


def test_two_calls(scripted, task):
    text, rollout = scripted("<<3*5=", "<<15*2=", "30<|endoftext|>")
    assert text == "<<3*5=15>><<15*2=30>>30<|endoftext|>"
    assert chosen(rollout, task) == "<<3*5=<<15*2=30<|endoftext|>"


def test_only_what_follows_the_last_answer_is_a_call(scripted):
    text, _ = scripted("<<3*5=", "=", "0<|endoftext|>")
    assert text == "<<3*5=15>>=error>>0<|endoftext|>"


def test_calls_beyond_the_last_are_not_answered(scripted):
    text, rollout = scripted("<<3*5=", "<<2*2=4<|endoftext|>", max_calls=1)
    assert text == "<<3*5=15>><<2*2=4<|endoftext|>"
    assert rollout.finished


def test_an_answer_without_room_is_not_told(scripted):
    text, rollout = scripted("<<34*57=", max_tokens=12)
    assert text == "<<34*57="
    assert not rollout.finished


def test_with_a_model(task):
    tokenizer = task.tokenizer()
    config = LlamaConfig.sized(
        vocab_size=tokenizer.vocab_size, layers=1, heads=2, width=16, positions=40
    )
    model = config.build(np.dtype(np.float32), Generator(3))
    call = tokenizer.encode("=")[0]
    prompts = [tokenizer.encode(f"{n}*7=") for n in range(10, 40)]
    found = turns.converse(
        model,
        begin(prompts),
        task.tool,
        tokenizer,
        call_id=call,
        stop_ids={tokenizer.special_tokens["<|endoftext|>"]},
        max_tokens=20,
        max_calls=2,
        sampler=Sampler(),
        seed=1,
    )
    assert [r.number for r in found] == list(range(30))
    for rollout in found:
        assert len(rollout.completion_ids) <= 20
        assert sum(not own for own in rollout.mask) in (0, 7, 14)  # "error>>" or a number
    assert any(not all(r.mask) for r in found)
