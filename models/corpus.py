"""From a source of text to token ids: the tokenizer, and what to train on and to validate with."""

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from minitorch.data import load_text, open_tokens, split_tokens
from minitorch.errors import ConfigError, DataError
from minitorch.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from minitorch.tokenizers import load as load_tokenizer
from models.config import TrainConfig


@dataclass(frozen=True)
class Corpus:
    """The tokens of a text in two parts, (count,) each, and the tokenizer that made them."""

    name: str
    tokenizer: Tokenizer
    train: np.ndarray
    validation: np.ndarray

    @property
    def unit(self) -> str:
        """What a token is, in a word."""
        kinds = {CharTokenizer: "character", ByteTokenizer: "byte"}
        return kinds.get(type(self.tokenizer), "token")

    @cached_property
    def tokens_per_byte(self) -> float:
        """Of the validation text in UTF-8: nats per token times this are nats per byte."""
        return len(self.validation) / len(self.tokenizer.decode(self.validation).encode())

    @cached_property
    def fingerprint(self) -> dict[str, int]:
        """Two texts that differ differ in this."""
        crc = zlib.crc32(self.validation.data, zlib.crc32(self.train.data))
        return {"tokens": len(self.train) + len(self.validation), "crc32": crc}


def prepare(config: TrainConfig, tokenizer: Path | None = None) -> Corpus:
    """Read the configured text, or token file, and cut it into tokens.

    A "bpe" tokenizer learns from the training part alone, the text without the last val_fraction
    of its characters: merges chosen with the validation text in view would flatter its loss. It
    spells what it has not seen in bytes. (An alphabet of characters is that of the whole text.)
    tokenizer: the file of one to use in place of what the configuration says: that of a run which
    goes on. Raises DataError where the text cannot be read, is too short, or holds what the
    tokenizer cannot express.
    """
    name = "the embedded corpus" if config.data == "embedded" else config.data
    source = Path(config.data)
    if source.is_file() and source.suffix == ".tokens":
        ids = open_tokens(source)
        chosen = load_tokenizer(tokenizer or _tokenizer_file(config, ids=True))
        if len(ids) and ids.max() >= chosen.vocab_size:
            raise DataError(
                f"data: {source} holds id {ids.max()}, but the tokenizer has {chosen.vocab_size} "
                "tokens; give the one that wrote it by --set tokenizer=FILE"
            )
    else:
        text = load_text(config.data)
        if config.tokenizer == "bpe":
            return _bpe_corpus(config, name, text, tokenizer)
        chosen = load_tokenizer(tokenizer) if tokenizer else _make_tokenizer(config, text)
        ids = chosen.encode_array(text)
    return Corpus(name, chosen, *split_tokens(ids, config.val_fraction, config.block_size))


def _bpe_corpus(config: TrainConfig, name: str, text: str, tokenizer: Path | None) -> Corpus:
    """The text is cut before there are tokens, so that the tokenizer learns from one part."""
    cut = len(text) - round(len(text) * config.val_fraction)
    if tokenizer:
        chosen = load_tokenizer(tokenizer)
    else:
        chosen = BPETokenizer.train(text[:cut], config.vocab_size)
    train, validation = (chosen.encode_array(part) for part in (text[:cut], text[cut:]))
    ids = np.concatenate([train, validation])
    fraction = len(validation) / max(len(ids), 1)
    return Corpus(name, chosen, *split_tokens(ids, fraction, config.block_size))


def _make_tokenizer(config: TrainConfig, text: str) -> Tokenizer:
    match config.tokenizer:
        case "char":
            return CharTokenizer.train(text)
        case "byte":
            return ByteTokenizer()
        case _:
            return load_tokenizer(_tokenizer_file(config))


def _tokenizer_file(config: TrainConfig, ids: bool = False) -> Path:
    path = Path(config.tokenizer)
    if not path.is_file():
        kinds = "" if ids else "char, byte, bpe or "
        raise ConfigError(
            f"tokenizer: expected {kinds}a tokenizer.json file; got {config.tokenizer!r}"
        )
    return path
