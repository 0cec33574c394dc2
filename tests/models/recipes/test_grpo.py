"""GRPO and its relatives: what a step computes and must not depend on, and what stops a run."""

import dataclasses
import json

import numpy as np
import pytest

import minitorch as mt
from minitorch import rl
from minitorch.errors import ConfigError
from minitorch.random import Generator
from models.chat import end_id
from models.checkpoints import load
from models.environments.tasks import TASKS, addition
from models.gpt2 import GPT2Config
from models.llama import LlamaConfig
from models.optimization import build_optimizer
from models.recipes.completions import Completions, log_probs
from models.recipes.grpo import Grpo
from models.recipes.grpo_config import GrpoConfig
from models.recipes.objective import Objective
from models.recipes.prompts import TaskSource
from models.reward_model import RewardModel
from models.rollouts import begin, extend
from models.sampling import Sampler
from tests.models.recipes.reinforced import SMALL, build, evens, recipe, weights


@pytest.mark.parametrize("family", [LlamaConfig, GPT2Config], ids=["llama", "gpt2"])
def test_log_probs_are_those_of_the_sampler_and_of_whole_logits(family):
    task = addition()
    model = build(task, family, np.float64)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8]]
    rollouts = extend(
        model, begin(prompts, 3), max_tokens=4, sampler=Sampler(temperature=0.7), seed=1
    )
    rollouts[1] = dataclasses.replace(begin(prompts)[0])  # one that wrote nothing
    batch = Completions.of(rollouts)
    found = log_probs(model, batch, 0.7).detach().numpy()
    assert found.shape == batch.mask.shape == (9, 4)
    for i, rollout in enumerate(rollouts):
        written = len(rollout.completion_ids)
        np.testing.assert_allclose(found[i, :written], rollout.log_probs, atol=1e-6)
        assert not found[i, written:].any()
        logits = model(mt.tensor([rollout.ids]))[0].detach()
        start = len(rollout.prompt_ids) - 1
        for t, token in enumerate(rollout.completion_ids):
            whole = (logits[0, start + t] / 0.7).log_softmax(-1)[token].item()
            assert found[i, t] == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("preset", GrpoConfig.presets)
def test_a_step_of_every_preset(preset):
    run = recipe(preset, rewards=[(evens, 1.0)], task=addition())
    before = weights(run.model)
    metrics = run.train_step()
    assert metrics["mismatch"] < 1e-5
    assert metrics["clip_fraction"] == 0.0
    assert metrics["grad_norm"] > 0
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["length"] <= addition().longest_completion
    assert ("kl" in metrics) == bool(run.config.beta)
    assert abs(metrics.get("kl", 0.0)) < 1e-9  # policy and reference are the same so far
    assert any((before[name] != array).any() for name, array in weights(run.model).items())


@pytest.mark.parametrize("preset", GrpoConfig.presets)
def test_pieces_add_up(preset):
    """batch_size is a matter of memory: gradients are those of one piece."""
    config = GrpoConfig.resolve(preset, overrides=SMALL)
    objective = Objective(config, 5)
    generator = np.random.default_rng(0)
    mask = np.arange(5) < generator.integers(1, 6, (16, 1))
    old = generator.normal(-1, 0.5, mask.shape) * mask
    advantages = generator.normal(size=(16, 1)) * mask
    reference = generator.normal(-1, 0.5, mask.shape) * mask
    rewards = generator.normal(size=(4, 4))
    start = mt.tensor(old + 0.3 * generator.normal(size=mask.shape))

    def loss(x, rows):
        return objective(
            x[rows],
            old[rows],
            advantages[rows],
            mask[rows],
            objective.total(mask),
            rewards=rewards.ravel()[rows].reshape(-1, 4),
            reference=reference[rows],
        )[0]

    whole = mt.grad(lambda x: loss(x, np.arange(16)))(start)
    parts = mt.grad(lambda x: loss(x, np.arange(8)) + loss(x, np.arange(8, 16)))(start)
    np.testing.assert_allclose(parts.numpy(), whole.numpy(), atol=1e-7)
    assert np.abs(whole.numpy()).max() > 1e-4
    assert not whole.numpy()[~mask].any()


def test_the_loss_of_grpo_is_the_papers():
    config = GrpoConfig.resolve(overrides={**SMALL, "beta": 0.3})
    generator = np.random.default_rng(1)
    mask = np.arange(5) < generator.integers(1, 6, (16, 1))
    old, reference = generator.normal(-1, 0.5, (2, *mask.shape)) * mask
    advantages = generator.normal(size=16)
    found = mt.tensor(old + 0.3 * generator.normal(size=mask.shape))
    objective = Objective(config, 5)
    ours, _ = objective(
        found,
        old,
        advantages[:, None] * mask,
        mask,
        objective.total(mask),
        rewards=np.zeros((4, 4)),
        reference=reference,
    )
    theirs = rl.grpo_loss(
        found,
        mt.tensor(old),
        mt.tensor(advantages),
        mt.tensor(mask),
        reference=mt.tensor(reference),
        beta=0.3,
    )
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_the_reference_follows_the_policy():
    still, run = (
        recipe(rewards=[(evens, 1.0)], learning_rate=0.02, reference_interval=n) for n in (0, 2)
    )
    for step in range(3):
        before = weights(run.model)
        one, two = run.train_step(), still.train_step()
        if step < 2:
            assert one == two
    assert two["kl"] > 1e-4 > 1e-6 > one["kl"]
    after = weights(run.reference)
    assert all((after[name] == value).all() for name, value in before.items())


def test_a_reference_that_moved_is_in_the_checkpoint(tmp_path):
    options = {"rewards": [(evens, 1.0)], "learning_rate": 0.02, "reference_interval": 2}
    whole, again = recipe(**options), recipe(**options)
    for _ in range(3):
        whole.train_step()
    again.restore(load(whole.save(tmp_path, None)))
    assert again.train_step() == whole.train_step()


def test_an_optimizer_begins_anew():
    """The step after is that of a run whose optimizer has just been built."""
    options = {"rewards": [(evens, 1.0)], "beta": 0.0, "minibatches": 2}
    run, still = (recipe(**options, optimizer_interval=n) for n in (2, 0))
    for step in range(3):
        if step == 2:
            still.optimizer = build_optimizer(still.config, still.model)
        assert run.train_step() == still.train_step()
        assert {state["step"] for state in run.optimizer.state.values()} == {(2, 4, 2)[step]}
        assert all((weights(still.model)[k] == v).all() for k, v in weights(run.model).items())


def test_an_optimizer_that_begins_anew_is_in_the_checkpoint(tmp_path):
    options = {"rewards": [(evens, 1.0)], "beta": 0.0, "optimizer_interval": 2}
    whole, again = recipe(**options), recipe(**options)
    whole.train_step()
    again.restore(load(whole.save(tmp_path, None)))
    for _ in range(2):
        assert again.train_step() == whole.train_step()


def test_equal_rewards_teach_nothing_at_all():
    run = recipe(rewards=[(lambda p, c, **_: [0.7] * len(c), 1.0)], beta=0.0)
    before = weights(run.model)
    metrics = run.train_step()
    assert metrics["zero_variance"] == 1.0
    assert metrics["grad_norm"] == 0.0
    assert all((before[name] == array).all() for name, array in weights(run.model).items())


def test_the_first_loss_is_nothing_and_its_gradient_is_not():
    metrics = recipe(rewards=[(evens, 1.0)], beta=0.0).train_step()
    assert abs(metrics["loss"]) < 1e-6 < metrics["grad_norm"]


@pytest.mark.parametrize("preset", ["grpo", "kimi", "gspo"])
def test_it_learns(preset):
    run = recipe(
        preset, rewards=[(evens, 1.0)], learning_rate=0.02, prompts=8, beta=0.0, length_weight=0.0
    )
    rewards = [run.train_step()["reward"] for _ in range(25)]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.25


def test_dropout_is_off():
    run = recipe(family=GPT2Config, rewards=[(evens, 1.0)])
    assert run.train_step()["mismatch"] < 1e-5


def test_old_epochs_are_clipped():
    run = recipe(rewards=[(evens, 1.0)], epochs=4, minibatches=2, learning_rate=0.05, beta=0.0)
    metrics = run.train_step()
    assert metrics["clip_fraction"] > 0
    assert metrics["mismatch"] < 1e-5  # of the first minibatch alone


def test_gspo_counts_clipped_completions():
    run = recipe("gspo", rewards=[(evens, 1.0)], epochs=4, learning_rate=0.05)
    shares = []
    objective = run.objective

    def noted(*arguments, **options):
        loss, share = objective(*arguments, **options)
        shares.append(share * len(arguments[0]))
        return loss, share

    noted.total, run.objective = objective.total, noted
    run.train_step()
    assert max(shares) > 0
    assert all(share == pytest.approx(round(share), abs=1e-4) for share in shares)


def test_groups_that_teach_nothing_are_replaced():
    rare = [(lambda p, c, **_: [float("77" in text) for text in c], 1.0)]
    plain, dynamic = (recipe(rewards=rare, dynamic_sampling=n, beta=0.0) for n in (0, 40))
    one, two = plain.sample()[1], dynamic.sample()[1]
    assert one["used_groups"] == 1 - one["zero_variance"] < 1.0
    assert two["zero_variance"] == one["zero_variance"]  # as they came
    assert two["used_groups"] == 1.0
    assert dynamic.position > plain.position
    batch, _ = dynamic.sample()
    size = dynamic.config.group_size
    for i, rollout in enumerate(batch.rollouts):
        assert rollout.prompt_ids == batch.prompts[i // size].ids
    judged, _ = dynamic.judge([batch.prompts[i // size] for i in range(16)], batch.rollouts)
    np.testing.assert_array_equal(judged.reshape(-1, size), batch.rewards)


def test_a_group_of_one_keeps_its_reward():
    run = recipe(rewards=[(evens, 1.0)], group_size=1, beta=0.0)
    batch, metrics = run.sample()
    completions = Completions.of(batch.rollouts)
    advantages = run._advantages(batch, completions, None)
    np.testing.assert_allclose(advantages, batch.rewards * completions.mask, rtol=1e-6)
    assert metrics["zero_variance"] == 0.0


def test_the_kl_in_the_reward_is_taken_from_it():
    run = recipe("rloo", rewards=[(evens, 1.0)], beta=0.5)
    batch, _ = run.sample()
    completions = Completions.of(batch.rollouts)
    reference = completions.log_probs - 0.1 * completions.mask
    found = run._advantages(batch, completions, reference)
    shaped = batch.rewards - 0.5 * 0.1 * completions.lengths.reshape(4, 4)
    expected = rl.rloo_advantages(mt.tensor(shaped)).numpy().reshape(-1, 1) * completions.mask
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_lengths_in_the_reward():
    base = recipe(rewards=[(evens, 1.0)], beta=0.0).sample()[0]
    overlong = recipe(rewards=[(evens, 1.0)], beta=0.0, overlong_margin=2).sample()[0]
    lengths = np.array([len(r.completion_ids) for r in base.rollouts]).reshape(4, 4)
    limit = addition().longest_completion
    expected = np.clip((limit - 2 - lengths) / 2, -1, 0)
    np.testing.assert_allclose(overlong.rewards - base.rewards, expected, atol=1e-6)
    kimi = recipe("kimi", rewards=[(evens, 1.0)], length_from=3)
    np.testing.assert_allclose(kimi.sample()[0].rewards, base.rewards, atol=1e-6)


def test_what_was_cut_off_can_be_left_out():
    run = recipe(rewards=[(evens, 1.0)], overlong_filter=True, max_tokens=1, beta=0.0)
    metrics = run.train_step()
    assert metrics["finished"] < 1
    full = recipe(rewards=[(evens, 1.0)], max_tokens=1, beta=0.0).train_step()
    assert metrics["grad_norm"] < full["grad_norm"]


def test_truncated_sampling_is_corrected():
    run = recipe(rewards=[(evens, 1.0)], top_p=0.8, sampler_cap=2.0, beta=0.0)
    assert run.train_step()["mismatch"] < 1e-5  # old log-probabilities are the policy's own
    assert np.isfinite(run.train_step()["loss"])


def test_the_tools_words_are_not_learnt():
    task = TASKS["calculator"]()
    called = [(lambda p, c, **_: [float("<" in text) for text in c], 1.0)]
    run = recipe(task=task, rewards=called, prompts=8, beta=0.0)
    batch, _ = run.sample()
    told = [not own for r in batch.rollouts for own in r.mask]
    assert any(told)
    completions = Completions.of(batch.rollouts)
    advantages = run._advantages(batch, completions, None)
    assert not advantages[~completions.mask].any()
    assert np.isfinite(run.train_step()["loss"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage": "rloo", "group_size": 1}, "group_size.*at least 2"),
        ({"minibatches": 3}, "minibatches: expected a divisor of prompts = 4"),
        ({"gradient_accumulation": 2}, "batch_size says"),
        ({"dual_clip": 0.5}, "dual_clip: expected 0, or more than 1"),
        ({"reference_interval": 2, "beta": 0.0}, "reference_interval: expected a beta above 0"),
        ({"reference_interval": 2, "lora_rank": 2}, "without its adapters"),
        ({"advantage": "reinforce++", "loss": "gspo"}, "one advantage for a completion"),
        ({"loss": "ppo"}, "unknown 'ppo'"),
        ({"temperature": 0.0}, "temperature: expected more than 0"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        GrpoConfig.resolve(overrides={**SMALL, **changes})


def test_a_kl_term_needs_a_reference():
    task = addition()
    config = GrpoConfig.resolve(overrides=SMALL)
    source = TaskSource(task, task.tokenizer(), 0)
    with pytest.raises(ConfigError, match="needs a reference"):
        Grpo(config, build(task), task.tokenizer(), source, task.rewards, task=task)


# The command line.


def test_with_lora_one_copy_of_the_weights_is_policy_and_reference():
    task = addition()
    config = GrpoConfig(**SMALL, lora_rank=2, learning_rate=1e-2)
    base, tokenizer = build(task), task.tokenizer()
    source = TaskSource(task, tokenizer, config.seed)
    run = Grpo(config, build(task), tokenizer, source, [(evens, 1.0)], task=task)
    for _ in range(3):
        metrics = run.train_step()
    assert metrics["mismatch"] < 1e-4
    assert metrics["kl"] > 0
    batch, _ = run.sample()
    completions = Completions.of(batch.rollouts)
    found = run._reference_log_probs(completions)
    with mt.no_grad():
        expected = log_probs(base.eval(), completions, 1.0).numpy()
        moved = log_probs(run.model, completions, 1.0).numpy()
    np.testing.assert_array_equal(found, expected)
    assert np.abs(moved - expected).max() > 1e-3
    before = weights(base)
    kept = {k.replace(".base.", "."): v for k, v in weights(run.model).items() if "lora_" not in k}
    assert kept.keys() == before.keys()
    for name, array in kept.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.fixture
def base(tmp_path):
    """The folder of an untrained model for addition."""
    task = addition()
    build(task).save_pretrained(tmp_path / "base")
    task.tokenizer().save(tmp_path / "base" / "tokenizer.json")
    return tmp_path / "base"


@pytest.fixture
def arguments(base, tmp_path):
    settings = {**SMALL, "checkpoint_interval": 1, "keep_checkpoints": 9, "rollout_interval": 1}
    pairs = [x for item in settings.items() for x in ("--set", "{}={}".format(*item))]
    return ["grpo", "--model", base, *pairs, "--out", tmp_path / "run"]


@pytest.fixture
def reward_file(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(
        "calls = 0\n\n"
        "def evens(prompts, completions, **columns):\n"
        "    return [sum(x in '02468' for x in c) / max(len(c), 1) for c in completions]\n\n"
        "def late(completions, then):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    return [1.0 if calls < 5 else then()] * len(completions)\n\n"
        "def late_nan(prompts, completions, **columns):\n"
        "    return late(completions, lambda: float('nan'))\n\n"
        "def late_none(prompts, completions, **columns):\n"
        "    return late(completions, lambda: None)\n\n"
        "def late_raise(prompts, completions, **columns):\n"
        "    return late(completions, lambda: [][0])\n\n"
        "def nothing(prompts, completions, **columns):\n"
        "    return [None] * len(completions)\n\n"
        "def breaks(prompts, completions, **columns):\n"
        "    return columns['solution']\n"
    )
    return path


def test_a_run(cli, arguments, reward_file, tmp_path):
    result = cli(*arguments, "--task", "addition", "--reward", f"{reward_file}:evens=2", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert {"val_reward", "greedy_reward", "reward", "kl", "entropy", "length"} <= found.keys()
    assert "rewards: evens × 2" in result.stderr.replace("\n", " ")
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").open()]
    assert {row["step"] for row in rows} == {1, 2, 3, 4}
    assert rows[0]["reward"] == pytest.approx(2 * rows[0]["rewards"]["evens"])
    assert len(rows[0]["tokens"]) == len(rows[0]["mask"]) == len(rows[0]["advantages"])
    page = (tmp_path / "run" / "rollouts.html").read_text()
    assert rows[0]["prompt"] in page
    sampled = cli("sample", "--checkpoint", tmp_path / "run", "--prompt", "11+11=")
    assert sampled.exit_code == 0, sampled.stderr


@pytest.mark.parametrize("preset", ["grpo", "dapo", "lora"])
def test_a_run_that_goes_on_computes_the_same(cli, arguments, reward_file, tmp_path, preset):
    options = ["--task", "addition", "--reward", f"{reward_file}:evens"]
    options += ["--set", "lora_rank=2"] if preset == "lora" else ["--preset", preset]
    assert cli(*arguments, *options).exit_code == 0
    half = [*arguments[:-1], tmp_path / "half"]
    assert cli(*half, *options, "--set", "steps=2").exit_code == 0
    result = cli("grpo", "--resume", tmp_path / "half", "--set", "steps=4")
    assert result.exit_code == 0, result.stderr
    for name in ("model.safetensors", "training.safetensors"):
        one, two = (
            (tmp_path / run / "checkpoints" / "step-00000004" / name).read_bytes()
            for run in ("run", "half")
        )
        assert one == two, name
    assert (tmp_path / "run" / "rollouts.jsonl").read_bytes() == (
        tmp_path / "half" / "rollouts.jsonl"
    ).read_bytes()


def rows_file(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_from_a_file(cli, arguments, reward_file, tmp_path):
    rows = [{"prompt": f"{n}+1=", "answer": str(n + 1)[::-1]} for n in range(10, 30)]
    data = rows_file(tmp_path, rows)
    options = ["--data", data, "--reward", f"{reward_file}:evens", "--set", "max_tokens=3"]
    result = cli(*arguments, *options)
    assert result.exit_code == 0, result.stderr


def test_a_reward_model_judges_instead_and_besides(cli, arguments, reward_file, tmp_path):
    tokenizer, folder = addition().tokenizer(), tmp_path / "judge"
    judge = RewardModel(build(addition()), Generator(8))
    judge.save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")
    end = end_id(tokenizer)
    data = rows_file(tmp_path, [{"prompt": f"{n}+1="} for n in range(10, 30)])
    options = ["--data", data, "--reward-model", folder, "--set", "max_tokens=3"]
    for rewards in ([], ["--reward", f"{reward_file}:evens=2"]):
        result = cli(*arguments, *options, *rewards, "--overwrite")
        assert result.exit_code == 0, result.stderr
        for line in (tmp_path / "run" / "rollouts.jsonl").open():
            row = json.loads(line)
            written = [
                end if token == tokenizer.decode([end]) else tokenizer.encode(token)[0]
                for token in row["tokens"]
            ]
            score = row["rewards"]["reward_model"]
            ids = [*tokenizer.encode(row["prompt"]), *written]
            assert score == pytest.approx(judge.rewards([ids])[0], abs=1e-5)
            functions = 2 * row["rewards"]["evens"] if rewards else 0.0
            assert row["reward"] == pytest.approx(score + functions, abs=1e-5)


def test_only_right_answers_gain_by_being_short(cli, arguments, tmp_path):
    data = rows_file(tmp_path, [{"prompt": f"{n}+1="} for n in range(10, 30)])
    judge = RewardModel(build(addition()), Generator(8))
    judge.save_pretrained(tmp_path / "judge")
    addition().tokenizer().save(tmp_path / "judge" / "tokenizer.json")
    options = ["--reward-model", tmp_path / "judge", "--set", "length_weight=1"]
    failed(cli(*arguments, "--data", data, "--set", "max_tokens=3", *options), "by --reward")


def failed(result, *parts):
    assert result.exit_code == 1, (result.stdout, result.stderr)
    for part in parts:
        assert part in result.stderr.replace("\n", " "), result.stderr
    assert "Traceback" not in result.stderr


GO_ON = ["last good checkpoint", "--resume"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("late_nan", ["reward late_nan", "got nan for completion 0", *GO_ON]),
        ("late_none", ["no function gave sample 0 a reward", *GO_ON]),
        ("late_raise", ["reward late_raise: raised IndexError: list index out of range", *GO_ON]),
        ("nothing", ["no function gave sample 0"]),
        ("breaks", ["reward breaks: raised KeyError: 'solution'"]),
        ("absent", ["has no function 'absent'"]),
        ("evens=x", ["a number as a weight; got 'x'"]),
    ],
)
def test_rewards_that_fail(cli, arguments, reward_file, tmp_path, name, parts):
    result = cli(*arguments, "--task", "addition", "--reward", f"{reward_file}:{name}")
    failed(result, *parts)
    if name.startswith("late"):
        folder = tmp_path / "run" / "checkpoints"
        kept = sorted(path.name for path in folder.iterdir())
        assert kept == ["step-00000001", "step-00000002"]
    if name == "late_nan":
        assert cli("sample", "--checkpoint", tmp_path / "run").exit_code == 0
        reward_file.write_text(reward_file.read_text().replace("calls < 5", "True"))
        again = cli("grpo", "--resume", tmp_path / "run")
        assert again.exit_code == 0, again.stderr


def test_bad_input_leaves_an_earlier_run_as_it_is(cli, arguments, reward_file, tmp_path):
    """Whether it is to be replaced or to go on."""
    good = [{"prompt": f"{n}+1=", "answer": "1"} for n in range(10, 20)]
    data = rows_file(tmp_path, good)
    reward = ["--reward", f"{reward_file}:evens"]
    begun = [*arguments, "--data", data, *reward, "--set", "max_tokens=3", "--set", "steps=1"]
    assert cli(*begun).exit_code == 0
    run = tmp_path / "run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    build(TASKS["counting"]()).save_pretrained(tmp_path / "other")
    TASKS["counting"]().tokenizer().save(tmp_path / "other" / "tokenizer.json")
    resumed = ["grpo", "--resume", run, "--set", "steps=2"]
    for rows, options, message in (
        ([*good, {"prompt": "10+12="}], [], "rows.jsonl:11: expected the keys of the first row"),
        ([*good, {"prompt": "1" * 40, "answer": "1"}], [], "rows.jsonl:11: expected a prompt of"),
        (good, ["--reference", tmp_path / "other"], "expected the vocabulary of the model"),
        (good, ["--set", "advantage=rloo", "--set", "group_size=1"], "group_size: with advantage"),
    ):
        rows_file(tmp_path, rows)
        failed(cli(*begun, *options, "--overwrite"), message)
        if rows != good:
            failed(cli(*resumed), message)
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    rows_file(tmp_path, good[::-1])
    failed(cli(*resumed), "changed since")
    rows_file(tmp_path, good)
    result = cli(*resumed)
    assert result.exit_code == 0, result.stderr


def test_a_file_that_is_no_reward(cli, arguments, tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    failed(cli(*arguments, "--task", "addition", "--reward", f"{tmp_path / 'broken.py'}:f"), "No")
    failed(cli(*arguments, "--task", "addition", "--reward", "absent.py:f"), "a Python file")
    failed(cli(*arguments, "--task", "addition", "--reward", "f"), "FILE.py:function")


def test_data_that_does_not_fit(cli, arguments, reward_file, tmp_path):
    reward = ["--reward", f"{reward_file}:evens"]
    good = {"prompt": "10+11=", "answer": "12"}
    for rows, parts in (
        ([good, {"prompt": "10+12="}], ["rows.jsonl:2", "answer"]),
        ([good, {"prompt": "10+12=" * 9, "answer": "1"}], ["rows.jsonl:2", "at most 11 tokens"]),
        ([good, {"prompt": "ten", "answer": "1"}], ["rows.jsonl:2", "'t'"]),
        ([good, {"prompt": "", "answer": "1"}], ["rows.jsonl:2"]),
        ([good], ["at least 2 rows"]),
    ):
        data = rows_file(tmp_path, rows)
        options = ["--data", data, *reward, "--set", "max_tokens=3", "--overwrite"]
        failed(cli(*arguments, *options), *parts)
    arguments = [*arguments, "--overwrite"]
    failed(cli(*arguments, *reward), "either --task or --data")
    failed(cli(*arguments, "--data", data, "--set", "max_tokens=3"), "needs a reward")
    failed(cli(*arguments, "--task", "adition"), "did you mean 'addition'")
    failed(cli(*arguments, "--task", "strings"), "not among the")


def test_a_reference_with_another_vocabulary(cli, arguments, tmp_path):
    task = TASKS["counting"]()
    build(task).save_pretrained(tmp_path / "other")
    task.tokenizer().save(tmp_path / "other" / "tokenizer.json")
    failed(cli(*arguments, "--task", "addition", "--reference", tmp_path / "other"), "vocabulary")


def test_a_model_without_room_for_a_completion(cli, arguments):
    failed(cli(*arguments, "--task", "addition", "--set", "max_tokens=40"), "context of 14")
