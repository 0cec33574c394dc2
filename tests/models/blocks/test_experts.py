"""Mixture of experts against a loop over the experts, and its identities."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import ConfigError, ShapeError
from minitorch.nn import functional as F
from models.blocks import experts as blocks
from models.blocks.context import place
from models.blocks.experts import MixtureOfExperts
from models.blocks.feed_forward import GatedFeedForward
from models.blocks.routing import Balance, RouterConfig

BATCH, TIME, WIDTH, HIDDEN, EXPERTS, K = 2, 7, 6, 5, 8, 3
CONFIGS = [
    RouterConfig(num_experts=EXPERTS, k=K, norm_topk_prob=True),
    RouterConfig(num_experts=EXPERTS, k=K, groups=4, kept_groups=2, scaling_factor=1.5),
    RouterConfig(
        num_experts=EXPERTS, k=K, score_function="sigmoid", norm_topk_prob=True, bias=True,
        groups=2, kept_groups=1, group_best=2,
    ),
]  # fmt: skip


def context(time=TIME):
    return place(time, None, np.empty((1, 0), np.int64), None, "cpu")


def layer(config, shared=False, balance=None, seed=0):
    """With every parameter and buffer at random, in float64."""
    dense = GatedFeedForward(WIDTH, 4, dtype=np.float64) if shared else None
    made = MixtureOfExperts(WIDTH, HIDDEN, config, balance, dense, shared, np.float64)
    rng = np.random.default_rng(seed)
    for tensor in (*made.parameters(), *made.buffers()):
        tensor.data[...] = 0.5 * rng.standard_normal(tensor.shape)
    return made


def inputs(seed=1):
    data = np.random.default_rng(seed).standard_normal((BATCH, TIME, WIDTH))
    return mt.Tensor(data, requires_grad=True)


def loop(made, x):
    """One expert after another, each for the tokens that chose it."""
    flat = x.reshape(-1, WIDTH)
    routing = made.gate(flat)
    out = flat * 0
    for e in range(EXPERTS):
        tokens, places = np.nonzero(routing.indices.numpy() == e)
        if len(tokens):
            at = mt.Tensor(tokens)
            gate, up = (flat[at] @ made.experts.gate_up_proj[e].mT).chunk(2, -1)
            y = (gate.sigmoid() * gate * up) @ made.experts.down_proj[e].mT
            weights = routing.weights[at, mt.Tensor(places)]
            out = out.index_add(0, at, y * weights.unsqueeze(1))
    if made.shared_experts is not None:
        out = out + made.shared_expert_gate(flat).sigmoid() * made.shared_experts(flat)
    return out.reshape(x.shape)


@pytest.mark.parametrize("time", [1, TIME])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
def test_without_gradients_one_call_is_the_loop(config, shared, time):
    """Also for one token; what is trained, adapted or half precision goes the long way."""
    made, x = layer(config, shared).eval(), mt.Tensor(inputs().detach().numpy()[:, :time])
    with mt.inference_mode():
        assert made._at_once(x) is not None
        np.testing.assert_allclose(
            made(x, context(time)).numpy(), loop(made, x).numpy(), atol=1e-11
        )
        assert made._at_once(x.to(mt.bfloat16)) is None
        if shared:
            made.shared_expert_gate = ScaledLinear(WIDTH, 1, False, np.float64)
            assert made._at_once(x) is None
    assert made._at_once(x) is None


class ScaledLinear(mt.nn.Linear):
    """Another kind of layer, as an adapter makes it."""


def test_the_one_call_refuses_weights_that_disagree():
    with pytest.raises(ShapeError, match="moe_feed_forward: expected x"):
        F.moe_feed_forward(mt.ones(2, 4), mt.ones(3, 4), mt.ones(3, 4, 4), mt.ones(3, 4, 3), 2)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
def test_grouped_is_a_loop_over_experts(config, shared):
    cotangent = mt.Tensor(np.random.default_rng(2).standard_normal((BATCH, TIME, WIDTH)))
    results = []
    for compute in (lambda made, x: made(x, context()), loop):
        made, x = layer(config, shared), inputs()
        out = compute(made, x)
        out.backward(cotangent)
        results.append([out, x.grad, *(param.grad for param in made.parameters())])
    for mine, his in zip(*results, strict=True):
        np.testing.assert_allclose(
            mine.detach().numpy(), his.detach().numpy(), rtol=1e-10, atol=1e-12
        )


def test_equal_experts_are_one_dense_layer():
    made, x = layer(CONFIGS[0]), inputs()
    for param in made.experts.parameters():
        param.data[...] = param.data[:1]
    gate, up = (x @ made.experts.gate_up_proj[0].mT).chunk(2, -1)
    dense = F.swiglu(gate, up) @ made.experts.down_proj[0].mT
    np.testing.assert_allclose(made(x, context()).tolist(), dense.tolist(), atol=1e-12)


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[2]])
def test_the_order_of_the_experts_does_not_matter(config):
    """Experts, rows of the router, and biases together; with groups, within and between groups."""
    made, other, x = layer(config), layer(config), inputs()
    order = np.array([6, 4, 7, 5, 2, 0, 1, 3])
    for tensor in (*other.gate.parameters(), *other.gate.buffers(), *other.experts.parameters()):
        tensor.data[...] = tensor.data[order]
    np.testing.assert_allclose(
        made(x, context()).tolist(), other(x, context()).tolist(), atol=1e-12
    )


def test_tokens_do_not_see_each_other():
    made, x = layer(CONFIGS[1]), inputs()
    whole = made(x, context()).detach().numpy()
    for b in range(BATCH):
        for t in range(TIME):
            alone = made(x[b : b + 1, t : t + 1], context(1)).detach().numpy()
            np.testing.assert_allclose(alone[0, 0], whole[b, t], atol=1e-12)


def test_losses_go_to_the_context_in_training_alone():
    made, at = layer(CONFIGS[0], balance=Balance(expert=0.1, z=0.01)), context()
    made(inputs(), at)
    (alone,) = at.losses()
    alone.backward()
    assert made.gate.weight.grad is not None
    made.eval()(inputs(), at)
    layer(CONFIGS[0])(inputs(), at)
    (still,) = at.losses()
    assert still.item() == alone.item()


def test_layers_that_balance_alike_share_a_loss():
    at, balance = context(), Balance(expert=0.1)
    for made in (layer(CONFIGS[0], balance=balance), layer(CONFIGS[0], balance=balance)):
        made(inputs(), at)
    (both,) = at.losses()
    layer(CONFIGS[0], balance=Balance(expert=0.2))(inputs(), at)
    first, other = at.losses()
    assert first.item() == both.item()
    assert other.item() == pytest.approx(both.item())  # one layer of twice the factor


def test_upcycled_experts_compute_what_the_dense_layer_did():
    dense = GatedFeedForward(WIDTH, 12, dtype=np.float64)
    gate_up = np.concatenate([dense.gate_proj.weight.data, dense.up_proj.weight.data])
    down = dense.down_proj.weight.data
    made = MixtureOfExperts(WIDTH, 12, CONFIGS[0], dtype=np.float64)
    stacked = blocks.upcycled(gate_up, down, EXPERTS, 12)
    for param, array in zip(made.experts.parameters(), stacked, strict=True):
        param.data[...] = array
    x = inputs()
    np.testing.assert_allclose(made(x, context()).tolist(), dense(x).tolist(), atol=1e-12)


def test_fine_grained_experts_share_out_the_units_of_the_dense_layer():
    rng = np.random.default_rng(0)
    gate_up, down = rng.standard_normal((24, WIDTH)), rng.standard_normal((WIDTH, 12))
    stacked, downs = blocks.upcycled(gate_up, down, 8, 3)
    units = [[gate_up[:12].tolist().index(row.tolist()) for row in e[:3]] for e in stacked]
    for copy in (units[:4], units[4:]):
        assert sorted(unit for expert in copy for unit in expert) == list(range(12))
    for e in range(8):
        np.testing.assert_array_equal(stacked[e, 3:], gate_up[12:][units[e]])
        np.testing.assert_array_equal(downs[e], down[:, units[e]])
    half, half_downs = blocks.upcycled(gate_up, down, 8, 4, reinitialised=0.5)
    known = np.isin(half[:, :4], gate_up).all(-1)
    assert (known.sum(1) == 2).all()
    assert (np.isin(half_downs, down).all(1) == known).all()
    assert half.std() == pytest.approx(gate_up.std(), rel=0.2)


def test_experts_that_choose_their_tokens():
    made, x = layer(CONFIGS[0]), inputs().reshape(-1, WIDTH)
    logits = made.gate(x).logits
    out = blocks.choose_tokens(made.experts, x, logits, 4).detach().numpy()
    scores, expected = logits.softmax(-1).detach().numpy(), np.zeros_like(out)
    for e in range(EXPERTS):
        for t in np.argsort(-scores[:, e])[:4]:
            gate, up = (x[int(t)] @ made.experts.gate_up_proj[e].mT).chunk(2, -1)
            y = F.swiglu(gate, up) @ made.experts.down_proj[e].mT
            expected[t] += scores[t, e] * y.detach().numpy()
    np.testing.assert_allclose(out, expected, atol=1e-12)


def test_a_gate_needs_shared_experts():
    with pytest.raises(ConfigError, match="shared_gate"):
        MixtureOfExperts(WIDTH, HIDDEN, CONFIGS[0], shared_gate=True)
