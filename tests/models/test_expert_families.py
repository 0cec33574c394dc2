"""Families with experts: their published sizes, caches, files in both layouts, and training."""

import dataclasses

import numpy as np
import pytest

import minitorch as mt
from minitorch import nn, optim
from minitorch.errors import CheckpointError, ConfigError
from models import expert_files
from models.blocks.attention import Attention
from models.blocks.experts import active_parameters
from models.blocks.routing import Router, update_biases
from models.deepseek import DeepseekV2Config, DeepseekV3Config
from models.families import from_pretrained
from models.minimax import MiniMaxConfig
from models.mixtral import MixtralConfig
from models.qwen_moe import Qwen2MoeConfig

FAMILIES = [MixtralConfig, Qwen2MoeConfig, DeepseekV2Config, DeepseekV3Config, MiniMaxConfig]
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
TINY = {
    "vocab_size": 31,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "intermediate_size": 16,
    "rms_norm_eps": 1e-5,
}


def tiny(family, **changes):
    config = family.preset("toy", **TINY)
    if hasattr(config, "moe_intermediate_size"):
        changes = {"moe_intermediate_size": 8, **changes}
    return dataclasses.replace(config, **changes)


def randomised(config, dtype=np.float64, seed=0):
    """Every parameter and persistent buffer at random."""
    model = config.build(np.dtype(dtype), None)
    rng = np.random.default_rng(seed)
    for name, tensor in model.state_dict().items():
        middle = 1.0 if "norm" in name else 0.0
        tensor.data[...] = middle + 0.2 * rng.standard_normal(tensor.shape)
    return model


def tokens(shape=(2, 11), seed=1):
    return np.random.default_rng(seed).integers(0, TINY["vocab_size"], shape)


@pytest.mark.parametrize(
    ("family", "name", "total", "active"),
    [
        (MixtralConfig, "mixtral-8x7b", 46_702_792_704, 12.9),
        (MixtralConfig, "mixtral-8x22b", 140_620_634_112, 39.2),
        (Qwen2MoeConfig, "qwen1.5-moe-a2.7b", 14_315_784_192, 2.7),
        (Qwen2MoeConfig, "qwen2-57b-a14b", 57_408_658_944, 14.2),
        (DeepseekV2Config, "deepseek-v2-lite", 15_706_484_224, 2.7),
        (DeepseekV2Config, "deepseek-v2", 235_741_434_880, 21.4),
        (DeepseekV3Config, "deepseek-v3", 671_026_419_200, 37.6),
        (DeepseekV3Config, "deepseek-r1", 671_026_419_200, 37.6),
        (MiniMaxConfig, "minimax-text-01", 456_089_655_296, 48.4),
    ],
)
def test_published_sizes(family, name, total, active):
    """The numbers in the published files, as Hugging Face's metadata and copies of it count them;
    and billions that a token meets, as authors round them (Mistral AI's announcements; Qwen team
    2024; DeepSeek-V2 and V3, abstracts; MiniMax-01, abstract). Of these V2-Lite's 2.4 leave out the
    embedding, MiniMax-01's 45.9 also the head.
    """
    config = family.preset(name)
    biases = 0
    if family is DeepseekV3Config:
        with_heads = config.num_parameters()
        config = dataclasses.replace(config, num_nextn_predict_layers=0)
        assert (with_heads - config.num_parameters()) / 1e9 == pytest.approx(11.6, abs=0.05)
        biases = (61 - 3) * 256  # of routers, which are in the files and no parameters
    assert config.num_parameters() + biases == total
    with nn.init.unallocated():
        model = config.build(np.dtype(np.float32), None)
    assert active_parameters(model) / 1e9 == pytest.approx(active, abs=0.05)


@families
def test_counts_are_those_of_the_model(family):
    config = tiny(family)
    assert config.num_parameters() == config.build(np.dtype(np.float32), None).num_parameters()


@families
@pytest.mark.parametrize("parts", [[1] * 11, [4, 1, 6]], ids=str)
def test_cached_is_full(family, parts):
    model = randomised(tiny(family)).eval()
    ids, cache, pieces, start = tokens(), model.new_cache(), [], 0
    with mt.no_grad():
        full = model(mt.from_numpy(ids))[0].numpy()
        for n in parts:
            piece = np.ascontiguousarray(ids[:, start : start + n])
            pieces.append(model(mt.from_numpy(piece), cache=cache)[0].numpy())
            start += n
    np.testing.assert_allclose(np.concatenate(pieces, 1), full, rtol=1e-9, atol=1e-9)


@families
@pytest.mark.parametrize("left", [True, False])
def test_padding_changes_nothing(family, left):
    model, ids, mask = randomised(tiny(family)).eval(), tokens(), np.ones((2, 11), bool)
    mask[1, slice(0, 4) if left else slice(7, 11)] = False
    with mt.no_grad():
        padded = model(mt.from_numpy(ids), mask=mt.from_numpy(mask))[0].numpy()
        alone = model(mt.from_numpy(ids[1:, mask[1]]))[0].numpy()
    np.testing.assert_allclose(padded[1, mask[1]], alone[0], rtol=1e-9, atol=1e-9)


@families
def test_padding_changes_no_loss_and_no_gradient(family):
    """Balance included."""
    changes = {
        DeepseekV2Config: {"device_loss_alpha": 0.1},
        DeepseekV3Config: {"num_nextn_predict_layers": 0},  # which padding does not have
    }.get(family, {})
    model = randomised(tiny(family, **changes)).train()
    ids, targets = tokens((1, 11)), tokens((1, 11), seed=2)
    mask = np.arange(11)[None] >= 4
    padded = np.where(mask, targets, -100)
    together = model.loss(*map(mt.from_numpy, (ids, padded, mask)))
    together.backward()
    found = {name: param.grad.numpy().copy() for name, param in model.named_parameters()}
    model.zero_grad()
    alone = model.loss(*map(mt.from_numpy, (ids[:, 4:].copy(), targets[:, 4:].copy())))
    alone.backward()
    assert together.item() == pytest.approx(alone.item(), rel=1e-9)
    for name, param in model.named_parameters():
        np.testing.assert_allclose(found[name], param.grad.numpy(), rtol=1e-7, atol=1e-9)


@families
def test_saved_and_loaded_it_is_the_same(family, tmp_path):
    """From files with every expert by itself, which are what is written, and from stacked ones."""
    ahead = {"num_nextn_predict_layers": 0} if family is DeepseekV3Config else {}
    model = randomised(tiny(family, **ahead), np.float32)
    model.save_pretrained(tmp_path)
    back = from_pretrained(tmp_path)
    assert back.config == model.config
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    stacked = model.config.from_files({f"model.{name}": array for name, array in arrays.items()})
    separate = model.config.from_files(model.config.to_files(arrays))
    assert arrays.keys() == stacked.keys() - {"model.lm_head.weight"} | {"lm_head.weight"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(back.state_dict()[name].numpy(), array)
        np.testing.assert_array_equal(separate[name], array)


def test_experts_that_are_missing_or_of_several_sizes_are_named():
    model = randomised(tiny(MixtralConfig), np.float32)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    files = model.config.to_files(arrays)
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    assert files[name].shape == (16, 16)
    files.pop(name)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts: .* w2 .* 3\."):
        model.config.from_files(files)
    files[name] = np.zeros((16, 15), np.float32)
    with pytest.raises(CheckpointError, match=r"w2 of one shape; got \[\(16, 15\), \(16, 16\)\]"):
        model.config.from_files(files)


def test_separating_experts_copies_nothing():
    arrays = {"a.experts.gate_up_proj": np.zeros((2, 6, 4)), "b.weight": np.zeros(1)}
    parts = expert_files.separate(arrays)
    assert parts["a.experts.1.up_proj.weight"].base is arrays["a.experts.gate_up_proj"]
    assert parts["b.weight"] is arrays["b.weight"]


WINDOW, CHUNKS = {"sliding_window": 3}, {"chunk_size": 4, "local_size": 1}


@pytest.mark.parametrize(
    ("family", "kind", "changes"),
    [
        (MixtralConfig, {"first_tokens": 2}, WINDOW),
        (MiniMaxConfig, {"first_tokens": 2}, WINDOW),
        (Qwen2MoeConfig, {"dual_chunk_attention_config": CHUNKS}, {}),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_layers_with_experts_have_their_family_s_kind_of_attention(family, kind, changes):
    """Of all layers, so that a text beyond the window, or the chunk, is read otherwise."""
    logits = []
    for config in (tiny(family, **changes), tiny(family, **changes, **kind)):
        model = randomised(config)
        plain = Attention in {type(layer.self_attn) for layer in model.layers}
        assert plain == (not logits)
        with mt.no_grad():
            logits.append(model(mt.from_numpy(tokens()))[0].numpy())
    one, other = logits
    np.testing.assert_allclose(one[:, :3], other[:, :3], atol=1e-12)
    assert np.abs(one - other)[:, 8:].max() > 1e-3


@families
def test_it_learns_a_batch_by_heart(family):
    mt.manual_seed(0)
    model = tiny(family).build(np.dtype(np.float32), None)
    ids = tokens((2, 12))
    inputs, targets = mt.from_numpy(ids[:, :-1].copy()), mt.from_numpy(ids[:, 1:].copy())
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.train().loss(inputs, targets).backward()
        optimizer.step()
        update_biases(model)
    assert model.eval().loss(inputs, targets).item() < 0.2


def test_the_bias_of_deepseek_v3_is_kept_in_files_and_its_counts_are_not(tmp_path):
    model = randomised(tiny(DeepseekV3Config), np.float32)
    model.loss(mt.from_numpy(tokens()), mt.from_numpy(tokens(seed=2)))
    update_biases(model, rate=0.1)
    model.save_pretrained(tmp_path)
    back = from_pretrained(tmp_path)
    routers = [[m for m in each.modules() if isinstance(m, Router)] for each in (model, back)]
    for one, other in zip(*routers, strict=True):
        bias = one.e_score_correction_bias.numpy()
        np.testing.assert_array_equal(other.e_score_correction_bias.numpy(), bias)
        assert not other.load.numpy().any()


@pytest.mark.parametrize("family", [DeepseekV3Config, MiniMaxConfig])
def test_on_a_device_it_computes_the_same(family):
    pytest.importorskip("minitorch._simt", reason="the emulator was not built")
    sizes = {"vocab_size": 17, "layers": 2, "heads": 2, "width": 8, "positions": 8}
    model = family.sized(**sizes).build(np.dtype(np.float32), mt.Generator(0))
    found = []
    for device in ("cpu", "simt"):
        model.to(device).zero_grad()
        ids = mt.from_numpy(tokens((1, 5)) % 17).to(device)
        loss = model.loss(ids, ids)
        loss.backward()
        gradients = [param.grad.to("cpu").numpy() for param in model.parameters()]
        found.append([loss.item(), *gradients])
    update_biases(model)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_memory_of_a_cache():
    """Latent attention keeps rank + rotated numbers for a token, lightning attention a state."""
    with mt.no_grad():
        model = randomised(tiny(DeepseekV2Config)).eval()
        cache = model.new_cache()
        model(mt.from_numpy(tokens((1, 16))), cache=cache)
        assert cache.nbytes == 8 * 16 * 4 * (32 + 16)
        model, sizes = randomised(tiny(MiniMaxConfig)).eval(), []
        for time in (16, 32):
            cache = model.new_cache()
            model(mt.from_numpy(tokens((1, time))), cache=cache)
            sizes.append([layer.nbytes for layer in cache.layers])
    assert sizes[0][:3] == sizes[1][:3] == [8 * 4 * 4 * 4] * 3
    assert 2 * sizes[0][3] == sizes[1][3]


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (MixtralConfig, {"num_experts_per_tok": 9}, "k = 9"),
        (Qwen2MoeConfig, {"num_experts_per_tok": 0}, "k = 0"),
        (DeepseekV2Config, {"n_group": 3}, "3 groups"),
        (DeepseekV2Config, {"norm_topk_prob": True}, "norm_topk_prob"),
        (DeepseekV3Config, {"topk_group": 5}, "kept_groups"),
        (DeepseekV3Config, {"kv_lora_rank": 0}, "kv_lora_rank"),
        (MiniMaxConfig, {"layer_types": ("full_attention",)}, "layer_types"),
        (MiniMaxConfig, {"layer_types": ("linear",) * 4}, "layer_types"),
    ],
)
def test_bad_sizes_are_refused(family, changes, message):
    with pytest.raises(ConfigError, match=message):
        family.preset("toy", **changes)
