"""Reward models: which token is scored, what is learnt, what is saved."""

import json

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import CheckpointError, DataError
from minitorch.random import Generator
from models import checkpoints
from models.commands.scores_page import write_scores
from models.families import from_pretrained
from models.recipes.data import Row, with_replay
from models.recipes.reward import Reward, RewardConfig, make_steps, outcome_loss
from models.reward_model import RewardModel

from .conftest import assert_going_on_changes_nothing, read_lines, train, write_rows

TINY = {"steps": 6, "batch_size": 4, "eval_interval": 2, "checkpoint_interval": 2}


@pytest.fixture
def make(answering, preferences):
    def build(**changes):
        defaults = {"model": str(answering), "data": str(preferences), **TINY}
        return Reward(RewardConfig(**{**defaults, **changes}))

    return build


@pytest.fixture
def steps(tmp_path):
    """A step is right that ends in a digit below 5."""
    draw = np.random.default_rng(0)
    rows = []
    for i in range(40):
        digits = draw.integers(0, 10, 3).tolist()
        rows.append(
            {
                "prompt": f"{i}=",
                "steps": [f"b{d}" for d in digits],
                "labels": [int(d < 5) for d in digits],
            }
        )
    return str(write_rows(tmp_path / "steps.jsonl", rows))


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}, {"gradient_accumulation": 2}])
def test_going_on_changes_nothing(make, tmp_path, changes):
    assert_going_on_changes_nothing(lambda: make(**changes), tmp_path)


def test_going_on_with_steps_changes_nothing(make, steps, tmp_path):
    assert_going_on_changes_nothing(lambda: make(kind="process", data=steps), tmp_path)


def test_the_score_is_that_of_the_last_real_token(make):
    recipe = make()
    pair = recipe.training[0]
    texts = [pair.chosen.ids.tolist(), pair.rejected.ids.tolist()]
    assert len(texts[0]) != len(texts[1])
    together = recipe.model.rewards(texts)
    for text, score in zip(texts, together, strict=True):
        assert recipe.model.rewards([text])[0] == pytest.approx(score, abs=1e-6)
        scores, _ = recipe.model(np.array([text]))
        assert scores.detach().numpy()[0, -1] == pytest.approx(score, abs=1e-6)
    _, metrics, _ = outcome_loss(recipe.model, [pair], 0.0)
    gap = float(together[0] - together[1])
    assert metrics["margin"] == pytest.approx(gap, abs=1e-6)
    assert metrics["loss"] == pytest.approx(np.log1p(np.exp(-(gap - pair.margin))), rel=1e-5)


def test_centring_is_added(make):
    recipe = make()
    pairs = recipe.training[:3]
    plain, _, _ = outcome_loss(recipe.model, pairs, 0.0)
    centred, _, _ = outcome_loss(recipe.model, pairs, 0.5)
    sums = [sum(recipe.model.rewards([p.chosen.ids, p.rejected.ids])) for p in pairs]
    assert (centred - plain).item() == pytest.approx(0.5 * np.mean(np.square(sums)), rel=1e-3)


def test_preferences_are_learnt(make, tmp_path):
    rows = train(make(steps=60, learning_rate=1e-2, batch_size=12), tmp_path / "out")
    assert rows[-1]["val_accuracy"] == 1.0
    assert abs(rows[-1]["val_score"]) < 3


def test_steps_are_learnt(make, steps, tmp_path):
    recipe = make(kind="process", data=steps, steps=150, learning_rate=2e-2, batch_size=12)
    rows = train(recipe, tmp_path / "out")
    assert rows[-1]["accuracy"] > 0.9


def test_steps_end_where_their_last_token_is(make):
    tokenizer = make().tokenizer
    row = Row("f:1", {"prompt": "ab", "steps": ["cd", "e"], "labels": [1, 0]})
    item = make_steps(row, tokenizer, 32)
    assert tokenizer.decode(item.ids) == "abcde"
    np.testing.assert_array_equal(item.labels, [np.nan, np.nan, np.nan, 1, 0])
    with pytest.raises(DataError, match="f:1: 5 tokens are more than the model's context of 4"):
        make_steps(row, tokenizer, 4)
    for bad in ({"steps": ["a"], "labels": []}, {"steps": "a"}, {"steps": ["a"], "labels": [2]}):
        with pytest.raises(DataError, match="f:1: expected texts under 'steps'"):
            make_steps(Row("f:1", {"prompt": "a", **bad}), tokenizer, 32)


def test_the_page_of_steps_has_the_score_of_each(make, steps, tmp_path):
    recipe = make(kind="process", data=steps)
    write_scores(tmp_path, recipe.model, recipe.tokenizer, 3, recipe.validation)
    row, item = read_lines(tmp_path / "rollouts.jsonl")[0], recipe.validation[0]
    with mt.no_grad():
        scores = recipe.model(item.ids[None])[0].numpy()[0]
    ends = np.flatnonzero(~np.isnan(item.labels))
    assert row["prompt"] + "".join(row["tokens"]) == recipe.tokenizer.decode(item.ids)
    assert row["tokens"][::2] == ["b"] * 3  # each step is "b" and a digit
    np.testing.assert_allclose(row["scores"], np.repeat(scores[ends], 2), atol=1e-5)
    np.testing.assert_array_equal(row["labels"], np.repeat(item.labels[ends], 2))
    assert row["reward"] == pytest.approx(scores[ends].min(), abs=1e-5)
    assert "judged wrong" in (tmp_path / "rollouts.html").read_text()


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_what_is_saved_gives_the_same_scores(make, tmp_path, lora_rank):
    recipe = make(lora_rank=lora_rank)
    train(recipe, tmp_path / "out")
    folder = checkpoints.newest(tmp_path / "out")
    texts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    saved = RewardModel.from_pretrained(folder)
    np.testing.assert_allclose(saved.rewards(texts), recipe.model.rewards(texts), atol=1e-6)


@pytest.mark.parametrize(("count", "expected"), [(50, 10), (4, 4), (0, 0)])
def test_earlier_rows_are_a_tenth(count, expected):
    new, earlier = ([Row(f"{n}:{i}", {}) for i in range(n)] for n in (90, count))
    mixed = with_replay(new, earlier, 0.1, seed=3)
    assert mixed[:90] == new
    assert len(mixed) == 90 + expected
    assert len({row.where for row in mixed}) == len(mixed)
    assert all(row in earlier for row in mixed[90:])
    if count == 50:
        assert mixed[90:] != earlier[:10]
        assert mixed == with_replay(new, earlier, 0.1, seed=3) != with_replay(new, earlier, 0.1, 4)


def test_a_reward_model_is_trained_on(make, preferences, tmp_path):
    first = make()
    folder = first.save(tmp_path, None)
    texts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    second = make(model=str(folder), replay=str(preferences), replay_share=0.25)
    np.testing.assert_array_equal(second.model.rewards(texts), first.model.rewards(texts))
    assert len(second.training) == len(first.training) + round(len(first.training) / 3)
    assert len(second.validation) == len(first.validation)
    assert second.fingerprint != first.fingerprint


def test_what_is_no_reward_model_is_named(answering, tmp_path):
    with pytest.raises(CheckpointError, match="expected a reward model, with score"):
        RewardModel.from_pretrained(answering)
    first = RewardModel(from_pretrained(answering), Generator(0))
    with mt.no_grad():
        scores, extra = first(np.array([[1, 2, 3]]))
    assert (scores.shape, extra) == ((1, 3), [])


def test_the_command(cli, answering, preferences, tmp_path):
    out = tmp_path / "run"
    settings = [part for item in TINY.items() for part in ("--set", "{}={}".format(*item))]
    command = ["reward", "--model", answering, "--data", preferences, "--out", out, *settings]
    result = cli(*command, "--json")
    assert result.exit_code == 0, result.output
    assert {"val_accuracy", "val_loss", "val_score"} <= json.loads(result.stdout).keys()
    shown = read_lines(out / "rollouts.jsonl")
    pairs = list(zip(shown[::2], shown[1::2], strict=True))
    assert all(one["prompt"] == other["prompt"] for one, other in pairs)
    assert all(one["rewards"]["preferred"] > other["rewards"]["preferred"] for one, other in pairs)
    assert [one["rewards"]["right"] for one, _ in pairs] == [
        float(one["reward"] > other["reward"]) for one, other in pairs
    ]
    right = np.mean([one["rewards"]["right"] for one, _ in pairs])
    assert right == pytest.approx(json.loads(result.stdout)["val_accuracy"])
    for row in shown:
        assert row["scores"][-1] == pytest.approx(row["reward"], abs=1e-4)
        np.testing.assert_allclose(np.diff(row["scores"]), row["changes"][1:], atol=3e-5)
    assert "raises the score" in (out / "rollouts.html").read_text()
    assert cli("reward", "--resume", out, "--set", "steps=8").exit_code == 0
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}] * 2)
    result = cli("reward", "--model", answering, "--data", bad, "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert f"{bad}:" in result.stderr
    assert "expected two answers; chosen and rejected are the same" in result.stderr
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "margin": "x"}] * 2
    result = cli(
        "reward", "--model", answering, "--data", write_rows(bad, rows), "--out", tmp_path / "new"
    )
    assert "expected a number under 'margin'; got 'x'" in result.stderr
    assert not (tmp_path / "new").exists()
