"""Pieces: what GPT-2's pattern keeps together, and that no character is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitorch.errors import DataError
from minitorch.tokenizers import CL100K_PATTERN, PreTokenizer


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("Hello world", ["Hello", " world"]),
        ("I'll, we'LL", ["I", "'ll", ",", " we", "'", "LL"]),
        ("in 2024!!", ["in", " 2024", "!!"]),
        ("a   b", ["a", "  ", " b"]),  # the last space belongs to the word
        ("a   ", ["a", "   "]),
        ("a\n\n  b", ["a", "\n\n ", " b"]),
        ("x²", ["x", "²"]),  # a superscript is a number to Unicode
        ("naïve Ωmega", ["naïve", " Ωmega"]),
        ("e\u0301t", ["e", "\u0301", "t"]),  # a combining mark is no letter
    ],
)
def test_gpt2_pattern(text, pieces):
    assert list(PreTokenizer().split(text)) == pieces


def test_cl100k_pattern_cuts_numbers_into_threes():
    pre_tokenizer = PreTokenizer((CL100K_PATTERN,), use_regex=False)
    assert list(pre_tokenizer.split("12345 WE'LL\n\nx")) == [
        *("123", "45", " WE", "'LL", "\n\n", "x")
    ]


@given(st.text(), st.sampled_from([(), (CL100K_PATTERN,), (r"\p{N}",), (r"x*",), (r"(a)(b)|c",)]))
def test_pieces_are_the_text(text, splits):
    for use_regex in (True, False):
        pieces = list(PreTokenizer(splits, use_regex=use_regex).split(text))
        assert "".join(pieces) == text
        assert all(pieces)


def test_a_space_before_each_piece():
    pre_tokenizer = PreTokenizer((r"\d",), add_prefix_space=True)
    assert list(pre_tokenizer.split("a1 b")) == [" a", " 1", " b"]


def test_a_pattern_that_is_none():
    with pytest.raises(DataError, match=r"'\(' is no regular expression"):
        PreTokenizer(("(",))
