"""Where post-training begins: folders, vocabularies, new tokens."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import CheckpointError, ConfigError
from minitorch.random import Generator
from minitorch.tokenizers import ByteTokenizer, CharTokenizer
from models.families import FAMILIES
from models.recipes.start import check_same_vocabulary, load_base, with_vocabulary


def build(name, vocab_size=7):
    sizes = FAMILIES[name].sized(vocab_size=vocab_size, layers=1, heads=2, width=8, positions=16)
    return sizes.build(np.float32, Generator(1))


def logits(model, ids):
    with mt.no_grad():
        return model.eval()(mt.tensor(ids))[0].numpy()


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "mixtral"])
def test_more_tokens_leave_the_old_ones_as_they_were(name):
    model = build(name)
    larger = with_vocabulary(model, 10)
    assert larger.config.vocab_size == 10
    ids = [[1, 2, 3, 4]]
    np.testing.assert_allclose(logits(larger, ids)[..., :7], logits(model, ids), rtol=1e-5)
    new = logits(larger, ids)[..., 7:]
    assert np.abs(new - logits(model, ids).mean(-1, keepdims=True)).max() < 0.5
    assert with_vocabulary(larger, 9) is larger


def test_a_base_gets_the_tokens_of_its_template(tmp_path):
    build("llama", 5).save_pretrained(tmp_path)
    CharTokenizer("abcde").save(tmp_path / "tokenizer.json")
    model, tokenizer = load_base(tmp_path, 0, "plain")
    assert tokenizer.special_tokens == {"<|endoftext|>": 5}
    assert model.config.vocab_size == 6
    with pytest.raises(ConfigError, match="no template's special tokens"):
        load_base(tmp_path, 0)


def test_what_is_no_base_is_named(tmp_path):
    with pytest.raises(ConfigError, match="give one by --model"):
        load_base("", 0)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_base(tmp_path / "absent", 0)
    build("gpt2", 5).save_pretrained(tmp_path)
    ByteTokenizer().save(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="they do not belong together"):
        load_base(tmp_path, 0)


def test_a_reference_of_other_tokens_is_refused():
    check_same_vocabulary(CharTokenizer("ab"), CharTokenizer("ab"), "ref")
    with pytest.raises(ConfigError, match="ref: expected the vocabulary of the model"):
        check_same_vocabulary(CharTokenizer("ac"), CharTokenizer("ab"), "ref")
