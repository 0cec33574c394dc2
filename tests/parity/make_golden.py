"""Write tests/models/golden: tiny models by transformers, with what it computes from them.

    python -m tests.parity.make_golden [NAME ...]

Each folder is one that transformers saved, of random weights (all of them: what starts as 0 or 1
would hide mistakes), and beside it expected.safetensors: ids, and the logits, the loss, the norm of
every gradient and ten greedy tokens, in float64 arithmetic. tests/models/test_golden.py holds the
models against them where torch is not installed.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

from minitorch.io import save_safetensors

FOLDER = Path(__file__).parent.parent / "models" / "golden"
SIZES = {
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 8,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 4}
DEEPSEEK = {
    **SIZES,
    "moe_intermediate_size": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 6,
    "q_lora_rank": 5,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "num_key_value_heads": 4,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
}
LINEAR = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "block_size": 3,
    "num_local_experts": 3,
    "linear_attn_alpha_factor": 1.5,
    "mlp_alpha_factor": 0.7,
}
DERIVED = ("inv_freq", "slope_rate", "_decay")
"""Buffers that follow from the configuration."""
CASES = {
    "gpt2": ("gpt2", {"vocab_size": 13, "n_positions": 32, "n_embd": 8, "n_layer": 2, "n_head": 2}),
    "llama": ("llama", SIZES),
    "llama3": ("llama", {**SIZES, "rope_parameters": LLAMA_3, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**SIZES, "sliding_window": 3}),
    "qwen2": ("qwen2", SIZES),
    "qwen2-yarn": ("qwen2", {**SIZES, "rope_parameters": YARN}),
    "mixtral": ("mixtral", {**SIZES, "num_local_experts": 3}),
    "qwen2-moe": (
        "qwen2_moe",
        {**SIZES, **EXPERTS, "shared_expert_intermediate_size": 8, "mlp_only_layers": [0]},
    ),
    "deepseek-v2": ("deepseek_v2", {**DEEPSEEK, "topk_method": "group_limited_greedy"}),
    "deepseek-v3": ("deepseek_v3", {**DEEPSEEK, "num_mtp_layers": 0}),
    "deepseek-v3-yarn": (
        "deepseek_v3",
        {
            **DEEPSEEK,
            "num_mtp_layers": 0,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
        },
    ),
    "minimax": ("minimax", {**SIZES, **LINEAR}),
}


def write(name: str, kind: str, settings: dict) -> None:
    """One folder."""
    config = transformers.AutoConfig.for_model(
        kind,
        **settings,
        attn_implementation="eager",
        experts_implementation="eager",  # the other has no float64
        pad_token_id=0,
        bos_token_id=1,
    )
    config.eos_token_id = None
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    rng = np.random.default_rng(sum(name.encode()))
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and not any(name in key for name in DERIVED):
                middle = 1.0 if tensor.ndim == 1 and key.endswith("weight") else 0.0
                values = middle + 0.3 * rng.standard_normal(tuple(tensor.shape))
                tensor.copy_(torch.from_numpy(values))
    folder = FOLDER / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)

    model = model.double()
    ids = rng.integers(1, settings["vocab_size"], (2, 9))
    logits = model(torch.from_numpy(ids[:, :-1])).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(ids[:, 1:]).flatten()
    )
    loss.backward()
    tokens = model.generate(torch.from_numpy(ids), max_new_tokens=10, do_sample=False)
    arrays = {
        "ids": ids,
        "logits": logits.detach().numpy(),
        "loss": loss.detach().numpy(),
        "tokens": tokens.numpy(),
        **{f"grad.{key}": param.grad.norm().numpy() for key, param in model.named_parameters()},
    }
    save_safetensors(folder / "expected.safetensors", arrays)


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        write(case, *CASES[case])
