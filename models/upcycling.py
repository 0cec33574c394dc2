"""A model with experts, begun from a trained dense one instead of from random numbers.

    expert_e ← hidden units of the dense feed-forward layer      all else as it was, routers anew

What the dense model has learnt is not paid for a second time. Sources: Komatsuzaki et al. 2022,
"Sparse upcycling" (arXiv 2212.05055); with small experts, half of whose units begin anew, Qwen team
2024 (Qwen2, 2407.10671), section 2.2.2.
"""

import numpy as np

from minitorch.random import Generator
from models.blocks.experts import MixtureOfExperts, upcycled
from models.decoder import Decoder, DecoderConfig

ANEW = "gate.weight", "gate.e_score_correction_bias", "shared_expert_gate.weight"
"""Of a layer with experts, what a dense one has nothing for."""


def upcycle(
    dense: Decoder, config: DecoderConfig, reinitialised: float = 0.0, seed: int = 0
) -> Decoder:
    """The model of a configuration with experts that goes on from `dense`, which stays as it is.

    Of each layer with experts these, and the shared one if there is one, are cut from the dense
    layer in its place (`blocks.experts.upcycled`, which has reinitialised); routers begin at
    random, and all other weights are copies. Where the weights of a token's experts sum to 1 and
    each is as wide as the dense layer, and none of their units begins anew, both models compute the
    same. Raises CheckpointError where anything but the feed-forward layers has another shape.
    """
    model = config.build(dense.lm_head.weight.dtype, Generator(seed))
    weights = {name: tensor.numpy() for name, tensor in dense.state_dict().items()}
    for name, layer in model.named_modules():
        if isinstance(layer, MixtureOfExperts):
            seed += 1
            weights.update(_experts(layer, weights, f"{name}.", reinitialised, seed))
    model.load_state_dict(weights)
    return model


def _experts(
    layer: MixtureOfExperts,
    weights: dict[str, np.ndarray],
    prefix: str,
    reinitialised: float,
    seed: int,
) -> dict[str, np.ndarray]:
    """What stands in the place of the dense layer's three matrices, which are taken out."""
    gate, up, down = (weights.pop(f"{prefix}{name}_proj.weight") for name in ("gate", "up", "down"))
    gate_up, own = np.concatenate([gate, up]), layer.state_dict()
    found = {name: own[name].numpy() for name in ANEW if name in own}
    count, _, hidden = layer.experts.down_proj.shape
    names = "experts.gate_up_proj", "experts.down_proj"
    found.update(zip(names, upcycled(gate_up, down, count, hidden, reinitialised, seed)))
    if layer.shared_experts is not None:
        hidden = own["shared_experts.down_proj.weight"].shape[1]
        (both,), (last,) = upcycled(gate_up, down, 1, hidden, reinitialised, seed)
        for name, array in zip(("gate", "up", "down"), (*np.split(both, 2), last)):
            found[f"shared_experts.{name}_proj.weight"] = array
    return {f"{prefix}{name}": array for name, array in found.items()}
