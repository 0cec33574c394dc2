"""Multi-token prediction: the chain typed again, its causality, its loss, its place in files."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import CheckpointError
from models.blocks.cache import step
from models.decoder import Decoder
from models.deepseek import DeepseekV3Config
from models.multi_token import MultiTokenDecoder, from_layers

SMALL = {
    "vocab_size": 29,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "moe_intermediate_size": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 6,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "max_position_embeddings": 32,
    "aux_loss_alpha": 0.0,
    "num_nextn_predict_layers": 2,
}


def randomised(dtype=np.float64, **changes):
    model = DeepseekV3Config(**{**SMALL, **changes}).build(np.dtype(dtype), mt.Generator(0))
    rng = np.random.default_rng(0)
    for name, param in model.named_parameters():
        middle = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        param.data[...] = middle + 0.3 * rng.standard_normal(param.shape)
    return model


def tokens(seed=1, time=9):
    ids = np.random.default_rng(seed).integers(0, SMALL["vocab_size"], (2, time + 1))
    return mt.from_numpy(ids[:, :-1].copy()), mt.from_numpy(ids[:, 1:].copy())


def cross_entropy(logits, targets):
    logits = logits.detach().numpy()
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probs, targets[..., None], -1).mean()


def test_the_loss_is_the_sum_over_depths():
    model, (ids, targets) = randomised(), tokens()
    h, expected = model.features(ids), 0.0
    for k in range(3):
        if k:
            layer, known = model.mtp[k - 1], ids[:, k:]
            both = mt.cat([layer.enorm(model.embed_tokens(known)), layer.hnorm(h[:, :-1])], -1)
            h = layer.norm(layer.block(layer.eh_proj(both), step(known)))
        part = cross_entropy(model.lm_head(h), targets.numpy()[:, k:])
        expected += part if k == 0 else 0.3 / 2 * part
    assert model.loss(ids, targets).item() == pytest.approx(expected, rel=1e-9)
    plain = cross_entropy(model(ids)[0], targets.numpy())
    assert model.eval().loss(ids, targets).item() == pytest.approx(plain, rel=1e-9)


def test_every_depth_sees_the_tokens_up_to_its_own_alone():
    model, (ids, _) = randomised(), tokens()
    changed = ids.numpy().copy()
    changed[:, 6] = (changed[:, 6] + 1) % SMALL["vocab_size"]
    changed = mt.from_numpy(changed)
    before, _ = model.further(model.features(ids), ids)
    after, _ = model.further(model.features(changed), changed)
    for k, (one, other) in enumerate(zip(before, after, strict=True), 1):
        same = abs(one.detach().numpy() - other.detach().numpy()).max((0, 2)) < 1e-12
        assert same.tolist() == [i + k < 6 for i in range(9 - k)]


def test_all_of_it_is_trained_and_started_alike():
    model, (ids, targets) = randomised(aux_loss_alpha=0.01), tokens()
    model.loss(ids, targets).backward()
    assert all(param.grad is not None for param in model.parameters())
    made = MultiTokenDecoder(model.config, 1, 0.3, generator=mt.Generator(0))
    assert made.mtp[0].eh_proj.weight.data.std() == pytest.approx(0.02, rel=0.2)
    assert isinstance(randomised(num_nextn_predict_layers=0), Decoder)


def test_in_files_it_is_the_layers_beyond_the_last():
    model = randomised(np.float32)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    files = model.config.to_files(arrays)
    for name in ("enorm.weight", "eh_proj.weight", "shared_head.norm.weight", "mlp.gate.weight"):
        assert f"model.layers.3.{name}" in files
    assert "model.layers.2.mlp.experts.3.up_proj.weight" in files
    published = {
        **files,
        "model.layers.2.embed_tokens.weight": arrays["embed_tokens.weight"],
        "model.layers.2.shared_head.head.weight": arrays["lm_head.weight"],
    }
    back = model.config.from_files(published)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    without = DeepseekV3Config(**{**SMALL, "num_nextn_predict_layers": 0}).from_files(files)
    assert not any("mtp" in name or "layers.2" in name for name in without)
    with pytest.raises(CheckpointError, match="num_nextn_predict_layers"):
        from_layers({"layers.0.input_layernorm.weight": np.zeros(1)}, 2, 1)
