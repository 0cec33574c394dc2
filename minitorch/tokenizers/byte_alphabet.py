"""A visible character for each byte, so that tokens can be written in JSON and read by people.

Bytes that are printable in Latin-1 stand for themselves; the others (control characters, the space,
the soft hyphen) take the characters from U+0100 on, in order: a space is "Ġ", a newline "Ċ".
Source: GPT-2's encoder.py (bytes_to_unicode); every byte-level BPE file spells its tokens so.
"""

from minitorch.errors import DataError

_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTABLE]

ALPHABET = [chr(b) if b in _PRINTABLE else chr(0x100 + _HIDDEN.index(b)) for b in range(256)]
"""The character of each byte."""

_BYTE_OF = {character: byte for byte, character in enumerate(ALPHABET)}


def unspell(name: str) -> bytes:
    """The bytes that a name in the visible alphabet spells."""
    try:
        return bytes(_BYTE_OF[character] for character in name)
    except KeyError as error:
        raise DataError(
            f"tokenizer: token {name!r} holds {error.args[0]!r}, which spells no byte; "
            "the vocabulary is not that of a byte-level BPE"
        ) from error
