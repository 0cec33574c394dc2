"""Completions that take several steps: each token is of the policy that drew it; none is lost."""

import json

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import ConfigError
from models.checkpoints import load
from models.environments.tasks import TASKS
from models.recipes.completions import Completions
from models.recipes.grpo_config import GrpoConfig
from models.rollouts import begin, extend
from models.sampling import Sampler
from tests.models.recipes.reinforced import LETTERS, SMALL, build, recipe, weights
from tests.models.recipes.test_ppo import recipe as ppo

LONG = {"segment_tokens": 2, "group_size": 2, "beta": 0.0}


def run_of(**changes):
    return recipe(task=LETTERS, **{**LONG, **changes})


def noted(run):
    """The batches that the run learns from, as they come."""
    batches = []
    run.on_rollouts = lambda step, batch, completions, advantages: batches.append(batch)
    return batches


def test_every_token_has_the_log_probability_of_the_policy_that_drew_it():
    run = run_of(learning_rate=0.02, rollout_interval=1)
    batches, policies = noted(run), []
    segments: dict[int, list[tuple[int, int]]] = {}
    complete = run.complete

    def writing(rollouts, sampler, limits):
        written = complete(rollouts, sampler, limits)
        for before, after in zip(rollouts, written, strict=True):
            ends = len(before.completion_ids), len(after.completion_ids)
            assert ends[1] - ends[0] <= 2
            segments.setdefault(after.number, []).extend([run.step] * (ends[1] - ends[0]))
        return written

    run.complete = writing
    for _ in range(5):
        policies.append(weights(run.model))
        run.train_step()
    judge, several = build(LETTERS), 0
    for number, batch in enumerate(batches):
        for rollout, earlier in zip(batch.rollouts, batch.earlier, strict=True):
            steps = segments[rollout.number]
            several += len(set(steps)) > 1
            assert len(steps) == len(rollout.completion_ids)
            assert earlier == sum(step < number for step in steps)
            for step in set(steps):
                judge.load_state_dict(policies[step])
                logits = judge(mt.tensor([rollout.ids]))[0].detach().double().log_softmax(-1)
                for t in np.flatnonzero(np.array(steps) == step):
                    at = len(rollout.prompt_ids) + t
                    expected = logits[0, at - 1, rollout.ids[at]].item()
                    assert rollout.log_probs[t] == pytest.approx(expected, abs=1e-5)
    assert several > 3


def test_a_policy_that_stands_still_writes_as_if_it_were_in_one_go():
    run = run_of(rewards=[(lambda p, c, **_: [0.0] * len(c), 1.0)], rollout_interval=1)
    batches = noted(run)
    metrics = [run.train_step() for _ in range(4)]
    assert max(m["earlier"] for m in metrics) > 0.1
    model, end = build(LETTERS), run.tokenizer.encode("<|endoftext|>", allowed_special="all")
    for batch in batches:
        for i, rollout in enumerate(batch.rollouts):
            begun = begin([batch.prompts[i // 2].ids], 1, rollout.number)
            (whole,) = extend(
                model, begun, max_tokens=6, sampler=Sampler(), seed=run.config.seed, stop_ids=end
            )
            assert (whole.completion_ids, whole.finished) == (
                rollout.completion_ids,
                rollout.finished,
            )


def test_groups_stay_together_and_none_is_lost():
    run = run_of(rollout_interval=1, dynamic_sampling=1)
    batches = noted(run)
    for _ in range(6):
        run.train_step()
    seen = [rollout.number for batch in batches for rollout in batch.rollouts]
    kept = [r.number for g in (*run.carried.whole, *run.carried.open) for r in g.rollouts]
    assert len(set(seen)) == len(seen) == 6 * 8
    assert not set(seen) & set(kept)
    for batch in batches:
        for i, rollout in enumerate(batch.rollouts):
            assert rollout.prompt_ids == batch.prompts[i // 2].ids
            assert rollout.finished or len(rollout.completion_ids) == 6
    run = run_of()
    for _ in range(6):
        run.sample()
    assert run.written == 6 * 8 + 2 * len(run.carried)


def test_a_step_does_not_wait_for_the_longest():
    """The first completion never ends, and all others do at once."""
    run = run_of(prompts=2, group_size=1, segment_tokens=1, rollout_interval=1)

    def writing(rollouts, sampler, limits):
        return [r.wrote([1], [-1.0], finished=r.number > 0) for r in rollouts]

    run.complete = writing
    batches = noted(run)
    for _ in range(3):
        run.train_step()
    assert [[r.number for r in batch.rollouts] for batch in batches] == [[1, 2], [3, 4], [5, 0]]
    assert [batch.earlier for batch in batches] == [[0, 0], [0, 0], [0, 4]]
    assert len(batches[2].rollouts[1].completion_ids) == 6
    assert [group.row for group in run.carried.whole] == [6]


def test_only_what_this_policy_wrote_is_learnt_if_so_wished():
    for learn_earlier in (True, False):
        run = run_of(learn_earlier=learn_earlier, rollout_interval=1, epochs=2)
        batches, masks = noted(run), []
        objective = run.objective

        def counted(*arguments, objective=objective, masks=masks, **options):
            masks.append(arguments[3])
            return objective(*arguments, **options)

        counted.total, run.objective = objective.total, counted
        for _ in range(3):
            metrics = run.train_step()
        assert metrics["earlier"] > 0
        assert metrics["mismatch"] < 1e-5  # only what this policy wrote can be compared
        completions = Completions.of(batches[-1].rollouts, batches[-1].earlier)
        expected = completions.mask if learn_earlier else completions.fresh
        np.testing.assert_array_equal(masks[-1], expected)
        assert completions.fresh.sum() < completions.mask.sum()
        assert [sum(row) for row in completions.mask & ~completions.fresh] == batches[-1].earlier


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    whole, first, again = (run_of(learning_rate=0.02) for _ in range(3))
    for _ in range(4):
        whole.train_step()
    for _ in range(2):
        first.train_step()
    saved = load(first.save(tmp_path, None))
    assert json.dumps(saved.state["carried"]) == json.dumps(first.carried.state())
    assert saved.state["carried"]
    again.restore(saved)
    assert (again.carried.open, again.carried.whole) == (first.carried.open, first.carried.whole)
    for _ in range(2):
        again.train_step()
    ours, theirs = weights(again.model), weights(whole.model)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert again.history == whole.history


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_p": 0.9}, "segment_tokens: expected top_p=1 and sampler_cap=0.*top_p=0.9"),
        ({"sampler_cap": 2.0}, "sampler_cap=2.0"),
        ({"loss": "reinforce"}, "loss=reinforce has no ratio"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        GrpoConfig(**{**SMALL, "segment_tokens": 2, **changes})
    GrpoConfig(**SMALL, **changes)


def test_a_call_of_a_tool_is_not_torn():
    with pytest.raises(ConfigError, match="segment_tokens: expected 0 where there is a tool"):
        recipe(task=TASKS["calculator"](), segment_tokens=2, beta=0.0)


def test_ppo_carries_completions_too():
    run = ppo("ppo", segment_tokens=1, learn_earlier=False, positive_weight=0.1)
    found = [run.train_step() for _ in range(5)]
    assert all(np.isfinite(value) for metrics in found for value in metrics.values())
    assert max(metrics["earlier"] for metrics in found) > 0
    assert max(metrics["mismatch"] for metrics in found) < 1e-5
