"""The GPT of models/gpt2.py in JAX, one jitted training step with AdamW and clipping."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from models.gpt2 import GPT2Config


def _parameters(config: GPT2Config) -> dict:
    generator = np.random.default_rng(0)
    d = config.n_embd

    def weight(*shape):
        return jnp.asarray(0.02 * generator.standard_normal(shape), jnp.float32)

    def norm():
        return {"w": jnp.ones(d), "b": jnp.zeros(d)}

    def linear(out, inner):
        return {"w": weight(inner, out), "b": jnp.zeros(out)}

    blocks = [
        {
            "ln_1": norm(),
            "qkv": linear(3 * d, d),
            "attn": linear(d, d),
            "ln_2": norm(),
            "fc": linear(4 * d, d),
            "mlp": linear(d, 4 * d),
        }
        for _ in range(config.n_layer)
    ]
    return {
        "wte": weight(config.vocab_size, d),
        "wpe": weight(config.n_positions, d),
        "blocks": blocks,
        "ln_f": norm(),
    }


def _norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5) * p["w"] + p["b"]


def _linear(p, x):
    return x @ p["w"] + p["b"]


def _block(p, x, heads):
    batch, time, d = x.shape
    qkv = _linear(p["qkv"], _norm(p["ln_1"], x)).reshape(batch, time, 3, heads, d // heads)
    q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    scores = q @ k.swapaxes(-1, -2) * (d // heads) ** -0.5
    scores = jnp.where(jnp.tri(time, dtype=bool), scores, -jnp.inf)
    y = (jax.nn.softmax(scores, -1) @ v).transpose(0, 2, 1, 3).reshape(batch, time, d)
    x = x + _linear(p["attn"], y)
    return x + _linear(p["mlp"], jax.nn.gelu(_linear(p["fc"], _norm(p["ln_2"], x))))


def _loss(p, ids, targets, heads):
    x = p["wte"][ids] + p["wpe"][: ids.shape[1]]
    for block in p["blocks"]:
        x = _block(block, x, heads)
    log_probs = jax.nn.log_softmax(_norm(p["ln_f"], x) @ p["wte"].T)
    return -jnp.take_along_axis(log_probs, targets[..., None], -1).mean()


@partial(jax.jit, static_argnames="heads", donate_argnums=(0, 1, 2))
def _step(p, m, v, t, ids, targets, heads):
    loss, g = jax.value_and_grad(_loss)(p, ids, targets, heads)
    norm = jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(g)))
    g = jax.tree.map(lambda leaf: leaf * jnp.minimum(1.0, 1.0 / (norm + 1e-6)), g)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
    rate, first, second = 1e-4, 1 - 0.9**t, 1 - 0.999**t

    def update(p, m, v):
        return p * (1 - rate * 0.1) - rate * (m / first) / (jnp.sqrt(v / second) + 1e-8)

    return jax.tree.map(update, p, m, v), m, v, loss


class Step:
    """One training step at a call."""

    def __init__(self, config: GPT2Config, ids, targets):
        self.heads = config.n_head
        self.ids, self.targets = jnp.asarray(ids), jnp.asarray(targets)
        self.p = _parameters(config)
        self.m = jax.tree.map(jnp.zeros_like, self.p)
        self.v = jax.tree.map(jnp.zeros_like, self.p)
        self.t = 0

    def __call__(self) -> float:
        self.t += 1
        self.p, self.m, self.v, loss = _step(
            self.p, self.m, self.v, float(self.t), self.ids, self.targets, self.heads
        )
        return float(loss)
