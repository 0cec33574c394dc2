"""What surrounds the operations, on the device: layers, optimizers, averages, modes of the tape."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import optim
from minitorch.backend import device_of
from minitorch.errors import DeviceError
from minitorch.nn import functional as F
from minitorch.recomputation import checkpoint
from models.generate import generate
from models.gpt2 import GPT2, GPT2Config
from models.sampling import Sampler

CONFIG = GPT2Config(vocab_size=31, n_positions=8, n_layer=1, n_head=2, n_embd=16, dropout=0.1)
OPTIMIZERS = {
    "sgd": lambda params: optim.SGD(params, 0.1, momentum=0.9),
    "adamw": lambda params: optim.AdamW(params, 0.01),
    "lion": lambda params: optim.Lion(params, 0.001),
    "adafactor": lambda params: optim.Adafactor(params, 0.01),
    "muon": lambda params: optim.Muon(params, 0.01),
}


def model_on(device):
    mt.manual_seed(0)
    return GPT2(CONFIG).to(device)


def batch_on(device):
    ids = np.random.default_rng(0).integers(0, 31, (2, 2, 8))
    return [mt.from_numpy(x.copy()).to(device) for x in ids]


def trained(device, optimizer, precision=None):
    """The losses of three steps, clipped and averaged, and what they left."""
    model = model_on(device)
    matrices = [p for p in model.h.parameters() if p.ndim == 2]
    optimizer = OPTIMIZERS[optimizer](matrices if optimizer == "muon" else model.parameters())
    average = optim.EMA(model.parameters(), 0.5)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        with mt.autocast(precision) if precision else mt.enable_grad():
            loss = model.loss(*batch_on(device))
        loss.backward()
        optim.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        average.update()
        losses.append(loss.item())
    return losses, model, optimizer, average


@pytest.mark.parametrize("precision", [None, "bfloat16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training(device, optimizer, precision):
    expected, reference, *_ = trained("cpu", optimizer, precision)
    losses, model, optimizer, average = trained(device, optimizer, precision)
    np.testing.assert_allclose(losses, expected, rtol=2e-2 if precision else 1e-4)
    for p in model.parameters():
        assert p.device == p.grad.device == device
        assert p.grad.dtype == mt.float32
    kept = [x for state in optimizer.state.values() for x in state.values() if hasattr(x, "dtype")]
    assert {device_of(x) for x in (*kept, *average.averages)} == {device}
    with average.applied():
        assert {p.device for p in model.parameters()} == {device}
    saved = optimizer.state_dict()
    assert all(type(x) is np.ndarray for x in saved["state"].values())
    optimizer.load_state_dict(saved)
    average.load_state_dict(average.state_dict())
    reference.load_state_dict(model.state_dict())
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        np.testing.assert_array_equal(ours.detach().numpy(), theirs.detach().numpy())


def test_recomputation_and_modes(device):
    x = mt.tensor([[0.3, -1.2], [2.0, 0.1]]).to(device).requires_grad_()
    f = lambda x: (x @ x).tanh().softmax(-1)  # noqa: E731
    v = mt.tensor([[1.0, 2.0], [3.0, -1.0]]).to(device)
    f(x).backward(v)
    plain, x.grad = x.grad.numpy(), None
    checkpoint(f, x).backward(v)
    assert x.grad.device == device
    np.testing.assert_array_equal(x.grad.numpy(), plain)
    for mode in (mt.no_grad, mt.inference_mode):
        with mode():
            assert f(x).device == device


def test_vmap_says_that_it_stays_in_main_memory(device):
    with pytest.raises(DeviceError, match=f"vmap: expected tensors in main memory; .*{device!r}"):
        mt.vmap(lambda x: x * 2)(mt.ones(3, 2).to(device))


def generated(where, sampler):
    model, generator = model_on(where), mt.Generator(1)
    return list(generate(model, [1, 2, 3], max_tokens=9, sampler=sampler, generator=generator))


@pytest.mark.parametrize("sampler", [Sampler(top_k=30), Sampler(temperature=0)], ids=["k", "best"])
def test_generation(device, sampler):
    drawn = [generated(where, sampler) for where in ("cpu", device)]
    assert [token for token, _ in drawn[0]] == [token for token, _ in drawn[1]]
    np.testing.assert_allclose(*[[log_prob for _, log_prob in row] for row in drawn], atol=1e-5)


def test_generation_draws_on_the_device(device):
    found, generator, cpu = generated(device, Sampler(temperature=2.0)), mt.Generator(1), []
    model, tokens = model_on("cpu").eval(), [1, 2, 3]
    for token, _ in found:
        with mt.no_grad():
            fitting = tokens if len(tokens) <= 8 else tokens[-4 - (len(tokens) - 9) % 5 :]
            row = model(mt.tensor([fitting]))[0][0, -1]
        assert F.categorical(row, 2.0, generator=generator).item() == token
        cpu.append((row / 2.0).log_softmax(-1)[token].item())
        tokens.append(token)
    np.testing.assert_allclose([log_prob for _, log_prob in found], cpu, atol=1e-5)


def test_a_tensor_shows_itself(device):
    x = mt.tensor([1.0, 2.0]).to(device)
    assert repr(x) == f"tensor([1., 2.], device={device!r})"
    assert x.cpu().device == "cpu"
    assert x.data_ptr() > 0
    x[0] = 5.0
    assert x.tolist() == [5.0, 2.0]
    assert bool((x > 1).all())
