"""Write tests/models/golden: tiny models by transformers, with what it computes from them.

    python -m tests.parity.make_golden [NAME ...]

Each folder is one that transformers saved, of random weights (all of them: what starts as 0 or 1
would hide mistakes), and beside it expected.safetensors: ids, and the logits, the loss, the norm of
every gradient and ten greedy tokens, in float64 arithmetic. tests/models/test_golden.py holds the
models against them where torch is not installed.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from minitorch.io import save_safetensors, write_json
from tests.parity.qwen1 import Qwen1

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


QWEN = {
    "architectures": ["QWenLMHeadModel"],
    "model_type": "qwen",
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "kv_channels": 4,
    "max_position_embeddings": 32,
    "seq_length": 4,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 1000.0,
    "rotary_pct": 1.0,
    "no_bias": True,
    "emb_dropout_prob": 0.0,
    "attn_dropout_prob": 0.0,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
}
"""The texts are longer than seq_length: both of its ways to read beyond it take part."""


def write(name: str, kind: str, settings: dict) -> None:
    """One folder, by transformers."""
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
    randomise(model, rng)
    model.save_pretrained(FOLDER / name)
    (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
    model = model.double()
    expect(
        FOLDER / name,
        model,
        rng.integers(1, settings["vocab_size"], (2, 9)),
        lambda ids: model(ids).logits,
        lambda ids: model.generate(ids, max_new_tokens=10, do_sample=False),
    )


def write_qwen(name: str = "qwen") -> None:
    """The folder of Qwen 1, by tests/parity/qwen1.py."""
    model, folder, rng = Qwen1(QWEN), FOLDER / name, np.random.default_rng(sum(name.encode()))
    randomise(model, rng)
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", QWEN)
    arrays = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    save_safetensors(folder / "model.safetensors", arrays, {"format": "pt"})
    model = model.double()
    expect(
        folder,
        model,
        rng.integers(1, QWEN["vocab_size"], (2, 9)),
        lambda ids: model(ids, ids.shape[1])[0],
        lambda ids: model.generate(ids, 10),
    )


def randomise(model: torch.nn.Module, rng: np.random.Generator) -> None:
    """All that is not derived; what multiplies after a norm around 1."""
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and not any(name in key for name in DERIVED):
                middle = 1.0 if tensor.ndim == 1 and key.endswith("weight") else 0.0
                values = middle + 0.3 * rng.standard_normal(tuple(tensor.shape))
                tensor.copy_(torch.from_numpy(values))


def expect(
    folder: Path, model: torch.nn.Module, ids: np.ndarray, logits_of: Callable, continued: Callable
) -> None:
    """Write what the model computes of ids, (batch, time)."""
    logits = logits_of(torch.from_numpy(ids[:, :-1]))
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(ids[:, 1:]).flatten()
    )
    loss.backward()
    arrays = {
        "ids": ids,
        "logits": logits.detach().numpy(),
        "loss": loss.detach().numpy(),
        "tokens": continued(torch.from_numpy(ids)).numpy(),
        **{f"grad.{key}": norms(model, key, param.grad) for key, param in model.named_parameters()},
    }
    save_safetensors(folder / "expected.safetensors", arrays)


def norms(model: torch.nn.Module, name: str, gradient: torch.Tensor) -> np.ndarray:
    """Its norm; three, one below the other, where Qwen 1 has the three projections in one."""
    if ".attn.c_attn." in name and isinstance(model, Qwen1):
        return np.array([part.norm().item() for part in gradient.chunk(3)])
    return gradient.norm().numpy()


if __name__ == "__main__":
    for case in sys.argv[1:] or [*CASES, "qwen"]:
        write_qwen() if case == "qwen" else write(case, *CASES[case])
