"""The proof experiments: that they run and judge, and that what was committed still says so."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

import minitorch as mt
from minitorch.backend import DEFAULT_FLOAT
from minitorch.random import Generator
from models.blocks.cache import step
from models.experiments import (
    NAMES,
    RESULTS,
    cache_diets,
    clip_higher,
    context_extension,
    distillation,
    expert_balance,
    facts,
    load,
    merging,
    multi_token,
    overoptimisation,
    passkey,
    qk_norm,
    query_norm,
    recall,
    sparse_chunks,
)
from models.experiments.__main__ import main
from models.experiments.experiment import Claim, Experiment, record

SILENT = Console(quiet=True)


def numbers(value: object) -> list[float]:
    """All numbers in nested rows."""
    if isinstance(value, dict):
        return [x for part in value.values() for x in numbers(part)]
    if isinstance(value, list):
        return [x for part in value for x in numbers(part)]
    return [value] if isinstance(value, int | float) else []


def run_cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_small_and_its_picture_can_be_drawn(name: str, tmp_path: Path) -> None:
    target, picture = tmp_path / "result.json", tmp_path / "result.png"
    result = run_cli(name, "--quick", "--seed", 3, "--json", target, "--picture", picture)
    assert result.exit_code == 0, result.output
    content = json.loads(target.read_text())
    assert content["experiment"] == name
    assert content["seed"] == 3
    assert content["setup"] == dataclasses.asdict(load(name).quick)
    assert content["claims"] == []
    assert all(math.isfinite(number) for number in numbers(content["rows"]))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_seed_decides_everything() -> None:
    experiment = load("recall")
    first, again, other = (experiment.run(experiment.quick, seed, SILENT) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_result_is_of_this_setup_and_says_what_its_rows_say(name: str) -> None:
    experiment = load(name)
    for path in (RESULTS / f"{name}.json", *RESULTS.glob(f"{name}_[0-9].json")):
        content = json.loads(path.read_text())
        assert content["setup"] == dataclasses.asdict(experiment.setup)
        assert path.stem in (name, f"{name}_{content['seed']}")
        assert content["date"]
        assert content["processor"]
        assert name in content["command"]
        claims = experiment.claims(content["rows"])
        assert [{**dataclasses.asdict(c), "holds": c.holds} for c in claims] == content["claims"]
        assert all(claim.holds for claim in claims)


@pytest.mark.parametrize("name", NAMES)
def test_there_is_a_negative_control(name: str) -> None:
    content = json.loads((RESULTS / f"{name}.json").read_text())
    assert any(claim.control for claim in load(name).claims(content["rows"]))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_all_claims_hold(name: str) -> None:
    experiment = load(name)
    claims = experiment.claims(experiment.run(experiment.setup, 0, SILENT))
    assert [claim for claim in claims if not claim.holds] == []


@pytest.mark.parametrize(
    ("value", "relation", "holds"),
    [(1.0, "<=", True), (1.1, "<=", False), (1.0, ">=", True), (math.nan, "<=", False),
     (math.nan, ">=", False)],
)  # fmt: skip
def test_a_claim_is_an_inequality_and_nothing_holds_of_nan(value, relation, holds) -> None:
    assert Claim("", value, relation, 1.0).holds is holds


def measuring(value: float) -> Experiment:
    """An experiment that measures `value` and claims that it is at most 1."""
    return dataclasses.replace(
        load("recall"),
        run=lambda setup, seed, console: [{"variant": "only", "value": value}],
        claims=lambda rows: [Claim("value", rows[0]["value"], "<=", 1.0, control=True)],
    )


@pytest.mark.parametrize(("value", "code"), [(0.5, 0), (1.5, 1), (math.nan, 1)])
def test_a_claim_that_fails_is_exit_code_1_and_is_written_all_the_same(
    value: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.experiments.__main__.load", lambda name: measuring(value))
    target = tmp_path / "result.json"
    result = run_cli("context_extension", "--json", target)
    assert result.exit_code == code
    assert ("holds" if code == 0 else "fails") in result.output
    content = json.loads(target.read_text())
    assert content["claims"][0]["holds"] is (code == 0)
    assert content["rows"][0]["value"] == (None if math.isnan(value) else value)


def test_a_record_says_when_where_and_how() -> None:
    experiment = measuring(0.5)
    rows = experiment.run(experiment.setup, 7, SILENT)
    claims = experiment.claims(rows)
    content = record(experiment, experiment.setup, 7, rows, claims, "python -m ...")
    assert content["seed"] == 7
    assert content["command"] == "python -m ..."
    assert set(content["versions"]) == {"minitorch", "python"}
    assert content["date"].endswith("+00:00")


def test_without_a_name_all_are_listed() -> None:
    result = run_cli()
    assert result.exit_code == 0
    assert all(name in result.output for name in NAMES)


def test_help_has_an_example() -> None:
    assert "Example: python -m models.experiments" in run_cli("--help").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such"], "context_extension"),
        (["recall", "--seed", "-1"], "--seed"),
        (["recall", "--json", "no/such/folder/result.json"], "folder that exists"),
    ],
)
def test_a_command_line_that_cannot_be_understood_is_refused_before_it_runs(
    arguments, message
) -> None:
    result = run_cli(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_the_table_and_the_verdicts_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.experiments.__main__.load", lambda name: measuring(0.5))
    output = run_cli("context_extension").output
    assert "only" in output
    assert "0.500" in output
    assert "value: 0.5 <= 1.0" in output


def test_losses_by_position_average_to_the_loss() -> None:
    config = context_extension.Qwen2Config.preset("toy")
    model = config.build(DEFAULT_FLOAT, Generator(0))
    ids = np.random.default_rng(0).integers(config.vocab_size, size=8 * 12 + 1)
    losses = context_extension.losses_by_position(model, ids, 12)
    inputs, targets = (mt.from_numpy(part.reshape(8, 12)) for part in (ids[:-1], ids[1:]))
    assert losses.shape == (12,)
    assert losses.mean() == pytest.approx(model.loss(inputs, targets).item(), rel=1e-5)


def test_a_recall_text_answers_what_it_asks() -> None:
    setup = recall.Setup(keys=20, values=5, queries=7, batch_size=4)
    batch, answers = next(recall.texts(setup, 6, seed=0))
    assert batch.shape == (4, 6 + 7, 2)
    for text, expected in zip(batch, answers, strict=True):
        told = dict(map(tuple, text[:6]))
        assert len(told) == 6
        assert (text[6:, 1] == setup.values).all()
        assert [told[key] for key in text[6:, 0]] == expected.tolist()


@pytest.mark.parametrize("kinds", recall.KINDS.values(), ids=recall.KINDS)
def test_a_recaller_does_not_see_later_tokens(kinds) -> None:
    setup = recall.Setup(width=16, heads=2)
    model = recall.Recaller(setup, kinds, Generator(0)).eval()
    batch, _ = next(recall.texts(setup, 6, seed=0))
    changed = batch.copy()
    changed[:, -1, 0] = (changed[:, -1, 0] + 1) % setup.keys
    with mt.no_grad():
        before, after = (model(mt.from_numpy(x)).numpy() for x in (batch, changed))
    np.testing.assert_allclose(before[:, :-1], after[:, :-1], atol=1e-6)
    assert not np.allclose(before[:, -1], after[:, -1])


def test_loads_count_every_choice_of_every_layer() -> None:
    config = expert_balance.Config.preset("toy", experts=4, per_token=2)
    model = config.build(DEFAULT_FLOAT, Generator(0))
    routers = expert_balance.count_loads(model)
    assert len(routers) == config.num_hidden_layers
    ids = mt.from_numpy(np.arange(10).reshape(2, 5))
    model.train()(ids)
    model.eval()(ids)
    assert [router.loads.sum() for router in routers] == [2 * 10] * len(routers)


def test_the_largest_score_is_that_of_the_definition() -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    config = qk_norm.Config.preset("toy", num_hidden_layers=1, qk_norm=1e-6, **heads)
    model = config.build(DEFAULT_FLOAT, Generator(0))
    ids = np.random.default_rng(0).integers(config.vocab_size, size=3 * 8)
    found = qk_norm.largest_score(model, ids, 8)
    attention = model.layers[0].self_attn
    read = mt.from_numpy(ids.reshape(3, 8))
    context = step(read)
    x = model.layers[0].input_layernorm(model.embed_tokens(read))
    query, key, _ = attention.project(x, context)
    query, key = (attention.config.rotary(y, context).detach().numpy() for y in (query, key))
    largest = max(
        abs(query[b, h, i] @ key[b, h, j]) / math.sqrt(query.shape[-1])
        for b in range(3)
        for h in range(4)
        for i in range(8)
        for j in range(i + 1)
    )
    assert found == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("kind", cache_diets.KINDS)
def test_a_diet_keeps_what_it_says_and_has_the_parameters_of_the_reference(kind: str) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2}
    config, reference = (
        cache_diets.Config(**sizes, max_position_embeddings=8, heads=8, hidden=128, kind=name)
        for name in (kind, "reference")
    )
    assert config.num_parameters() == pytest.approx(reference.num_parameters(), rel=0.005)
    expected = {"reference": 128, "none": 0}.get(kind, 32)
    assert cache_diets.kept_numbers(config) == expected
    if kind != "none":
        model = config.build(DEFAULT_FLOAT, Generator(0)).eval()
        cache = model.new_cache()
        with mt.no_grad():
            model(mt.from_numpy(np.arange(8)[None]), cache=cache)
        assert cache.nbytes == 2 * 8 * expected * 4


def test_differences_are_taken_run_by_run() -> None:
    mean, error = cache_diets.difference([2.0, 3.0, 5.0], [1.0, 1.0, 1.0])
    assert mean == pytest.approx(7 / 3)
    assert error == pytest.approx(np.std([1, 2, 4], ddof=1) / math.sqrt(3))
    assert cache_diets.difference([2.0], [1.5]) == (0.5, 0.0)


def test_a_passkey_stands_in_the_text_and_is_asked_for_at_its_end() -> None:
    setup, text = passkey.Setup(batch_size=3), passkey.embedded(64)
    first = text.vocab_size
    for share in (0.0, 1.0):
        ids, targets = next(passkey.texts(setup, text, text.validation, 40, share, seed=0))
        assert ids.shape == targets.shape == (3, 40)
        for row, follows in zip(ids, targets, strict=True):
            at = np.flatnonzero((row >= first) & (row < first + 40))
            assert at.tolist() == list(range(at[0], at[0] + 4))
            assert ((row[at] - first) // setup.values).tolist() == [0, 1, 2, 3]
            assert row[-4:].tolist() == [first + 40 + place for place in range(4)]
            assert follows[-4:].tolist() == row[at].tolist()
            expected = row[1:37] if share else np.full(36, -100)
            assert follows[:-4].tolist() == expected.tolist()


def test_the_nearest_quarter_is_a_quarter_of_all_pairs() -> None:
    for length in (20, 512):
        window = passkey.nearest(length)
        pairs = np.tril(np.ones((length, length)))
        near = np.triu(pairs, 1 - window)
        assert 0.25 <= near.sum() / pairs.sum() < 0.25 + 2 / length


@pytest.mark.parametrize("estimate", [None, *sparse_chunks.ESTIMATES])
def test_what_sparse_attention_reads_is_measured(estimate: str | None) -> None:
    """With a budget for everything it is all pairs and all of the probability. None: no chunks."""
    found = []
    for columns in (128, 4):
        budget = passkey.Budget(columns=columns, diagonals=columns, last=8, nearest=4)
        model = sparse_toy(budget, estimate, chunk_size=16, local_size=4).eval()
        with mt.no_grad():
            model(mt.from_numpy(np.arange(64)[None]))
        notes = model.layers[0].self_attn.notes
        assert notes.mass.shape[-1] == 64
        found.append((notes.share, notes.mass.mean()))
    assert found[0] == pytest.approx((1, 1), abs=1e-5)
    assert all(0 < part < 0.7 for part in found[1])


def sparse_toy(budget: passkey.Budget, estimate: str | None, **chunks: int):
    """A model of one layer that notes what it reads."""
    if estimate is None:
        config = passkey.Config.preset("toy", num_hidden_layers=1, budget=budget)
    else:
        config = sparse_chunks.Config.preset(
            "toy",
            num_hidden_layers=1,
            dual_chunk_attention_config=chunks,
            sparse_prefill=dataclasses.asdict(budget),
            estimate=estimate,
        )
    return config.build(DEFAULT_FLOAT, Generator(0))


def test_a_choice_by_plain_distances_is_that_of_plain_attention() -> None:
    """As if all were one chunk. And the other two are not."""
    budget = passkey.Budget(columns=6, diagonals=4, last=8, sinks=1, nearest=2)
    ids = mt.from_numpy(np.arange(60)[None])

    def choice(estimate: str, trained: int) -> np.ndarray:
        """Of the last chunk."""
        model = sparse_toy(budget, estimate, chunk_size=trained, local_size=4).eval()
        layer, chosen = model.layers[0].self_attn, []
        layer.choice = lambda *parts: chosen.append(type(layer).choice(layer, *parts)) or chosen[-1]
        for param in layer.parameters():
            param.data *= 8
        shape = 1, 60, model.config.hidden_size
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        with mt.no_grad():
            layer(mt.from_numpy(x), step(ids, None, None))
        return chosen[-1]

    one_chunk = choice("as read", 80)
    as_read, in_line, plain = (choice(name, 20) for name in sparse_chunks.ESTIMATES)
    assert (plain == one_chunk[:, :, -plain.shape[2] :]).all()
    assert (as_read != plain).any()
    assert (in_line != plain).any()
    assert (as_read != in_line).any()


def test_what_follows_most_often_is_counted() -> None:
    follows = multi_token.most_frequent(np.array([0, 1, 0, 2, 0, 1, 1], np.uint8), 3)
    assert follows.tolist() == [1, 0, 0]


def test_drafts_are_held_against_what_the_model_chooses() -> None:
    config = multi_token.LlamaConfig.preset("toy")
    model = config.build(DEFAULT_FLOAT, Generator(0)).eval()
    ids = np.random.default_rng(0).integers(config.vocab_size, size=17)
    logits, _ = model(mt.from_numpy(ids[None, :-1]))
    chosen = logits.detach().numpy().argmax(-1)[0]
    follows = np.zeros(config.vocab_size, np.int64)
    follows[ids[1:9]] = chosen[1:9]
    expected = np.mean([follows[ids[i]] == chosen[i] for i in range(1, 16)])
    assert 0 < expected < 1
    assert multi_token.acceptance(model, ids, 16, follows) == pytest.approx(expected)


def test_batches_of_facts_are_all_facts_once_before_any_comes_again() -> None:
    setup = facts.Setup(subjects=5, relations=3)
    questions, objects = facts.all_facts(setup, seed=0)
    assert len({tuple(question) for question in questions}) == 15
    stream = facts.batches(questions, objects, 4, seed=0)
    told = [(*q, o) for _ in range(4) for q, o in zip(*next(stream), strict=True)]
    assert sorted(told) == sorted((*q, o) for q, o in zip(questions, objects, strict=True))


def test_the_wide_dense_layer_multiplies_as_often_as_peer() -> None:
    setup = facts.Setup()
    wide = facts.make_layer("dense, wide", setup, Generator(0))
    peer = facts.make_layer("PEER", setup, Generator(0))
    read = 2 * setup.active * setup.width  # u and v of the chosen experts
    searched = peer.query.weight.data.size + setup.heads * peer.keys.data.size
    assert wide.up_proj.weight.data.size + wide.down_proj.weight.data.size == read + searched


def test_the_use_of_experts_is_that_of_all_tokens_read_after_training() -> None:
    """Counted anew from the weights of every expert, with whole batches and piece by piece."""
    setup = load("query_norm").quick
    model = query_norm.build(setup, 11, True, Generator(0))
    layer = model.layers[0].mlp
    assert layer.keys.data.std() > 0.2  # as PEER draws them, not with the decoder's 0.02
    x = mt.randn(1, 30, setup.width, generator=Generator(1))
    layer.train()(x)
    layer.eval()
    share = np.zeros(setup.experts)
    for part in (x, x[:, :7], x[:, 7:]):
        with mt.no_grad():
            layer(part)
    with mt.no_grad():
        weights, experts = query_norm.PEER.retrieve(layer, x[0])
    np.add.at(share, experts.numpy().ravel(), weights.numpy().ravel())
    share /= share.sum()
    used, unevenness = layer.usage()
    assert used == (share > 0).mean()
    logs = np.log(np.where(share > 0, share * setup.experts, 1))
    assert unevenness == pytest.approx((share * logs).sum(), rel=1e-4)


def test_a_student_is_taught_by_the_loss_of_the_command() -> None:
    setup = dataclasses.replace(load("distillation").quick, alpha=0.3, temperature=3.0)
    student, teacher = (distillation.build(setup, 11, 8, 1, seed) for seed in (0, 1))
    ids, targets = (mt.from_numpy(np.arange(8).reshape(1, 8) + i) for i in (0, 1))
    found = distillation.Taught(student, teacher, setup).loss(ids, targets)
    logits, hard = student(ids, targets)
    p, q = ((z / 3.0).log_softmax(-1).detach().numpy() for z in (teacher(ids)[0], logits))
    soft = 9.0 * (np.exp(p) * (p - q)).sum(-1).mean()
    assert found.item() == pytest.approx(0.7 * hard.item() + 0.3 * soft, rel=1e-4)
    found.backward()
    assert all(param.grad is None for param in teacher.parameters())


def test_gold_is_best_at_four_letters_and_worst_at_twelve() -> None:
    texts = ["a" * count + "b" * (12 - count) for count in (0, 1, 4, 6, 12)]
    assert overoptimisation.gold([], texts) == [0.0, 0.25, 1.0, 0.5, -1.0]
    text = overoptimisation.demonstrate({}, np.random.default_rng(0))
    assert len(text) == overoptimisation.LENGTH
    assert set(text) <= set(overoptimisation.LETTERS)


def test_the_judge_learns_from_pairs_the_better_one_first() -> None:
    """After some steps it is right about more of the unseen pairs than a coin."""
    setup = dataclasses.replace(load("overoptimisation").quick, width=16, pairs=200, judge_steps=60)
    setup = dataclasses.replace(setup, batch_size=32)
    tokenizer = overoptimisation.TASK.tokenizer()
    base = overoptimisation.build(setup, tokenizer, 0)
    _, right = overoptimisation.train_judge(base, setup, tokenizer, 1, SILENT)
    assert right > 0.7


def test_means_of_neighbours() -> None:
    assert overoptimisation.smoothed([0, 4, 8, 4, 0]).tolist() == [4, 4]
    assert overoptimisation.smoothed([3]).tolist() == [3]


@pytest.mark.parametrize(("clip_high", "up"), [(0.2, 1.2), (0.28, 1.28)])
def test_a_rare_answer_that_is_right_may_rise_by_the_clip_and_no_more(clip_high, up) -> None:
    """The update that crosses the bound is the last one: the overshoot is less than one step."""
    setup = clip_higher.Setup(states=1, group_size=2, learning_rate=1e-2)
    kind = clip_higher.Kind(0.5, clip_higher.KINDS["coin"].chances)
    table = clip_higher._Table(setup, kind, clip_high, np.random.default_rng(0))
    answers, advantages = mt.tensor([[3, 0]]), mt.tensor([[1.0, 0.0]], dtype=mt.float64)
    table._group = lambda probs: (answers, advantages)
    before = table.logits.softmax(-1)[0, 3].item()
    reward, entropy = table.learn(100)
    assert table.logits.softmax(-1)[0, 3].item() / before == pytest.approx(up, rel=6e-3)
    assert reward == pytest.approx(0.5)
    assert entropy == pytest.approx(math.log(2) + 0.5 * math.log(15))


def test_a_base_to_be_merged_reads_both_tasks_and_is_seldom_told_what_is_right() -> None:
    toy = merging._Toy(dataclasses.replace(merging.Setup(), right=0.3), None)
    rows = list(toy.rows(1000, [merging.SUMS, merging.WORDS], 0.3))
    sums = [row for row in rows if "+" in row["prompt"]]
    answers = [str(sum(map(int, row["prompt"][:-1].split("+"))))[::-1] for row in sums]
    right = [row["completion"] == answer for row, answer in zip(sums, answers, strict=True)]
    assert len(sums) == 500
    assert 0.25 < np.mean(right) < 0.35
    assert all(len(row["completion"]) == len(a) for row, a in zip(sums, answers, strict=True))
    only = list(toy.rows(50, [merging.WORDS]))
    assert all("+" not in row["prompt"] for row in only)
