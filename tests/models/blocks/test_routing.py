"""Routers and the losses on their load: NumPy loops over tokens, and transformers' routers."""

import dataclasses
import math

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import ConfigError
from models.blocks import routing
from models.blocks.routing import Balance, Router, RouterConfig

TOKENS, WIDTH, EXPERTS, K = 24, 6, 8, 3

MIXTRAL = RouterConfig(num_experts=EXPERTS, k=K, norm_topk_prob=True)
QWEN = RouterConfig(num_experts=EXPERTS, k=K)
DEEPSEEK_V2 = RouterConfig(num_experts=EXPERTS, k=K, scaling_factor=1.7, groups=4, kept_groups=2)
DEEPSEEK_V3 = RouterConfig(
    num_experts=EXPERTS,
    k=K,
    score_function="sigmoid",
    norm_topk_prob=True,
    scaling_factor=2.5,
    groups=4,
    kept_groups=2,
    group_best=2,
    bias=True,
)


def router(config, seed=0):
    """A router with every parameter and buffer at random."""
    made = Router(WIDTH, config, np.float64)
    rng = np.random.default_rng(seed)
    made.weight.data[...] = rng.standard_normal(made.weight.shape)
    if config.bias:
        made.e_score_correction_bias.data[...] = 0.3 * rng.standard_normal(EXPERTS)
    return made


def inputs(seed=1):
    return mt.Tensor(np.random.default_rng(seed).standard_normal((TOKENS, WIDTH)))


def one_token(made, x):
    """Experts and weights of one token, by sorting."""
    config = made.config
    logits = made.weight.detach().numpy() @ x
    if config.score_function == "sigmoid":
        scores = 1 / (1 + np.exp(-logits))
    else:
        scores = np.exp(logits) / np.exp(logits).sum()
    rank = scores + (made.e_score_correction_bias.numpy() if config.bias else 0)
    groups = np.split(np.arange(EXPERTS), config.groups)
    strength = [np.sort(rank[group])[-config.group_best :].sum() for group in groups]
    best = np.argsort(strength)[-config.kept_groups :]
    allowed = np.concatenate([groups[g] for g in best])
    chosen = allowed[np.argsort(-rank[allowed])][: config.k]
    weights = scores[chosen]
    if config.norm_topk_prob:
        weights = weights / weights.sum()
    return chosen, config.scaling_factor * weights


@pytest.mark.parametrize("config", [MIXTRAL, QWEN, DEEPSEEK_V2, DEEPSEEK_V3])
def test_each_token_by_itself(config):
    made, x = router(config), inputs()
    found = made(x)
    for t in range(TOKENS):
        chosen, weights = one_token(made, x.numpy()[t])
        assert found.indices.numpy()[t].tolist() == chosen.tolist()
        np.testing.assert_allclose(found.weights.detach().numpy()[t], weights, rtol=1e-6)
    np.testing.assert_allclose(found.scores.detach().numpy().sum(1), 1.0)


def test_the_bias_chooses_and_does_not_weigh():
    plain, biased = router(DEEPSEEK_V3), router(DEEPSEEK_V3)
    plain.e_score_correction_bias.data[...] = 0
    biased.e_score_correction_bias.data[...] = np.where(np.arange(EXPERTS) < 4, 5.0, 0.0)
    x = inputs()
    assert (biased(x).indices.numpy() < 4).all()
    assert not (plain(x).indices.numpy() < 4).all()
    names = dict(biased.named_parameters())
    assert list(names) == ["weight"]
    assert set(biased.state_dict()) == {"weight", "e_score_correction_bias"}


def test_the_bias_moves_against_the_load():
    """Over all batches since the last update, in training alone."""
    made, first, second = router(DEEPSEEK_V3), inputs(1), inputs(2)
    before = made.e_score_correction_bias.numpy().copy()
    load = sum(
        np.bincount(made(x).indices.numpy().ravel(), minlength=EXPERTS) for x in (first, second)
    )
    made.eval()(first)
    routing.update_biases(made.train(), rate=0.01)
    moved = made.e_score_correction_bias.numpy() - before
    np.testing.assert_allclose(moved, 0.01 * np.sign(load.mean() - load), atol=1e-7)
    assert not made.load.numpy().any()


def test_the_bias_evens_the_load():
    made = router(DEEPSEEK_V3)
    made.weight.data[0] += 2.0
    x = mt.Tensor(np.random.default_rng(3).standard_normal((400, WIDTH)) + 0.5)
    loads = []
    for _ in range(200):
        loads.append(routing.counts(made(x).indices, EXPERTS))
        made.update_bias(0.01)
    assert routing.max_violation(loads[0]) > 1.0
    assert routing.max_violation(loads[-1]) < 0.2


def spread(scores, indices):
    """Σ f P of one sequence, counted one choice at a time."""
    often = np.zeros(scores.shape[1])
    for choice in indices.ravel():
        often[choice] += scores.shape[1] / indices.size
    return (often * scores.mean(0)).sum(), often


def test_losses_of_balance_by_counting():
    found = router(DEEPSEEK_V2)(inputs())
    scores, indices = found.scores.detach().numpy(), found.indices.numpy()
    halves = [(scores[part], indices[part]) for part in (slice(12), slice(12, 24))]
    expert = np.mean([spread(*half)[0] for half in halves])
    whole, often = spread(scores, indices)
    mean = scores.mean(0).reshape(4, 2)
    device = (often.reshape(4, 2).mean(1) * mean.sum(1)).sum()
    sent = [sum(any(i // 2 == d for i in row) for row in indices.tolist()) for d in range(4)]
    communication = sum(4 / (2 * TOKENS) * n * p for n, p in zip(sent, mean.sum(1), strict=True))
    logits = found.logits.detach().numpy()
    z = (np.log(np.exp(logits).sum(1)) ** 2).mean()
    for balance, expected in [
        (Balance(expert=0.5, sequence_wise=True), 0.5 * expert),
        (Balance(expert=2.0), 2 * whole),
        (Balance(device=0.3, devices=4), 0.3 * device),
        (Balance(communication=0.2, devices=4), 0.2 * communication),
        (Balance(z=0.1, expert=1.0), 0.1 * z + whole),
    ]:
        assert balance.loss([found], DEEPSEEK_V2, 2).item() == pytest.approx(expected)
    assert Balance().loss([found], DEEPSEEK_V2, 2) is None


BALANCES = [
    Balance(expert=0.5, sequence_wise=True),
    Balance(expert=2.0),
    Balance(device=0.3, devices=4),
    Balance(communication=0.2, devices=4, sequence_wise=True),
    Balance(z=0.1),
]


@pytest.mark.parametrize("balance", BALANCES, ids=str)
def test_padding_has_no_part_in_the_losses(balance):
    """The loss of what is real by itself; sequence by sequence where it is by sequences."""
    made, x = router(DEEPSEEK_V2), inputs()
    real = np.random.default_rng(4).random((2, TOKENS // 2)) < 0.6
    flat = mt.Tensor(real.ravel())
    found = balance.loss([made(x, flat, 2)], DEEPSEEK_V2, 2, flat).item()
    rows = [x.numpy()[:12][real[0]], x.numpy()[12:][real[1]]]
    texts = rows if balance.sequence_wise else [np.concatenate(rows)]
    alone = [balance.loss([made(mt.Tensor(text))], DEEPSEEK_V2, 1).item() for text in texts]
    assert found == pytest.approx(np.mean(alone))
    assert found != pytest.approx(balance.loss([made(x)], DEEPSEEK_V2, 2).item(), rel=1e-3)


@pytest.mark.parametrize("balance", BALANCES, ids=str)
def test_the_losses_of_layers_are_their_sum(balance):
    x = inputs()
    layers = [router(DEEPSEEK_V2)(x * scale) for scale in (1.0, -2.0, 3.0)]
    whole = balance.loss(layers, DEEPSEEK_V2, 2).item()
    alone = [balance.loss([layer], DEEPSEEK_V2, 2).item() for layer in layers]
    assert whole == pytest.approx(sum(alone))
    assert len(set(alone)) == 3


def test_padding_is_no_load():
    made, x = router(DEEPSEEK_V3), inputs()
    real = np.random.default_rng(4).random(TOKENS) < 0.6
    made(x, mt.Tensor(real))
    alone = router(DEEPSEEK_V3)
    alone(mt.Tensor(x.numpy()[real]))
    np.testing.assert_array_equal(made.load.numpy(), alone.load.numpy())


def test_losses_are_1_when_even_and_experts_over_k_at_worst():
    even = mt.Tensor(np.full((1, EXPERTS, EXPERTS), 1 / EXPERTS))
    indices = mt.Tensor((np.arange(EXPERTS)[None, :, None] + np.arange(K)) % EXPERTS)
    assert routing.load_balancing_loss(even, indices).item() == pytest.approx(1.0)
    assert routing.device_loss(even, indices, 4).item() == pytest.approx(1.0)
    sent = sum(len({i // (EXPERTS // 4) for i in row}) for row in indices.numpy()[0].tolist())
    loss = routing.communication_loss(even, indices, 4, limit=2)
    assert loss.item() == pytest.approx(sent / (2 * EXPERTS))
    alone = mt.Tensor(np.eye(EXPERTS)[np.zeros((1, 5), int)])
    one = mt.Tensor(np.zeros((1, 5, 1), int))
    assert routing.load_balancing_loss(alone, one).item() == pytest.approx(EXPERTS)


@pytest.mark.parametrize("config", [QWEN, DEEPSEEK_V3])
def test_gradients(config):
    """Through weights and losses, to the input and to the router."""
    made = router(config)
    balance = Balance(expert=0.5, z=0.1, device=0.2, communication=0.3, devices=4)

    def out(x, weight):
        made.weight = weight
        found = made(x)
        return found.weights, balance.loss([found], config, 2)

    weight = mt.nn.Parameter(made.weight.data.copy())
    assert mt.gradcheck(out, [mt.Tensor(inputs().data[:6], requires_grad=True), weight])


def test_capacity_by_hand():
    """First choices come before second ones, earlier tokens before later ones."""
    indices = mt.tensor([[0, 1], [0, 2], [1, 0], [0, 1]])
    kept = routing.within_capacity(indices, 2, 3)
    assert kept.tolist() == [[True, True], [True, True], [True, False], [False, False]]
    assert routing.share(1.0, indices, 3) == 3
    assert routing.share(1.0, indices, 3, mt.tensor([True, False, False, True])) == 2


def test_padding_takes_no_room():
    config = RouterConfig(num_experts=EXPERTS, k=K, capacity_factor=0.5)
    real = np.random.default_rng(4).random(TOKENS) < 0.6
    x = inputs()
    together = router(config)(x, mt.Tensor(real)).weights.detach().numpy()[real]
    alone = router(config)(mt.Tensor(x.numpy()[real])).weights.detach().numpy()
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    assert (alone == 0).any()


@pytest.mark.parametrize("spared", [0, 1, 3])
def test_a_device_drops_what_it_likes_least(spared):
    """Against sorting, device by device; spared tokens come first and always stay."""
    rng = np.random.default_rng(5)
    affinities, devices = rng.random((TOKENS, K)), rng.integers(4, size=(TOKENS, K))
    real = rng.random(TOKENS) < 0.8
    safe = (np.arange(TOKENS) < spared) & real
    expected = np.repeat(safe[:, None], K, 1)
    for d in range(4):
        here = [(t, j) for t, j in np.argwhere(devices == d) if real[t]]
        here.sort(key=lambda at: (not safe[at[0]], -affinities[at]))
        for at in here[:7]:
            expected[at] = True
    kept = routing.within_budget(
        mt.Tensor(affinities), mt.Tensor(devices), 4, 7, mt.Tensor(safe), mt.Tensor(real)
    ).numpy()
    np.testing.assert_array_equal(kept[real], expected[real])
    assert not kept[real].all()


def test_a_budget_holds_for_every_device_in_training_alone():
    limits = {"device_capacity_factor": 1.0, "devices": 4}
    config = dataclasses.replace(DEEPSEEK_V2, **limits)
    made, x = router(config), inputs()
    found = made(x)
    weights, indices = found.weights.detach().numpy(), found.indices.numpy()
    load = np.bincount(indices[weights > 0] // 2, minlength=4)
    assert load.max() == math.ceil(K * TOKENS / 4) < np.bincount(indices.ravel() // 2).max()
    spared = router(dataclasses.replace(config, spared=0.25))
    weights = spared(x, sequences=4).weights.detach().numpy().reshape(4, -1)
    assert (weights[0] > 0).all()
    assert (weights[1:] == 0).any()
    assert (made.eval()(x).weights.detach().numpy() > 0).all()
    with pytest.raises(ConfigError, match="devices that divide 8"):
        dataclasses.replace(config, devices=3)


def test_what_is_dropped_weighs_nothing_in_training_alone():
    config = RouterConfig(num_experts=EXPERTS, k=K, capacity_factor=0.5)
    made, x = router(config), inputs()
    weights, indices = made(x).weights.detach().numpy(), made(x).indices.numpy()
    load = np.bincount(indices[weights > 0], minlength=EXPERTS)
    assert load.max() == math.ceil(0.5 * K * TOKENS / EXPERTS)
    assert (made.eval()(x).weights.detach().numpy() > 0).all()


def test_experts_that_choose():
    logits = mt.Tensor(np.random.default_rng(0).standard_normal((TOKENS, EXPERTS)))
    weights, tokens = routing.expert_choice(logits, 5)
    scores = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    for e in range(EXPERTS):
        best = np.argsort(-scores[:, e])[:5]
        assert tokens.numpy()[e].tolist() == best.tolist()
        np.testing.assert_allclose(weights.numpy()[e], scores[best, e])


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="groups that divide"):
        RouterConfig(num_experts=8, k=2, groups=3)
    with pytest.raises(ConfigError, match="k = 5"):
        RouterConfig(num_experts=8, k=5, groups=4, kept_groups=2)
    with pytest.raises(ConfigError, match="group_best 3"):
        RouterConfig(num_experts=8, k=2, groups=4, kept_groups=2, group_best=3)
