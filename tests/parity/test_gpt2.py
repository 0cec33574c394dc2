"""GPT-2 against transformers' GPT2LMHeadModel: numbers, gradients, and files in both directions."""

import json

import numpy as np
import pytest

import minitorch as mt
from minitorch.io import load_safetensors
from models.gpt2 import CONV1D, GPT2, GPT2Config

PEERS = "peer not installed: pip install -e .[peers]"
torch = pytest.importorskip("torch", reason=PEERS)
transformers = pytest.importorskip("transformers", reason=PEERS)

CONFIG = GPT2Config(vocab_size=97, n_positions=16, n_layer=3, n_head=4, n_embd=24)
BATCH, TIME = 3, 9


def peer(dtype, seed=0):
    """Theirs, with every parameter at random: what starts as 0 or 1 would hide mistakes."""
    config = transformers.GPT2Config(**CONFIG.to_hugging_face(), attn_implementation="eager")
    model = transformers.GPT2LMHeadModel(config).to(dtype).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            middle = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
            values = middle + 0.2 * rng.standard_normal(tuple(param.shape))
            param.copy_(torch.from_numpy(values).to(dtype))
    return model


def batch(seed=1):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, CONFIG.vocab_size, (BATCH, TIME + 1))
    ids[1, 6:] = ids[1, 5]  # a repeated token: its embedding's gradient adds up
    targets = ids[:, 1:].copy()
    targets[0, 3:5] = -100
    return ids[:, :-1].copy(), targets


def converted(model, folder, dtype):
    model.save_pretrained(folder)
    return GPT2.from_pretrained(folder, dtype)


def relative(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


PRECISIONS = [("float32", 1e-5), ("float64", 1e-10)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_logits_loss_and_every_gradient(dtype, tolerance, tmp_path):
    theirs = peer(getattr(torch, dtype))
    ours = converted(theirs, tmp_path, np.dtype(dtype))
    ids, targets = batch()

    logits, loss = ours(mt.from_numpy(ids), mt.from_numpy(targets))
    loss.backward()
    outputs = theirs(torch.from_numpy(ids), output_hidden_states=True)
    expected = outputs.logits
    states = ours.hidden_states(mt.from_numpy(ids))
    states[-1] = ours.ln_f(states[-1])  # theirs has the last one normalised
    for mine, his in zip(states, outputs.hidden_states, strict=True):
        assert relative(mine.detach().numpy(), his.detach().numpy()) < tolerance
    expected_loss = torch.nn.functional.cross_entropy(
        expected.flatten(0, 1), torch.from_numpy(targets).flatten()
    )
    expected_loss.backward()

    assert logits.dtype == loss.dtype == np.dtype(dtype)
    assert relative(logits.detach().numpy(), expected.detach().numpy()) < tolerance
    assert loss.item() == pytest.approx(expected_loss.item(), rel=tolerance)
    gradients = {name: param.grad.numpy() for name, param in ours.named_parameters()}
    compared = 0
    for name, param in theirs.transformer.named_parameters():
        mine = gradients.pop(name)
        his = param.grad.numpy()
        assert relative(mine.T if CONV1D.search(name) else mine, his) < tolerance, name
        compared += 1
    assert not gradients
    assert compared == 12 * CONFIG.n_layer + 4


def test_their_own_shifted_loss(tmp_path):
    """transformers shifts the labels itself, and computes the loss in float32 always."""
    theirs = peer(torch.float64)
    ours = converted(theirs, tmp_path, np.float64)
    ids, _ = batch()
    labels = torch.from_numpy(ids)
    expected = theirs(labels, labels=labels).loss.item()
    _, loss = ours(mt.from_numpy(ids[:, :-1].copy()), mt.from_numpy(ids[:, 1:].copy()))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_there_and_back(tmp_path):
    """Save here, load there: the same logits. Save there, load here: the same bits."""
    mt.manual_seed(3)
    ours = GPT2(CONFIG)
    ours.save_pretrained(tmp_path / "ours")
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report[key] for key in report), report
    assert theirs.num_parameters() == ours.num_parameters() == CONFIG.num_parameters()
    ids, _ = batch()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    assert relative(ours(mt.from_numpy(ids))[0].detach().numpy(), expected) < 1e-5

    theirs.save_pretrained(tmp_path / "theirs")
    back = GPT2.from_pretrained(tmp_path / "theirs")
    assert back.config == ours.config
    for name, tensor in ours.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[name].numpy(), tensor.numpy())


def test_the_files_have_the_same_tensors(tmp_path):
    theirs = peer(torch.float32)
    ours = converted(theirs, tmp_path / "theirs", np.float32)
    ours.save_pretrained(tmp_path / "ours")
    mine, metadata = load_safetensors(tmp_path / "ours" / "model.safetensors")
    his, _ = load_safetensors(tmp_path / "theirs" / "model.safetensors")
    assert metadata == {"format": "pt"}
    assert mine.keys() == his.keys()
    for name, array in mine.items():
        np.testing.assert_array_equal(array, his[name])
    settings = json.loads((tmp_path / "theirs" / "config.json").read_text())
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["n_positions"] == settings["n_positions"] == CONFIG.n_positions


def test_a_model_without_biases_leaves_with_biases_of_zero(tmp_path):
    mt.manual_seed(3)
    config = GPT2Config(**{**CONFIG.__dict__, "bias": False})
    ours = GPT2(config)
    ours.save_pretrained(tmp_path)
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report[key] for key in report), report
    ids, _ = batch()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    assert relative(ours(mt.from_numpy(ids))[0].detach().numpy(), expected) < 1e-5
    back = GPT2.from_pretrained(tmp_path)
    assert back.config == config
    assert back.num_parameters() == config.num_parameters()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ten_greedy_tokens_through_the_cache(dtype, tmp_path):
    theirs = peer(getattr(torch, dtype))
    ours = converted(theirs, tmp_path, np.dtype(dtype)).eval()
    ids = batch()[0][:, :4].copy()
    expected = theirs.generate(
        torch.from_numpy(ids), max_new_tokens=10, do_sample=False, pad_token_id=0
    ).numpy()
    cache, tokens = ours.new_cache(), ids
    with mt.no_grad():
        new = ids
        for _ in range(10):
            logits, _ = ours(mt.from_numpy(new), cache=cache)
            new = logits.numpy()[:, -1:].argmax(-1)
            tokens = np.concatenate([tokens, new], 1)
    np.testing.assert_array_equal(tokens, expected)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_left_padding(dtype, tolerance, tmp_path):
    theirs = peer(getattr(torch, dtype))
    ours = converted(theirs, tmp_path, np.dtype(dtype)).eval()
    ids, _ = batch()
    mask = np.ones((BATCH, TIME), np.int64)
    mask[0, :5] = mask[2, :1] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            position_ids=torch.from_numpy(positions),
        ).logits.numpy()
    found = ours(mt.from_numpy(ids), mask=mt.from_numpy(mask))[0].detach().numpy()
    assert relative(found[mask == 1], expected[mask == 1]) < tolerance
