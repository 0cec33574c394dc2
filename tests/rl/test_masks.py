"""Which tokens count, and the three ways to average over them."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import rl
from minitorch.errors import ConfigError, ShapeError

END = 9
VALUES = np.array([[1.0, 2.0, 3.0], [4.0, np.nan, np.nan], [np.nan] * 3])
MASK = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]])


def test_the_first_end_token_counts_and_what_follows_does_not():
    tokens = mt.tensor([[5, END, END, 1], [END, 1, 2, 3], [1, 2, 3, 4], [1, 2, 3, END]])
    assert rl.completion_mask(tokens, END).tolist() == [
        [True, True, False, False],
        [True, False, False, False],
        [True, True, True, True],
        [True, True, True, True],
    ]


def test_whichever_end_comes_first_counts():
    tokens = mt.tensor([[5, 8, END, 1], [5, END, 8, 1], [5, 5, 5, 8]])
    expected = [[True, True, False, False], [True, True, False, False], [True] * 4]
    assert rl.completion_mask(tokens, END, 8).tolist() == expected
    with pytest.raises(ConfigError, match="at least one end token"):
        rl.completion_mask(tokens)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        (rl.sequence_mean, (2 + 4 + 0) / 3),
        (rl.token_mean, (1 + 2 + 3 + 4) / 4),
        (rl.constant_length(5), (1 + 2 + 3 + 4) / 15),
        (rl.share_of(8), (1 + 2 + 3 + 4) / 8),
    ],
)
@pytest.mark.parametrize("kind", [mt.bool, mt.int64, mt.float32])
def test_aggregation_by_hand(aggregate, expected, kind):
    """What the mask hides is NaN, and is seen neither in the value nor in the gradient."""
    values = mt.tensor(VALUES, requires_grad=True)
    found = aggregate(values, mt.tensor(MASK).to(kind))
    found.backward()
    assert found.item() == pytest.approx(expected)
    gradient = values.grad.numpy()
    assert np.isfinite(gradient).all()
    assert (gradient[MASK == 0] == 0).all()
    assert (gradient * np.nan_to_num(VALUES)).sum() == pytest.approx(expected)


@pytest.mark.parametrize(
    "aggregate", [rl.sequence_mean, rl.token_mean, rl.constant_length(5), rl.share_of(8)]
)
def test_of_nothing_it_is_zero(aggregate):
    assert aggregate(mt.tensor(VALUES), mt.zeros(3, 3)).item() == 0


def test_shares_of_pieces_add_up_to_the_token_mean():
    """The mean of the pieces' own token means is another number."""
    values, mask = mt.tensor(np.nan_to_num(VALUES)), mt.tensor(MASK)
    share = rl.share_of(mask.sum().item())
    pieces = [(values[:1], mask[:1]), (values[1:], mask[1:])]
    whole = rl.token_mean(values, mask).item()
    assert sum(share(*piece).item() for piece in pieces) == pytest.approx(whole)
    assert np.mean([rl.token_mean(*piece).item() for piece in pieces]) != pytest.approx(whole)


def test_bad_arguments_are_named():
    values = mt.tensor(VALUES)
    for aggregate in (rl.sequence_mean, rl.token_mean, rl.constant_length(3)):
        with pytest.raises(ShapeError, match=r"one shape \(batch, time\); got \(3, 2\) and"):
            aggregate(values, mt.ones(3, 2))
    with pytest.raises(ShapeError, match=r"integer tokens \(batch, time\)"):
        rl.completion_mask(mt.tensor([1, 2]), END)
    for make in (rl.constant_length, rl.share_of):
        with pytest.raises(ConfigError, match="above 0; got 0"):
            make(0)
