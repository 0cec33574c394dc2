"""Tokens that are no product of the vocabulary's own rules: <|endoftext|>, <|im_start|>, ...

They are cut out of a text before anything else sees it. A *special* token steers the model (the end
of a document, whose turn it is to speak), so its text means nothing in the words of a user: whoever
could type the token could also end the system's message. It is recognised only where the caller
allows it. The other added tokens are ordinary text that was given an id of its own.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import regex

_SPACES = regex.compile(r"\s*")
_WORD = regex.compile(r"\w")


@dataclass(frozen=True)
class AddedToken:
    """One added token. The fields are those of tokenizer.json.

    content: its text. id: its place in the vocabulary. special: see above.
    lstrip, rstrip: the white space before or after it belongs to it. single_word: not inside a
    word. normalized: looked for after the text was normalised instead of before.
    """

    content: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


def added_tokens(tokens: Sequence[str | AddedToken], first_id: int) -> tuple[AddedToken, ...]:
    """Names become special tokens, with ids that count from first_id; AddedTokens stay as is."""
    ids = itertools.count(first_id)
    return tuple(
        token if isinstance(token, AddedToken) else AddedToken(token, next(ids)) for token in tokens
    )


class AddedTokenSplitter:
    """Finds added tokens in a text: the leftmost first, the longest of those that begin there."""

    def __init__(self, tokens: Mapping[str, AddedToken]):
        """tokens: from the text that is looked for to the token that it stands for."""
        self._tokens = dict(tokens)
        self._patterns: dict[frozenset[str], regex.Pattern | None] = {}

    def split(
        self, text: str, allowed_special: frozenset[str]
    ) -> Iterator[tuple[int, str | AddedToken]]:
        """The text's parts in order, none empty: (where it starts, ordinary text or a token)."""
        pattern = self._pattern(allowed_special)
        end = 0
        for match in pattern.finditer(text) if pattern else ():
            token = self._tokens[match[0]]
            start, stop = match.span()
            if token.single_word and _inside_word(text, start, stop):
                continue
            if token.lstrip:
                start -= _SPACES.match(text[end:start][::-1]).end()
            if token.rstrip:
                stop = _SPACES.match(text, stop).end()
            if end < start:
                yield end, text[end:start]
            yield start, token
            end = stop
        if end < len(text):
            yield end, text[end:]

    def _pattern(self, allowed_special: frozenset[str]) -> regex.Pattern | None:
        if allowed_special not in self._patterns:
            names = [
                name
                for name, token in self._tokens.items()
                if not token.special or token.content in allowed_special
            ]
            names.sort(key=len, reverse=True)
            alternatives = "|".join(map(regex.escape, names))
            self._patterns[allowed_special] = regex.compile(alternatives) if names else None
        return self._patterns[allowed_special]


def _inside_word(text: str, start: int, stop: int) -> bool:
    before, after = text[max(start - 1, 0) : start], text[stop : stop + 1]
    return bool(_WORD.match(before) or _WORD.match(after))
