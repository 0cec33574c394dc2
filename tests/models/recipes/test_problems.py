"""Which problem comes next: in proportion to 1 - s, the easy ones first, the same after a stop."""

import json
import math

import numpy as np
import pytest

from minitorch.errors import ConfigError
from models.checkpoints import load
from models.environments.tasks import TASKS
from models.recipes.grpo_config import GrpoConfig
from models.recipes.problems import Problems
from models.recipes.prompts import Prompt
from tests.models.recipes.reinforced import SMALL, build, recipe, weights

NAN = math.nan


def prompts(hardness):
    return [Prompt(f"{i}", (i,), {"level": level}) for i, level in enumerate(hardness)]


def test_problems_come_in_proportion_to_how_often_they_are_failed():
    problems = Problems(prompts([0] * 5), 7)
    problems.rates[:] = [0.0, 0.5, 0.75, 1.0, NAN]
    expected = np.array([1, 0.5, 0.25, 0, 1]) / 2.75
    np.testing.assert_allclose(problems.probabilities(0), expected, rtol=1e-12)
    drawn = problems.choose(4000, 0, 0)
    found = np.bincount(drawn, minlength=5) / 4000
    assert found[3] == 0
    np.testing.assert_allclose(found, expected, atol=4 * math.sqrt(0.25 / 4000))
    assert problems.choose(10, 0, 990) == drawn[990:1000]  # in whatever portions


def test_what_is_all_solved_or_has_no_priority_comes_alike():
    solved = Problems(prompts([0] * 4), 7)
    solved.rates[:] = 1.0
    plain = Problems(prompts([0] * 4), 7, priority=False)
    plain.rates[:] = [0.0, 1.0, 0.5, NAN]
    for problems in (solved, plain):
        np.testing.assert_array_equal(problems.probabilities(3), np.full(4, 0.25))


def test_the_easiest_come_first_and_all_in_the_end():
    levels = np.random.default_rng(0).permutation(20)
    problems = Problems(prompts(levels.tolist()), 7, curriculum="level", pace=10)
    for step, count in ((0, 2), (1, 4), (4, 10), (9, 20), (50, 20)):
        may = np.flatnonzero(problems.probabilities(step))
        assert sorted(levels[may]) == list(range(count))
        assert problems.metrics(step)["admitted"] == count / 20
        assert set(problems.choose(50, step, 0)) <= set(may.tolist())


def test_a_rate_moves_to_what_was_seen():
    problems = Problems(prompts([0, 0, 0]), 7, memory=0.75)
    assert problems.metrics(0) == {"admitted": 1.0, "tried": 0.0}
    for share in (1.0, 0.0, 0.5):
        problems.judged(1, share)
    assert problems.rates[1] == (1.0 * 0.75 + 0) * 0.75 + 0.25 * 0.5
    problems.judged(2, 0.25)
    found = problems.metrics(0)
    assert found["tried"] == pytest.approx(2 / 3)
    assert found["success"] == pytest.approx((problems.rates[1] + 0.25) / 2)


def run_of(**changes):
    rare = [(lambda p, c, **_: [float("7" in text) for text in c], 1.0)]
    settings = {"problems": 6, "priority": True, "beta": 0.0, "learning_rate": 0.02}
    return recipe(rewards=rare, **{**settings, "rollout_interval": 1, **changes})


def test_a_run_tracks_what_its_first_reward_says():
    run, expected = run_of(), np.full(6, NAN)
    ids = [prompt.ids for prompt in run.problems.prompts]
    assert ids == [prompt.ids for prompt in run.source.take(0, 6)]

    def note(step, batch, completions, advantages):
        for group in batch.groups:
            at = ids.index(group.prompt.ids)
            share = np.mean([value == 1.0 for value in group.given["<lambda>"]])
            old = expected[at]
            expected[at] = share if np.isnan(old) else (old + share) / 2

    run.on_rollouts = note
    for _ in range(5):
        metrics = run.train_step()
    np.testing.assert_array_equal(run.problems.rates, expected)
    assert 0 < np.nanmean(expected) < 1
    assert metrics["success"] == pytest.approx(np.nanmean(expected))
    assert metrics["tried"] == np.mean(~np.isnan(expected))


@pytest.mark.parametrize("segment", [0, 2])
def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path, segment):
    whole, first, again = (run_of(segment_tokens=segment) for _ in range(3))
    for _ in range(4):
        whole.train_step()
    for _ in range(2):
        first.train_step()
    again.restore(load(first.save(tmp_path, None)))
    for _ in range(2):
        again.train_step()
    np.testing.assert_array_equal(again.problems.rates, whole.problems.rates)
    ours, theirs = weights(again.model), weights(whole.model)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert again.history == whole.history


def test_a_curriculum_on_the_command_line(cli, tmp_path):
    task = TASKS["addition"]()
    build(task).save_pretrained(tmp_path / "base")
    task.tokenizer().save(tmp_path / "base" / "tokenizer.json")
    (tmp_path / "rewards.py").write_text(
        "def sevens(prompts, completions, **columns):\n"
        "    return [float('7' in text) for text in completions]\n"
    )
    rows = [{"prompt": f"{n}+1=", "level": 99 - n} for n in range(50, 90)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {**SMALL, "max_tokens": 3, "rollout_interval": 1, "beta": 0.0, "priority": "true"}
    settings |= {"curriculum": "level", "curriculum_steps": 4}
    pairs = [x for item in settings.items() for x in ("--set", "{}={}".format(*item))]
    arguments = ["grpo", "--model", tmp_path / "base", "--data", tmp_path / "rows.jsonl", *pairs]
    arguments += ["--reward", f"{tmp_path / 'rewards.py'}:sevens", "--out", tmp_path / "run"]
    result = cli(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "admitted 0.88" in result.stdout
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert [row["admitted"] for row in log] == [0.375, 0.875]
    assert all(0 <= row["success"] <= 1 for row in log)
    seen = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").open()]
    first = {row["prompt"] for row in seen if row["step"] == 1}
    hardest = {f"{n}+1=" for n in range(50, 90 - 12)}  # two are for validation
    assert not first & hardest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problems": 0}, "problems: expected how many prompts of the task"),
        ({"curriculum": "level"}, "curriculum: expected a number under 'level'.*got None"),
        ({"curriculum": "answer"}, "under 'answer'.*got '"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        run_of(**changes)


def test_what_a_run_has_chosen_from_stays():
    config = GrpoConfig(**SMALL, priority=True, problems=4)
    for name, value in (("problems", "8"), ("priority", "false"), ("curriculum", "level")):
        with pytest.raises(ConfigError, match=f"{name}: this run has"):
            config.resumed(config, {name: value})
