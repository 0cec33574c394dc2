"""LoRA against peft on transformers' models: adapters in both directions, values and gradients."""

import numpy as np
import pytest

import minitorch as mt
from models import lora
from models.families import from_pretrained
from models.lora import LoraConfig

PEERS = "peer not installed: pip install -e .[peers]"
torch = pytest.importorskip("torch", reason=PEERS)
transformers = pytest.importorskip("transformers", reason=PEERS)
peft = pytest.importorskip("peft", reason=PEERS)

SIZES = {
    "gpt2": {"vocab_size": 97, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 4},
    "llama": {
        "vocab_size": 97,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
    },
}
TARGETS = {"gpt2": ["c_attn", "c_fc", "mlp.c_proj"], "llama": ["q_proj", "v_proj", "down_proj"]}
LIMIT = {"gpt2": 1e-12, "llama": 1e-6}  # transformers turns queries and keys in float32
IDS, TARGET_IDS = np.random.default_rng(0).integers(0, 97, (2, 2, 9))


def relative(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.fixture(params=SIZES)
def base(request, tmp_path):
    """(family, folder of a model of transformers)."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(request.param, **SIZES[request.param])
    model = transformers.AutoModelForCausalLM.from_config(config).double()
    model.save_pretrained(tmp_path / "base")
    return request.param, tmp_path / "base"


def theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def peft_adapter(family, folder, **settings):
    """A model of peft whose adapters are all at random."""
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS[family], **settings)
    model = peft.get_peft_model(theirs(folder), config).eval()
    for name, param in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(param, std=0.2)
    return model.double()


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_writes_and_we_read(base, rslora, tmp_path):
    family, folder = base
    peer = peft_adapter(family, folder, use_rslora=rslora)
    peer.save_pretrained(tmp_path / "adapter")
    model = from_pretrained(folder, np.float64).eval()
    config = lora.load_adapter(model, tmp_path / "adapter")
    assert (config.r, config.use_rslora) == (3, rslora)

    expected = peer(torch.from_numpy(IDS)).logits
    logits, loss = model(mt.from_numpy(IDS), mt.from_numpy(TARGET_IDS))
    assert relative(logits.detach().numpy(), expected.detach().numpy()) < LIMIT[family]
    torch.nn.functional.cross_entropy(
        expected.flatten(0, 1), torch.from_numpy(TARGET_IDS).flatten()
    ).backward()
    loss.backward()
    their_names = lora._names_in_files(model.config, lora.adapters(model))
    peers = dict(peer.named_parameters())
    for name, layer in lora.adapters(model).items():
        for part in ("lora_A", "lora_B"):
            key = f"base_model.model.{their_names[name]}.{part}.default.weight"
            gradient = getattr(layer, part).grad.numpy()
            assert relative(gradient, peers[key].grad.numpy()) < LIMIT[family], key


@pytest.mark.parametrize("rslora", [False, True])
def test_we_write_and_peft_reads(base, rslora, tmp_path):
    family, folder = base
    model = from_pretrained(folder, np.float64).eval()
    config = LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS[family], use_rslora=rslora)
    lora.attach(model, config)
    rng = np.random.default_rng(1)
    for layer in lora.adapters(model).values():
        layer.lora_B.data[...] = 0.2 * rng.standard_normal(layer.lora_B.shape)
    lora.save_adapter(model, tmp_path / "adapter", config, folder)

    peer = peft.PeftModel.from_pretrained(theirs(folder), tmp_path / "adapter").eval()
    peer = peer.double()
    with mt.no_grad(), torch.no_grad():
        ours, expected = model(mt.from_numpy(IDS))[0].numpy(), peer(torch.from_numpy(IDS)).logits
        assert relative(ours, expected.numpy()) < LIMIT[family]
        whole = peer.merge_and_unload()(torch.from_numpy(IDS)).logits.numpy()
        merged = lora.merged_model(model)(mt.from_numpy(IDS))[0].numpy()
    assert relative(merged, whole) < LIMIT[family]


def test_the_same_layers_are_all_linear(base):
    _, folder = base
    peer = peft.get_peft_model(theirs(folder), peft.LoraConfig(target_modules="all-linear"))
    model = from_pretrained(folder)
    lora.attach(model, LoraConfig())
    ours = lora._names_in_files(model.config, lora.adapters(model)).values()
    wrapped = peer.base_model.model.named_modules()
    assert set(ours) == {name for name, m in wrapped if isinstance(m, peft.tuners.lora.LoraLayer)}
