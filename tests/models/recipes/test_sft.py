"""Supervised fine-tuning: what is learnt, how it is counted, and what goes wrong."""

import json
import os
import signal

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import ConfigError, DataError
from minitorch.tokenizers import load as load_tokenizer
from models import checkpoints
from models.chat import end_id
from models.families import from_pretrained
from models.recipes.sft import SFT, SFTConfig, answers, load_rows, noisy_embeddings
from models.rollout_page import read_rollouts
from models.runlog import read_log

from .conftest import assert_going_on_changes_nothing, train, write_base, write_rows

TINY = {
    "template": "plain",
    "steps": 6,
    "batch_size": 4,
    "eval_interval": 2,
    "checkpoint_interval": 2,
    "task_rows": 60,
    "eval_rows": 4,
}


@pytest.fixture
def make(base):
    def build(**changes):
        return SFT(SFTConfig(**{"model": str(base), **TINY, **changes}))

    return build


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a = 1\nb = 2\n" * 60)
    return str(path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"packing": True, "gradient_accumulation": 2},
        {"replay": 0.25, "replay_length": 16, "neftune": 5.0},
        {"lora_rank": 2, "lora_dropout": 0.1},
    ],
    ids=["plain", "packed", "replay and noise", "lora"],
)
def test_going_on_changes_nothing(make, text, tmp_path, changes, templated):
    if "replay" in changes:
        changes = {**changes, "text": text}
    if "lora_rank" in changes:
        changes = {**changes, "model": templated}
    assert_going_on_changes_nothing(lambda: make(**changes), tmp_path)


@pytest.fixture(scope="session")
def templated(base, tmp_path_factory):
    """The base after a step, with the end token in its vocabulary."""
    out = tmp_path_factory.mktemp("templated")
    train(SFT(SFTConfig(model=str(base), **{**TINY, "steps": 1})), out)
    return str(out)


def test_accumulation_is_one_large_batch(make):
    one, two = make(batch_size=8), make(batch_size=2, gradient_accumulation=4)
    lengths = {len(item) for row in one.packed for item in row}
    assert len(lengths) > 3
    losses = [[run.train_step()["loss"] for _ in range(3)] for run in (one, two)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    np.testing.assert_allclose(one.history["grad_norm"], two.history["grad_norm"], rtol=1e-4)


def test_the_loss_is_that_of_the_answers_tokens(make, tmp_path):
    rows = write_rows(
        tmp_path / "rows.jsonl", [{"prompt": "abc", "completion": c} for c in ("de", "f")] * 2
    )
    run = make(data=str(rows), val_fraction=0.25, batch_size=3)
    batch = run._micro_batches()[0]
    with mt.no_grad():
        logits = run.model(mt.from_numpy(batch.ids))[0].log_softmax(-1).numpy()
    expected = [
        -logits[i, t, target]
        for i, row in enumerate(batch.targets)
        for t, target in enumerate(row)
        if target != -100
    ]
    assert len(expected) == batch.counted
    end = end_id(run.tokenizer)
    assert (batch.targets == end).sum() == 3  # each answer's end is learnt
    assert not np.isin(batch.targets, run.tokenizer.encode("abc")).any()  # and no question
    run = make(data=str(rows), val_fraction=0.25, batch_size=3)
    assert run.train_step()["loss"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_of_several_answers_all_are_learnt_or_the_last(make, tmp_path):
    said = [("user", "a"), ("assistant", "bc"), ("user", "d"), ("assistant", "ef")]
    talk = {"messages": [{"role": role, "content": content} for role, content in said]}
    data = str(write_rows(tmp_path / "rows.jsonl", [talk] * 4))
    for answers_, count in (("all", 6), ("last", 3)):
        run = make(data=data, template="turns", answers=answers_)
        assert {item.counted for row in run.packed for item in row} == {count}
    assert run.train_step()["tokens"] == 4 * 3


def test_a_bad_row_is_found_before_the_first_step(make, tmp_path):
    for bad in range(6):  # whichever part it is drawn into
        rows = [{"prompt": p, "completion": "b"} for p in "abcdef"]
        rows[bad] = {"prompt": "a" * 40, "completion": "b"}
        data = str(write_rows(tmp_path / "rows.jsonl", rows))
        with pytest.raises(DataError, match=f":{bad + 1}: 42 tokens are more"):
            make(data=data)


def test_a_model_learns_to_answer_and_to_stop(make, tmp_path):
    words = ["ab", "ba", "abc", "cab", "bc", "cb", "aa", "bb"]
    rows = write_rows(
        tmp_path / "rows.jsonl", [{"prompt": w + "=", "completion": w[0]} for w in words]
    )
    run = make(
        data=str(rows),
        steps=80,
        learning_rate=1e-2,
        batch_size=7,
        eval_interval=80,
        optimizer="muon",
    )
    log = train(run, tmp_path / "out")
    given = answers(run.model, run.tokenizer, run.rows)
    assert np.mean([a == w[0] for a, w in zip(given, words, strict=True)]) >= 0.8
    assert log[-1]["train_loss"] < 1.5


def test_replay_rows_are_plain_text_of_which_all_is_learnt(make, text):
    run = make(text=text, replay=0.5, replay_length=16)
    talk, batch = run._micro_batches()
    assert (len(talk.ids), len(batch.ids)) == (2, 2)
    for row in (0, 1):
        assert (batch.targets[row, :15] == batch.ids[row, 1:16]).all()
        assert run.tokenizer.decode(batch.ids[row, :16]) in "a = 1\nb = 2\n" * 3
    found = run.evaluate()
    assert found["text_loss"] == pytest.approx(np.log(50), abs=0.5)
    with pytest.raises(ConfigError, match="leaves one of the two without rows"):
        make(text=text, replay=0.05)
    with pytest.raises(ConfigError, match="expected a text to draw from"):
        make(replay=0.5)


def test_noise_is_bounded_and_leaves_no_trace(make):
    run = make()
    ids = mt.tensor([[1, 2, 3, 4]])
    clean = run.model.embed_tokens(ids).detach().numpy()
    with noisy_embeddings(run.model, 3.0):
        noisy = run.model.embed_tokens(ids).detach().numpy()
    bound = 3.0 / np.sqrt(4 * 16)
    assert 0.8 * bound < np.abs(noisy - clean).max() <= bound
    np.testing.assert_array_equal(run.model.embed_tokens(ids).detach().numpy(), clean)


def test_a_task_asks_nothing_twice():
    rows = load_rows(SFTConfig(data="strings", task_rows=500))
    assert len({row.fields["prompt"] for row in rows}) == len(rows) == 500
    assert len(load_rows(SFTConfig(data="addition", task_rows=20_000))) <= 10_000


def test_lora_trains_the_adapters_alone_and_saves_both_ways(make, templated, tmp_path):
    run = make(model=templated, lora_rank=2)
    before = {name: p.numpy().copy() for name, p in run.model.state_dict().items()}
    train(run, tmp_path / "out")
    for name, value in run.model.state_dict().items():
        assert (value.numpy() != before[name]).any() == (".lora_" in name), name
    folder = checkpoints.newest(tmp_path / "out")
    assert (folder / "adapter_config.json").is_file()
    merged = from_pretrained(folder)
    ids = mt.tensor([[1, 2, 3, 4]])
    with mt.no_grad():
        np.testing.assert_allclose(
            merged(ids)[0].numpy(), run.model.eval()(ids)[0].numpy(), atol=1e-5
        )


def test_lora_cannot_learn_new_tokens(make):
    with pytest.raises(ConfigError, match="adapters cannot learn their embeddings"):
        make(lora_rank=2)


def arguments(base, out, **changes):
    settings = {**TINY, **changes}
    listed = [part for item in settings.items() for part in ("--set", "{}={}".format(*item))]
    return ["sft", "--model", base, "--out", out, *listed]


def test_the_command_leaves_a_model_a_log_and_answers(cli, base, tmp_path):
    out = tmp_path / "run"
    result = cli(*arguments(base, out), "--json", "--seed", 3)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    rows = read_log(out / "log.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert {"train_loss", "val_loss", "exact_match", "grad_norm"} <= rows[-1].keys()
    assert len(summary["answers"]) == 3
    folder = checkpoints.newest(out)
    assert load_tokenizer(folder / "tokenizer.json").special_tokens == {"<|endoftext|>": 47}
    assert (out / "loss.png").is_file()
    assert "exact " in result.stderr
    shown = read_rollouts(out / "rollouts.jsonl")
    assert len(shown) == 3
    assert all(row["tokens"][-1] == "<|endoftext|>" for row in shown)
    losses = [-p for row in shown for p, own in zip(row["log_probs"], row["mask"]) if own]
    assert np.mean(losses) == pytest.approx(rows[-1]["val_loss"], abs=1e-4)
    assert "<html" in (out / "rollouts.html").read_text()
    assert cli("sample", "--checkpoint", out, "--prompt", "ab").exit_code == 0


def test_ctrl_c_saves_and_the_run_goes_on(cli, base, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert cli(*arguments(base, whole)).exit_code == 0
    step = SFT.train_step

    def interrupted(recipe):
        if recipe.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(recipe)

    with monkeypatch.context() as patch:
        patch.setattr(SFT, "train_step", interrupted)
        result = cli(*arguments(base, out))
    signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert f"minitorch sft --resume {out}" in result.output
    assert cli("sft", "--resume", out).exit_code == 0
    ends = [checkpoints.load(checkpoints.newest(folder)).arrays for folder in (whole, out)]
    for name, array in ends[0].items():
        np.testing.assert_array_equal(array, ends[1][name], name)


def test_a_run_goes_on_from_another_folder(cli, base, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli(*arguments(base, "run", text=os.path.relpath(text)), "--set", "steps=2")
    assert result.exit_code == 0, result.output
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = cli("sft", "--resume", tmp_path / "run", "--set", "steps=4")
    assert result.exit_code == 0, result.output


def test_bad_input_is_named_and_the_last_checkpoint_stays(cli, base, tmp_path):
    out = tmp_path / "run"
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": "ab", "completion": "b"}, {"prompt": "c"}])
    result = cli(*arguments(base, out), "--data", bad)
    assert result.exit_code == 1
    assert f"{bad}:2: expected a text under 'completion'" in result.stderr
    assert not out.exists()
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": "a" * 40, "completion": "b"}] * 3)
    result = cli(*arguments(base, out), "--data", long)
    assert "42 tokens are more than the model's context of 32" in result.stderr
    strange = write_rows(tmp_path / "strange.jsonl", [{"prompt": "ä", "completion": "b"}] * 3)
    assert (
        "strange.jsonl:1: CharTokenizer.encode"
        in cli(*arguments(base, out), "--data", strange).stderr
    )
    result = cli("sft", "--out", out)
    assert "give one by --model" in result.stderr
    result = cli(*arguments(tmp_path / "none", out))
    assert "does not exist" in result.stderr
    assert "it is a setting: --set steps=VALUE" in cli("sft", "--steps", "3").stderr
    good = write_rows(
        tmp_path / "good.jsonl", [{"prompt": p, "completion": "b"} for p in "abcdefgh"]
    )
    assert cli(*arguments(base, out), "--data", good).exit_code == 0
    write_rows(good, [{"prompt": p, "completion": "c"} for p in "abcdefgh"])
    result = cli("sft", "--resume", out, "--set", "steps=8")
    assert result.exit_code == 1
    assert "the text has changed since" in result.stderr
    assert checkpoints.newest(out).name == "step-00000006"
    result = cli("train", "--resume", out)
    assert "this run was begun by `minitorch sft`" in result.stderr
    damaged = checkpoints.newest(out) / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    for command in (("sft", "--resume", out), arguments(out, tmp_path / "next")):
        assert "model.safetensors is not as it was written" in cli(*command).stderr


def test_a_base_of_another_family(cli, tmp_path):
    base = write_base(tmp_path / "base", family="gpt2")
    assert cli(*arguments(base, tmp_path / "run", packing="true")).exit_code == 0
