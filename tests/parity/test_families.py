"""Every family against transformers: values, gradients, decoding, and files in both directions.

All parameters are at random: what starts as 0 or 1 would hide mistakes.
"""

import numpy as np
import pytest

import minitorch as mt
from models.families import FAMILIES, from_pretrained

PEERS = "peer not installed: pip install -e .[peers]"
torch = pytest.importorskip("torch", reason=PEERS)
transformers = pytest.importorskip("transformers", reason=PEERS)

SIZES = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def rope(theta=1000.0, **scaling):
    return {"rope_parameters": {"rope_theta": theta, "rope_type": "default", **scaling}}


QWEN_MOE = {
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 16,
    "num_experts": 7,
    "num_experts_per_tok": 3,
}
DEEPSEEK = {
    "moe_intermediate_size": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 10,
    "q_lora_rank": 14,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 8,
    "v_head_dim": 4,
    "num_key_value_heads": 6,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
}
DEEPSEEK_V3 = {**DEEPSEEK, "num_mtp_layers": 0}
MINIMAX = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "block_size": 5,
    "num_local_experts": 5,
    **{f"{part}_alpha_factor": 1.7 for part in ("full_attn", "linear_attn", "mlp")},
}
CASES = {
    "llama 2": ("llama", {"num_key_value_heads": 6}),
    "llama 2, grouped": ("llama", {"rms_norm_eps": 1e-5}),
    "llama 3": ("llama", rope(50_000.0)),
    "llama 3.1": ("llama", rope(**LLAMA_3)),
    "llama 3.2": ("llama", {**rope(**LLAMA_3), "tie_word_embeddings": True}),
    "llama, biases, wide heads": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "head_dim": 10},
    ),
    "llama, interpolated": ("llama", rope(rope_type="linear", factor=3.0)),
    "llama, dynamic": (
        "llama",
        {**rope(rope_type="dynamic", factor=2.0), "max_position_embeddings": 5},
    ),
    "deepseek 67b": ("llama", {"num_hidden_layers": 5, "num_attention_heads": 8, "head_dim": 4}),
    "mistral": ("mistral", {"sliding_window": 4}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "qwen 2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen 2.5": ("qwen2", rope(1e6)),
    "qwen 2, yarn": ("qwen2", rope(**YARN)),
    "qwen 2, yarn, temperature": ("qwen2", rope(**YARN, attention_factor=1.3, beta_fast=4.0)),
    "qwen 2, windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "mixtral": ("mixtral", {"num_local_experts": 5}),
    "qwen 2 moe": ("qwen2_moe", QWEN_MOE),
    "qwen 2 moe, some dense": (
        "qwen2_moe",
        {
            **QWEN_MOE,
            "norm_topk_prob": True,
            "num_hidden_layers": 5,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
        },
    ),
    "deepseek v2": ("deepseek_v2", {**DEEPSEEK, "topk_method": "group_limited_greedy"}),
    "deepseek v2 lite": ("deepseek_v2", {**DEEPSEEK, "q_lora_rank": None, "attention_bias": True}),
    "deepseek v2, yarn": (
        "deepseek_v2",
        {**DEEPSEEK, **rope(**YARN, mscale=0.707, mscale_all_dim=0.707)},
    ),
    "deepseek v3": ("deepseek_v3", DEEPSEEK_V3),
    "deepseek v3, yarn": (
        "deepseek_v3",
        {**DEEPSEEK_V3, **rope(**YARN, mscale=1.0, mscale_all_dim=0.7)},
    ),
    "minimax": ("minimax", MINIMAX),
}
cases = pytest.mark.parametrize(("kind", "changes"), CASES.values(), ids=CASES)


def peer(kind, changes, seed=0):
    config = transformers.AutoConfig.for_model(
        kind, **{**SIZES, **changes}, attn_implementation="eager", pad_token_id=0, eos_token_id=None
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            middle = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            values = middle + 0.1 * rng.standard_normal(tuple(param.shape))
            param.copy_(torch.from_numpy(values))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.from_numpy(0.1 * rng.standard_normal(tuple(buffer.shape))))
    return model


@pytest.fixture
def pair(kind, changes, tmp_path):
    theirs = peer(kind, changes)
    theirs.save_pretrained(tmp_path)
    return theirs, from_pretrained(tmp_path).eval()


def tokens(shape=(3, 12), seed=1):
    ids = np.random.default_rng(seed).integers(1, SIZES["vocab_size"], shape)
    ids[0, 5:] = ids[0, 4]  # a repeated token: its embedding's gradient adds up
    return ids


def relative(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def array(tensor):
    return tensor.detach().numpy()


@cases
def test_logits_hidden_states_loss_and_every_gradient(pair, changes):
    theirs, ours = pair
    ids, targets = tokens(), tokens(seed=2)
    targets[1, 3:5] = -100
    expected = theirs(torch.from_numpy(ids), output_hidden_states=True)
    states = ours.hidden_states(mt.from_numpy(ids))
    states[-1] = ours.norm(states[-1])  # theirs has the last one normalised
    for mine, his in zip(states, expected.hidden_states, strict=True):
        assert relative(array(mine), array(his)) < 1e-5

    logits, loss = ours(mt.from_numpy(ids), mt.from_numpy(targets))
    loss.backward()
    expected_loss = torch.nn.functional.cross_entropy(
        expected.logits.flatten(0, 1), torch.from_numpy(targets).flatten()
    )
    expected_loss.backward()
    assert relative(array(logits), array(expected.logits)) < 1e-5
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    gradients = {name: param.grad.numpy() for name, param in theirs.named_parameters()}
    gradients = ours.config.from_files(gradients)
    for name, param in ours.named_parameters():
        assert relative(param.grad.numpy(), gradients.pop(name)) < 1e-5, name
    assert not gradients


@cases
def test_ten_greedy_tokens_through_the_cache(pair, changes):
    theirs, ours = pair
    if "dynamic" in str(changes):
        pytest.skip("their cache mixes keys turned for different lengths")
    ids = tokens((2, 6))
    expected = theirs.generate(torch.from_numpy(ids), max_new_tokens=10, do_sample=False).numpy()
    cache, found, new = ours.new_cache(), ids, ids
    with mt.no_grad():
        for _ in range(10):
            logits, _ = ours(mt.from_numpy(new), cache=cache)
            new = logits.numpy()[:, -1:].argmax(-1)
            found = np.concatenate([found, new], 1)
    np.testing.assert_array_equal(found, expected)


@cases
def test_left_padding(pair):
    theirs, ours = pair
    ids, mask = tokens(), np.ones((3, 12), np.int64)
    mask[0, :5] = mask[2, :1] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        expected = theirs(
            *map(torch.from_numpy, (ids, mask)), position_ids=torch.from_numpy(positions)
        ).logits.numpy()
    found = array(ours(mt.from_numpy(ids), mask=mt.from_numpy(mask))[0])
    assert relative(found[mask == 1], expected[mask == 1]) < 1e-5


@cases
def test_there_and_back(pair, tmp_path):
    """Written here, in shards, and read there: the same model, and nothing missing or unknown."""
    _, ours = pair
    ours.save_pretrained(tmp_path / "back", max_shard_bytes=10_000)
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 1
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "back", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[key] for key in report), report
    assert theirs.num_parameters() == ours.num_parameters() == ours.config.num_parameters()
    ids = tokens()
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(ids)).logits.numpy()
    assert relative(array(ours(mt.from_numpy(ids))[0]), expected) < 1e-5
    again = from_pretrained(tmp_path / "back")
    assert again.config == ours.config
    for name, tensor in ours.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), tensor.numpy())


def test_bfloat16_files_are_read_as_they_are(tmp_path):
    theirs = peer("llama", {}).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path, mt.bfloat16)
    assert ours.lm_head.weight.dtype == mt.bfloat16
    widened = from_pretrained(tmp_path)
    for name, tensor in theirs.state_dict().items():
        mine = widened.state_dict()[name.removeprefix("model.")]
        np.testing.assert_array_equal(mine.numpy(), tensor.float().numpy())


def test_published_sizes_are_theirs():
    """The same count, from their model without memory, for every preset of a size."""
    for kind in FAMILIES.keys() - {"gpt2", "qwen"}:
        family = FAMILIES[kind]
        for name in family.presets:
            ahead = {"num_nextn_predict_layers": 0} if kind == "deepseek_v3" else {}
            config = family.preset(name, **ahead)  # theirs leaves them out
            with torch.device("meta"):
                theirs = transformers.AutoModelForCausalLM.from_config(
                    transformers.AutoConfig.for_model(**config.to_hugging_face())
                )
            assert theirs.num_parameters() == config.num_parameters(), name
