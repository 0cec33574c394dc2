"""Rejection sampling: which completion is kept, and the rows that are written."""

import json

import numpy as np
import pytest

from minitorch.errors import ConfigError
from minitorch.random import Generator
from models.best_of import best_of
from models.environments.tasks import addition
from models.llama import LlamaConfig
from models.recipes.data import read_rows
from models.recipes.judging import by_model, texts_of
from models.recipes.prompts import TaskSource
from models.reward_model import RewardModel

TASK = addition()


def build(seed=3):
    longest = TASK.longest_prompt + TASK.longest_completion + 4
    sizes = LlamaConfig.sized(
        vocab_size=TASK.tokenizer().vocab_size, layers=1, heads=2, width=16, positions=longest
    )
    return sizes.build(np.dtype(np.float32), Generator(seed))


class Recorded:
    """A score by length that remembers what it was asked."""

    def __init__(self, score):
        self.score = score

    def __call__(self, prompts, rollouts):
        self.prompts, self.rollouts = prompts, rollouts
        return np.array([self.score(r) for r in rollouts], float)


def sampled(score, samples=6, **options):
    tokenizer = TASK.tokenizer()
    prompts = TaskSource(TASK, tokenizer, 0).take(0, 8)
    recorded = Recorded(score)
    found = best_of(build(), tokenizer, prompts, recorded, samples=samples, max_tokens=6, **options)
    groups = [recorded.rollouts[i : i + samples] for i in range(0, 8 * samples, samples)]
    assert [p.text for p in recorded.prompts[::samples]] == [p.text for p in prompts]
    return found, groups, tokenizer


def test_the_best_that_ended_is_kept():
    found, groups, tokenizer = sampled(lambda r: sum(r.completion_ids), samples=20)
    kept = 0
    for best, group in zip(found, groups, strict=True):
        ended = [r for r in group if r.finished]
        if not ended:
            assert best.completion is None
            continue
        kept += 1
        highest = max(sum(r.completion_ids) for r in ended)
        assert best.score == highest
        wanted = [r for r in ended if sum(r.completion_ids) == highest]
        assert best.completion in texts_of(wanted, tokenizer)
        assert len(best.scores) == 20
    assert kept > 3


def test_of_equals_the_shortest():
    found, groups, tokenizer = sampled(lambda r: 1.0, samples=20)
    for best, group in zip(found, groups, strict=True):
        lengths = [len(r.completion_ids) for r in group if r.finished]
        if lengths:
            assert len(tokenizer.encode(best.completion)) + 1 == min(lengths)


def test_what_is_not_good_enough_is_not_kept():
    found, _, _ = sampled(lambda r: 0.5, at_least=0.6, samples=20)
    assert all(best.completion is None for best in found)


def test_more_samples_are_never_worse():
    few, many = (sampled(lambda r: sum(r.completion_ids), samples=n)[0] for n in (1, 12))
    assert sum(b.completion is not None for b in many) > sum(b.completion is not None for b in few)


def test_greedy_samples_are_all_the_same():
    with pytest.raises(ConfigError, match="temperature above 0"):
        sampled(lambda r: 0.0, temperature=0.0)


@pytest.fixture
def base(tmp_path):
    build().save_pretrained(tmp_path / "base")
    TASK.tokenizer().save(tmp_path / "base" / "tokenizer.json")
    return tmp_path / "base"


def test_rows_that_sft_reads(base, tmp_path, cli):
    out = tmp_path / "rows.jsonl"
    options = ["--model", base, "--task", "addition", "--prompts", 20, "--samples", 10]
    result = cli("best-of", *options, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    rows = read_rows(out)
    assert found["kept"] == len(rows) > 0
    assert found["prompts"] == 20
    assert {"prompt", "completion", "score", "answer"} == rows[0].fields.keys()
    again = tmp_path / "again.jsonl"
    assert cli("best-of", *options, "--out", again).exit_code == 0
    assert again.read_text() == out.read_text()


def test_a_reward_model_judges(base, tmp_path, cli):
    judge = RewardModel(build(7), Generator(8))
    judge.save_pretrained(tmp_path / "judge")
    TASK.tokenizer().save(tmp_path / "judge" / "tokenizer.json")
    data, out = tmp_path / "prompts.jsonl", tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{n}+1="}) + "\n" for n in range(10, 30)))
    options = ["--data", data, "--reward-model", tmp_path / "judge", "--max-tokens", 4]
    result = cli("best-of", "--model", base, *options, "--out", out, "--samples", 10)
    assert result.exit_code == 0, result.stderr
    assert "prompts have a completion that is kept" in result.stdout
    for row in read_rows(out):
        ids = TASK.tokenizer().encode(row.text("prompt"))
        ids += TASK.tokenizer().encode(row.fields["completion"])
        (end,) = TASK.tokenizer().special_tokens.values()
        assert row.fields["score"] == pytest.approx(judge.rewards([[*ids, end]])[0], abs=1e-5)


def test_by_model_is_of_the_whole_text():
    _, groups, tokenizer = sampled(lambda r: 0.0)
    judge = RewardModel(build(7), Generator(8))
    found = by_model(judge, tokenizer)([], groups[0])
    expected = judge.rewards([r.ids for r in groups[0]])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either --task or --data"),
        (["--task", "addition", "--reward", "a.py:b", "--reward-model", "x"], "got both"),
        (["--data", "rows.jsonl"], "--max-tokens: expected the length"),
        (["--task", "additoin"], "did you mean 'addition'"),
    ],
)
def test_bad_command_lines(options, message, base, tmp_path, cli):
    result = cli("best-of", "--model", base, *options, "--out", tmp_path / "rows.jsonl")
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "rows.jsonl").exists()


def test_data_without_a_judge_and_rows_that_differ(base, tmp_path, cli):
    data, out = tmp_path / "prompts.jsonl", tmp_path / "rows.jsonl"
    options = ["--model", base, "--data", data, "--max-tokens", 4, "--out", out]
    data.write_text('{"prompt": "1+1="}\n')
    assert "--data needs --reward" in cli("best-of", *options).stderr
    data.write_text('{"prompt": "1+1="}\n{"prompt": "1+1=", "answer": "2"}\n')
    result = cli("best-of", *options)
    assert result.exit_code == 1
    assert "prompts.jsonl:2: expected the keys of the first row" in result.stderr
