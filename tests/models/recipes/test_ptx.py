"""PPO-ptx: the gradient of plain text beside that of PPO, its place in the text, and forgetting."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import ConfigError
from models.checkpoints import load
from models.recipes.ppo import PpoConfig
from tests.models.recipes.test_ppo import SMALL, recipe, weights

LENGTH, WEIGHT = 8, 27.8


@pytest.fixture
def text(tmp_path):
    """Sums that a small model soon learns, as there are two."""
    path = tmp_path / "text.txt"
    drawn = np.random.default_rng(0).integers(11, 13, 200)
    path.write_text("".join(f"{i}+{i}={2 * i}" for i in drawn))
    return str(path)


def run_of(text, **changes):
    ptx = {"ptx_text": text, "ptx_weight": WEIGHT, "ptx_rows": 4, "ptx_length": LENGTH}
    return recipe(**{"beta": 0.0, "epochs": 1, "minibatches": 1, **ptx, **changes})


def gradients(run):
    """(of the parameters, metrics) of the next step, which changes nothing."""
    found = {}

    def descend(loss):
        found.update({n: p.grad.numpy().copy() for n, p in run.model.named_parameters()})
        return 0.0

    run.descend = descend
    return found, run.update()


def text_loss(model, rows):
    """Mean of -log p(token | what is before it), from whole logits, in NumPy."""
    logits = model(rows)[0].detach().numpy().astype(np.float64)[:, :-1]
    logits -= logits.max(-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    following = rows.numpy()[:, 1:, None]
    return -np.take_along_axis(log_probs, following, -1).mean()


def test_loss_and_gradient_are_those_of_the_sum(text):
    with_text, without = (run_of(text, ptx_weight=weight) for weight in (WEIGHT, 0.0))
    for run in (with_text, without):
        run.model.double()
    rows = mt.from_numpy(np.stack([row.ids for row in without.text.draw()]))
    (both, metrics), (alone, _) = gradients(with_text), gradients(without)
    model = without.model
    assert metrics["ptx_loss"] == pytest.approx(text_loss(model, rows), rel=1e-6)
    random = np.random.default_rng(0)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        direction = random.normal(size=parameter.shape)
        slope = ((both[name] - alone[name]) * direction).sum()
        losses = []
        for sign in (1, -1):
            parameter.data[...] += sign * 1e-5 * direction
            losses.append(text_loss(model, rows))
            parameter.data[...] -= sign * 1e-5 * direction
        assert slope == pytest.approx(WEIGHT * (losses[0] - losses[1]) / 2e-5, rel=1e-4, abs=1e-4)


def test_every_optimizer_step_reads_other_rows(text):
    run = run_of(text, epochs=2, minibatches=3)
    run.train_step()
    assert run.text.state_dict()["position"] == 6 * 4


def test_text_is_forgotten_less(text):
    runs = [run_of(text, ptx_weight=weight, learning_rate=0.02) for weight in (0.0, WEIGHT)]
    before = runs[0].evaluate()["text_loss"]
    for run in runs:
        for _ in range(8):
            run.train_step()
    plain, ptx = (run.evaluate()["text_loss"] for run in runs)
    assert ptx < before - 0.2
    assert ptx < plain - 0.2
    assert "ptx_loss" not in runs[0].history


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path, text):
    whole, first, again = (run_of(text) for _ in range(3))
    for _ in range(4):
        whole.train_step()
    for _ in range(2):
        first.train_step()
    again.restore(load(first.save(tmp_path / "run", None)))
    for _ in range(2):
        again.train_step()
    assert again.text.state_dict() == whole.text.state_dict()
    ours, theirs = weights(again.model), weights(whole.model)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert again.history == whole.history


def test_while_the_critic_learns_alone_no_text_is_read(text):
    run = run_of(text, value_steps=1)
    assert "ptx_loss" not in run.train_step()
    assert run.text.state_dict()["position"] == 0
    assert run.train_step()["ptx_loss"] > 0


def test_settings_that_do_not_fit(text):
    with pytest.raises(ConfigError, match="ptx_weight: expected a text to draw from"):
        PpoConfig(**SMALL, ptx_weight=1.0)
    with pytest.raises(ConfigError, match="ptx_length: expected at most the model's context of 14"):
        run_of(text, ptx_length=15)
    config = PpoConfig(**SMALL, ptx_text=text)
    with pytest.raises(ConfigError, match="ptx_text: this run has"):
        config.resumed(config, {"ptx_text": "embedded"})
