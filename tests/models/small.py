"""Small language models of every kind of attention, and their formulas typed again in NumPy."""

import dataclasses
import math

import numpy as np

import minitorch as mt
from models.blocks.positions import Rotary
from models.gpt2 import GPT2Config
from models.llama import LlamaConfig
from models.mistral import MistralConfig

SMALL = LlamaConfig(
    vocab_size=19,
    hidden_size=12,
    num_hidden_layers=2,
    max_position_embeddings=32,
    intermediate_size=20,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=4,
    rope_theta=100.0,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Varied(LlamaConfig):
    """A Llama with any variant of attention."""

    variant: dict = dataclasses.field(default_factory=dict)

    def attention(self, layer):
        return dataclasses.replace(super().attention(layer), **self.variant)


def varied(**variant):
    return Varied(**dataclasses.asdict(SMALL), variant=variant)


GPT2 = GPT2Config(vocab_size=19, n_positions=16, n_layer=2, n_head=3, n_embd=12)


def randomised(config, dtype=np.float64, seed=0):
    """A model none of whose parameters is 0 or 1."""
    model = config.build(np.dtype(dtype), None)
    rng = np.random.default_rng(seed)
    for name, param in model.named_parameters():
        is_norm = "norm" in name or "ln_" in name
        middle = 1.0 if is_norm and name.endswith("weight") else 0.0
        param.data[...] = middle + 0.3 * rng.standard_normal(param.shape)
    return model


def tokens(shape, seed=1):
    """Ids, of which all these models have 19."""
    return np.random.default_rng(seed).integers(0, 19, shape)


def logits_of(model, ids, cache=None, mask=None):
    mask = None if mask is None else mt.from_numpy(np.ascontiguousarray(mask))
    with mt.no_grad():
        return model(mt.from_numpy(np.ascontiguousarray(ids)), cache=cache, mask=mask)[0].numpy()


def llama_formula(model, ids):
    """The logits of one sequence, token by token and head by head."""
    w = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    config, d = model.config, model.config.head_dim

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * w[name]

    def turned(x, position):
        out = np.empty_like(x)
        for i in range(d // 2):
            angle = position * config.rope_theta ** (-2 * i / d)
            a, b = x[i], x[i + d // 2]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + d // 2] = a * math.sin(angle) + b * math.cos(angle)
        return out

    x = w["embed_tokens.weight"][ids]
    for i in range(config.num_hidden_layers):
        at = f"layers.{i}."
        h = norm(x, at + "input_layernorm.weight")
        q, k, v = (h @ w[f"{at}self_attn.{name}_proj.weight"].T for name in "qkv")
        out = np.zeros((len(ids), config.num_attention_heads * d))
        for head in range(config.num_attention_heads):
            group = head // (config.num_attention_heads // config.num_key_value_heads)
            mine, theirs = slice(head * d, (head + 1) * d), slice(group * d, (group + 1) * d)
            for t in range(len(ids)):
                query = turned(q[t, mine], t)
                scores = np.array([query @ turned(k[s, theirs], s) for s in range(t + 1)])
                probs = np.exp(scores / math.sqrt(d))
                out[t, mine] = probs / probs.sum() @ v[: t + 1, theirs]
        x = x + out @ w[at + "self_attn.o_proj.weight"].T
        h = norm(x, at + "post_attention_layernorm.weight")
        gate, up = (h @ w[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[at + "mlp.down_proj.weight"].T
    return norm(x, "norm.weight") @ w["lm_head.weight"].T


def gpt2_formula(model, ids):
    """The same of GPT-2."""
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


VARIANTS = {
    "plain": {},
    "multi-query": {"num_kv_heads": 1},
    "multi-head": {"num_kv_heads": 6},
    "biases": {"qkv_bias": True, "out_bias": True},
    "norms": {"qk_norm": 1e-6},
    "window": {"window": 3},
    "window of one": {"window": 1},
    "sinks": {"sinks": True, "window": 4},
    "softcap": {"softcap": 2.0, "scale": 0.7},
    "linear biases": {"rotary": None, "alibi": True},
    "linear biases, window": {"rotary": None, "alibi": True, "window": 3},
    "logarithmic": {"trained_length": 4},
    "partial, interleaved": {"rotary": Rotary(2, 50.0, interleaved=True)},
}
"""What is changed of an attention."""

STREAMING = MistralConfig(
    **dataclasses.asdict(dataclasses.replace(SMALL)), sliding_window=3, first_tokens=2
)

MODELS = {
    "gpt2": GPT2,
    "first tokens": STREAMING,
    "gpt2 without biases": dataclasses.replace(GPT2, bias=False),
    **{name: varied(**variant) for name, variant in VARIANTS.items()},
}

MASK = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1],
    ],
    bool,
)
