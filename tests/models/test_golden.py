"""Every family against what transformers computed once, from folders that it wrote.

tests/parity/make_golden.py made tests/models/golden; tests/parity compares live, and more.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import minitorch as mt
from minitorch.io import load_safetensors
from models.families import from_pretrained

FOLDERS = sorted(
    path.parent for path in Path(__file__).parent.glob("golden/*/expected.safetensors")
)


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def golden(request):
    expected, _ = load_safetensors(request.param / "expected.safetensors")
    return from_pretrained(request.param, np.dtype(np.float64)).eval(), expected


def test_logits_loss_and_gradients(golden):
    model, expected = golden
    ids = expected["ids"]
    inputs, targets = (mt.from_numpy(x.copy()) for x in (ids[:, :-1], ids[:, 1:]))
    logits, loss = model(inputs, targets)
    loss.backward()
    difference = np.linalg.norm(logits.detach().numpy() - expected["logits"])
    assert difference < 1e-6 * np.linalg.norm(expected["logits"])
    assert loss.item() == pytest.approx(expected["loss"].item(), rel=1e-6)
    found = {name: np.linalg.norm(param.grad.numpy()) for name, param in model.named_parameters()}
    norms = {k[5:]: v for k, v in expected.items() if k.startswith("grad.")}
    wanted = {name: norm.item() for name, norm in model.config.from_files(norms).items()}
    assert found == pytest.approx(wanted, rel=1e-5)


def test_ten_greedy_tokens_through_the_cache(golden):
    model, expected = golden
    cache, tokens = model.new_cache(), expected["ids"]
    new = tokens
    with mt.no_grad():
        for _ in range(10):
            new = model(mt.from_numpy(new), cache=cache)[0].numpy()[:, -1:].argmax(-1)
            tokens = np.concatenate([tokens, new], 1)
    np.testing.assert_array_equal(tokens, expected["tokens"])


def test_a_wrong_setting_is_noticed(golden):
    """The comparison can fail: one changed number of the configuration moves the logits."""
    model, expected = golden
    name = "layer_norm_epsilon" if model.config.model_type == "gpt2" else "rms_norm_eps"
    other = dataclasses.replace(model.config, **{name: 0.01}).build(np.dtype(np.float64), None)
    other.load_state_dict(model.state_dict())
    logits = other.eval()(mt.from_numpy(expected["ids"][:, :-1].copy()))[0].detach().numpy()
    difference = np.linalg.norm(logits - expected["logits"])
    assert difference > 1e-4 * np.linalg.norm(expected["logits"])


def test_there_are_golden_models():
    assert len(FOLDERS) >= 6
