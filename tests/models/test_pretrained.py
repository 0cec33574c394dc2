"""Folders of Hugging Face: what is written is read, and what does not fit is said by name."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import minitorch as mt
from minitorch.errors import CheckpointError, ConfigError
from minitorch.io import load_safetensors, save_safetensors
from models.decoder import Decoder
from models.families import FAMILIES, from_pretrained
from models.llama import LlamaConfig
from models.mistral import MistralConfig
from models.pretrained import is_finite
from models.qwen import Qwen2Config, QwenConfig

TINY = {
    "vocab_size": 19,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32,
    "intermediate_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
CONFIGS = {
    "llama": LlamaConfig(**TINY, attention_bias=True, rope_theta=500.0, rms_norm_eps=1e-5),
    "tied": LlamaConfig(**TINY, tie_word_embeddings=True, head_dim=6),
    "mistral": MistralConfig(**TINY, sliding_window=4),
    "qwen2": Qwen2Config(**TINY, rope_scaling=YARN),
    "qwen2, windows": Qwen2Config(**TINY, sliding_window=4, max_window_layers=1),
    "qwen2, chunks": Qwen2Config(
        **TINY, dual_chunk_attention_config={"chunk_size": 8, "local_size": 3}
    ),
    "qwen2, sparse": Qwen2Config(**TINY, sparse_prefill={"columns": 2, "diagonals": 1, "last": 4}),
    "qwen": QwenConfig(**{**TINY, "num_key_value_heads": 4}, head_dim=4, trained_length=8),
    "qwen, plain": QwenConfig(
        **{**TINY, "num_key_value_heads": 4}, use_dynamic_ntk=False, use_logn_attn=False
    ),
}


def randomised(config, dtype=np.float32):
    model = config.build(np.dtype(dtype), None)
    rng = np.random.default_rng(0)
    for param in model.parameters():
        param.data[...] = rng.standard_normal(param.shape)
    return model


def assert_same_weights(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), other.state_dict()[name].numpy())


@pytest.mark.parametrize("max_shard_bytes", [10**9, 3000, 1])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_saved_and_loaded_it_is_the_same(config, max_shard_bytes, tmp_path):
    model = randomised(config)
    model.save_pretrained(tmp_path, max_shard_bytes)
    back = from_pretrained(tmp_path)
    assert back.config == config
    assert_same_weights(back, model)
    assert (back.lm_head.weight is back.embed_tokens.weight) == config.tie_word_embeddings
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert (len(sizes) > 1) == (max_shard_bytes < 10**9)


def test_an_earlier_model_in_the_folder_goes(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    for config, size in ((CONFIGS["llama"], 3000), (CONFIGS["tied"], 10**9), (CONFIGS["qwen2"], 1)):
        model = randomised(config)
        model.save_pretrained(tmp_path, size)
        assert_same_weights(from_pretrained(tmp_path), model)
    assert (tmp_path / "tokenizer.json").exists()
    assert not (tmp_path / "model.safetensors").exists()


def test_weights_are_mapped_and_can_be_trained(tmp_path):
    randomised(CONFIGS["llama"]).save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = from_pretrained(tmp_path)
    weight = model.layers[0].mlp.up_proj.weight
    assert isinstance(weight.data.base, np.ndarray)
    ids = mt.from_numpy(np.arange(6).reshape(1, 6))
    model.loss(ids, ids).backward()
    mt.optim.SGD(model.parameters(), 0.1).step()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert (weight.data != from_pretrained(tmp_path).layers[0].mlp.up_proj.weight.data).any()


@pytest.mark.parametrize("max_shard_bytes", [10**9, 3000])
def test_a_mapped_model_can_be_saved_where_it_came_from(max_shard_bytes, tmp_path):
    model = randomised(CONFIGS["llama"])
    model.save_pretrained(tmp_path, max_shard_bytes)
    mapped = from_pretrained(tmp_path)
    for size in (3000, 10**9, 2000):
        mapped.save_pretrained(tmp_path, size)
        assert_same_weights(mapped, model)
        assert_same_weights(from_pretrained(tmp_path), model)


@pytest.mark.parametrize("sizes", [(3000, 3000), (10**9, 3000), (3000, 10**9)], ids=str)
def test_a_save_that_is_cut_short_leaves_one_model_or_none(sizes, tmp_path, monkeypatch):
    """Killed before every renaming and removal in turn, and by a full disk while it writes."""
    old, new = randomised(CONFIGS["llama"]), randomised(CONFIGS["llama"])
    new.norm.weight.data[...] = 7.0
    new.embed_tokens.weight.data[...] = 7.0
    found = set()
    for count in range(100):
        folder = tmp_path / str(count)
        old.save_pretrained(folder, sizes[0])
        with monkeypatch.context() as patched:
            killed = dying(patched, after=count)
            with contextlib.suppress(CheckpointError):
                new.save_pretrained(folder, sizes[1])
        assert not list(folder.glob(".*"))
        try:
            back = from_pretrained(folder)
        except CheckpointError:
            found.add("none")
        else:
            is_new = (back.norm.weight.data == 7).all()
            assert_same_weights(back, new if is_new else old)
            found.add("new" if is_new else "old")
        if not killed():
            break
    assert found == {"old", "none", "new"}
    new.save_pretrained(tmp_path / "1", sizes[1])
    assert_same_weights(from_pretrained(tmp_path / "1"), new)


def dying(patched, after):
    """From the `after`-th change of a folder on there is an error; returns whether it came."""
    done = []

    def counted(real):
        def change(*args, **kwargs):
            done.append(None)
            if len(done) > after:
                raise OSError("no space left")
            return real(*args, **kwargs)

        return change

    for owner, name in ((Path, "rename"), (Path, "unlink"), (os, "replace")):
        patched.setattr(owner, name, counted(getattr(owner, name)))
    return lambda: len(done) > after


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_dtypes(stored, tmp_path):
    model = randomised(CONFIGS["llama"])
    model.save_pretrained(tmp_path)
    arrays, _ = load_safetensors(tmp_path / "model.safetensors")
    arrays = {name: array.astype(stored) for name, array in arrays.items()}
    save_safetensors(tmp_path / "model.safetensors", arrays)
    kept = from_pretrained(tmp_path, np.dtype(stored))
    assert {param.dtype for param in kept.parameters()} == {np.dtype(stored)}
    widened = from_pretrained(tmp_path)
    for name, tensor in widened.state_dict().items():
        assert tensor.dtype == np.float32
        expected = model.state_dict()[name].numpy().astype(stored).astype(np.float32)
        np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.fixture
def saved(tmp_path):
    model = randomised(CONFIGS["llama"])
    model.save_pretrained(tmp_path)
    arrays, _ = load_safetensors(tmp_path / "model.safetensors")
    return model, tmp_path, arrays


def test_files_of_the_safetensors_package_and_old_ones(saved):
    model, folder, arrays = saved
    for i in range(2):
        arrays[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = np.ones(1, np.float32)
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    assert_same_weights(from_pretrained(folder), model)


def test_what_does_not_fit_is_listed(saved):
    _, folder, arrays = saved
    del arrays["model.norm.weight"]
    arrays["model.layers.0.mlp.up_proj.weight"] = np.zeros((12, 9), np.float32)
    arrays["model.layers.2.mlp.up_proj.weight"] = np.zeros((12, 8), np.float32)
    save_safetensors(folder / "model.safetensors", arrays)
    with pytest.raises(CheckpointError) as caught:
        from_pretrained(folder)
    message = str(caught.value)
    for part in (
        str(folder),
        "missing",
        "\n    norm.weight",
        "unexpected",
        "layers.2.mlp.up_proj.weight",
        "layers.0.mlp.up_proj.weight: expected shape (12, 8); got (12, 9)",
        "nothing was loaded",
    ):
        assert part in message


def test_an_untied_model_wants_its_head(saved):
    _, folder, arrays = saved
    del arrays["lm_head.weight"]
    save_safetensors(folder / "model.safetensors", arrays)
    with pytest.raises(CheckpointError, match=r"missing[^:]*:\s+lm_head\.weight"):
        from_pretrained(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_numbers_that_are_none_are_reported(saved, bad, dtype):
    _, folder, arrays = saved
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    arrays["model.norm.weight"][3] = bad
    save_safetensors(folder / "model.safetensors", arrays)
    with pytest.raises(CheckpointError, match=r"NaN or infinity in model\.norm\.weight\."):
        from_pretrained(folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_finite(dtype):
    largest = ml_dtypes.finfo(dtype).max
    array = np.array([0, -0.0, 1, largest, -largest, ml_dtypes.finfo(dtype).tiny], dtype)
    assert is_finite(array)
    assert is_finite(array[:0])
    assert is_finite(np.array(1.0, dtype))
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        assert not is_finite(np.append(array, np.array(bad, dtype)))
    many = np.ones((1 << 20) + 3, dtype)
    many[-1] = np.nan
    assert not is_finite(many)
    assert is_finite(np.array([1 << 62]))


def changed_index(folder, change):
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_shards_that_do_not_belong_together(tmp_path):
    randomised(CONFIGS["llama"]).save_pretrained(tmp_path, 3000)
    shards = sorted(tmp_path.glob("model-*"))
    whole = shards[0].read_bytes()
    shards[0].write_bytes(whole[:-3])
    with pytest.raises(CheckpointError, match="truncated"):
        from_pretrained(tmp_path)
    shards[0].write_bytes(shards[1].read_bytes())
    with pytest.raises(CheckpointError, match="mixed of two models"):
        from_pretrained(tmp_path)
    shards[0].unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        from_pretrained(tmp_path)
    shards[0].write_bytes(whole)
    from_pretrained(tmp_path)
    changed_index(tmp_path, lambda content: content["weight_map"].update(x="../x.safetensors"))
    with pytest.raises(CheckpointError, match="files in this folder"):
        from_pretrained(tmp_path)
    changed_index(tmp_path, lambda content: content.pop("weight_map"))
    with pytest.raises(CheckpointError, match="weight_map"):
        from_pretrained(tmp_path)


def test_folders_without_what_is_needed(saved):
    _, folder, _ = saved
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        from_pretrained(folder / "nowhere")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safe_serialization"):
        from_pretrained(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="object of settings"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "gpt2, llama, .*got 'mamba'"),
        ({"model_type": None}, "got None"),
        ({"hidden_act": "gelu"}, "hidden_act to be 'silu'; got 'gelu'"),
        ({"quantization_config": {}}, "quantised"),
        ({"hidden_size": None}, "expected hidden_size; got none"),
        ({"hidden_size": "8"}, "hidden_size: expected an integer"),
        ({"num_attention_heads": 3, "head_dim": None}, "divisor of hidden_size"),
        ({"num_key_value_heads": 3}, "divisor of num_attention_heads"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "default, linear, .*got 'longrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "linear.*factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "facto": 1}}, "linear.*facto"),
        ({"rope_parameters": {"full_attention": {}}}, "one kind of rotation"),
        ({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial"),
        ({"head_dim": 3}, "even"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: expected a number above 0; got 'small'"),
        ({"rope_theta": -1.0}, "rope_theta: expected a number above 0"),
        ({"attention_dropout": 1.0}, "attention_dropout: expected a number in"),
    ],
)
def test_other_architectures_are_refused(changes, message, saved):
    _, folder, _ = saved
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ConfigError, match=message) as caught:
        from_pretrained(folder)
    assert str(path) in str(caught.value)


def test_layers_of_other_kinds_are_refused(tmp_path):
    randomised(CONFIGS["qwen2, windows"]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    for kinds, fits in (
        (["full_attention", "sliding_attention"], True),
        (["sliding_attention", "full_attention"], False),
    ):
        path.write_text(json.dumps({**content, "layer_types": kinds}))
        if fits:
            assert from_pretrained(tmp_path).config == CONFIGS["qwen2, windows"]
        else:
            with pytest.raises(ConfigError, match="layer_types"):
                from_pretrained(tmp_path)


def test_older_and_newer_words_for_rotations(saved):
    _, folder, _ = saved
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for words in (
        {"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 7.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 7.0, "rope_type": "linear", "factor": 2.0}},
    ):
        kept = {k: v for k, v in content.items() if not k.startswith("rope")}
        path.write_text(json.dumps({**kept, **words}))
        config = from_pretrained(folder).config
        assert config.rope_theta == 7.0
        assert config.rope_scaling == {"rope_type": "linear", "factor": 2.0}


PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "deepseek-llm-7b": 6_910_365_696,
    "deepseek-llm-67b": 67_425_001_472,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.2": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen-1.8b": 1_836_828_672,
    "qwen-7b": 7_721_324_544,
    "qwen-14b": 14_167_290_880,
    "qwen-72b": 72_287_920_128,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen2.5-7b-1m": 7_615_616_512,
    "qwen2.5-14b-1m": 14_770_033_664,
}
"""The numbers in the files that were published, as Hugging Face's metadata and llama.cpp's headers
count them, and copies of those in public programs; of deepseek-llm-67b and qwen-1.8b half the bytes
of their files of 16-bit numbers: 134,850,002,944 (total_size in its index) and 3,673,657,344."""


@pytest.mark.parametrize("family", [LlamaConfig, MistralConfig, QwenConfig, Qwen2Config])
def test_parameter_counts(family):
    for name in family.presets:
        count = family.preset(name).num_parameters()
        assert name == "toy" or count == PUBLISHED[name], name
    toy = family.preset("toy")
    assert Decoder(toy).num_parameters() == toy.num_parameters()
    assert FAMILIES[family.model_type] is family
    with pytest.raises(ConfigError, match="toy"):
        family.preset("huge")


def test_qwen_is_its_formula():
    """Beyond the trained length: the larger base, the larger queries, in float64 by hand."""
    config = dataclasses.replace(CONFIGS["qwen"], num_hidden_layers=1)
    model = randomised(config, np.float64)
    arrays = config.to_files({n: t.numpy() for n, t in model.state_dict().items()})
    ids = np.random.default_rng(1).integers(0, 19, 21)
    at, trained = "transformer.h.0.", 8

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * arrays[f"transformer.{name}"]

    x = arrays["transformer.wte.weight"][ids]
    h = norm(x, "h.0.ln_1.weight")
    qkv = h @ arrays[at + "attn.c_attn.weight"].T + arrays[at + "attn.c_attn.bias"]
    query, key, value = (part.reshape(21, 4, 4) for part in np.split(qkv, 3, -1))
    base = 10_000 * 7 ** (4 / 2)  # 2^ceil(log2(21 / 8) + 1) - 1 = 7
    angles = np.arange(21)[:, None, None] * np.array([1, base**-0.5])

    def turned(x):
        (a, b), cos, sin = np.split(x, 2, -1), np.cos(angles), np.sin(angles)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    query, key = turned(query), turned(key)
    longer = [np.log(i) / np.log(trained) if i > trained else 1.0 for i in range(1, 22)]
    query = query * np.array(longer)[:, None, None]
    scores = np.einsum("qhd,khd->hqk", query, key) / 2
    scores = np.where(np.tril(np.ones((21, 21), bool)), scores, -np.inf)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    mixed = np.einsum("hqk,khd->qhd", probs, value).reshape(21, 16)
    x = x + mixed @ arrays[at + "attn.c_proj.weight"].T
    h = norm(x, "h.0.ln_2.weight")
    a1, a2 = (h @ arrays[f"{at}mlp.{name}.weight"].T for name in ("w1", "w2"))
    x = x + (a1 * a2 / (1 + np.exp(-a2))) @ arrays[at + "mlp.c_proj.weight"].T
    expected = norm(x, "ln_f.weight") @ arrays["lm_head.weight"].T
    logits, _ = model(mt.from_numpy(ids[None]))
    np.testing.assert_allclose(logits.detach().numpy()[0], expected, rtol=1e-9, atol=1e-10)
