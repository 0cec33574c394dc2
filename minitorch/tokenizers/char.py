"""A character is a token: the simplest vocabulary that can be read, and small enough for a toy.

The vocabulary is the set of characters of a training text, in the order of their code points. A
character that is not among them has no id. That is an error, unless the tokenizer was made with a
token that stands for all of them, `unk_token`; the character itself is then lost.
"""

from collections.abc import Iterable, Sequence
from typing import Self

from minitorch.errors import DataError
from minitorch.tokenizers.added_tokens import AddedToken, added_tokens
from minitorch.tokenizers.tokenizer import Tokenizer
from minitorch.tokenizers.tokenizer_json import TokenizerSpec


class CharTokenizer(Tokenizer):
    """The id of a character is its place in `chars`. Special tokens, if any, follow."""

    def __init__(
        self,
        chars: Sequence[str],
        special_tokens: Sequence[str | AddedToken] = (),
        unk_token: str | None = None,
    ):
        """unk_token: a special token for unknown characters; its id follows theirs."""
        self._chars = {char: i for i, char in enumerate(chars)}
        for char in chars:
            if not isinstance(char, str) or len(char) != 1 or "\ud800" <= char <= "\udfff":
                raise DataError(f"CharTokenizer: expected single characters, got {char!r}")
        if not chars or len(self._chars) != len(chars):
            raise DataError("CharTokenizer: expected at least one character, each once")
        explicit = {t.content for t in special_tokens if isinstance(t, AddedToken)}
        if unk_token is not None and unk_token not in explicit:
            special_tokens = [unk_token, *(t for t in special_tokens if t != unk_token)]
        added = added_tokens(special_tokens, len(chars))
        super().__init__(self._chars, {i: c.encode() for c, i in self._chars.items()}, added)
        self._unk_token = unk_token
        self._unk_id = None if unk_token is None else self._ids[unk_token]

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        special_tokens: Sequence[str] = (),
        unk_token: str | None = None,
    ) -> Self:
        """The tokenizer of the characters that occur in a text, or in several."""
        chars: set[str] = set().union(*([texts] if isinstance(texts, str) else texts))
        if not chars:
            raise DataError("CharTokenizer.train: the text is empty; there is nothing to learn")
        return cls(sorted(chars), special_tokens, unk_token)

    def _encode_ordinary(self, text: str, start: int) -> Iterable[int]:
        ids = self._chars
        if self._unk_id is not None:
            return [ids.get(char, self._unk_id) for char in text]
        try:
            return [ids[char] for char in text]
        except KeyError as error:
            (char,) = error.args
            raise DataError(
                f"CharTokenizer.encode: the character {char!r} (U+{ord(char):04X}) at position "
                f"{start + text.index(char)} is not among the {len(ids)} of this vocabulary. "
                "Remove it, train on a text that has it, give an unk_token, or use a "
                "ByteTokenizer or BPETokenizer, which know every character"
            ) from None

    def _spec(self) -> TokenizerSpec:
        unk = {} if self._unk_token is None else {self._unk_token: self._ids[self._unk_token]}
        return TokenizerSpec(
            self._chars | unk,
            added_tokens=self._added,
            pre_tokenizer=None,
            unk_token=self._unk_token,
        )

    @classmethod
    def _from_spec(cls, spec: TokenizerSpec) -> Self:
        added = {token.content for token in spec.added_tokens}
        chars = sorted(spec.vocab.keys() - added, key=spec.vocab.__getitem__)
        tokenizer = cls(chars, spec.added_tokens, spec.unk_token)
        if tokenizer._spec() != spec:
            raise DataError(
                "CharTokenizer: expected single characters with the ids from 0, no merges, and "
                "special tokens after them"
            )
        return tokenizer
