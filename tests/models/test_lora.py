"""LoRA on every family: what it computes, what it trains, and the folders that it leaves."""

import json

import numpy as np
import pytest

import minitorch as mt
from minitorch import nn, optim
from minitorch.errors import CheckpointError, ConfigError
from minitorch.io import load_safetensors, save_safetensors
from minitorch.random import Generator
from minitorch.tokenizers import CharTokenizer
from models import lora
from models.families import FAMILIES, from_pretrained
from models.lora import LoraConfig

SIZE = {"vocab_size": 19, "layers": 2, "heads": 2, "width": 16, "positions": 12}
IDS = mt.from_numpy(np.random.default_rng(0).integers(0, 19, (3, 7)))
TARGETS = mt.from_numpy(np.random.default_rng(1).integers(0, 19, (3, 7)))


def built(family, dtype=np.float64):
    return FAMILIES[family].sized(**SIZE).build(dtype, Generator(0)).eval()


def adapted(family="llama", dtype=np.float64, **config):
    """A model with adapters that are not 0, and their configuration."""
    model, config = built(family, dtype), LoraConfig(**config)
    lora.attach(model, config, Generator(1))
    rng = np.random.default_rng(2)
    for layer in lora.adapters(model).values():
        layer.lora_B.data[...] = 0.1 * rng.standard_normal(layer.lora_B.shape)
    return model, config


def logits(model, ids=IDS):
    with mt.no_grad():
        return model(ids)[0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_adapter_changes_nothing(family):
    model = built(family)
    before = logits(model)
    lora.attach(model, LoraConfig(), Generator(1))
    np.testing.assert_array_equal(logits(model), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_off_and_on_again(family):
    """Merged gives what unmerged gives; off, and after unmerge(), the bits are the base's."""
    plain = logits(built(family))
    model, _ = adapted(family)
    learnt = logits(model)
    assert np.abs(learnt - plain).max() > 1e-3
    lora.merge(model)
    np.testing.assert_allclose(logits(model), learnt, atol=1e-12)
    merged = logits(model)
    with lora.adapters_off(model):
        np.testing.assert_array_equal(logits(model), plain)
    np.testing.assert_array_equal(logits(model), merged)
    lora.unmerge(model)
    np.testing.assert_array_equal(logits(model), learnt)
    with lora.adapters_off(model):
        np.testing.assert_array_equal(logits(model), plain)
    np.testing.assert_array_equal(logits(model), learnt)


def test_merged_in_float32_is_within_a_millionth():
    model, _ = adapted(dtype=np.float32)
    learnt = logits(model)
    lora.merge(model)
    np.testing.assert_allclose(logits(model), learnt, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_adapters_get_gradients_and_the_rest_none(family):
    """Also through operations that read a layer's weight instead of calling it."""
    model, _ = adapted(family)
    model.train().loss(IDS, TARGETS).backward()
    trained = {id(param) for param in lora.adapter_parameters(model)}
    for name, param in model.named_parameters():
        assert (param.grad is not None) == (id(param) in trained), name
        assert id(param) not in trained or np.abs(param.grad.numpy()).max() > 0, name


@pytest.mark.parametrize("family", ["gpt2", "llama", "deepseek_v2"])
def test_gradients_are_those_of_the_weights_they_amount_to(family):
    """dA = s Bᵀ dW and dB = s dW Aᵀ, with dW of the merged model."""
    model, config = adapted(family)
    whole = lora.merged_model(model).requires_grad_()
    for each in (model, whole):
        each(IDS, TARGETS)[1].backward()
    modules = dict(whole.named_modules())
    for name, layer in lora.adapters(model).items():
        g = modules[name].weight.grad.numpy() * config.scale
        a, b = layer.lora_A.detach().numpy(), layer.lora_B.detach().numpy()
        np.testing.assert_allclose(layer.lora_A.grad.numpy(), b.T @ g, atol=1e-12)
        np.testing.assert_allclose(layer.lora_B.grad.numpy(), g @ a.T, atol=1e-12)


def test_the_scale_is_by_rank_or_by_its_root():
    assert LoraConfig(r=4, lora_alpha=8).scale == 2
    assert LoraConfig(r=4, lora_alpha=8, use_rslora=True).scale == 4


def test_dropout_is_of_what_the_adapter_reads_and_only_in_training():
    model, _ = adapted("gpt2", lora_dropout=0.5)
    once = logits(model)
    np.testing.assert_array_equal(logits(model), once)
    model.train()
    assert np.abs(logits(model) - once).max() > 0
    with lora.adapters_off(model):
        np.testing.assert_array_equal(logits(model), logits(built("gpt2")))


def test_training_reaches_what_the_base_could_not_say():
    model = built("llama", np.float32).train()
    lora.attach(model, LoraConfig(r=4), Generator(1))
    before = {name: t.numpy().copy() for name, t in model.state_dict().items() if ".base" in name}
    optimizer = optim.AdamW(lora.adapter_parameters(model), 1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(IDS, TARGETS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    for name, array in before.items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), array)


def test_names_choose_layers():
    model, _ = adapted(target_modules=("q_proj", "layers.1.mlp.down_proj"))
    assert set(lora.adapters(model)) == {
        "layers.0.self_attn.q_proj",
        "layers.1.self_attn.q_proj",
        "layers.1.mlp.down_proj",
    }


def test_a_tied_head_is_left_alone():
    model, _ = adapted("gpt2")
    assert "lm_head" not in lora.adapters(model)
    with pytest.raises(ConfigError, match=r"lm_head shares its weight with the embedding"):
        lora.attach(built("gpt2"), LoraConfig(target_modules=("lm_head",)))


@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
def test_a_head_of_its_own_can_be_adapted_where_losses_read_its_weight(family):
    model, _ = adapted(family, target_modules=("lm_head",))
    model.loss(IDS, TARGETS).backward()
    assert np.abs(model.lm_head.lora_A.grad.numpy()).max() > 0


def test_a_weight_that_is_read_has_no_dropout():
    model, _ = adapted("llama", target_modules=("lm_head",), lora_dropout=0.1)
    with pytest.raises(ConfigError, match="lora_dropout: expected 0"):
        model.train().loss(IDS, TARGETS)


@pytest.mark.parametrize("target", ["experts", "gate_up_proj", "embed_tokens", "no_such"])
def test_what_is_no_linear_is_refused_with_what_is(target):
    model = built("mixtral")
    with pytest.raises(ConfigError, match=r"of .*k_proj.*; got .*Stacked experts"):
        lora.attach(model, LoraConfig(target_modules=(target,)))
    assert all(param.requires_grad for param in model.parameters())


def test_twice_is_once_too_often():
    model, config = adapted()
    with pytest.raises(ConfigError, match="adapters already"):
        lora.attach(model, config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r: expected"),
        ({"r": 2.0}, "r: expected"),
        ({"lora_alpha": -1}, "lora_alpha: expected"),
        ({"lora_dropout": 1.0}, "lora_dropout: expected"),
        ({"target_modules": ()}, "target_modules: expected"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_model_is_of_the_family_and_can_be_saved(family, tmp_path):
    model, _ = adapted(family)
    lora.merged_model(model).save_pretrained(tmp_path)
    np.testing.assert_allclose(
        logits(from_pretrained(tmp_path, np.float64).eval()), logits(model), atol=1e-12
    )
    np.testing.assert_array_equal(logits(model), logits(adapted(family)[0]))


def test_a_model_with_adapters_is_not_saved_under_names_that_nobody_knows(tmp_path):
    with pytest.raises(CheckpointError, match=r"merged_model.*save_adapter"):
        adapted()[0].save_pretrained(tmp_path)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "qwen"])
@pytest.mark.parametrize("rslora", [False, True])
def test_adapters_go_to_a_folder_and_come_back(family, rslora, tmp_path):
    model, config = adapted(family, r=3, use_rslora=rslora)
    lora.save_adapter(model, tmp_path, config)
    again = built(family)
    found = lora.load_adapter(again, tmp_path)
    assert (found.r, found.scale) == (config.r, config.scale)
    np.testing.assert_array_equal(logits(again), logits(model))


def test_the_folder_is_as_peft_lays_it_out(tmp_path):
    model, config = adapted("gpt2", target_modules=("c_attn",), lora_dropout=0.1)
    lora.save_adapter(model, tmp_path, config, "openai-community/gpt2")
    arrays, _ = load_safetensors(tmp_path / "adapter_model.safetensors")
    prefix = "base_model.model.transformer.h"
    assert {name: array.shape for name, array in arrays.items()} == {
        f"{prefix}.{layer}.attn.c_attn.lora_{part}.weight": shape
        for layer in range(2)
        for part, shape in (("A", (8, 16)), ("B", (48, 8)))
    }
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["peft_type"] == "LORA"
    assert content["base_model_name_or_path"] == "openai-community/gpt2"
    assert content["fan_in_fan_out"] is True
    assert content["target_modules"] == [f"transformer.h.{i}.attn.c_attn" for i in range(2)]
    assert (content["r"], content["lora_alpha"], content["lora_dropout"]) == (8, 16.0, 0.1)


def test_a_part_of_a_matrix_has_no_name_in_peft(tmp_path):
    model, config = adapted("qwen", target_modules=("q_proj", "o_proj"))
    with pytest.raises(ConfigError, match=r"q_proj: .*part of a larger matrix.*merged_model"):
        lora.save_adapter(model, tmp_path, config)


def test_the_folder_of_adapters_is_a_model_too(tmp_path):
    built("llama").save_pretrained(tmp_path / "base")
    model, config = adapted()
    lora.save_adapter(model, tmp_path / "adapter", config, tmp_path / "base")
    loaded = from_pretrained(tmp_path / "adapter", np.float64).eval()
    assert not lora.adapters(loaded)
    np.testing.assert_allclose(logits(loaded), logits(model), atol=1e-12)
    lora.save_adapter(model, tmp_path / "adapter", config, "../base")
    np.testing.assert_array_equal(
        logits(from_pretrained(tmp_path / "adapter", np.float64).eval()), logits(loaded)
    )
    lora.save_adapter(model, tmp_path / "adapter", config, "somebody/some-model")
    with pytest.raises(CheckpointError, match=r"base_model_name_or_path.*somebody/some-model"):
        from_pretrained(tmp_path / "adapter")


def test_a_folder_of_adapters_can_be_sampled_from(tmp_path, cli):
    tokenizer = CharTokenizer(list("abcdefghijklmnopqrs"))
    built("llama", np.float32).save_pretrained(tmp_path / "base")
    tokenizer.save(tmp_path / "base" / "tokenizer.json")
    model, config = adapted(dtype=np.float32)
    lora.save_adapter(model, tmp_path / "adapter", config, tmp_path / "base")
    options = ["--prompt", "abc", "--max-tokens", 5, "--temperature", 0]
    result = cli("sample", "--checkpoint", tmp_path / "adapter", *options)
    assert result.exit_code == 0, result.stderr
    lora.merged_model(model).save_pretrained(tmp_path / "whole")
    tokenizer.save(tmp_path / "whole" / "tokenizer.json")
    assert cli("sample", "--checkpoint", tmp_path / "whole", *options).stdout == result.stdout


def saved(tmp_path, family="llama", **settings):
    model, config = adapted(family, **settings)
    lora.save_adapter(model, tmp_path, config)
    return tmp_path


def test_the_adapters_of_another_architecture(tmp_path):
    folder, model = saved(tmp_path, "gpt2"), built("llama")
    with pytest.raises(CheckpointError, match=r"is no adapter of a Linear of this Decoder"):
        lora.load_adapter(model, folder)
    assert all(param.requires_grad for param in model.parameters())


def test_the_adapters_of_another_size(tmp_path):
    other = FAMILIES["llama"].sized(**{**SIZE, "width": 32}).build(np.float64, Generator(0))
    with pytest.raises(CheckpointError, match=r"lora_A.*expected|expected .*lora_A"):
        lora.load_adapter(other, saved(tmp_path))
    assert not lora.adapters(other)


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_dora", True), ("bias", "all"), ("peft_type", "IA3"), ("rank_pattern", {"q_proj": 2})],
)
def test_variants_that_are_not_built_here(key, value, tmp_path):
    folder = saved(tmp_path)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ConfigError, match=rf"expected {key} to be .*merge_and_unload"):
        lora.load_adapter(built("llama"), folder)


def test_half_of_an_adapter(tmp_path):
    path = saved(tmp_path) / "adapter_model.safetensors"
    arrays, _ = load_safetensors(path)
    arrays = dict(arrays)
    arrays.pop(next(name for name in arrays if "lora_B" in name))
    save_safetensors(path, arrays)
    with pytest.raises(CheckpointError, match="lora_B"):
        lora.load_adapter(built("llama"), tmp_path)


def test_it_counts_what_it_trains():
    model, _ = adapted(r=2, target_modules=("q_proj",))
    assert isinstance(model.layers[0].self_attn.q_proj.base, nn.Linear)
    assert model.num_parameters(trainable_only=True) == 2 * 2 * (16 + 16)
