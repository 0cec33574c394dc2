"""Gradients of few rows of a table: the same updates as dense ones."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import nn, optim
from minitorch.errors import ConfigError

ROWS, WIDTH = 9, 3


def tables():
    """The same numbers in a table of either kind."""
    data = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    made = []
    for kind in (nn.Embedding, nn.RowEmbedding):
        table = kind(ROWS, WIDTH)
        table.weight.data[...] = data
        made.append(table)
    return made


def loss_of(table, indices, seed=1):
    cotangent = np.random.default_rng(seed).standard_normal((*indices.shape, WIDTH))
    return (table(mt.Tensor(indices)).square() * mt.Tensor(cotangent.astype(np.float32))).sum()


def dense(gradient):
    full = np.zeros((ROWS, WIDTH), np.float32)
    full[gradient.rows] = gradient.data
    return full


def test_the_gradient_has_the_rows_that_were_looked_up():
    """Repeated ones once, and those of several calls and several sweeps added up."""
    table, rows = tables()
    batches = [np.array([[4, 1], [4, 7]]), np.array([7, 0])]
    for each in (table, rows):
        (loss_of(each, batches[0]) + loss_of(each, batches[1], seed=2)).backward()
        loss_of(each, batches[1], seed=3).backward()
    assert rows.weight.grad.rows.tolist() == [0, 1, 4, 7]
    np.testing.assert_allclose(dense(rows.weight.grad), table.weight.grad.numpy(), rtol=1e-6)
    rows.zero_grad()
    assert rows.weight.grad is None


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
        (optim.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
        (optim.Adam, {"lr": 0.1, "weight_decay": 0.1}),
        (optim.Lion, {"lr": 0.1}),
    ],
)
def test_where_every_row_is_touched_it_is_the_dense_update(kind, options):
    made = tables()
    indices = np.random.default_rng(2).permutation(ROWS)
    for table in made:
        optimizer = kind(table.parameters(), **options)
        for seed in range(4):
            optimizer.zero_grad()
            loss_of(table, indices, seed).backward()
            optimizer.step(0.5)
    np.testing.assert_array_equal(made[0].weight.data, made[1].weight.data)


def test_rows_without_a_gradient_stay_where_they_are():
    """Not so where gradients are dense: there a momentum goes on, and weights decay."""
    made = tables()
    before = made[0].weight.data.copy()
    for table in made:
        optimizer = optim.AdamW(table.parameters(), lr=0.1, weight_decay=0.1)
        for indices in (np.array([1, 2]), np.array([2, 3])):
            optimizer.zero_grad()
            loss_of(table, indices).backward()
            optimizer.step()
    moved = (made[1].weight.data != before).any(1)
    assert np.flatnonzero(moved).tolist() == [1, 2, 3]
    assert (made[0].weight.data != before).any(1).all()


def test_clipping_and_saved_state():
    made = tables()
    norms = []
    for table in made:
        loss_of(table, np.array([3, 3, 5])).backward()
        norms.append(optim.clip_grad_norm_(table.parameters(), 0.1).item())
    assert norms[0] == pytest.approx(norms[1])
    np.testing.assert_allclose(dense(made[1].weight.grad), made[0].weight.grad.numpy(), rtol=1e-6)
    optimizer = optim.AdamW(made[1].parameters())
    optimizer.step()
    again = optim.AdamW(made[1].parameters())
    again.load_state_dict(optimizer.state_dict())
    assert again.state_dict()["state"]["0.exp_avg"].shape == (ROWS, WIDTH)


@pytest.mark.parametrize("kind", [optim.Adafactor, optim.Muon])
def test_optimizers_of_whole_matrices_refuse(kind):
    _, table = tables()
    loss_of(table, np.array([1])).backward()
    with pytest.raises(ConfigError, match="RowEmbedding"):
        kind(table.parameters()).step()


def test_without_recording_it_is_an_embedding():
    table, rows = tables()
    indices = mt.tensor([[1, 2], [2, 0]])
    with mt.no_grad():
        np.testing.assert_array_equal(rows(indices).numpy(), table(indices).numpy())
    rows.requires_grad_(False)
    assert not rows(indices).requires_grad
