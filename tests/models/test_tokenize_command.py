"""`minitorch tokenize`: train, show, encode, and training on what was encoded."""

import json

import numpy as np
import pytest

from minitorch.data import open_tokens
from minitorch.errors import DataError
from minitorch.tokenizers import BPETokenizer, load
from models import checkpoints
from models.config import TrainConfig
from models.corpus import prepare

from .conftest import TEXT


@pytest.fixture
def trained(cli, text_file, tmp_path):
    path = tmp_path / "t.json"
    result = cli("tokenize", "train", text_file, "--vocab-size", 280, "--out", path, "--json")
    assert json.loads(result.stdout)["vocab_size"] == 280
    return path


def test_tokens_are_shown_with_their_ids(cli, trained):
    tokenizer = load(trained)
    result = json.loads(cli("tokenize", "show", "is é", "--tokenizer", trained, "--json").stdout)
    assert result["ids"] == tokenizer.encode("is é")
    assert result["bytes"] == 5
    printed = cli("tokenize", "show", "is é\n", "--tokenizer", trained).stdout
    for token in tokenizer.encode("is"):
        assert str(token) in printed
    assert "\\xc3" in printed
    assert "⏎" in printed


def test_a_run_brings_its_own_tokenizer(cli, whole):
    result = cli("tokenize", "show", "3 plus 3", "--tokenizer", whole, "--json")
    assert json.loads(result.stdout)["tokens"] == list("3 plus 3")


def test_training_on_a_token_file_is_training_on_its_text(cli, tiny, trained, text_file, tmp_path):
    encoded = tmp_path / "text.tokens"
    cli("tokenize", "encode", text_file, "--tokenizer", trained, "--out", encoded)
    assert load(trained).decode(open_tokens(encoded)) == TEXT
    outs = []
    for data in (text_file, encoded):
        outs.append(tmp_path / data.suffix[1:])
        options = ("--data", data, "--set", f"tokenizer={trained}", "--out", outs[-1])
        assert cli(*tiny, *options).exit_code == 0
    text_run, token_run = (checkpoints.load(checkpoints.newest(out)) for out in outs)
    np.testing.assert_array_equal(*(run.part("history")["loss"] for run in (text_run, token_run)))
    assert cli("train", "--resume", outs[1], "--set", "steps=7").exit_code == 0


def test_a_token_file_of_another_tokenizer_is_refused(cli, tiny, trained, text_file, tmp_path):
    from minitorch.tokenizers import ByteTokenizer

    encoded, other = tmp_path / "text.tokens", tmp_path / "bytes.json"
    cli("tokenize", "encode", text_file, "--tokenizer", trained, "--out", encoded)
    ByteTokenizer().save(other)
    result = cli(*tiny, "--data", encoded, "--set", f"tokenizer={other}", "--out", tmp_path / "o")
    assert result.exit_code == 1
    assert "the tokenizer has 256 tokens; give the one that wrote it" in result.stderr
    result = cli(*tiny, "--data", encoded, "--out", tmp_path / "o")
    assert "tokenizer: expected a tokenizer.json file; got 'char'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "absent.txt"], 1, "absent.txt"),
        (["train", "embedded", "--vocab-size", "3"], 2, "3 is not in the range"),
        (["show", "text", "--tokenizer", "absent.json"], 1, "`minitorch tokenize train` makes one"),
        (["show", "text"], 2, "Missing option '--tokenizer'"),
        (["encode", "embedded", "--tokenizer", "x", "--out", "x.bin"], 2, "ends in .tokens"),
    ],
)
def test_bad_arguments(cli, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    result = cli("tokenize", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["ZZZZZZZZ é 日本 " * 40, "plain words, and then some " * 20])
def test_bpe_learns_from_the_training_part_alone(tmp_path, ending):
    beginning = "the cat sat on the mat. " * 100
    path = tmp_path / "text.txt"
    path.write_text(beginning + ending)
    fraction = len(ending) / len(beginning + ending)
    config = TrainConfig(
        data=str(path), tokenizer="bpe", vocab_size=300, val_fraction=fraction, block_size=8
    )
    corpus = prepare(config)
    assert corpus.tokenizer.merges == BPETokenizer.train(beginning, 300).merges
    assert corpus.tokenizer.decode(corpus.train) == beginning
    assert corpus.tokenizer.decode(corpus.validation) == ending
    saved = tmp_path / "tokenizer.json"
    corpus.tokenizer.save(saved)
    assert prepare(config, saved).fingerprint == corpus.fingerprint


def test_a_bpe_corpus_needs_both_parts(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat. " * 20)
    config = TrainConfig(data=str(path), tokenizer="bpe", vocab_size=260, block_size=64)
    with pytest.raises(DataError, match="validation part"):
        prepare(config)


def test_a_corpus_says_what_its_tokens_are(text_file, trained):
    for tokenizer, unit in (("char", "character"), ("byte", "byte"), (str(trained), "token")):
        corpus = prepare(TrainConfig(data=str(text_file), tokenizer=tokenizer))
        assert corpus.unit == unit
        assert corpus.tokens_per_byte == (1.0 if unit != "token" else pytest.approx(0.5, abs=0.2))
