"""Tokenizers to test, of every kind."""

import pytest

from minitorch.tokenizers import CL100K_PATTERN, BPETokenizer, ByteTokenizer, PreTokenizer

TEXT = (
    "the theory of the other is that there, then, they'll bathe. Größe: 12 €, 345 ½. 日本語日本 \n"
    * 3
)
SPECIAL = ("<|endoftext|>", "<|user|>")


@pytest.fixture(scope="session")
def bpe():
    return BPETokenizer.train(TEXT, 300, SPECIAL)


@pytest.fixture(
    scope="session", params=["byte", "byte with special tokens", "bpe", "bpe of other pieces"]
)
def lossless(request, bpe):
    """The tokenizers that know every text."""
    match request.param:
        case "byte":
            return ByteTokenizer()
        case "byte with special tokens":
            return ByteTokenizer(SPECIAL)
        case "bpe":
            return bpe
        case _:
            pattern = PreTokenizer((CL100K_PATTERN, r"\p{N}"), use_regex=False)
            return BPETokenizer.train(TEXT, 300, SPECIAL, pre_tokenizer=pattern)
