"""tokenizer.json: what is saved is restored; what is damaged or not understood is refused."""

import copy
import json
import random
import warnings

import pytest

from minitorch.errors import CheckpointError
from minitorch.tokenizers import (
    CL100K_PATTERN,
    AddedToken,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    PreTokenizer,
    load,
)

from .conftest import SPECIAL, TEXT

MAKE = {
    "byte": lambda: ByteTokenizer(),
    "byte, special": lambda: ByteTokenizer(SPECIAL),
    "char": lambda: CharTokenizer.train(TEXT),
    "char, special": lambda: CharTokenizer.train(TEXT, SPECIAL, "<unk>"),
    "bpe": lambda: BPETokenizer.train(TEXT, 300),
    "bpe, special": lambda: BPETokenizer.train(TEXT, 300, SPECIAL, nfc=True),
    "bpe, flags": lambda: BPETokenizer.train(
        TEXT, 280, [AddedToken("<x>", 279, special=False, lstrip=True, normalized=True)]
    ),
    "bpe without merges": lambda: BPETokenizer.train(TEXT, 256),
    "bpe, other pieces": lambda: BPETokenizer.train(
        TEXT, 300, pre_tokenizer=PreTokenizer((CL100K_PATTERN, r"\p{N}"), use_regex=False)
    ),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("kind", MAKE)
def test_what_is_saved_is_restored(kind, path):
    tokenizer = MAKE[kind]()
    tokenizer.save(path)
    restored = load(path)
    assert type(restored) is type(tokenizer)
    assert repr(restored) == repr(tokenizer)
    assert restored.vocab == tokenizer.vocab
    assert list(restored.special_tokens) == list(tokenizer.special_tokens)
    text = f"{TEXT}<x> <|user|>"
    allowed = "all" if tokenizer.special_tokens else ()
    for options in ({}, {"allowed_special": allowed}):
        if kind != "char":
            assert restored.encode(text, **options) == tokenizer.encode(text, **options)
    again = path.with_name("again.json")
    type(tokenizer).load(path).save(again)
    assert again.read_bytes() == path.read_bytes()


def test_another_class_than_asked_for(path):
    CharTokenizer("ab").save(path)
    for kind in (ByteTokenizer, BPETokenizer):
        with pytest.raises(CheckpointError, match=f"{kind.__name__}: expected"):
            kind.load(path)
    BPETokenizer.train("ab", 257).save(path)
    for kind in (ByteTokenizer, CharTokenizer):
        with pytest.raises(CheckpointError, match=f"{kind.__name__}: expected"):
            kind.load(path)


def test_a_failed_save_leaves_the_old_file(path, monkeypatch):
    ByteTokenizer().save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(CheckpointError, match="No space left"):
        CharTokenizer("ab").save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_missing_and_a_truncated_file(path):
    with pytest.raises(CheckpointError, match="no such file"):
        load(path)
    MAKE["bpe, special"]().save(path)
    data = path.read_bytes()
    for length in [*range(0, len(data) - 2, 97), len(data) - 2]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="not valid JSON"):
            load(path)


def edit(description, *keys, value):
    *parents, last = keys
    for key in parents:
        description = description[key]
    description[last] = value


A_SPLIT = {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": False}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
A_TOKEN = {
    "content": "<x>",
    "id": 302,
    "special": True,
    "lstrip": False,
    "rstrip": False,
    "single_word": False,
    "normalized": False,
}


def stages(*stages):
    return {"type": "Sequence", "pretokenizers": list(stages)}


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["model"], None, "model: expected a JSON object, got nothing"),
        (["model"], [], "model: expected a JSON object"),
        (["model", "type"], "Unigram", "model.type: 'Unigram' is not supported; expected BPE"),
        (["model", "vocab"], None, "expected 'vocab' as dict, got nothing"),
        (["model", "vocab"], ["a"], "expected 'vocab' as dict"),
        (["model", "vocab", "a"], "7", "expected an id for 'a', got '7'"),
        (["model", "vocab", "a"], True, "expected an id for 'a', got True"),
        (["model", "vocab", "a"], 1.0, "expected an id for 'a', got 1.0"),
        (["model", "vocab", "a"], 10**30, "'a' has id 1000"),
        (["model", "vocab", "a"], 0, "have the same id 0"),
        (["model", "vocab", "a b"], 302, "spells no byte"),
        (["model", "vocab", "\ud800"], 302, "'.ud800', which spells no byte"),
        (["model", "merges"], None, "expected 'merges' as list"),
        (["model", "merges", 0], "t h e", "expected 'left right' or"),
        (["model", "merges", 0], ["t"], "expected 'left right' or"),
        (["model", "merges", 0], ["t", 5], "expected 'left right' or"),
        (["model", "merges", 0], "zq zq", "the vocabulary has no token 'zq'"),
        (["model", "merges", 1], ["t", "h"], "merge 1 of 't' and 'h' is a repetition"),
        (["model", "unk_token"], "<unk>", "unk_token '<unk>' is not in the vocabulary"),
        (["model", "unk_token"], 5, "expected 'unk_token' as str, got 5"),
        (["model", "dropout"], 0.1, "model.dropout: 0.1 is not supported"),
        (["model", "byte_fallback"], True, "model.byte_fallback: True is not supported"),
        (["model", "end_of_word_suffix"], "</w>", "end_of_word_suffix: '</w>' is not supported"),
        (["model", "ignore_merges"], "yes", "expected 'ignore_merges' as bool"),
        (["normalizer"], {"type": "Lowercase"}, "normalizer: 'Lowercase' is not supported"),
        (["normalizer"], "NFC", "normalizer: expected a JSON object"),
        (["pre_tokenizer"], None, "CharTokenizer: expected single characters"),
        (["pre_tokenizer"], {"type": "Whitespace"}, "pre_tokenizer: .*Whitespace.*ByteLevel"),
        (["pre_tokenizer"], stages(), "pre_tokenizer: .*expected ByteLevel at the end"),
        (["pre_tokenizer"], stages(BYTE_LEVEL, A_SPLIT), "expected ByteLevel at the end"),
        (["pre_tokenizer"], stages({"type": "Metaspace"}, BYTE_LEVEL), "'Metaspace' is not supp"),
        (["pre_tokenizer"], stages(A_SPLIT | {"invert": True}, BYTE_LEVEL), "invert: True is not"),
        (["pre_tokenizer"], stages(A_SPLIT | {"behavior": "Removed"}, BYTE_LEVEL), "'Removed' is"),
        (["pre_tokenizer"], stages(A_SPLIT | {"pattern": {}}, BYTE_LEVEL), "expected 'Regex' as"),
        (
            ["pre_tokenizer"],
            stages(A_SPLIT | {"pattern": {"Regex": "["}}, BYTE_LEVEL),
            "no regular expression",
        ),
        (["pre_tokenizer"], {"type": "ByteLevel"}, "expected 'add_prefix_space' as bool, got noth"),
        (["added_tokens"], {}, "expected 'added_tokens' as list"),
        (["added_tokens", 0], "<x>", "added_tokens: expected a JSON object"),
        (["added_tokens", 0, "id"], 5, "have the same id 5"),
        (["added_tokens", 0, "id"], None, "expected 'id' as int, got nothing"),
        (["added_tokens", 0, "id"], False, "expected 'id' as int, got False"),
        (["added_tokens", 0, "content"], "", "an added token has an empty name"),
        (["added_tokens", 0, "content"], "the", "'the' has id 300, but the vocabulary holds it"),
        (["added_tokens", 0, "special"], 1, "expected 'special' as bool, got 1"),
        (["added_tokens", 1], A_TOKEN | {"id": 300}, "'<x>' have the same id 300"),
        (["added_tokens", 1], A_TOKEN | {"id": 400}, "'<x>' has id 400; 302 tokens have the ids"),
        (["post_processor"], 5, "post_processor: expected a JSON object, got 5"),
    ],
)
def test_damaged_and_foreign_files(keys, value, message, path):
    BPETokenizer.train("the the the " + TEXT, 302, SPECIAL).save(path)
    description = json.loads(path.read_text(encoding="utf-8"))
    assert description["model"]["merges"][0] == ["t", "h"]
    assert "the" in description["model"]["vocab"]
    edit(description, *keys, value=value)
    path.write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_files_that_are_other_json(path):
    for text in ("[]", "5", "null", "{}", '{"model": {}}', '{"a": 1, "a": 2}'):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"read .*tokenizer\.json"):
            load(path)


def test_any_damage_is_a_clear_error_or_harmless(path):
    """Values swapped, dropped and doubled at random: never another exception."""
    generator = random.Random(0)
    BPETokenizer.train(TEXT, 265, SPECIAL).save(path)
    description = json.loads(path.read_text(encoding="utf-8"))
    junk = [None, True, 0, -1, 2**70, 1.5, "", "a", "\ud800", [], ["a", "b"], {}, {"type": "BPE"}]
    refused = 0
    for _ in range(400):
        damaged = copy.deepcopy(description)
        for _ in range(generator.randint(1, 3)):
            node = damaged
            while True:
                keys = list(node) if isinstance(node, dict) else list(range(len(node)))
                key = generator.choice(keys)
                if isinstance(node[key], dict | list) and node[key] and generator.random() < 0.8:
                    node = node[key]
                    continue
                if generator.random() < 0.3 and isinstance(node, dict):
                    del node[key]
                else:
                    node[key] = generator.choice(junk)
                break
            if not damaged:
                break
        path.write_text(json.dumps(damaged), encoding="utf-8")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                restored = load(path)
        except CheckpointError:
            refused += 1
        else:
            assert restored.decode(restored.encode("e")).strip() == "e"
    assert refused > 200


def test_older_files(path):
    """Merges as strings, and fields that came later left out."""
    tokenizer = MAKE["bpe, special"]()
    tokenizer.save(path)
    description = json.loads(path.read_text(encoding="utf-8"))
    model = description["model"]
    model["merges"] = [" ".join(merge) for merge in model["merges"]]
    for field in ("type", "ignore_merges", "byte_fallback", "unk_token", "dropout"):
        del model[field]
    del description["pre_tokenizer"]["use_regex"]
    path.write_text(json.dumps(description), encoding="utf-8")
    assert load(path).merges == tokenizer.merges
    assert load(path).encode(TEXT) == tokenizer.encode(TEXT)


def test_a_post_processor_is_not_applied_and_says_so(path):
    MAKE["bpe"]().save(path)
    description = json.loads(path.read_text(encoding="utf-8"))
    description["post_processor"] = {"type": "ByteLevel", "trim_offsets": True}
    path.write_text(json.dumps(description))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path)
    description["post_processor"] = {"type": "TemplateProcessing", "single": []}
    path.write_text(json.dumps(description))
    with pytest.warns(UserWarning, match=r"post_processor \(TemplateProcessing\)") as record:
        load(path)
    assert record[0].filename == __file__
