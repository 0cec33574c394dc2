"""Distillation: its loss typed again, on-policy steps, going on, and models that do not fit."""

import dataclasses
import json

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import ConfigError
from minitorch.io import load_safetensors
from models import checkpoints
from models.config import TrainConfig
from models.corpus import prepare
from models.families import from_pretrained
from models.recipes.distill import Distillation, DistillConfig, prepared

from .conftest import read_lines

SMALL = {
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 8,
    "batch_size": 4,
    "steps": 6,
    "eval_interval": 3,
    "eval_tokens": 64,
    "checkpoint_interval": 3,
    "model": "llama",
    "prompt_length": 3,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """(folder of a trained run, its text)."""
    from tests.models.conftest import arguments, run_cli, write_text

    folder = tmp_path_factory.mktemp("teacher")
    text = write_text(folder)
    result = run_cli(*arguments(text), "--model", "llama", "--out", folder / "run")
    assert result.exit_code == 0, result.stderr
    return folder / "run", text


def config_of(teacher, **changes):
    folder, text = teacher
    return DistillConfig(**{**SMALL, "teacher": str(folder), "data": str(text), **changes})


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


def formula(run, ids, targets):
    """The loss of a step, in NumPy."""
    config, t = run.config, run.config.temperature
    with mt.no_grad():
        student, teacher = (m(mt.from_numpy(ids))[0].numpy().astype(np.float64)
                            for m in (run.model.eval(), run.teacher))  # fmt: skip
    p, q = softmax(teacher / t), softmax(student / t)
    if config.top_k:
        order = np.argsort(-p, -1)[..., : config.top_k]
        few = [np.take_along_axis(x, order, -1) for x in (p, q)]
        p, q = (np.concatenate([x, 1 - x.sum(-1, keepdims=True)], -1) for x in few)
    m = config.beta * p + (1 - config.beta) * q
    divergence = {
        "forward": kl(p, q),
        "reverse": kl(q, p),
        "jsd": config.beta * kl(p, m) + (1 - config.beta) * kl(q, m),
    }[config.divergence]
    hard = -np.log(np.take_along_axis(softmax(student), targets[..., None], -1)).mean()
    return (1 - config.alpha) * hard + config.alpha * t**2 * divergence.mean()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alpha": 0.3, "temperature": 1.0},
        {"divergence": "reverse", "temperature": 4.0},
        {"divergence": "jsd", "beta": 0.3},
        {"top_k": 3},
        {"alpha": 1.0},
    ],
)
def test_the_loss_is_the_formula(teacher, changes):
    run = prepared(config_of(teacher, **changes))
    ids, targets = (x[0] for x in run.batches())
    expected = formula(run, ids, targets)
    found = run.objective(mt.from_numpy(ids), mt.from_numpy(targets))
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_all_tokens_told_apart_is_no_top_k(teacher):
    runs = [prepared(config_of(teacher, top_k=k)) for k in (0, 10_000)]
    ids, targets = (mt.from_numpy(x[0]) for x in runs[0].batches())
    whole, few = (run.objective(ids, targets).item() for run in runs)
    assert few == pytest.approx(whole, rel=1e-5)


def test_a_student_that_is_the_teacher_has_nothing_to_learn(teacher):
    run = prepared(config_of(teacher, student=str(teacher[0]), alpha=1.0))
    ids, targets = (mt.from_numpy(x[0]) for x in run.batches())
    loss = run.objective(ids, targets)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert max(np.abs(p.grad.numpy()).max() for p in run.model.parameters()) < 1e-5
    assert run.evaluate()["to_teacher"] == 0


def test_the_teacher_stays_as_it_is_and_has_no_gradient(teacher):
    run = prepared(config_of(teacher))
    before = run.fingerprint
    run.train_step()
    assert run.fingerprint == before
    assert all(param.grad is None for param in run.teacher.parameters())
    assert not run.teacher.training


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_on_policy_steps_are_a_share_evenly_spread(teacher, share):
    run = prepared(config_of(teacher, on_policy=share))
    found = [run.is_on_policy(step) for step in range(100)]
    assert sum(found) == round(100 * share)
    for i in range(0, 100, 10):
        assert sum(found[i : i + 10]) == round(10 * share)


def test_on_policy_the_student_writes_and_prompts_do_not_count(teacher):
    run = prepared(config_of(teacher, on_policy=1.0, gradient_accumulation=2))
    plain = prepared(config_of(teacher, gradient_accumulation=2)).batches()[0]
    ids, targets = run.batches()
    assert ids.shape == targets.shape == (2, 4, 8)
    np.testing.assert_array_equal(ids[..., :3], plain[..., :3])
    assert (ids != plain).any()
    assert (targets[..., :2] == -100).all()
    assert (targets[..., -1] == -100).all()
    np.testing.assert_array_equal(targets[..., 2:-1], ids[..., 3:])
    again = prepared(config_of(teacher, on_policy=1.0, gradient_accumulation=2)).batches()[0]
    np.testing.assert_array_equal(again, ids)
    assert run.model.training


def test_on_policy_there_is_no_cross_entropy(teacher):
    """What the student has written itself is no answer to be learnt."""
    ids, targets = (x[0] for x in prepared(config_of(teacher, on_policy=1.0)).batches())
    ids, targets = mt.from_numpy(ids), mt.from_numpy(targets)
    losses = [
        prepared(config_of(teacher, on_policy=1.0, alpha=a)).objective(ids, targets).item()
        for a in (0.1, 1.0)
    ]
    assert losses[0] == losses[1]


def test_a_student_comes_near_its_teacher(teacher):
    settings = {"steps": 60, "n_embd": 32, "learning_rate": 1e-2, "optimizer": "adamw"}
    run = prepared(config_of(teacher, **settings, alpha=1.0))
    first = run.train_step()["loss"]
    for _ in range(59):
        last = run.train_step()["loss"]
    assert last < first / 4


@pytest.mark.parametrize("on_policy", [0.0, 0.5])
def test_a_resumed_run_is_the_run_that_never_stopped(teacher, on_policy, tmp_path, cli):
    folder, text = teacher
    settings = [x for k, v in SMALL.items() for x in ("--set", f"{k}={v}")]
    even = ["schedule=constant", "warmup_fraction=0", f"on_policy={on_policy}"]
    begin = ["distill", "--teacher", folder, "--data", text, *settings]
    begin += [x for item in even for x in ("--set", item)]
    assert cli(*begin, "--out", tmp_path / "whole").exit_code == 0
    assert cli(*begin, "--out", tmp_path / "parts", "--set", "steps=3").exit_code == 0
    result = cli("distill", "--resume", tmp_path / "parts", "--set", "steps=6")
    assert result.exit_code == 0, result.stderr
    whole, again = (
        load_safetensors(tmp_path / name / "checkpoints/step-00000006/model.safetensors")[0]
        for name in ("whole", "parts")
    )
    for name, array in whole.items():
        np.testing.assert_array_equal(again[name], array)


def test_the_command_line(teacher, tmp_path, cli):
    folder, text = teacher
    settings = [x for k, v in SMALL.items() for x in ("--set", f"{k}={v}")]
    result = cli(
        "distill", "--teacher", folder, "--data", text, *settings, "--out", tmp_path / "s", "--json"
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["to_teacher"] == pytest.approx(found["val_loss"] - found["teacher_loss"])
    model = from_pretrained(checkpoints.model_folder(tmp_path / "s"))
    assert model.config.hidden_size == 16
    assert "to the teacher" in result.stderr
    shown = read_lines(tmp_path / "s" / "rollouts.jsonl")
    assert len(shown) == 16
    assert all(len(row["tokens"]) == len(row["divergences"]) == 5 for row in shown)
    assert "far from the teacher" in (tmp_path / "s" / "rollouts.html").read_text()


@pytest.mark.parametrize("changes", [{}, {"divergence": "reverse"}, {"top_k": 3}])
def test_the_page_has_the_divergence_of_each_token(teacher, changes):
    run = prepared(config_of(teacher, alpha=1.0, **changes))
    ids, _ = (x[0] for x in run.batches())
    student, taught, divergences = run.compared(ids, 3)
    with mt.no_grad():
        for model, found in ((run.model, student), (run.teacher, taught)):
            p = softmax(model(mt.from_numpy(ids))[0].numpy().astype(np.float64))[:, 2:-1]
            expected = np.log(np.take_along_axis(p, ids[:, 3:, None], -1))[..., 0]
            np.testing.assert_allclose(found, expected, atol=1e-5)
    targets = np.full_like(ids, -100)
    targets[:, 2:-1] = ids[:, 3:]
    whole = run.objective(mt.from_numpy(ids), mt.from_numpy(targets)).item()
    assert divergences.mean() == pytest.approx(whole, rel=1e-5)
    assert divergences.min() > 0


def test_a_student_that_has_begun_elsewhere(teacher, tmp_path, cli):
    other = prepared(config_of(teacher, seed=5))
    other.model.save_pretrained(tmp_path / "student")
    other.tokenizer.save(tmp_path / "student" / "tokenizer.json")
    run = prepared(config_of(teacher, student=str(tmp_path / "student")))
    for (name, a), b in zip(other.model.named_parameters(), run.model.parameters(), strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy(), err_msg=name)


def test_without_a_teacher(teacher, cli):
    result = cli("distill", "--data", teacher[1])
    assert result.exit_code == 1
    assert "teacher: expected the folder of a trained model" in result.stderr


def test_a_student_with_another_vocabulary(teacher, tmp_path):
    path = tmp_path / "other.txt"
    path.write_text("other letters: xyzw. " * 200)
    text = TrainConfig(data=str(path), block_size=8)
    corpus = prepare(text)
    run = prepared(config_of(teacher))
    small = dataclasses.replace(run.model.config, vocab_size=5).build(np.float32, None)
    with pytest.raises(ConfigError, match="student: expected the teacher's vocabulary"):
        Distillation(run.config, run.corpus, run.teacher, small)
    run.model.save_pretrained(tmp_path / "student")
    corpus.tokenizer.save(tmp_path / "student" / "tokenizer.json")
    with pytest.raises(ConfigError, match="expected the vocabulary of the model"):
        prepared(config_of(teacher, student=str(tmp_path / "student")))


def test_more_context_than_the_teacher_has(teacher):
    with pytest.raises(ConfigError, match="block_size: expected at most 8, the context of the tea"):
        prepared(config_of(teacher, block_size=9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 3, "divergence": "reverse"}, "top_k: expected 0 with divergence=reverse"),
        ({"on_policy": 0.5, "prompt_length": 8}, "prompt_length: expected less than block_size"),
        ({"alpha": 0.0}, "alpha"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ConfigError, match=message):
        DistillConfig(**{**SMALL, **changes})


def test_a_run_does_not_go_on_with_another_teacher(teacher, tmp_path):
    run = prepared(config_of(teacher))
    run.train_step()
    path = run.save(tmp_path, None)
    other = prepared(config_of(teacher))
    other.teacher.norm.weight.data[...] += 1
    with pytest.raises(Exception, match="changed since"):
        other.restore(checkpoints.load(path))
