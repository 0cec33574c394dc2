"""PEER: its choice by brute force, its sum expert by expert, and what a step touches."""

import math

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels, optim
from minitorch.errors import ConfigError, ShapeError
from minitorch.nn import functional as F
from models.blocks.context import place
from models.blocks.peer import PEER, BatchNorm, usage

WIDTH, EXPERTS, HEADS, K, KEY = 5, 49, 2, 6, 8


def layer(seed=0, **changes):
    settings = {"heads": HEADS, "k": K, "key_dim": KEY, "query_norm": False} | changes
    made = PEER(WIDTH, EXPERTS, **settings, dtype=np.float64, generator=mt.Generator(0))
    rng = np.random.default_rng(seed)
    for param in made.parameters():
        param.data[...] = rng.standard_normal(param.shape)
    return made


def inputs(shape=(2, 3, WIDTH), seed=1):
    return mt.Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


@pytest.mark.parametrize("k", [1, 3, 7, 20, 49])
def test_product_keys_find_the_best_of_all(k):
    first, second = (mt.Tensor(np.random.default_rng(s).standard_normal((4, 3, 7))) for s in (0, 1))
    scores, found = F.product_topk(first, second, k)
    every = (first.numpy()[..., :, None] + second.numpy()[..., None, :]).reshape(4, 3, 49)
    order = np.argsort(-every, -1)[..., :k]
    np.testing.assert_array_equal(found.numpy(), order)
    np.testing.assert_array_equal(scores.numpy(), np.take_along_axis(every, order, -1))


def test_it_is_a_sum_over_experts():
    """Values, and every gradient, against the scores of all experts and dense tables."""
    made, x = layer(), inputs()
    cotangent = mt.Tensor(np.random.default_rng(2).standard_normal(x.shape))
    out = made(x)
    out.backward(cotangent)
    other, y = layer(), inputs()
    down, up = (mt.Tensor(t.weight.data, requires_grad=True) for t in (other.down, other.up))
    flat = y.reshape(-1, WIDTH)
    expected = 0
    for h in range(HEADS):
        query = other.query(flat)[:, h * KEY : (h + 1) * KEY]
        parts = [q @ other.keys[i].mT for i, q in enumerate(query.chunk(2, -1))]
        every = (parts[0].unsqueeze(-1) + parts[1].unsqueeze(-2)).flatten(1)
        scores, chosen = every.topk(K)
        units = F.gelu(flat @ down.mT).gather(1, chosen) * scores.softmax(-1)
        mixed = mt.zeros(6, EXPERTS, dtype=mt.float64).scatter_add(1, chosen, units)
        expected = expected + mixed @ up
    expected = expected.reshape(y.shape)
    expected.backward(cotangent)
    np.testing.assert_allclose(out.tolist(), expected.tolist(), atol=1e-12)
    np.testing.assert_allclose(x.grad.tolist(), y.grad.tolist(), atol=1e-11)
    for mine, his in ((made.query.weight, other.query.weight), (made.keys, other.keys)):
        np.testing.assert_allclose(mine.grad.tolist(), his.grad.tolist(), atol=1e-11)
    for table, dense in ((made.down, down), (made.up, up)):
        full = np.zeros((EXPERTS, WIDTH))
        full[table.weight.grad.rows] = table.weight.grad.data
        np.testing.assert_allclose(full, dense.grad.numpy(), atol=1e-11)


def test_one_expert_for_each_head_is_a_dense_layer_of_as_many_units():
    made, x = layer(k=1), inputs((4, WIDTH))
    _, experts = made.retrieve(x)
    out = made(x.reshape(1, 4, WIDTH)).detach().numpy()[0]
    for t, chosen in enumerate(experts.numpy()[:, :, 0]):
        rows, columns = made.down.weight.data[chosen], made.up.weight.data[chosen]
        units = F.gelu(mt.Tensor(rows @ x.detach().numpy()[t])).numpy()
        np.testing.assert_allclose(out[t], units @ columns, atol=1e-12)


def test_a_step_touches_the_rows_that_were_read_alone():
    """A million experts: gradients, and what changes, have no more rows than were looked up."""
    mt.manual_seed(0)
    made = PEER(4, 1024**2, heads=2, k=4, key_dim=8)
    optimizer = optim.AdamW(made.parameters(), lr=0.1)
    before = made.down.weight.data.copy()
    x = inputs((1, 3, 4)).detach().float()
    (made(x) * x).sum().backward()
    rows = made.down.weight.grad.rows
    assert made.down.weight.grad.shape == (len(rows), 4)
    assert len(rows) <= 3 * 2 * 4
    optimizer.step()
    changed = np.flatnonzero((made.down.weight.data != before).any(1))
    assert changed.tolist() == rows.tolist()


def test_batch_norm_of_queries():
    norm, x = BatchNorm(3), np.random.default_rng(0).standard_normal((50, 3)) * 4 + 2
    for _ in range(200):
        out = norm(mt.Tensor(x)).numpy()
    np.testing.assert_allclose(out, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), atol=1e-12)
    np.testing.assert_allclose(norm.eval()(mt.Tensor(x[:1])).numpy()[0], out[0], atol=1e-5)
    assert set(norm.state_dict()) == {"mean", "var"}
    made = layer(query_norm=True)
    assert mt.gradcheck(lambda x: made.query_norm.train()(x), [inputs((6, HEADS * KEY))])


def test_padding_does_not_count():
    """For the statistics of a batch; whatever stands in it, and with gradients of every order."""
    x = np.random.default_rng(0).standard_normal((8, 3)) * 4 + 2
    real = np.array([True, False, True, True, False, True, True, True])
    norm, alone = BatchNorm(3), BatchNorm(3)
    found = norm(mt.Tensor(x), mt.Tensor(real)).numpy()[real]
    np.testing.assert_allclose(found, alone(mt.Tensor(x[real])).numpy(), atol=1e-12)
    for mine, his in zip(norm.buffers(), alone.buffers(), strict=True):
        np.testing.assert_allclose(mine.numpy(), his.numpy(), rtol=1e-6)
    norm(mt.Tensor(x), mt.Tensor(real & False))
    np.testing.assert_allclose(norm.mean.numpy(), alone.mean.numpy(), rtol=1e-6)
    assert mt.gradcheck(lambda x: norm(x, mt.Tensor(real)), [mt.Tensor(x, requires_grad=True)])
    ids = np.array([[True, True, False], [True, False, False]])
    padded, made = place(3, ids, np.empty((2, 0), np.int64), None, "cpu"), layer(query_norm=True)
    made(inputs(), padded)
    other = layer(query_norm=True)
    other(mt.Tensor(inputs().detach().numpy()[ids]).reshape(1, -1, WIDTH))
    np.testing.assert_allclose(made.query_norm.mean.numpy(), other.query_norm.mean.numpy())


@pytest.mark.parametrize("dtype", [mt.float32, mt.float64, mt.bfloat16])
def test_the_kernel_reads_rows_as_two_embeddings_would(dtype):
    """Rows that many tokens choose, and a token twice; without gradients for the tables, too."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s) for s in ((40, 33), (40, 5), (9, 33), (9, 33), (40, 33))]
    *inputs, grad = [array.astype(dtype) for array in arrays]
    index = rng.integers(0, 8, (40, 5)).astype(np.int32)
    out = {}
    for name in ("numpy", "cpu"):
        with kernels.prefer(name):
            found, pre = kernels.lookup("unit_experts")(*inputs, index)
            back = kernels.lookup("unit_experts_backward")
            out[name] = [found, pre, *back(grad, *inputs, index, pre, needs=(True,) * 4)]
            some = back(grad, *inputs, index, pre, needs=(True, True, False, False))
            assert some[2:] == (None, None)
    tolerance = {2: 0.06, 4: 1e-5, 8: 1e-13}[dtype.itemsize]
    for mine, his in zip(out["cpu"], out["numpy"], strict=True):
        mine, his = mine.astype(np.float64), his.astype(np.float64)
        np.testing.assert_allclose(mine, his, atol=tolerance * np.abs(his).max())
    assert not out["cpu"][4][8].any()
    with pytest.raises(ShapeError, match="unit_experts"):
        F.unit_experts(*[mt.Tensor(a) for a in inputs[:3]], mt.zeros(9, 4), mt.Tensor(index))


def test_usage():
    weights = mt.Tensor([[0.5, 0.5], [0.5, 0.5]])
    even = usage(weights, mt.tensor([[0, 1], [2, 3]]), 4)
    assert even == (1.0, pytest.approx(0.0, abs=1e-12))
    assert usage(weights, mt.tensor([[0, 0], [0, 0]]), 4) == (0.25, pytest.approx(math.log(4)))


def test_bad_sizes_are_refused():
    with pytest.raises(ConfigError, match="square"):
        PEER(4, 50)
    with pytest.raises(ShapeError, match="product_topk"):
        F.product_topk(mt.zeros(2, 3), mt.zeros(2, 3), 10)
