"""What all tokenizers share: ids, added tokens, encoding, decoding, streaming, files.

A tokenizer is a table from ids to byte strings, and a rule that cuts a text into entries of the
table. Decoding needs the table alone: concatenate the bytes, read them as UTF-8. A character may be
spread over several tokens, so a model that is sampled can produce bytes that are no UTF-8; those
decode to U+FFFD, the replacement character.
"""

import codecs
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from operator import index
from typing import Self

import numpy as np

from minitorch.errors import CheckpointError, DataError
from minitorch.tokenizers.added_tokens import AddedToken, AddedTokenSplitter, added_tokens
from minitorch.tokenizers.tokenizer_json import (
    TokenizerSpec,
    read_tokenizer_json,
    write_tokenizer_json,
)


class Tokenizer(ABC):
    """Base of ByteTokenizer, CharTokenizer and BPETokenizer. Immutable; ids are 0 … vocab_size-1.

    `allowed_special`, wherever it is an argument: the special tokens whose text becomes their id,
    as a collection of names or "all". The text of the others is encoded like any other text.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        token_bytes: Mapping[int, bytes],
        added: Iterable[AddedToken],
    ):
        """vocab: ids by name; token_bytes: the bytes of each id; added: more, or flags for some."""
        self._added = tuple(added)
        self._ids = dict(vocab)
        self._bytes = dict(token_bytes)
        occurrences = Counter(token.content for token in self._added)
        if doubles := [name for name, count in occurrences.items() if count > 1]:
            raise DataError(f"tokenizer: added tokens with the same name: {doubles}")
        for token in self._added:
            if not token.content:
                raise DataError("tokenizer: an added token has an empty name")
            if self._ids.setdefault(token.content, token.id) != token.id:
                raise DataError(
                    f"tokenizer: the added token {token.content!r} has id {token.id}, but the "
                    f"vocabulary holds it as id {self._ids[token.content]}; choose another name"
                )
            self._bytes[token.id] = _utf8(token.content)
        self._names = _dense(self._ids)
        self._special = {token.content: token.id for token in self._added if token.special}
        self._special_ids = frozenset(self._special.values())
        self._raw = AddedTokenSplitter({t.content: t for t in self._added if not t.normalized})
        self._normalized = AddedTokenSplitter(
            {self._normalize(t.content): t for t in self._added if t.normalized}
        )

    @property
    def vocab_size(self) -> int:
        """The number of ids, special tokens included: the rows that an embedding needs."""
        return len(self._names)

    @property
    def vocab(self) -> dict[str, int]:
        """Ids by name, special tokens included."""
        return dict(self._ids)

    @property
    def special_tokens(self) -> dict[str, int]:
        """The ids of the special tokens by name."""
        return dict(self._special)

    @property
    def dtype(self) -> np.dtype:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its name, None if there is none. In a BPE a space is spelt "Ġ"."""
        return self._ids.get(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The name of a token, None if there is no such id."""
        return self._names[token_id] if 0 <= token_id < self.vocab_size else None

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; they need not be whole characters."""
        return self._bytes[self._checked(token_id, "token_bytes")]

    def encode(self, text: str, *, allowed_special: str | Collection[str] = ()) -> list[int]:
        """The ids of a text. `decode` gives the text back.

        Raises DataError where the text holds what the vocabulary cannot express, or lone
        surrogates, which are no characters.
        """
        return list(self._encode(text, allowed_special))

    def encode_array(self, text: str, *, allowed_special: str | Collection[str] = ()) -> np.ndarray:
        """The ids of a text, shape (tokens,), of `dtype`: 2 or 4 bytes a token, for long texts."""
        return np.fromiter(self._encode(text, allowed_special), self.dtype)

    def encode_batch(
        self, texts: Iterable[str], *, allowed_special: str | Collection[str] = ()
    ) -> list[list[int]]:
        """The ids of each text."""
        if isinstance(texts, str):
            raise DataError("encode_batch: expected several texts, got one; write [text]")
        return [self.encode(text, allowed_special=allowed_special) for text in texts]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ids, a sequence or an array of one dimension. No id raises for its bytes.

        Raises DataError for an id outside the vocabulary.
        """
        skipped = self._special_ids if skip_special_tokens else ()
        tokens = self._bytes
        checked = self._checked_all(ids)
        data = b"".join(tokens[token_id] for token_id in checked if token_id not in skipped)
        return data.decode("utf-8", errors="replace")

    def decode_batch(
        self, batch: Iterable[Iterable[int]], *, skip_special_tokens: bool = False
    ) -> list[str]:
        """The text of each sequence of ids."""
        return [self.decode(ids, skip_special_tokens=skip_special_tokens) for ids in batch]

    def stream_decoder(self, *, skip_special_tokens: bool = False) -> "StreamDecoder":
        """A decoder for ids that arrive one at a time."""
        return StreamDecoder(self, skip_special_tokens=skip_special_tokens)

    def with_special_tokens(self, names: Sequence[str]) -> Self:
        """The same tokenizer with more special tokens, at the end: the other ids do not change."""
        spec = self._spec()
        more = added_tokens(names, self.vocab_size)
        return self._from_spec(replace(spec, added_tokens=(*spec.added_tokens, *more)))

    def save(self, path: str | os.PathLike) -> None:
        """Write tokenizer.json, whole or not at all. Hugging Face's tokenizers reads it too."""
        write_tokenizer_json(path, self._spec())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """A tokenizer of this class from a file. `minitorch.tokenizers.load` finds the class.

        Raises CheckpointError where the file is missing, damaged or of another kind.
        """
        return cls.restore(path, read_tokenizer_json(path))

    @classmethod
    def restore(cls, path: str | os.PathLike, spec: TokenizerSpec) -> Self:
        """A tokenizer of this class from what was read at `path`."""
        try:
            return cls._from_spec(spec)
        except DataError as error:
            raise CheckpointError(
                f"read {path}: {error}. The file is damaged, or of a kind that minitorch "
                "does not read"
            ) from error

    def __repr__(self) -> str:
        special = f", special_tokens={list(self._special)}" if self._special else ""
        return f"{type(self).__name__}(vocab_size={self.vocab_size}{special})"

    @abstractmethod
    def _encode_ordinary(self, text: str, start: int) -> Iterable[int]:
        """The ids of text without added tokens, which begins at `start` of the whole text."""

    @abstractmethod
    def _spec(self) -> TokenizerSpec: ...

    @classmethod
    @abstractmethod
    def _from_spec(cls, spec: TokenizerSpec) -> Self: ...

    def _normalize(self, text: str) -> str:
        return text

    def _encode(self, text: str, allowed_special: str | Collection[str]) -> Iterator[int]:
        if not isinstance(text, str):
            raise DataError(f"encode: expected str, got {type(text).__name__}; decode it first")
        _utf8(text)
        return chain.from_iterable(self._encode_parts(text, self._allowed(allowed_special)))

    def _encode_parts(self, text: str, allowed: frozenset[str]) -> Iterator[Iterable[int]]:
        for start, part in self._raw.split(text, allowed):
            if isinstance(part, AddedToken):
                yield (part.id,)
                continue
            for offset, inner in self._normalized.split(self._normalize(part), allowed):
                if isinstance(inner, AddedToken):
                    yield (inner.id,)
                else:
                    yield self._encode_ordinary(inner, start + offset)

    def _allowed(self, allowed_special: str | Collection[str]) -> frozenset[str]:
        if allowed_special == "all":
            return frozenset(self._special)
        if isinstance(allowed_special, str):
            raise DataError(
                f"encode: allowed_special is 'all' or a collection of names, got "
                f"{allowed_special!r}; write [{allowed_special!r}]"
            )
        allowed = frozenset(allowed_special)
        if unknown := allowed - self._special.keys():
            raise DataError(
                f"encode: allowed_special names {sorted(unknown)}; "
                f"the special tokens are {list(self._special)}"
            )
        return allowed

    def _checked(self, token_id: int, operation: str) -> int:
        try:
            number = index(token_id)
        except TypeError:
            raise DataError(f"{operation}: expected integer ids, got {token_id!r}") from None
        if not 0 <= number < self.vocab_size:
            raise DataError(
                f"{operation}: id {number} is outside this vocabulary of {self.vocab_size}. "
                "Was the model trained with another tokenizer, or its embedding padded? "
                "Then never sample ids beyond the vocabulary"
            )
        return number

    def _checked_all(self, ids: Iterable[int]) -> Iterator[int]:
        if hasattr(ids, "tolist"):
            ids = ids.tolist()
        if not isinstance(ids, Iterable):
            raise DataError(f"decode: expected a sequence of ids, got {ids!r}; write [{ids!r}]")
        return (self._checked(token_id, "decode") for token_id in ids)


class StreamDecoder:
    """Decodes ids one at a time, and holds bytes back until they are whole characters.

    The texts that come out, joined, are what `decode` gives for all ids at once.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = False):
        self._tokenizer = tokenizer
        self._skipped = frozenset(tokenizer.special_tokens.values() if skip_special_tokens else ())
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that this id completes: often its own, sometimes "", sometimes more."""
        data = self._tokenizer.token_bytes(token_id)
        return "" if token_id in self._skipped else self._utf8.decode(data)

    def finish(self) -> str:
        """What is left at the end: U+FFFD if a character was begun. Ready for another text."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"tokenizer: {text[error.start]!r} at position {error.start} is a lone surrogate, "
            "which is no character. Remove it: text.encode(errors='replace').decode()"
        ) from error


def _dense(ids: Mapping[str, int]) -> list[str]:
    """Names in the order of their ids, which must be 0, 1, 2, ... without holes or doubles."""
    names: list[str | None] = [None] * len(ids)
    for name, token_id in ids.items():
        if not 0 <= token_id < len(ids):
            raise DataError(
                f"tokenizer: token {name!r} has id {token_id}; {len(ids)} tokens "
                f"have the ids 0 to {len(ids) - 1}"
            )
        if names[token_id] is not None:
            raise DataError(
                f"tokenizer: {names[token_id]!r} and {name!r} have the same id {token_id}"
            )
        names[token_id] = name
    return names  # type: ignore[return-value]
