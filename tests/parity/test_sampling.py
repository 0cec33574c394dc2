"""Sampling and generation against Hugging Face's transformers, on the same logits and weights."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")
transformers = pytest.importorskip(
    "transformers", reason="peer not installed: pip install -e .[peers]"
)
tokenizers = pytest.importorskip("tokenizers", reason="peer not installed: pip install -e .[peers]")

from click.testing import CliRunner  # noqa: E402

import minitorch as mt  # noqa: E402
from minitorch.random import Generator  # noqa: E402
from models.cli import main  # noqa: E402
from models.generate import generate  # noqa: E402
from models.gpt2 import GPT2  # noqa: E402
from models.sampling import Sampler  # noqa: E402

TEXT = "the cat sat on the mat, and the dog sat on the log. " * 20


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6, "temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_distributions_are_those_of_the_logits_processors(settings):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(6, 50)) * 3
    seen = rng.integers(0, 50, (6, 9))
    warpers = {
        "repetition_penalty": transformers.RepetitionPenaltyLogitsProcessor,
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }
    expected = torch.tensor(logits)
    for name, warper in warpers.items():
        if name in settings:
            expected = warper(settings[name])(torch.tensor(seen), expected)
    got = Sampler(**settings).probabilities(logits, seen, [[]] * 6)
    np.testing.assert_allclose(got, torch.softmax(expected, -1).numpy(), rtol=1e-12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A GPT-2 and a byte-level BPE, both made and written by Hugging Face's libraries."""
    path = tmp_path_factory.mktemp("hugging-face")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator([TEXT], vocab_size=300, special_tokens=["<|endoftext|>"])
    bpe.save(str(path / "tokenizer.json"))
    config = transformers.GPT2Config(
        vocab_size=bpe.get_vocab_size() + 20,  # rows beyond the vocabulary, as many models have
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).eval().save_pretrained(path)
    return path


def test_greedy_generation_is_that_of_transformers(folder):
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder)
    prompt = [5, 9, 60, 17]
    expected = theirs.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, 4, dtype=torch.long),
        max_new_tokens=40,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    stream = generate(
        GPT2.from_pretrained(folder),
        prompt,
        max_tokens=40,
        sampler=Sampler(temperature=0),
        generator=Generator(0),
    )
    assert [token for token, _ in stream] == expected[0, 4:].tolist()


def test_the_command_samples_from_their_folder(folder):
    options = ("--checkpoint", str(folder), "--prompt", "the cat", "--max-tokens", "30", "--json")
    result = CliRunner().invoke(main, ["sample", *options])
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert answer["text"] == tokenizer.decode(answer["tokens"])
    assert max(answer["tokens"]) < tokenizer.get_vocab_size()


def test_a_checkpoint_of_ours_is_a_model_of_theirs(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    settings = "n_layer=2 n_head=2 n_embd=16 block_size=16 steps=4 tokenizer=bpe vocab_size=280"
    assignments = [part for item in settings.split() for part in ("--set", item)]
    command = ["train", "--data", str(tmp_path / "text.txt"), *assignments, "--json"]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.stderr
    checkpoint = json.loads(result.stdout)["checkpoint"]
    theirs = transformers.GPT2LMHeadModel.from_pretrained(checkpoint).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=f"{checkpoint}/tokenizer.json")
    ids = tokenizer("the cat sat", return_tensors="pt")["input_ids"]
    ours, _ = GPT2.from_pretrained(checkpoint)(mt.from_numpy(ids.numpy()))
    with torch.no_grad():
        np.testing.assert_allclose(ours.data, theirs(ids).logits.numpy(), atol=2e-5)
