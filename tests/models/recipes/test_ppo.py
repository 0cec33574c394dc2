"""PPO: what a step computes, typed again in NumPy; the critic, its judge, and runs that go on."""

import dataclasses
import json

import numpy as np
import pytest

import minitorch as mt
from minitorch import nn
from minitorch.errors import ConfigError
from minitorch.random import Generator
from models import checkpoints
from models.checkpoints import load
from models.environments.tasks import addition
from models.llama import LlamaConfig
from models.recipes.completions import Completions
from models.recipes.judging import by_model
from models.recipes.ppo import Moments, Ppo, PpoConfig
from models.recipes.prompts import TaskSource
from models.reward_model import RewardModel

SMALL = {
    "prompts": 6,
    "eval_prompts": 6,
    "steps": 4,
    "eval_interval": 2,
    "checkpoint_interval": 1,
    "keep_checkpoints": 9,
    "rollout_interval": 1,
}
TASK = addition()


def build(seed=3):
    longest = TASK.longest_prompt + TASK.longest_completion + 4
    sizes = LlamaConfig.sized(
        vocab_size=TASK.tokenizer().vocab_size, layers=1, heads=2, width=16, positions=longest
    )
    return sizes.build(np.dtype(np.float32), Generator(seed))


def evens(prompts, completions, **columns):
    """A reward that an untrained model often earns: the share of even digits."""
    return [sum(char in "02468" for char in c) / max(len(c), 1) for c in completions]


def recipe(preset=None, rewards=((evens, 1.0),), score=None, **changes):
    config = PpoConfig.resolve(preset, overrides={**SMALL, **changes})
    tokenizer = TASK.tokenizer()
    return Ppo(
        config,
        build(),
        tokenizer,
        TaskSource(TASK, tokenizer, config.seed),
        list(rewards),
        task=TASK,
        reference=build(4) if config.beta else None,
        critic=RewardModel(build(5), Generator(6)),
        score=score,
    )


def weights(module):
    return {name: p.detach().numpy().copy() for name, p in module.named_parameters()}


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("preset", PpoConfig.presets)
def test_a_step_of_every_preset(preset):
    run = recipe(preset, prompts=4, value_steps=0)
    policy, critic = weights(run.model), weights(run.critic)
    metrics = run.train_step()
    assert all(np.isfinite(value) for value in metrics.values())
    assert not same(policy, weights(run.model))
    assert not same(critic, weights(run.critic))
    assert {"value_loss", "explained", "beta", "reward", "clip_fraction"} <= metrics.keys()


def advantages_of(run):
    """(batch, completions, reference's log-probabilities, advantages) of the next step."""
    batch, _ = run.sample()
    completions = Completions.of(batch.rollouts)
    reference = run._reference_log_probs(completions)
    return batch, completions, reference, run._advantages(batch, completions, reference)


def test_values_are_of_the_state_before_a_token():
    run = recipe()
    _, completions, _, _ = advantages_of(run)
    found = run._targets.values
    for i in range(len(completions)):
        for t in range(int(completions.mask[i].sum())):
            before = completions.ids[i : i + 1, : completions.starts[i] + t]
            with mt.no_grad():
                expected = run.critic(before)[0].numpy()[0, -1]
            assert found[i, t] == pytest.approx(expected, abs=1e-6)
    assert not found[~completions.mask].any()


def test_advantages_and_returns_are_the_formula():
    settings = {"gamma": 0.9, "lam": 0.7, "critic_lam": 0.8, "beta": 0.3, "whiten": False}
    run = recipe(**settings, entropy_weight=0.05)
    batch, completions, reference, found = advantages_of(run)
    values, returns = run._targets.values, run._targets.returns
    for i, score in enumerate(batch.rewards.ravel()):
        length = int(completions.mask[i].sum())
        own = completions.log_probs[i, :length]
        rewards = -0.3 * (own - reference[i, :length])
        rewards[-1] += score
        after = [*values[i, 1:length], 0.0]
        delta = rewards + 0.9 * np.array(after) - values[i, :length]
        for t in range(length):
            powers = np.arange(length - t)
            advantage, wide = ((delta[t:] * (0.9 * lam) ** powers).sum() for lam in (0.7, 0.8))
            assert found[i, t] == pytest.approx(advantage - 0.05 * own[t], abs=1e-5)
            assert returns[i, t] == pytest.approx(wide + values[i, t], abs=1e-5)
    assert not found[~completions.mask].any()


def test_advantages_are_whitened_and_returns_are_not():
    found = [recipe(whiten=flag) for flag in (False, True)]
    plain, white = (advantages_of(run) for run in found)
    mask = plain[1].mask
    x = plain[3][mask]
    np.testing.assert_allclose(white[3][mask], (x - x.mean()) / x.std(ddof=1), atol=1e-4)
    np.testing.assert_array_equal(found[0]._targets.returns, found[1]._targets.returns)


def test_lambda_by_length():
    run = recipe(lam_alpha=0.5, whiten=False, beta=0.0)
    batch, completions, _, found = advantages_of(run)
    values = run._targets.values
    for i, score in enumerate(batch.rewards.ravel()):
        length = int(completions.mask[i].sum())
        lam = max(0.0, 1 - 1 / (0.5 * length))
        rewards = np.zeros(length)
        rewards[-1] = score
        delta = rewards + np.append(values[i, 1:length], 0) - values[i, :length]
        first = (delta * lam ** np.arange(length)).sum()
        assert found[i, 0] == pytest.approx(first, abs=1e-5)


def test_the_entropy_bonus_is_on_average_the_entropys_gradient():
    """sum_a p(a) (-log p(a)) grad log p(a) = grad H, exactly, by enumeration."""
    logits = mt.tensor(np.random.default_rng(0).normal(size=7))
    p = logits.log_softmax(-1).exp().numpy()
    weighted = lambda z: (mt.tensor(-p * np.log(p)) * z.log_softmax(-1)).sum()  # noqa: E731
    entropy = lambda z: -(z.softmax(-1) * z.log_softmax(-1)).sum()  # noqa: E731
    np.testing.assert_allclose(
        mt.grad(weighted)(logits).numpy(), mt.grad(entropy)(logits).numpy(), atol=1e-12
    )


def test_at_first_the_critic_learns_alone_from_whole_returns():
    run = recipe(value_steps=3, critic_lam=0.5, critic_learning_rate=1e-2, beta=0.0)
    before = weights(run.model)
    batch, completions, _, _ = advantages_of(run)
    score = np.broadcast_to(batch.rewards.reshape(-1, 1), completions.mask.shape)
    np.testing.assert_allclose(
        run._targets.returns[completions.mask], score[completions.mask], atol=1e-5
    )
    losses = [run.train_step()["value_loss"] for _ in range(3)]
    assert losses[-1] < losses[0]
    assert same(before, weights(run.model))
    run.train_step()
    assert not same(before, weights(run.model))


def test_values_that_move_too_far_are_held():
    """With a bound of nearly 0 the larger of two equal errors has the gradient of either."""
    run = recipe(epochs=1, minibatches=1)
    _, completions, _, _ = advantages_of(run)
    mask, targets = completions.mask, run._targets
    far = dataclasses.replace(targets, values=targets.values + 5.0 * mask)
    run._targets = far
    loss = run._learn_values(np.arange(len(mask)), completions)
    value, returns = targets.values[mask], targets.returns[mask]
    clipped = far.values[mask] + np.clip(value - far.values[mask], -0.2, 0.2)
    expected = np.maximum((value - returns) ** 2, (clipped - returns) ** 2).mean() / 2
    assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("overlong_filter", [False, True])
def test_correct_completions_are_imitated_over_their_tokens(overlong_filter):
    settings = {"positive_weight": 0.1, "beta": 0.0, "epochs": 1, "minibatches": 1}
    settings |= {"prompts": 12, "overlong_filter": overlong_filter}
    right = lambda prompts, completions, **columns: [  # noqa: E731
        float(i % 2 == 0) for i in range(len(completions))
    ]
    runs = [recipe(rewards=[(right, 1.0)], **settings, batch_size=size) for size in (2, 256)]
    one, two = (run.train_step() for run in runs)
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    plain = recipe(rewards=[(right, 1.0)], **{**settings, "positive_weight": 0.0})
    batch, completions, _, _ = advantages_of(recipe(rewards=[(right, 1.0)], **settings))
    mask = completions.mask & (batch.rewards.reshape(-1, 1) == 1)
    if overlong_filter:
        ended = np.array([rollout.finished for rollout in batch.rollouts])
        assert ended[::2].any()
        assert not ended[::2].all()
        mask &= ended[:, None]
    imitated = -completions.log_probs[mask].mean()
    assert one["loss"] - plain.train_step()["loss"] == pytest.approx(0.1 * imitated, abs=1e-4)


def test_pieces_add_up():
    runs = [recipe(batch_size=size, epochs=1) for size in (2, 256)]
    one, two = (run.train_step() for run in runs)
    for name in ("loss", "value_loss", "grad_norm"):
        assert one[name] == pytest.approx(two[name], abs=1e-4), name


def test_it_learns():
    run = recipe(prompts=32, minibatches=2, learning_rate=3e-3, critic_learning_rate=1e-2, beta=0.0)
    first = np.mean([run.train_step()["reward"] for _ in range(3)])
    for _ in range(25):
        metrics = run.train_step()
    assert metrics["reward"] > first + 0.15


def test_beta_is_steered_to_the_target():
    settings = {"kl_horizon": 6, "beta": 0.1}
    for target, way in ((0.1, 1.2), (1e6, 0.8)):
        run = recipe(kl_target=target, **settings)
        run.reference.norm.weight.data[...] = 40.0  # it is far from undecided
        metrics = run.train_step()
        assert metrics["kl_of_completion"] > 1
        assert metrics["beta"] == pytest.approx(0.1 * way)


def test_moments_are_those_of_all_numbers():
    moments, rng = Moments(), np.random.default_rng(0)
    parts = [rng.normal(3, 2, size) for size in (1, 7, 30)]
    assert moments.deviation == 1
    for part in parts:
        moments.add(part)
    whole = np.concatenate(parts)
    assert moments.mean == pytest.approx(whole.mean())
    assert moments.deviation == pytest.approx(whole.std())


def test_scores_are_normalised_and_bounded():
    run = recipe(normalise_rewards=True, reward_clip=0.5, beta=0.0, gamma=1.0, critic_lam=1.0)
    batch, completions, _, _ = advantages_of(run)
    scores = batch.rewards.ravel()
    expected = np.clip((scores - scores.mean()) / scores.std(), -0.5, 0.5)
    np.testing.assert_allclose(run._targets.returns[:, 0], expected, atol=1e-4)
    assert completions.mask[:, 0].all()


def test_a_model_judges_the_whole_text_and_what_does_not_end_pays():
    judge = RewardModel(build(7), Generator(8))
    score = by_model(judge, TASK.tokenizer())
    run = recipe(rewards=[], score=score, end_penalty=2.0)
    batch, _ = run.sample()
    for rollout, reward, given in zip(
        batch.rollouts, batch.rewards.ravel(), batch.given["reward_model"], strict=True
    ):
        with mt.no_grad():
            score = judge(np.array([rollout.ids]))[0].numpy()[0, -1]
        assert given == pytest.approx(score, abs=1e-5)
        assert reward == pytest.approx(score - 2.0 * (not rollout.finished), abs=1e-5)


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    settings = {"kl_target": 0.1, "beta": 0.1, "normalise_rewards": True}
    whole = recipe(**settings)
    for _ in range(4):
        whole.train_step()
    first = recipe(**settings)
    for _ in range(2):
        first.train_step()
    again = recipe(**settings)
    again.restore(load(first.save(tmp_path, None)))
    for _ in range(2):
        again.train_step()
    assert same(weights(whole.model), weights(again.model))
    assert same(weights(whole.critic), weights(again.critic))
    assert again.beta == whole.beta
    assert again.moments == whole.moments
    assert again.history == whole.history


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl_target": 0.1, "beta": 0.0}, "kl_target: expected kl_in_reward and a beta above 0"),
        ({"advantage": "grpo"}, "advantage"),
        ({"lam": 1.5}, "lam"),
        ({"loss": "gspo"}, "loss"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        PpoConfig(**{**SMALL, **changes})


@pytest.fixture
def base(tmp_path):
    build().save_pretrained(tmp_path / "base")
    TASK.tokenizer().save(tmp_path / "base" / "tokenizer.json")
    return tmp_path / "base"


@pytest.fixture
def judge(tmp_path):
    RewardModel(build(7), Generator(8)).save_pretrained(tmp_path / "judge")
    TASK.tokenizer().save(tmp_path / "judge" / "tokenizer.json")
    return tmp_path / "judge"


@pytest.fixture
def arguments(base, tmp_path):
    pairs = [x for item in SMALL.items() for x in ("--set", "{}={}".format(*item))]
    return ["ppo", "--model", base, *pairs, "--out", tmp_path / "run"]


def test_the_command_line_with_a_task_and_a_text(cli, arguments, tmp_path):
    (tmp_path / "text.txt").write_text("11+11=22" * 40)
    ptx = {"ptx_weight": 1, "ptx_text": tmp_path / "text.txt", "ptx_rows": 2, "ptx_length": 8}
    pairs = [x for item in ptx.items() for x in ("--set", "{}={}".format(*item))]
    result = cli(*arguments, "--task", "addition", *pairs, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout).keys()
    assert {"val_reward", "explained", "value_loss", "ptx_loss", "text_loss"} <= found
    assert (tmp_path / "run" / "rollouts.html").is_file()


def test_the_command_line_with_a_reward_model_and_going_on(cli, arguments, judge, tmp_path):
    rows = [{"prompt": f"{n}+1="} for n in range(10, 30)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--data", data, "--reward-model", judge, "--preset", "ppo_max"]
    options += ["--set", "max_tokens=3", "--set", "value_steps=1"]
    result = cli(*arguments, *options)
    assert result.exit_code == 0, result.stderr
    half = [*arguments[:-1], tmp_path / "half"]
    assert cli(*half, *options, "--set", "steps=2").exit_code == 0
    again = cli("ppo", "--resume", tmp_path / "half", "--set", "steps=4")
    assert again.exit_code == 0, again.stderr
    one, two = (
        (tmp_path / run / "checkpoints" / "step-00000004" / "training.safetensors").read_bytes()
        for run in ("run", "half")
    )
    assert one == two


def test_with_lora_the_model_is_its_own_reference(cli, arguments, tmp_path):
    result = cli(*arguments, "--task", "addition", "--set", "lora_rank=2", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["kl"] > 0
    assert (tmp_path / "run" / "checkpoints/step-00000004/adapter_config.json").is_file()


def test_a_reward_model_that_is_none_and_one_of_other_tokens(cli, arguments, base, judge):
    result = cli(*arguments, "--task", "addition", "--reward-model", base)
    assert result.exit_code == 1
    assert "expected a reward model" in result.stderr
    content = json.loads((judge / "tokenizer.json").read_text())
    (judge / "tokenizer.json").write_text(json.dumps(content).replace('"+"', '"x"'))
    result = cli(*arguments, "--task", "addition", "--reward-model", judge)
    assert result.exit_code == 1
    assert "expected the vocabulary" in result.stderr


def test_bad_input_leaves_the_last_checkpoint(cli, arguments, base, tmp_path):
    (tmp_path / "rewards.py").write_text(
        "calls = 0\n\n"
        "def late(prompts, completions, **columns):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    return [1.0 if calls < 5 else float('nan')] * len(completions)\n"
    )
    data = tmp_path / "rows.jsonl"
    good = [json.dumps({"prompt": f"{n}+1="}) + "\n" for n in range(10, 20)]
    data.write_text("".join(good))
    options = ["--data", data, "--reward", f"{tmp_path / 'rewards.py'}:late"]
    options += ["--set", "max_tokens=3", "--set", "checkpoint_interval=1"]
    result = cli(*arguments, *options)
    assert result.exit_code == 1
    assert "reward late: expected finite numbers or None; got nan" in result.stderr
    newest = checkpoints.newest(tmp_path / "run")
    assert newest.name == "step-00000002"
    build().save_pretrained(tmp_path / "other")
    tokens = (base / "tokenizer.json").read_text().replace('"+"', '"x"')
    (tmp_path / "other" / "tokenizer.json").write_text(tokens)
    for row, more, message in (
        ({"answer": "1"}, [], "rows.jsonl:11: expected the keys of the first row"),
        ({"prompt": "1" * 40}, [], "rows.jsonl:11: expected a prompt of at most"),
        (None, ["--reference", tmp_path / "other"], "expected the vocabulary of the model"),
    ):
        data.write_text("".join(good) + (json.dumps(row) + "\n" if row else ""))
        result = cli(*arguments, *options, *more, "--overwrite")
        assert result.exit_code == 1
        assert message in result.stderr.replace("\n", " ")
        assert checkpoints.newest(tmp_path / "run") == newest
    assert load(newest).step == 2


def test_neither_a_task_nor_data(cli, arguments):
    result = cli(*arguments)
    assert result.exit_code == 1
    assert "either --task or --data" in result.stderr


def test_a_critic_that_knows_nothing_says_nothing(cli, base):
    from models.commands.ppo import _critic

    critic = _critic(PpoConfig(**SMALL, model=str(base)), TASK.tokenizer())
    with mt.no_grad():
        scores, _ = critic(np.array([[1, 2, 3]]))
    assert not scores.numpy().any()
    assert isinstance(critic, nn.Module)
