"""Steps of completions: where they end, who scores them, and what each token gets of it."""

import json

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import ConfigError
from minitorch.random import Generator
from models.recipes.grpo_config import GrpoConfig
from models.recipes.prompts import Prompt
from models.recipes.supervision import Supervision, by_function, by_process_model
from models.reward_model import RewardModel
from models.rollouts import Rollout
from tests.models.recipes.reinforced import LETTERS, SMALL, build, recipe

TOKENIZER = LETTERS.tokenizer()
END = TOKENIZER.encode("<|endoftext|>", allowed_special="all")


def written(text, ended=False, told=()):
    ids = (*TOKENIZER.encode(text), *(END if ended else ()))
    mask = tuple(i not in told for i in range(len(ids)))
    return Rollout(0, (1, 2), ids, (0.0,) * len(ids), mask, ended)


def places(prompts, steps, **columns):
    """Scores that say where they are of."""
    return [[10.0 * i + len(step) for i, step in enumerate(own)] for own in steps]


@pytest.mark.parametrize(
    ("rollout", "scores"),
    [
        (written("ab"), {1: 2.0}),
        (written("abaab"), {1: 2.0, 4: 13.0}),
        (written("abaa"), {1: 2.0, 3: 12.0}),
        (written("ab", ended=True), {2: 2.0}),
        (written("abb", ended=True), {1: 2.0, 3: 11.0}),
        (written("", ended=True), {0: 0.0}),
        (written("abab", told=(0, 1)), {3: 4.0}),
    ],
)
def test_where_steps_end(rollout, scores):
    supervision = Supervision(by_function(places, TOKENIZER), TOKENIZER, "b")
    assert supervision([Prompt("", (1, 2), {})], [rollout]) == [scores]


def letters_a(prompts, steps, **columns):
    """The share of "a" in each step."""
    return [[step.count("a") / max(len(step), 1) for step in own] for own in steps]


def run_of(judge=None, **changes):
    settings = {"advantage": "process", "process_reward": "given below", "beta": 0.0, **changes}
    supervision = Supervision(judge or by_function(letters_a, TOKENIZER), TOKENIZER, "b")
    return recipe(task=LETTERS, supervision=supervision, **settings)


def test_advantages_are_the_papers():
    """A_it = sum over steps that end at t or later of (r - mean R) / std R, R of the group."""
    run, seen = run_of(rollout_interval=1), []
    run.on_rollouts = lambda step, batch, completions, advantages: seen.append((batch, advantages))
    metrics = run.train_step()
    ((batch, advantages),) = seen
    b, several, everything = TOKENIZER.encode("b")[0], 0, []
    for group in range(4):
        found = []
        for rollout in batch.rollouts[4 * group : 4 * group + 4]:
            ids = [token for token in rollout.completion_ids if token != END[0]]
            ends = [i for i, token in enumerate(ids) if token == b]
            if not ends or ends[-1] < len(ids) - 1:
                ends.append(len(ids) - 1)
            begins = [0, *(end + 1 for end in ends[:-1])]
            texts = [TOKENIZER.decode(ids[i : j + 1]) for i, j in zip(begins, ends)]
            ends[-1] = len(rollout.completion_ids) - 1
            found.append([(e, t.count("a") / max(len(t), 1)) for e, t in zip(ends, texts)])
            several += len(ends) > 1
        rewards = np.array([score for steps in found for _, score in steps])
        everything += rewards.tolist()
        for i, steps in enumerate(found):
            row = 4 * group + i
            for t in range(advantages.shape[1]):
                if t >= len(batch.rollouts[row].completion_ids):
                    assert advantages[row, t] == 0
                    continue
                normalised = [(r - rewards.mean()) / (rewards.std(ddof=1) + 1e-4) for _, r in steps]
                expected = sum(a for (e, _), a in zip(steps, normalised) if e >= t)
                assert advantages[row, t] == pytest.approx(expected, abs=1e-5)
    assert several > 4
    assert metrics["step_score"] == pytest.approx(np.mean(everything))
    assert metrics["steps"] == len(everything) / 16
    assert metrics["grad_norm"] > 0


def test_steps_of_equal_scores_teach_nothing_whatever_the_rewards_are():
    alike = by_function(lambda prompts, steps, **_: [[0.3] * len(s) for s in steps], TOKENIZER)
    metrics = run_of(alike).train_step()
    assert metrics["zero_variance"] == 1.0
    assert metrics["grad_norm"] == 0.0
    assert metrics["reward"] > 0


def test_it_learns_what_the_steps_are_scored_for():
    run = run_of(learning_rate=0.02, prompts=8)
    scores = [run.train_step()["step_score"] for _ in range(15)]
    assert np.mean(scores[-3:]) > np.mean(scores[:3]) + 0.2


def test_a_model_scores_a_step_from_what_is_before_its_end():
    model = RewardModel(build(LETTERS), Generator(4))
    supervision = Supervision(by_process_model(model), TOKENIZER, "b")
    rollouts = [written("abaab", ended=True), written("b"), written("", ended=True)]
    found = supervision([Prompt("", (1, 2), {})] * 3, rollouts)
    for rollout, steps in zip(rollouts, found, strict=True):
        for stop, score in zip(supervision.stops(rollout), steps.values(), strict=True):
            with mt.no_grad():
                last = model(np.array([rollout.ids[: 2 + stop]]))[0].numpy()[0, -1]
            assert score == pytest.approx(1 / (1 + np.exp(-last)), abs=1e-6)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda prompts, steps, **_: [[1.0]], "expected a list of 16 lists.*got 1"),
        (lambda prompts, steps, **_: 3, "expected a list of 16 lists.*got int"),
        (lambda prompts, steps, **_: [[1.0] * 9] * 16, "finite numbers, one for each of the steps"),
        (lambda prompts, steps, **_: [[np.nan] * len(s) for s in steps], "finite numbers"),
        (lambda prompts, steps, **_: [["a"] * len(s) for s in steps], "finite numbers"),
        (lambda prompts, steps, **_: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_functions_that_fail(function, message):
    with pytest.raises(ConfigError, match=message):
        run_of(by_function(function, TOKENIZER)).train_step()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage": "process"}, "expected either this or process_model"),
        ({"process_reward": "f.py:f"}, "neither otherwise; got advantage='grpo'"),
        ({"advantage": "process", "process_reward": "f.py:f", "process_model": "m"}, "either this"),
        ({"advantage": "process", "process_model": "m", "overlong_margin": 2}, "steps alone"),
        ({"advantage": "process", "process_model": "m", "loss": "gspo"}, "one advantage"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        GrpoConfig(**SMALL, **changes)


def test_steps_need_a_judge_and_a_judge_needs_steps():
    with pytest.raises(ConfigError, match=r"with advantage=process.*got grpo"):
        run_of(advantage="grpo", process_reward="")
    with pytest.raises(ConfigError, match=r"with advantage=process.*got process and none"):
        recipe(task=LETTERS, advantage="process", process_model="m", beta=0.0)


def test_a_step_must_be_able_to_end():
    for step_end in ("\n", ""):
        with pytest.raises(ConfigError, match="step_end: expected the end of a token"):
            Supervision(by_function(places, TOKENIZER), TOKENIZER, step_end)


def test_the_command_line_with_a_function_and_with_a_model(cli, tmp_path):
    base, judge = tmp_path / "base", tmp_path / "judge"
    build(LETTERS).save_pretrained(base)
    RewardModel(build(LETTERS), Generator(4)).save_pretrained(judge)
    for folder in (base, judge):
        TOKENIZER.save(folder / "tokenizer.json")
    (tmp_path / "rewards.py").write_text(
        "def some(prompts, completions, **columns):\n"
        "    return [float(len(x) > 2) for x in completions]\n\n"
        "def steps(prompts, steps, **columns):\n"
        "    return [[float(len(step)) for step in own] for own in steps]\n"
    )
    rows = [{"prompt": f"{a}{b}{c}="} for a in "ab" for b in "ab" for c in "ab"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        **SMALL,
        "steps": 2,
        "max_tokens": 5,
        "beta": 0.0,
        "advantage": "process",
        "step_end": "b",
    }
    pairs = [x for item in settings.items() for x in ("--set", "{}={}".format(*item))]
    arguments = ["grpo", "--model", base, "--data", tmp_path / "rows.jsonl", *pairs]
    arguments += ["--reward", f"{tmp_path / 'rewards.py'}:some", "--json"]
    for name, options in {
        "function": ["--process-reward", f"{tmp_path / 'rewards.py'}:steps"],
        "model": ["--set", f"process_model={judge}"],
    }.items():
        result = cli(*arguments, *options, "--out", tmp_path / name)
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["step_score"] > 0
    result = cli(*arguments, "--process-reward", "absent.py:f", "--out", tmp_path / "other")
    assert result.exit_code == 1
    assert "process_reward: expected a Python file" in result.stderr
