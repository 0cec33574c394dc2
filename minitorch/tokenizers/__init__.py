"""Text to token ids and back: bytes, characters, and byte-level byte-pair encoding."""

import os

from minitorch.tokenizers.added_tokens import AddedToken
from minitorch.tokenizers.bpe import BPETokenizer
from minitorch.tokenizers.byte import ByteTokenizer
from minitorch.tokenizers.char import CharTokenizer
from minitorch.tokenizers.pre_tokenizer import CL100K_PATTERN, GPT2_PATTERN, PreTokenizer
from minitorch.tokenizers.tokenizer import StreamDecoder, Tokenizer
from minitorch.tokenizers.tokenizer_json import read_tokenizer_json


def load(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer in a tokenizer.json file, whichever kind it is.

    The file may come from `Tokenizer.save` or from Hugging Face's tokenizers library, as long as it
    holds a byte-level BPE. Raises CheckpointError where it is missing, damaged or of another kind.
    """
    spec = read_tokenizer_json(path)
    if spec.pre_tokenizer is None:
        return CharTokenizer.restore(path, spec)
    if ByteTokenizer.describes(spec):
        return ByteTokenizer.restore(path, spec)
    return BPETokenizer.restore(path, spec)


__all__ = [
    "CL100K_PATTERN",
    "GPT2_PATTERN",
    "AddedToken",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "PreTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "load",
]
