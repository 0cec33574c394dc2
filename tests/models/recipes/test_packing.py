"""Packed rows: the losses and gradients are those of the texts one by one, for every family."""

import numpy as np
import pytest

from minitorch.errors import ConfigError
from minitorch.random import Generator
from models.families import FAMILIES
from models.recipes.data import Example, collate
from models.recipes.scoring import next_token_losses

LENGTHS = [5, 3, 9, 1, 6]


def build(name, **changes):
    sizes = FAMILIES[name].sized(
        vocab_size=17, layers=2, heads=2, width=16, positions=24, **changes
    )
    return sizes.build(np.float64, Generator(1))


def examples():
    draw = np.random.default_rng(4)
    return [Example(draw.integers(17, size=n), draw.random(n) < 0.7) for n in LENGTHS]


def gradients(model, rows):
    """The summed loss of all rows in one batch, and its gradients."""
    losses, _ = next_token_losses(model, collate(rows))
    total = losses.sum()
    model.zero_grad()
    total.backward()
    grads = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return total.item(), {name: grad.copy() for name, grad in grads.items()}


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "mistral", "qwen2", "mixtral", "deepseek_v2", "deepseek_v3"]
)
def test_packed_is_one_by_one(name):
    model, items = build(name), examples()
    together = gradients(model, [items[:3], items[3:]])
    loss, parts = 0.0, []
    for item in items:
        part, grads = gradients(model, [[item]])
        loss += part
        parts.append(grads)
    assert together[0] == pytest.approx(loss, rel=1e-12)
    for key, grad in together[1].items():
        expected = sum((part[key] for part in parts if key in part), np.zeros_like(grad))
        np.testing.assert_allclose(grad, expected, rtol=1e-9, atol=1e-12, err_msg=key)


def test_a_batch_padded_on_the_right_is_one_by_one():
    model, items = build("gpt2"), examples()
    batch = collate([[item] for item in items])
    losses = next_token_losses(model, batch)[0].detach().numpy()
    for i, item in enumerate(items):
        alone = next_token_losses(model, collate([[item]]))[0].detach().numpy()
        np.testing.assert_allclose(losses[i, : len(item)], alone[0], rtol=1e-12)
        assert not losses[i, len(item) :].any()


def test_what_cannot_be_packed_says_so():
    items = examples()
    with pytest.raises(ConfigError, match="expected one text to a row"):
        next_token_losses(build("minimax"), collate([items[:3]]))
