"""A model with experts that goes on from a dense one."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import CheckpointError
from models.mistral import MistralConfig
from models.mixtral import MixtralConfig
from models.qwen import Qwen2Config
from models.qwen_moe import Qwen2MoeConfig
from models.upcycling import upcycle
from tests.models.small import logits_of, randomised, tokens

SIZES = {"vocab_size": 19, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 12}


@pytest.mark.parametrize("hidden", [12, 24])
def test_with_whole_experts_it_computes_what_the_dense_model_did(hidden):
    """Also through a second copy of the units, which is dealt out to the same expert."""
    dense = randomised(MistralConfig.preset("toy", **SIZES)).eval()
    config = MixtralConfig.preset("toy", **{**SIZES, "intermediate_size": hidden})
    model, ids = upcycle(dense, config).eval(), tokens((2, 9))
    if hidden == 24:
        for layer in model.layers:
            layer.mlp.experts.down_proj.data *= 0.5
    np.testing.assert_allclose(logits_of(model, ids), logits_of(dense, ids), rtol=1e-9, atol=1e-10)
    assert model.layers[0].mlp.gate.weight.data.std() > 0
    assert model.num_parameters() == config.num_parameters()
    model.embed_tokens.weight.data[...] = 0
    assert dense.embed_tokens.weight.data.any()


def test_small_experts_have_the_units_of_the_dense_layer():
    """Qwen2-MoE: shared experts too, half of the units anew, and some layers dense as they were."""
    dense = randomised(Qwen2Config.preset("toy", **SIZES))
    config = Qwen2MoeConfig.preset(
        "toy",
        **SIZES,
        tie_word_embeddings=True,
        moe_intermediate_size=6,
        shared_expert_intermediate_size=8,
        num_experts=8,
        mlp_only_layers=(0,),
    )
    model = upcycle(dense, config, reinitialised=0.5)
    assert model.lm_head.weight is model.embed_tokens.weight
    layer, old = model.layers[1].mlp, dense.layers[1].mlp
    for name in ("gate_proj", "up_proj", "down_proj"):
        mine, his = (getattr(m.layers[0].mlp, name).weight.data for m in (model, dense))
        np.testing.assert_array_equal(mine, his)
    rows = old.gate_proj.weight.data
    known = [(rows == row).all(1).any() for row in layer.experts.gate_up_proj.data[0, :6]]
    assert sum(known) == 3
    shared = layer.shared_experts.gate_proj.weight.data
    assert sum((rows == row).all(1).any() for row in shared) == 4
    np.testing.assert_array_equal(
        model.layers[1].self_attn.q_proj.weight.data, dense.layers[1].self_attn.q_proj.weight.data
    )
    ids = mt.from_numpy(tokens((2, 9)))
    model.train().loss(ids, ids).backward()
    assert all(param.grad is not None for param in model.parameters())


@pytest.mark.parametrize("changes", [{"hidden_size": 32}, {"num_hidden_layers": 1}], ids=str)
def test_other_sizes_are_refused(changes):
    dense = randomised(MistralConfig.preset("toy", **SIZES))
    config = MixtralConfig.preset("toy", **{**SIZES, **changes})
    with pytest.raises(CheckpointError):
        upcycle(dense, config)
