"""Preferences without a reward model: the reference, every loss, what goes wrong."""

import json

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import ConfigError, DataError
from models import checkpoints
from models.recipes.dpo import DPO, LOSSES, DPOConfig
from models.recipes.scoring import features
from models.rollout_page import read_rollouts

from .conftest import assert_going_on_changes_nothing, train, write_base, write_rows

TINY = {"steps": 6, "batch_size": 4, "eval_interval": 2, "checkpoint_interval": 2}


@pytest.fixture
def make(answering, preferences):
    def build(**changes):
        defaults = {"model": str(answering), "data": str(preferences), **TINY}
        return DPO(DPOConfig(**{**defaults, **changes}))

    return build


@pytest.mark.parametrize("loss", LOSSES)
def test_going_on_changes_nothing(make, tmp_path, loss):
    changes = {"lora_rank": 2} if loss == "dpo" else {}
    assert_going_on_changes_nothing(lambda: make(loss=loss, **changes), tmp_path)


def log_prob(model, answer):
    """Of one answer by itself: the sum, and the number of its tokens."""
    with mt.no_grad():
        hidden, _ = features(model.eval(), answer.ids[None])
        log_probs = model.lm_head(hidden).log_softmax(-1).numpy()[0]
    counted = np.flatnonzero(answer.mask[1:])
    return sum(log_probs[t, answer.ids[t + 1]] for t in counted), len(counted)


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_the_reference_is_that_of_each_answer_by_itself(make, loss):
    recipe = make(loss=loss)
    for pair in [*recipe.training[:3], *recipe.validation[:2]]:
        for answer, known in zip(pair.answers, pair.reference, strict=True):
            total, count = log_prob(recipe.model, answer)
            assert count < len(answer) - 1  # the question is not in it
            assert known == pytest.approx(total / (count if loss == "ipo" else 1), rel=1e-4)


def test_earlier_answers_are_part_of_the_question(make, tmp_path):
    said = [("user", "a"), ("assistant", "bbbb"), ("user", "c")]
    prompt = [{"role": role, "content": content} for role, content in said]
    rows = [{"prompt": prompt, "chosen": "d", "rejected": "ef"}] * 4
    recipe = make(data=str(write_rows(tmp_path / "rows.jsonl", rows)))
    chosen, rejected = recipe.training[0].answers
    assert (chosen.counted, rejected.counted) == (2, 3)


def test_at_the_reference_the_loss_is_log_two(make):
    metrics = make().train_step()
    assert metrics["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert (metrics["accuracy"], metrics["reward_margin"]) == (
        pytest.approx(0.5, abs=0.5),
        pytest.approx(0, abs=1e-5),
    )
    assert make(loss="cdpo").train_step()["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert make(loss="hinge").train_step()["loss"] == pytest.approx(1, abs=1e-5)
    assert make(loss="ipo", beta=0.5).train_step()["loss"] == pytest.approx(1, abs=1e-5)
    assert make(loss="kto").train_step()["loss"] == pytest.approx(0.5, abs=1e-2)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_the_preferences(make, tmp_path, loss):
    beta = 2.0 if loss == "simpo" else 0.1
    recipe = make(
        loss=loss, beta=beta, steps=60, learning_rate=5e-3, batch_size=12, eval_interval=60
    )
    rows = train(recipe, tmp_path / "out")
    assert rows[-1]["val_accuracy"] >= 0.9
    assert {"chosen", "rejected", "val_chosen", "val_rejected"} <= rows[-1].keys()
    assert recipe.history["chosen"][-1] > recipe.history["rejected"][-1]


def test_the_reference_does_not_move_with_the_model(make, tmp_path):
    recipe = make()
    before = [pair.reference for pair in recipe.training]
    train(recipe, tmp_path / "out")
    again = make()
    again.restore(checkpoints.load(checkpoints.newest(tmp_path / "out")))
    assert [pair.reference for pair in again.training] == before


def test_another_reference(make, answering, tmp_path):
    same = make(reference=str(answering))
    assert [p.reference for p in same.training] == [p.reference for p in make().training]
    other = write_base(tmp_path / "other", alphabet="abcdefgh")
    with pytest.raises(ConfigError, match="expected the vocabulary of the model that is trained"):
        make(reference=str(other))


def test_a_question_with_anothers_answer_must_fit_too(make, tmp_path):
    rows = [
        {"prompt": "a" * 20, "chosen": "b", "rejected": "c"},
        {"prompt": "d", "chosen": "e" * 20, "rejected": "f"},
    ] * 4
    data = str(write_rows(tmp_path / "rows.jsonl", rows))
    assert len(make(data=data).training) == 7
    with pytest.raises(DataError, match="tokens are more than the model's context of 32"):
        make(data=data, loss="kto")


def test_the_command(cli, answering, preferences, tmp_path):
    out = tmp_path / "run"
    settings = [part for item in TINY.items() for part in ("--set", "{}={}".format(*item))]
    command = ["dpo", "--model", answering, "--data", preferences, *settings]
    result = cli(*command, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert {"val_accuracy", "chosen", "rejected"} <= json.loads(result.stdout).keys()
    rows = read_rollouts(out / "rollouts.jsonl")
    assert [row["group"] for row in rows[:4]] == [0, 0, 1, 1]
    for row, sign in zip(rows, [1, -1] * len(rows), strict=False):
        assert row["tokens"][-1] == "<|endoftext|>"
        assert row["advantages"] == [sign] * len(row["tokens"])
        assert row["reward"] == pytest.approx(sum(row["log_probs"]), abs=1e-4)
    assert rows[0]["prompt"] in (out / "rollouts.html").read_text()
    assert cli("dpo", "--resume", out, "--set", "steps=8").exit_code == 0
    result = cli(*command, "--loss", "dpoo", "--out", tmp_path / "new")
    assert result.exit_code == 2
    other = write_base(tmp_path / "other", alphabet="abcdefgh")
    result = cli(*command, "--reference", other, "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert "Log-probabilities of different tokens cannot be compared" in result.stderr
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": "a", "chosen": "b"}] * 2)
    result = cli("dpo", "--model", answering, "--data", bad, "--out", tmp_path / "new")
    assert f"{bad}:" in result.stderr
    assert "expected a text under 'rejected'" in result.stderr
    base = write_base(tmp_path / "base")
    result = cli("dpo", "--model", base, "--data", preferences, "--out", tmp_path / "new")
    assert "no template's special tokens" in result.stderr
    assert not (tmp_path / "new").exists()
