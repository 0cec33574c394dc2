"""A byte is a token: 256 ids, nothing to learn, no text that cannot be written.

The price is length: several times as many tokens as with a learnt vocabulary, and two to four for
each character outside ASCII. Source: ByT5, Xue et al. 2021.
"""

from collections.abc import Iterable, Sequence
from typing import Self

from minitorch.errors import DataError
from minitorch.tokenizers.added_tokens import AddedToken, added_tokens
from minitorch.tokenizers.byte_alphabet import ALPHABET
from minitorch.tokenizers.pre_tokenizer import PreTokenizer
from minitorch.tokenizers.tokenizer import Tokenizer
from minitorch.tokenizers.tokenizer_json import TokenizerSpec

_VOCAB = {character: byte for byte, character in enumerate(ALPHABET)}


class ByteTokenizer(Tokenizer):
    """The id of a byte is its value. Special tokens, if any, follow from 256."""

    def __init__(self, special_tokens: Sequence[str | AddedToken] = ()):
        added = added_tokens(special_tokens, 256)
        super().__init__(_VOCAB, {byte: bytes([byte]) for byte in range(256)}, added)

    @staticmethod
    def describes(spec: TokenizerSpec) -> bool:
        """Whether a file holds this tokenizer: all bytes in their own order, and no merges."""
        return spec == _spec(spec.added_tokens)

    def _encode_ordinary(self, text: str, start: int) -> Iterable[int]:
        return text.encode()

    def _spec(self) -> TokenizerSpec:
        return _spec(self._added)

    @classmethod
    def _from_spec(cls, spec: TokenizerSpec) -> Self:
        if not cls.describes(spec):
            raise DataError("ByteTokenizer: expected the 256 bytes in their own order, no merges")
        return cls(spec.added_tokens)


def _spec(added: tuple[AddedToken, ...]) -> TokenizerSpec:
    return TokenizerSpec(_VOCAB, added_tokens=added, pre_tokenizer=PreTokenizer(use_regex=False))
