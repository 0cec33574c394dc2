"""What every tokenizer promises: the text comes back, and only what is allowed gets in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitorch.errors import DataError
from minitorch.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer

from .conftest import SPECIAL

text_with_special = st.lists(
    st.text(max_size=5) | st.sampled_from([*SPECIAL, "<|", "<|endoftext", "|>"]), max_size=8
).map("".join)


@given(text=text_with_special)
def test_the_text_comes_back(lossless, text):
    allowed = "all" if lossless.special_tokens else ()
    for options in ({}, {"allowed_special": allowed}):
        ids = lossless.encode(text, **options)
        assert lossless.decode(ids) == text
        assert all(0 <= token_id < lossless.vocab_size for token_id in ids)
        np.testing.assert_array_equal(lossless.encode_array(text, **options), ids)


@given(text=st.text(alphabet="abc \n<|>endoftxt"))
def test_characters_come_back(text):
    tokenizer = CharTokenizer.train("abc \n<|>endoftxt", SPECIAL)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, allowed_special="all")) == text


@given(text=text_with_special)
def test_special_tokens_only_where_allowed(bpe, text):
    end, user = (bpe.special_tokens[name] for name in SPECIAL)
    assert not {end, user} & set(bpe.encode(text))
    ids = bpe.encode(text, allowed_special=[SPECIAL[0]])
    assert ids.count(end) == text.count(SPECIAL[0])
    assert user not in ids
    assert bpe.encode(text, allowed_special="all").count(user) == text.count(SPECIAL[1])


def test_the_longest_special_token_wins():
    tokenizer = ByteTokenizer(["<a>", "<a><b>"])
    assert tokenizer.encode("<a><b><a>", allowed_special="all") == [257, 256]
    assert tokenizer.encode("<a><b>", allowed_special=["<a>"]) == [256, *b"<b>"]


@given(data=st.data())
def test_any_ids_decode_and_stream_alike(lossless, data):
    ids = data.draw(st.lists(st.integers(0, lossless.vocab_size - 1), max_size=30))
    for skip in (False, True):
        kept = [i for i in ids if not skip or i not in lossless.special_tokens.values()]
        expected = b"".join(map(lossless.token_bytes, kept)).decode("utf-8", errors="replace")
        assert lossless.decode(ids, skip_special_tokens=skip) == expected
        stream = lossless.stream_decoder(skip_special_tokens=skip)
        for _ in range(2):  # `finish` leaves it ready for another text
            assert "".join([stream.push(i) for i in ids] + [stream.finish()]) == expected


def test_a_stream_waits_for_whole_characters_and_no_longer():
    stream = ByteTokenizer().stream_decoder()
    assert [stream.push(byte) for byte in "a€b".encode()] == ["a", "", "", "€", "b"]
    assert [stream.push(byte) for byte in b"\xe2\x82a"] == ["", "", "\ufffda"]
    assert (stream.push(0xE2), stream.finish(), stream.finish()) == ("", "\ufffd", "")


def test_batches(bpe):
    texts = ["", "the", "日本"]
    batch = bpe.encode_batch(texts)
    assert batch == [bpe.encode(text) for text in texts]
    assert bpe.decode_batch(batch) == texts
    with pytest.raises(DataError, match=r"write \[text\]"):
        bpe.encode_batch("the")


def test_ids_may_be_arrays(bpe):
    for dtype in (np.uint16, np.int64):
        assert bpe.decode(np.array(bpe.encode("the €"), dtype)) == "the €"
    assert bpe.decode(np.int64(i) for i in bpe.encode("the")) == "the"
    assert bpe.decode([]) == ""


def test_the_smallest_dtype_that_holds_every_id():
    assert ByteTokenizer().dtype == np.uint16
    chars = [chr(i) for i in range(0x10000, 0x20000)]
    assert CharTokenizer(chars).dtype == np.uint16
    tokenizer = CharTokenizer([*chars, "a"])
    assert tokenizer.encode_array("a").dtype == np.uint32
    assert tokenizer.encode_array("a").tolist() == [2**16]


def test_names_and_ids(bpe):
    for name, token_id in bpe.vocab.items():
        assert bpe.token_to_id(name) == token_id
        assert bpe.id_to_token(token_id) == name
    assert bpe.token_to_id("no such token") is None
    assert bpe.id_to_token(bpe.vocab_size) is bpe.id_to_token(-1) is None
    assert repr(bpe) == f"BPETokenizer(vocab_size=300, special_tokens={list(SPECIAL)})"
    bpe.vocab.clear()
    bpe.special_tokens.clear()
    assert len(bpe.vocab) == 300


@pytest.mark.parametrize(
    "tokenizer",
    [ByteTokenizer(), CharTokenizer.train("the"), CharTokenizer("the", unk_token="<unk>")],
)
def test_more_special_tokens_leave_the_ids_alone(tokenizer):
    first = tokenizer.with_special_tokens(["<a>"])
    second = first.with_special_tokens(["<b>", "<c>"])
    assert second.vocab_size == tokenizer.vocab_size + 3
    assert tokenizer.vocab.items() < first.vocab.items() < second.vocab.items()
    assert second.encode("<c>the", allowed_special="all")[0] == tokenizer.vocab_size + 2
    with pytest.raises(DataError, match="'<a>'"):
        second.with_special_tokens(["<a>"])


def test_more_special_tokens_for_a_bpe(bpe):
    more = bpe.with_special_tokens(["<|system|>"])
    assert more.special_tokens == {**bpe.special_tokens, "<|system|>": bpe.vocab_size}
    assert more.encode("the theory") == bpe.encode("the theory")


def test_lone_surrogates_are_refused(lossless):
    with pytest.raises(DataError, match=r"'\\udc80' at position 2 is a lone surrogate"):
        lossless.encode("ab\udc80")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 300], r"id 300 is outside this vocabulary of 300"),
        ([-1], r"id -1 is outside"),
        ([1.0], r"expected integer ids, got 1.0"),
        (["the"], r"expected integer ids, got 'the'"),
        ([[1, 2]], r"expected integer ids, got \[1, 2\]"),
        (7, r"expected a sequence of ids, got 7; write \[7\]"),
        (np.int64(7), r"expected a sequence of ids, got 7"),
        (np.zeros((2, 2), int), r"expected integer ids, got \[0, 0\]"),
    ],
)
def test_ids_that_are_none(bpe, ids, message):
    with pytest.raises(DataError, match=message):
        bpe.decode(ids)


def test_texts_that_are_none(bpe):
    with pytest.raises(DataError, match="expected str, got bytes; decode it first"):
        bpe.encode(b"the")
    with pytest.raises(DataError, match=r"write \['<\|user\|>'\]"):
        bpe.encode("the", allowed_special="<|user|>")
    with pytest.raises(DataError, match=r"names \['<x>'\]; the special tokens are"):
        bpe.encode("the", allowed_special=["<x>"])


def test_unknown_characters():
    tokenizer = CharTokenizer.train(["abc ", "<|user|>"], SPECIAL)
    message = r"character 'ß' \(U\+00DF\) at position 12 is not among the 11 .*unk_token"
    with pytest.raises(DataError, match=message):
        tokenizer.encode("a<|user|>b cß", allowed_special="all")
    with pytest.raises(DataError, match="at position 12"):
        tokenizer.encode("a<|user|>b cß")
    tolerant = CharTokenizer("abc", ["<end>", "<unk>"], unk_token="<unk>")
    assert tolerant.special_tokens == {"<unk>": 3, "<end>": 4}
    assert tolerant.decode(tolerant.encode("aßb")) == "a<unk>b"
    assert tolerant.decode(tolerant.encode("aßb"), skip_special_tokens=True) == "ab"
    assert tolerant.encode("<end>", allowed_special="all") == [4]


def test_character_vocabularies_that_make_no_sense():
    assert CharTokenizer.train("banana").vocab == {"a": 0, "b": 1, "n": 2}
    with pytest.raises(DataError, match="the text is empty"):
        CharTokenizer.train("")
    for chars in ("", "aa", ["ab"], ["\ud800"], [1]):
        with pytest.raises(DataError, match="expected"):
            CharTokenizer(chars)
    with pytest.raises(DataError, match="'a' has id 3"):
        CharTokenizer("abc", ["a"])


def test_a_byte_is_its_own_id():
    tokenizer = ByteTokenizer(["<end>"])
    assert tokenizer.encode("aé") == [97, 0xC3, 0xA9]
    assert tokenizer.encode("<end>", allowed_special="all") == [256]
    assert tokenizer.decode([0xC3]) == "\ufffd"


def test_encoding_twice_gives_the_same(bpe):
    """The cache hands out no list that a caller could change."""
    bpe.encode("the").append(5)
    for token_id in bpe.encode("theory"):
        assert isinstance(token_id, int)
    assert bpe.decode(bpe.encode("the")) == "the"
    fresh = BPETokenizer(bpe.vocab, bpe.merges)
    assert fresh.encode("the theory") == bpe.encode("the theory") == bpe.encode("the theory")
