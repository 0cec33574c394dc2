"""GPT-2: its formula typed again in NumPy, its cache, its files, and what it refuses."""

import dataclasses
import json
import math

import numpy as np
import pytest

import minitorch as mt
from minitorch import optim
from minitorch.errors import CheckpointError, ConfigError, DtypeError, GraphError, ShapeError
from minitorch.io import load_safetensors, save_safetensors
from models.gpt2 import CONV1D, GPT2, GPT2Config

SMALL = GPT2Config(vocab_size=19, n_positions=8, n_layer=2, n_head=3, n_embd=12)


def randomised(config, dtype=np.float64, seed=0):
    """A model none of whose parameters is 0 or 1."""
    model = GPT2(config, dtype)
    rng = np.random.default_rng(seed)
    for name, param in model.named_parameters():
        middle = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        param.data[...] = middle + 0.2 * rng.standard_normal(param.shape)
    return model


def tokens(shape, config=SMALL, seed=1):
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape)


def logits_of(model, ids, cache=None):
    with mt.no_grad():
        return model(mt.from_numpy(ids), cache=cache)[0].numpy()


def formula(model, ids):
    """The logits of one sequence, position by position and head by head."""
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in model.state_dict().items()}
    config = model.config

    def affine(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.layer_norm_epsilon)
        return x * w[f"{name}.weight"] + w.get(f"{name}.bias", 0.0)

    def attend(qkv):
        q, k, v = np.split(qkv, 3, axis=-1)
        out = np.zeros_like(q)
        size = config.n_embd // config.n_head
        for head in range(config.n_head):
            part = slice(head * size, (head + 1) * size)
            for t in range(len(q)):
                scores = k[: t + 1, part] @ q[t, part] / math.sqrt(size)
                probs = np.exp(scores - scores.max())
                out[t, part] = (probs / probs.sum()) @ v[: t + 1, part]
        return out

    x = w["wte.weight"][ids] + w["wpe.weight"][: len(ids)]
    for i in range(config.n_layer):
        x = x + affine(attend(affine(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")),
                       f"h.{i}.attn.c_proj")  # fmt: skip
        h = affine(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + affine(h, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("time", [1, 5, 8])
def test_logits_and_loss_are_the_formula(bias, time):
    model = randomised(dataclasses.replace(SMALL, bias=bias))
    ids, targets = tokens((2, time)), tokens((2, time), seed=2)
    targets[0, 0] = -100 if time > 1 else targets[0, 0]
    logits, loss = model(mt.from_numpy(ids), mt.from_numpy(targets))
    expected = np.stack([formula(model, row) for row in ids])
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-10, atol=1e-11)
    log_probs = expected - np.log(np.exp(expected).sum(-1, keepdims=True))
    rows, columns = np.nonzero(targets != -100)
    picked = log_probs[rows, columns, targets[rows, columns]]
    assert loss.item() == pytest.approx(-picked.mean(), rel=1e-11)
    assert model(mt.from_numpy(ids))[1] is None


def test_the_loss_without_the_logits_is_the_same():
    gradients = []
    for loss_of in (lambda model, *args: model(*args)[1], GPT2.loss):
        model = randomised(SMALL)
        ids, targets = mt.from_numpy(tokens((3, 6))), mt.from_numpy(tokens((3, 6), seed=2))
        loss = loss_of(model, ids, targets)
        loss.backward()
        gradients.append([loss.item(), *(param.grad.numpy() for param in model.parameters())])
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)


def test_gradient_is_the_slope_along_a_random_direction():
    model = randomised(SMALL)
    ids, targets = mt.from_numpy(tokens((3, 6))), mt.from_numpy(tokens((3, 6), seed=2))
    model(ids, targets)[1].backward()
    rng = np.random.default_rng(3)
    for name, param in model.named_parameters():
        start, direction = param.data.copy(), rng.standard_normal(param.shape)
        losses = []
        for h in (1e-5, -1e-5):
            param.data[...] = start + h * direction
            with mt.no_grad():
                losses.append(model(ids, targets)[1].item())
        param.data[...] = start
        slope = (losses[0] - losses[1]) / 2e-5
        assert (param.grad.numpy() * direction).sum() == pytest.approx(slope, rel=1e-5, abs=1e-9), (
            name
        )


def test_the_future_is_not_seen():
    model = randomised(SMALL)
    ids = tokens((1, 8))
    changed = ids.copy()
    changed[0, 5] = (ids[0, 5] + 1) % SMALL.vocab_size
    before, after = logits_of(model, ids), logits_of(model, changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (np.abs(before[:, 5:] - after[:, 5:]).max(-1) > 1e-6).all()


@pytest.mark.parametrize("parts", [[8], [1] * 8, [3, 1, 4], [5, 3], [1, 7]], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_cached_is_uncached(parts, dtype, tolerance):
    """In one piece, one by one, or in any pieces: the logits of every position are the same."""
    model = randomised(SMALL, dtype).eval()
    ids = tokens((3, 8))
    whole, cache, pieces, start = logits_of(model, ids), model.new_cache(), [], 0
    for length in parts:
        piece = np.ascontiguousarray(ids[:, start : start + length])
        pieces.append(logits_of(model, piece, cache))
        start += length
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, rtol=tolerance, atol=tolerance)


def test_cache_refuses_what_it_cannot_hold():
    model = randomised(SMALL)
    cache = model.new_cache()
    with pytest.raises(GraphError, match="no_grad"):
        model(mt.from_numpy(tokens((2, 3))), cache=cache)
    cache = model.new_cache()
    logits_of(model, tokens((2, 5)), cache)
    with pytest.raises(ShapeError, match="5 positions in the cache"):
        logits_of(model, tokens((2, 4)), cache)
    with pytest.raises(ShapeError, match="batch"):
        logits_of(model, tokens((3, 1)), cache)


def test_bad_ids_are_refused():
    model = GPT2(SMALL)
    with pytest.raises(ShapeError, match="from 1 to 8"):
        model(mt.from_numpy(tokens((1, 9))))
    with pytest.raises(ShapeError, match="batch, time"):
        model(mt.from_numpy(tokens(5)))
    with pytest.raises(DtypeError, match="integer"):
        model(mt.zeros(1, 3))
    with pytest.raises(ShapeError, match=r"\[0, 19\)"):
        model(mt.from_numpy(np.array([[19]])))


def test_parameter_counts():
    published = {
        "gpt2": 124_439_808,
        "gpt2-medium": 354_823_168,
        "gpt2-large": 774_030_080,
        "gpt2-xl": 1_557_611_200,
    }
    for name, count in published.items():
        assert GPT2Config.preset(name).num_parameters() == count
    for bias in (True, False):
        config = GPT2Config.preset("nano", vocab_size=65, bias=bias)
        assert GPT2(config).num_parameters() == config.num_parameters()


def test_initial_weights():
    mt.manual_seed(0)
    config = GPT2Config(vocab_size=199, n_positions=32, n_layer=2, n_head=2, n_embd=96)
    model = GPT2(config)
    for name, param in model.named_parameters():
        if name.endswith("bias"):
            assert not param.data.any()
        elif "ln_" in name:
            assert (param.data == 1).all()
        else:
            std = 0.02 / math.sqrt(4) if name.endswith("c_proj.weight") else 0.02
            assert param.data.std() == pytest.approx(std, rel=0.05), name
            assert abs(param.data.mean()) < std / 10
    ids = tokens((4, 32), config)
    _, loss = model(mt.from_numpy(ids), mt.from_numpy(tokens((4, 32), config, seed=2)))
    assert loss.item() == pytest.approx(math.log(199), abs=0.05)


def test_seeds_decide_the_weights():
    def weights(seed):
        model = GPT2(SMALL, generator=mt.Generator(seed))
        return np.concatenate([param.data.ravel() for param in model.parameters()])

    mt.manual_seed(5)
    np.testing.assert_array_equal(weights(1), weights(1))
    assert (weights(1) != weights(2)).any()
    assert mt.random.get_rng_state()["offset"] == 0


def test_dropout_acts_in_training_alone():
    mt.manual_seed(0)
    model = GPT2(dataclasses.replace(SMALL, dropout=0.5))
    ids = tokens((2, 8))
    assert (logits_of(model, ids) != logits_of(model, ids)).any()
    model.eval()
    np.testing.assert_array_equal(logits_of(model, ids), logits_of(model, ids))
    without = GPT2(SMALL).eval()
    without.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(logits_of(model, ids), logits_of(without, ids))


@pytest.mark.parametrize("precision", ["float", "bfloat16", "half"])
def test_it_learns_a_batch_by_heart(precision):
    mt.manual_seed(0)
    model = getattr(GPT2(SMALL), precision)()
    ids = tokens((2, 9))
    inputs, targets = mt.from_numpy(ids[:, :-1].copy()), mt.from_numpy(ids[:, 1:].copy())
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        _, loss = model(inputs, targets)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize("bias", [True, False])
def test_saved_and_loaded_it_is_the_same(bias, tmp_path):
    config = dataclasses.replace(SMALL, bias=bias, dropout=0.25, layer_norm_epsilon=1e-6)
    model = randomised(config, np.float32)
    model.save_pretrained(tmp_path / "model")
    back = GPT2.from_pretrained(tmp_path / "model")
    assert back.config == config
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[name].numpy(), tensor.numpy())
    assert back.lm_head.weight is back.wte.weight


@pytest.fixture
def saved(tmp_path):
    model = randomised(SMALL, np.float32)
    model.save_pretrained(tmp_path)
    arrays, _ = load_safetensors(tmp_path / "model.safetensors")
    return model, tmp_path, {name: array.copy() for name, array in arrays.items()}


def test_files_in_other_forms(saved):
    """Without the prefix, with the masks and the second head of old files, in half precision."""
    model, folder, arrays = saved
    arrays = {name.removeprefix("transformer."): array for name, array in arrays.items()}
    for i in range(SMALL.n_layer):
        arrays[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), np.float32))
        arrays[f"h.{i}.attn.masked_bias"] = np.float32(-1e4)
    arrays["lm_head.weight"] = arrays["wte.weight"].copy()
    save_safetensors(folder / "model.safetensors", arrays)
    back = GPT2.from_pretrained(folder)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[name].numpy(), tensor.numpy())

    half = {name: array.astype(np.float16) for name, array in arrays.items()}
    save_safetensors(folder / "model.safetensors", half)
    back = GPT2.from_pretrained(folder, np.float64)
    assert {param.dtype for param in back.parameters()} == {np.dtype(np.float64)}
    np.testing.assert_allclose(back.wte.weight.data, model.wte.weight.data, rtol=1e-3, atol=1e-6)


def test_matrices_are_transposed_in_the_file(saved):
    model, _, arrays = saved
    assert arrays["transformer.h.0.attn.c_attn.weight"].shape == (12, 36)
    transposed = [name for name in arrays if CONV1D.search(name)]
    assert len(transposed) == 4 * SMALL.n_layer
    square = model.h[0].attn.c_proj.weight.data
    np.testing.assert_array_equal(arrays["transformer.h.0.attn.c_proj.weight"], square.T)


def test_files_that_do_not_fit_are_reported(saved):
    _, folder, arrays = saved
    del arrays["transformer.ln_f.bias"]
    arrays["transformer.h.0.mlp.c_fc.weight"] = np.zeros((12, 40), np.float32)
    arrays["transformer.h.2.ln_1.weight"] = np.zeros(12, np.float32)
    arrays["lm_head.weight"] = np.zeros((19, 12), np.float32)
    save_safetensors(folder / "model.safetensors", arrays)
    with pytest.raises(CheckpointError) as caught:
        GPT2.from_pretrained(folder)
    message = str(caught.value)
    for part in ("missing", "ln_f.bias", "unexpected", "h.2.ln_1.weight"):
        assert part in message
    assert "h.0.mlp.c_fc.weight: expected shape (48, 12); got (40, 12)" in message
    assert "lm_head.weight: shares its parameter with wte.weight" in message


def test_missing_and_damaged_files(saved):
    _, folder, _ = saved
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        GPT2.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        GPT2.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        GPT2.from_pretrained(folder / "nowhere")
    blocked = folder / "file"
    blocked.write_text("")
    with pytest.raises(CheckpointError, match="file"):
        GPT2(SMALL).save_pretrained(blocked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"activation_function": "relu"}, "gelu_new"),
        ({"n_inner": 50}, "n_inner"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"n_head": 5}, "n_head"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"resid_pdrop": "much"}, "dropout"),
    ],
)
def test_other_architectures_are_refused(changes, message, saved):
    _, folder, _ = saved
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ConfigError, match=message):
        GPT2.from_pretrained(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("n_layer", 2.5),
        ("n_head", True),
        ("n_head", 5),
        ("dropout", 1.0),
        ("dropout", float("nan")),
        ("layer_norm_epsilon", 0.0),
        ("bias", 1),
    ],
)
def test_bad_sizes_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        GPT2Config(**{field: value})
    with pytest.raises(ConfigError, match="gpt2-medium"):
        GPT2Config.preset("gpt3")
