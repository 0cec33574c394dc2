"""R1's pipeline in tiny sizes: it goes on, it accepts what it should, it says what is wrong."""

import json

import pytest
from rich.console import Console

from minitorch.errors import ConfigError
from minitorch.io import read_json
from models import checkpoints
from models.environments.answers import thinking
from models.environments.tasks import bilingual, strings
from models.options import read_toml
from models.pipelines import r1
from models.pipelines.mixture import Mixture, only
from models.pipelines.r1 import R1Config
from models.pipelines.stages import Stages, settings_of
from models.pipelines.written import Written
from models.recipes.loop import Stopped
from models.recipes.prompts import Prompt
from tests.models.conftest import run_cli

QUICK = R1Config.resolve("quick")
SILENT = Console(quiet=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder and the table of a pipeline that was not interrupted."""
    out = tmp_path_factory.mktemp("r1")
    return out, r1.run(QUICK, Stages(out, QUICK, SILENT))


def weights(out):
    """The bytes of every trained model."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.glob("*/checkpoints/*/model.safetensors"))
    }


def test_the_table_has_a_row_for_each_model(whole):
    _, rows = whole
    assert [row["variant"] for row in rows] == [
        "base",
        "zero",
        "dev1",
        "dev2",
        "no language",
        "dev3",
        "r1",
        "small",
        "small, RL",
        "distilled",
    ]
    assert all(row.keys() == rows[0].keys() for row in rows)


def test_what_is_done_is_not_done_again(whole, monkeypatch):
    out, rows = whole

    def fail(*_):
        raise AssertionError("a stage that was done is done again")

    for name in ("sft", "rl", "untrained", "measure", "write", "web_text", "cold_start", "general"):
        monkeypatch.setattr(r1._R1, name, fail)
    assert r1.run(QUICK, Stages(out, QUICK, SILENT)) == rows


def test_a_pipeline_that_was_stopped_goes_on_as_if_it_had_not_been(whole, tmp_path):
    count = 0

    def stop():
        nonlocal count
        count += 1
        return count > 30

    with pytest.raises(Stopped):
        r1.run(QUICK, Stages(tmp_path, QUICK, SILENT, stop))
    assert r1.run(QUICK, Stages(tmp_path, QUICK, SILENT)) == whole[1]
    assert weights(whole[0]).items() <= weights(tmp_path).items()


def test_other_settings_are_refused(whole):
    out, _ = whole
    with pytest.raises(ConfigError, match=r"begun with seed = 0, now seed = 1"):
        Stages(out, R1Config.resolve("quick", None, {"seed": 1}), SILENT)
    assert settings_of(out, R1Config) == QUICK


def test_a_stage_without_rows_says_so(tmp_path):
    stages = Stages(tmp_path, QUICK, SILENT)
    with pytest.raises(ConfigError, match="the stage before has learnt nothing"):
        stages.rows("samples", list)
    assert not (tmp_path / "samples" / "rows.jsonl").exists()


def written(text, answer="211"):
    prompt = Prompt("27+85=", (), {"answer": answer, "task": r1.SUMS})
    return Written(prompt, text, length=11, finished=True)


@pytest.mark.parametrize(
    ("text", "right", "laid_out", "language"),
    [
        ("<think>cbb</think><answer>211</answer>", 1, 1, 1),
        ("<think>cBB</think><answer>211</answer>", 1, 1, 1 / 3),
        ("<think>cbb</think><answer>212</answer>", 0, 1, 1),
        ("211", 0, 0, None),
        ("<answer>211</answer>", 1, 0, None),
        ("<think>1</think><answer>211</answer>", 1, 1, 0),
        ("<think>cbb</think>211", 0, 0, 1),
        ("<think>cbb</think><answer>211</answer><answer>211</answer>", 0, 0, 1),
    ],
)
def test_answers_are_judged(text, right, laid_out, language):
    found = r1.judge(written(text))
    assert found[r1.RIGHT] == right
    assert found[r1.LAID_OUT] == laid_out
    assert found[r1.LANGUAGE] == (language if language is None else pytest.approx(language))


def test_only_what_is_right_of_one_language_and_short_is_learnt_from(tmp_path, monkeypatch):
    good = written("<think>cbb</think><answer>211</answer>")
    bad = [
        written("<think>cbb</think><answer>212</answer>"),
        written("<think>cbB</think><answer>211</answer>"),
        written("<answer>211</answer>"),
        Written(good.prompt, good.text, length=12, finished=True),
    ]
    pipeline = r1._R1(QUICK, Stages(tmp_path, QUICK, SILENT))
    monkeypatch.setattr(pipeline, "write", lambda *_: [*bad, good])
    assert list(pipeline.accepted(tmp_path)) == [{"prompt": "27+85=", "completion": good.text}]


def test_the_web_text_is_what_it_is_said_to_be(tmp_path):
    config = R1Config(web_rows=4000)
    pipeline = r1._R1(config, Stages(tmp_path, config, SILENT))
    sums = [row for row in pipeline.web_text() if "+" in row["prompt"]]
    thought = [row for row in sums if row["completion"].startswith("<think>")]
    assert 0.27 < len(thought) / len(sums) < 0.33
    answers = [row["completion"].split("<answer>")[-1].removesuffix("</answer>") for row in sums]
    right = [
        str(sum(map(int, row["prompt"][:-1].split("+"))))[::-1] == answer
        for row, answer in zip(sums, answers, strict=True)
    ]
    assert 0.37 < sum(right) / len(right) < 0.44
    spelt = "".join(thinking(row["completion"]) for row in thought)
    capitals = [char.isupper() for char in spelt]
    assert 0.37 < sum(capitals) / len(capitals) < 0.43


def test_prompts_of_a_mixture_take_turns_and_have_their_own_rewards(tmp_path):
    tasks = {"sums": bilingual(), "words": strings()}
    pipeline = r1._R1(QUICK, Stages(tmp_path, QUICK, SILENT))
    source = Mixture(tasks, pipeline.tokenizer, 0)
    prompts = source.take(5, 6)
    assert [prompt.columns["task"] for prompt in prompts] == ["words", "sums"] * 3
    assert source.take(7, 2) == prompts[2:4]
    assert source.validation(2) != source.take(0, 2)
    ones = only("words", lambda prompts, completions, **_: [1.0] * len(prompts))
    names = [prompt.columns["task"] for prompt in prompts]
    assert ones([""] * 6, [""] * 6, task=names) == [1.0, None] * 3


def test_the_command_prints_the_table_and_goes_on(tmp_path):
    out = tmp_path / "run"
    settings = ["--set", "base_steps=2", "--set", "rl_steps=1", "--set", "final_steps=1"]
    first = run_cli("r1", "--quick", *settings, "--seed", 2, "--out", out, "--json")
    assert first.exit_code == 0, first.output
    rows = json.loads(first.stdout)["rows"]
    assert rows[-1]["variant"] == "distilled"
    saved = read_json(out / "r1.json")
    assert saved["rows"] == rows
    assert saved["claims"] == []
    assert "--set seed=2" in saved["command"]
    assert (out / "r1.png").read_bytes().startswith(b"\x89PNG")
    assert read_toml(out / "config.toml")["seed"] == 2
    assert read_json(out / "10-r1" / "done.json")["checkpoint"] == "step-00000001"
    assert checkpoints.verify(out / "10-r1" / "checkpoints" / "step-00000001")["step"] == 1
    again = run_cli("r1", "--resume", out, "--json")
    assert json.loads(again.stdout)["rows"] == rows


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "no_such=1"], 1, "no_such"),
        (["--set", "group_size=1"], 1, "at least 2"),
        (["--resume", "nowhere"], 1, "nowhere"),
        (["--resume", "runs/r1", "--quick"], 2, "give it alone"),
    ],
)
def test_what_is_wrong_is_said(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_cli("r1", *arguments)
    assert result.exit_code == code
    assert message in result.output


def test_a_folder_that_holds_a_pipeline_is_not_begun_again(whole):
    out, _ = whole
    result = run_cli("r1", "--quick", "--out", out)
    assert result.exit_code == 1
    assert f"--resume {out}" in result.output


def test_help_has_an_example():
    assert "minitorch r1 --resume runs/r1" in run_cli("r1", "--help").output
