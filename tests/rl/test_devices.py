"""The same numbers and gradients on the CUDA kernels, in the emulator, as on the CPU."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import rl

pytest.importorskip("minitorch._simt", reason="the emulator was not built")

B, T, V = 3, 4, 5


def rand(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


ARRAYS = {
    "old": rand(B, T),
    "reference": rand(B, T, seed=1),
    "values": rand(B, T, seed=2),
    "teacher": rand(B, T, V, seed=3),
    "advantages": rand(B, seed=4),
    "group": rand(2, 3, seed=5),
    "tokens": np.random.default_rng(0).integers(0, V, (B, T)),
    "mask": np.arange(T) < np.array([[4], [2], [1]]),
}

LOSSES = {
    "ppo": lambda p, x: rl.ppo_loss(p, x["old"], x["advantages"], x["mask"], dual_clip=3.0),
    "grpo": lambda p, x: rl.grpo_loss(
        p, x["old"], x["advantages"], x["mask"], reference=x["reference"]
    ),
    "gspo": lambda p, x: rl.gspo_loss(p, x["old"], x["advantages"], x["mask"]),
    "cispo": lambda p, x: rl.cispo_loss(p, x["old"], x["advantages"], x["mask"], max_ratio=2.0),
    "value": lambda p, x: rl.value_loss(p, x["values"], x["mask"], old_values=x["old"]),
    "dpo": lambda p, x: rl.dpo_loss(
        *(rl.masked_sum(y, x["mask"], 1) for y in (p, x["old"], x["reference"], x["values"])),
        label_smoothing=0.1,
    ),
    "kto": lambda p, x: rl.kto_loss(
        rl.masked_sum(p, x["mask"], 1), x["advantages"], x["advantages"] > 0, divergence=0.1
    ),
    "process": lambda p, x: rl.process_reward_loss(p, x["mask"], x["mask"]),
}


def on(device):
    return {name: mt.tensor(array).to(device=device) for name, array in ARRAYS.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    results = []
    for device in ("cpu", "simt"):
        x = on(device)
        logits = mt.tensor(rand(B, T, V, seed=9)).to(device=device).requires_grad_()
        loss = LOSSES[name](rl.token_log_probs(logits, x["tokens"]), x)
        loss.backward()
        results.append((loss.detach().cpu().numpy(), logits.grad.cpu().numpy()))
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


FUNCTIONS = {
    "gae": lambda x: (
        rl.gae(
            x["old"] * x["mask"], x["values"], x["mask"], lam=rl.length_adaptive_lambda(x["mask"])
        ).returns
    ),
    "grpo": lambda x: rl.grpo_advantages(x["group"]),
    "rloo": lambda x: rl.rloo_advantages(x["group"]),
    "process": lambda x: rl.process_advantages(
        x["old"].reshape(1, B, T), x["mask"].reshape(1, B, T)
    ),
    "whiten": lambda x: rl.whiten(x["old"], x["mask"]),
    "shaped": lambda x: rl.kl_shaped_rewards(
        x["advantages"], x["old"], x["reference"], x["mask"], beta=0.1, limit=1.0
    ),
    "length": lambda x: rl.length_reward(x["tokens"], x["mask"]),
    "mask": lambda x: rl.completion_mask(x["tokens"], 2),
    "entropy": lambda x: rl.entropy(x["teacher"]),
    "jsd": lambda x: rl.generalised_jsd(0.3)(x["teacher"].flip(0), x["teacher"]),
    "top k": lambda x: rl.top_k_forward_kl(x["teacher"].flip(0), rl.top_k_targets(x["teacher"], 2)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    expected, found = (FUNCTIONS[name](on(device)).cpu().numpy() for device in ("cpu", "simt"))
    np.testing.assert_allclose(found, expected, atol=1e-5)
