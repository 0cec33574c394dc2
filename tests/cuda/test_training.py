"""A small GPT-2 trains on the emulated GPU, through the CUDA kernels, as it does on the CPU."""

from contextlib import nullcontext

import numpy as np

import minitorch as mt
from minitorch.kernels.cuda.extension import checked
from minitorch.optim import AdamW
from models.gpt2 import GPT2, GPT2Config

STEPS = 3


def losses_on(device):
    """The loss of each step, and the model; the first step on "simt" in the check build."""
    mt.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_positions=16, n_layer=2, n_head=2, n_embd=32, dropout=0.0)
    model = GPT2(config).to(device)
    optimizer = AdamW(model.parameters(), lr=3e-3)
    ids = np.random.default_rng(0).integers(0, 61, (2, 17))
    inputs, targets = (mt.from_numpy(x.copy()).to(device) for x in (ids[:, :-1], ids[:, 1:]))
    losses = []
    for step in range(STEPS):
        with checked("random", 1) if device == "simt" and step == 0 else nullcontext():
            logits, loss = model(inputs, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.device == logits.device == device
        losses.append(loss.item())
    return losses, model


def test_the_losses_of_the_cpu():
    expected, reference = losses_on("cpu")
    found, model = losses_on("simt")
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert found[-1] < found[0]
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert p.device == p.grad.device == "simt", name
        bound = 1e-4 * (1 + np.abs(q.grad.numpy()).max())
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=0, atol=bound, err_msg=name)


def test_a_gradient_of_two_parts_stays_on_the_device():
    x = mt.ones(3, 4).to("simt").requires_grad_()
    (x @ x.T).sum().backward()
    assert x.grad.device == "simt"


def test_a_result_is_on_the_device_of_any_input():
    x = mt.tensor([-1.0, 2.0]).to("simt").requires_grad_()
    out = mt.where(x > 0, 1.0, x)
    assert out.device == "simt"
    out.sum().backward()
    assert x.grad.device == "simt"
    np.testing.assert_array_equal(x.grad.numpy(), [1, 0])
