"""GPT-2 beyond what every language model does (test_language_models.py): its table of positions,
its files, and what it refuses."""

import dataclasses
import json

import numpy as np
import pytest

import minitorch as mt
from minitorch import debug, nn, optim
from minitorch.errors import CheckpointError, ConfigError, ShapeError
from minitorch.io import load_safetensors, save_safetensors
from models.gpt2 import CONV1D, GPT2, GPT2Config
from tests.models.small import logits_of, randomised, tokens

SMALL = GPT2Config(vocab_size=19, n_positions=8, n_layer=2, n_head=3, n_embd=12)


def test_a_text_longer_than_the_table_is_refused():
    model = randomised(SMALL)
    with pytest.raises(ShapeError, match="from 1 to 8"):
        model(mt.from_numpy(tokens((1, 9))))
    cache = model.new_cache()
    logits_of(model, tokens((2, 5)), cache)
    with pytest.raises(ShapeError, match="5 positions in the cache"):
        logits_of(model, tokens((2, 4)), cache)


@pytest.mark.parametrize("parts", [[8], [1] * 8, [3, 1, 4]], ids=str)
def test_cached_in_float32(parts):
    model, ids = randomised(SMALL, np.float32).eval(), tokens((3, 8))
    cache, at = model.new_cache(), np.cumsum(parts)[:-1]
    pieces = [logits_of(model, piece, cache) for piece in np.split(ids, at, axis=1)]
    np.testing.assert_allclose(
        np.concatenate(pieces, 1), logits_of(model, ids), rtol=1e-5, atol=1e-5
    )


def test_a_token_goes_through_all_blocks_in_one_call_unless_something_is_replaced():
    config = GPT2Config.preset("nano", vocab_size=11, n_layer=4)

    def counted(model):
        cache = model.new_cache()
        with mt.inference_mode():
            model(mt.tensor([[1, 2, 3]]), cache=cache)
            with debug.profile() as profile:
                logits, _ = model(mt.tensor([[4]]), cache=cache)
        return sum(event.name == "decode_blocks" for event in profile.events), logits.numpy()

    model = GPT2(config, generator=mt.Generator(0)).eval()
    count, logits = counted(model)
    assert count == 1

    class Replaced(nn.Linear):
        pass

    model.h[1].mlp.c_fc.__class__ = Replaced
    count, again = counted(model)
    assert count == 2
    np.testing.assert_allclose(again, logits, rtol=1e-4, atol=1e-5)


def test_what_follows_the_blocks_may_be_replaced():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Halved(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x) / 2

    def logits(model):
        cache = model.new_cache()
        return logits_of(model, tokens((2, 3)), cache), logits_of(model, tokens((2, 1)), cache)

    model = randomised(SMALL, np.float32).eval()
    for layer, kind, factor in ((model.lm_head, Doubled, 2), (model.ln_f, Halved, 0.5)):
        before = logits(model)
        layer.__class__ = kind
        for plain, changed in zip(before, logits(model), strict=True):
            np.testing.assert_allclose(changed, factor * plain, rtol=1e-4, atol=1e-5)


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
