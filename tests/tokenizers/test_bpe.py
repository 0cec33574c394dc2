"""Encoding by rank, against the rule applied literally; vocabularies that make no sense."""

import unicodedata
from itertools import pairwise
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitorch.errors import DataError
from minitorch.tokenizers import AddedToken, BPETokenizer, PreTokenizer
from minitorch.tokenizers.bpe import apply_merges
from minitorch.tokenizers.byte_alphabet import ALPHABET, unspell

BYTES = {char: i for i, char in enumerate(ALPHABET)}


def by_rule(tokens, merges):
    """One merge at a time: the pair of lowest rank, the leftmost of them."""
    tokens = list(tokens)
    while found := [(*merges[p], i) for i, p in enumerate(pairwise(tokens)) if p in merges]:
        _, new, i = min(found, key=lambda entry: (entry[0], entry[2]))
        tokens[i : i + 2] = [new]
    return tokens


@given(
    st.lists(st.integers(0, 2), max_size=25),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12, unique=True),
)
def test_encoding_follows_the_ranks(tokens, pairs):
    """Any merges, also those that no training learns: of tokens that come later, in any order."""
    merges = {pair: (rank, 3 + rank) for rank, pair in enumerate(pairs)}
    assert apply_merges(tokens, merges) == by_rule(tokens, merges)


def test_lowest_rank_wins_over_the_longest_token():
    vocab = BYTES | {"bc": 256, "ab": 257, "abc": 258}
    tokenizer = BPETokenizer(vocab, [("b", "c"), ("a", "b"), ("ab", "c")])
    assert tokenizer.encode("abc") == [BYTES["a"], 256]  # abc exists, but ab is never made
    whole = BPETokenizer(vocab, tokenizer.merges, ignore_merges=True)
    assert whole.encode("abc abcd") == [258, BYTES["Ġ"], BYTES["a"], 256, BYTES["d"]]


def test_compression_of_english():
    text = "\n".join(topics.values())[:100_000]
    tokenizer = BPETokenizer.train(text, 512)
    ids = tokenizer.encode_array(text)
    assert len(text.encode()) / len(ids) > 2.0
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", [" " * 100_000, "ab" * 50_000, "\u0301" * 30_000])
def test_long_runs_do_not_take_quadratic_time(text):
    """100,000 bytes are one piece here; looking for the best pair n times would take hours."""
    tokenizer = BPETokenizer.train(text[:1000], 262)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_leading_space_is_part_of_the_word(bpe):
    assert bpe.id_to_token(bpe.encode(" the")[0]) == "Ġthe"
    assert bpe.encode("the") != bpe.encode(" the")
    assert bpe.pieces("the the") == ["the", " the"]


def test_the_names_spell_the_bytes(bpe):
    for name, token_id in bpe.vocab.items():
        if name not in bpe.special_tokens:
            assert unspell(name) == bpe.token_bytes(token_id)
    assert len(set(ALPHABET)) == 256
    assert all(char.isprintable() and not char.isspace() for char in ALPHABET)


@given(st.text())
def test_nfc_composes_and_is_stable(text):
    tokenizer = BPETokenizer.train("é e", 257, nfc=True)
    composed = unicodedata.normalize("NFC", text)
    assert tokenizer.encode(text) == tokenizer.encode(composed)
    assert tokenizer.decode(tokenizer.encode(text)) == composed


def test_a_vocabulary_without_all_bytes():
    few = {"a": 0, "b": 1, "<unk>": 2}
    with pytest.raises(DataError, match=r"no token for the byte 0xE2.*initial_alphabet"):
        BPETokenizer({"a": 0, "b": 1}, []).encode("a€")
    assert BPETokenizer(few, [], unk_token="<unk>").encode("acb") == [0, 2, 1]


@pytest.mark.parametrize(
    ("vocab", "merges", "special", "message"),
    [
        ({**BYTES, "ab": 257}, [], (), r"'ab' has id 257; 257 tokens have the ids 0 to 256"),
        ({**BYTES, "ab": 255}, [], (), r"have the same id 255"),
        ({**BYTES, "ab": -1}, [], (), r"'ab' has id -1"),
        (BYTES, [("a", "b")], (), r"merge 0 is of 'a' and 'b'.*no token 'ab'"),
        ({**BYTES, "ab": 256}, [("a", "b"), ("a", "b")], (), r"merge 1 .* is a repetition"),
        ({**BYTES, "a b": 256}, [], (), r"'a b' holds ' ', which spells no byte"),
        (BYTES, [], [AddedToken("<x>", 7)], r"have the same id 7"),
        (BYTES, [], [AddedToken("a", 256)], r"'a' has id 256, but the vocabulary holds it as id"),
        (BYTES, [], [AddedToken("a", BYTES["a"])], r"special token 'a' is also a byte"),
        ({**BYTES, "ab": 256}, [("a", "b")], [AddedToken("ab", 256)], r"the result of a merge"),
        (BYTES, [], [""], r"an added token has an empty name"),
        (BYTES, [], ["\ud800"], r"lone surrogate"),
    ],
)
def test_vocabularies_that_make_no_sense(vocab, merges, special, message):
    with pytest.raises(DataError, match=message):
        BPETokenizer(vocab, merges, special)
    with pytest.raises(DataError, match="unk_token '<unk>' is not in the vocabulary"):
        BPETokenizer(BYTES, [], unk_token="<unk>")


def test_the_cache_does_not_grow_for_ever(monkeypatch):
    monkeypatch.setattr("minitorch.tokenizers.bpe._CACHED_PIECES", 10)
    tokenizer = BPETokenizer.train("ab ab", 258)
    text = " ".join(map(str, range(100)))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    tokenizer.encode("x" * 1000)
    assert len(tokenizer._cache) <= 10
    assert max(map(len, tokenizer._cache)) < 1000


def test_whole_texts_as_one_piece():
    pieces = PreTokenizer(use_regex=False)
    tokenizer = BPETokenizer.train("a b a b", 258, pre_tokenizer=pieces)
    assert ("ĠaĠb" in tokenizer.vocab) or ("aĠb" in tokenizer.vocab)
