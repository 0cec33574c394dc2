"""Cutting a text into pieces, across whose borders no merge may reach.

Without it byte-pair encoding would spend its vocabulary on "dog.", "dog!" and "dog?", and encoding
would cost time in the length of the text instead of the length of a word.

The patterns speak of Unicode's classes: \\p{L} (letters), \\p{N} (numbers). Python's own `re` has
neither, which is why the `regex` library is used: it knows them, it searches at the speed of C,
and its tables are newer than the interpreter's. (Letters newer than the tables of another
implementation are cut differently there.)

Sources: GPT-2 (Radford et al. 2019), file encoder.py; cl100k_base of tiktoken (GPT-4).
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import regex

from minitorch.errors import DataError

GPT2_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d"  # English contractions, in small letters only
    r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"  # words, numbers, the rest, with the space before
    r"|\s+(?!\S)|\s+"  # white space; the last space before a word goes with the word
)
CL100K_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """What happens to a text before its bytes are merged, in the order of the fields.

    splits: regular expressions; what matches and what lies between matches become pieces.
    add_prefix_space: each piece then starts with a space, so that a first word is like any other.
    use_regex: GPT-2's pattern is applied last.
    """

    splits: tuple[str, ...] = ()
    add_prefix_space: bool = False
    use_regex: bool = True

    def __post_init__(self):
        for pattern in self.splits:
            _compile(pattern)

    def split(self, text: str) -> Iterable[str]:
        """The pieces of a text, in order, none empty. Together they are the text."""
        pieces: Iterable[str] = [text] if text else []
        for pattern in self.splits:
            pieces = _split_all(pattern, pieces)
        if self.add_prefix_space:
            pieces = (piece if piece.startswith(" ") else f" {piece}" for piece in pieces)
        if self.use_regex:
            pieces = _split_all(GPT2_PATTERN, pieces)
        return pieces


def _split_all(pattern: str, pieces: Iterable[str]) -> Iterator[str]:
    search = _compile(pattern).finditer
    for piece in pieces:
        end = 0
        for match in search(piece):
            start, stop = match.span()
            if end < start:
                yield piece[end:start]
            if start < stop:
                yield piece[start:stop]
            end = stop
        if end < len(piece):
            yield piece[end:]


@functools.lru_cache(maxsize=64)
def _compile(pattern: str) -> regex.Pattern:
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise DataError(f"pre-tokenizer: {pattern!r} is no regular expression: {error}") from error
