"""Byte-level byte-pair encoding, the tokenizer of GPT-2, RoBERTa, Llama 3 and Qwen.

A text is cut into pieces (pre_tokenizer.py), a piece into its bytes, and then pairs of neighbours
are merged into longer tokens, in the order in which training learnt the merges (bpe_training.py).
As each byte is a token there is no text that cannot be written and no unknown token.

Encoding picks, of the pairs that are adjacent in a piece, the one of lowest rank, that is the merge
that was learnt first, not the most frequent pair and not the longest token; among equals the
leftmost. Sources: Sennrich et al. 2016; Radford et al. 2019 (bytes, and the cutting into pieces).
"""

import heapq
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Self

from minitorch.errors import ConfigError, DataError
from minitorch.tokenizers.added_tokens import AddedToken, added_tokens
from minitorch.tokenizers.bpe_training import learn_merges
from minitorch.tokenizers.byte_alphabet import ALPHABET, unspell
from minitorch.tokenizers.pre_tokenizer import PreTokenizer
from minitorch.tokenizers.tokenizer import Tokenizer
from minitorch.tokenizers.tokenizer_json import TokenizerSpec

_BASE = sorted(ALPHABET)  # GPT-2's order of the first 256 ids
_CACHED_PIECES = 2**16
_CACHED_LENGTH = 64  # characters; a longer piece is hardly ever met twice


class BPETokenizer(Tokenizer):
    """A vocabulary and the merges that make it. `BPETokenizer.train` learns both from a text.

    Ids: 256 bytes, then one token for each merge, then special tokens. Files of others may have
    another order. Names spell bytes in the visible alphabet of byte_alphabet.py: " the" is "Ġthe".
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        special_tokens: Sequence[str | AddedToken] = (),
        *,
        pre_tokenizer: PreTokenizer | None = None,
        nfc: bool = False,
        ignore_merges: bool = False,
        unk_token: str | None = None,
    ):
        """vocab: ids by name; merges: pairs of names, the first to be applied first.

        nfc: the text is brought into Unicode's composed form first; then `decode` returns that form
        of the text. ignore_merges: a piece that is a token is not taken apart (Llama 3).
        unk_token: stands for bytes that the vocabulary lacks; without it they are an error.
        Raises DataError where the ids are not 0, 1, 2, ..., or a merge is of or into no token.
        """
        self._nfc = nfc
        added = added_tokens(special_tokens, len(vocab))
        named = {token.content for token in added} | {unk_token}
        spelt = {i: name.encode() if name in named else unspell(name) for name, i in vocab.items()}
        super().__init__(vocab, spelt, added)
        if unk_token is not None and unk_token not in vocab:
            raise DataError(f"BPETokenizer: unk_token {unk_token!r} is not in the vocabulary")
        self._model_vocab = dict(vocab)
        self._merge_names = tuple(merges)
        self._merges = _ranked(self._merge_names, vocab)
        self._pre_tokenizer = PreTokenizer() if pre_tokenizer is None else pre_tokenizer
        self._unk_token = unk_token
        self._byte_ids = [vocab.get(char, vocab.get(unk_token or "")) for char in ALPHABET]
        self._check_special()
        self._ignore_merges = ignore_merges
        self._whole = (
            {data: i for i, data in spelt.items() if i not in self._special_ids}
            if ignore_merges
            else {}
        )
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (),
        *,
        min_frequency: int = 1,
        pre_tokenizer: PreTokenizer | None = None,
        nfc: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """Learn a vocabulary of `vocab_size` ids, special tokens included, from a text or several.

        It stays smaller where no pair is left that occurs `min_frequency` times. The texts are
        ordinary text: where they are documents, pass them one by one and no piece spans two.
        progress: called after each merge with (merges learnt, merges wanted).
        The same texts give the same merges as Hugging Face's BpeTrainer.
        """
        num_merges = vocab_size - len(_BASE) - len(special_tokens)
        if num_merges < 0:
            raise ConfigError(
                f"BPETokenizer.train: vocab_size {vocab_size} is too small for 256 bytes and "
                f"{len(special_tokens)} special tokens; take at least "
                f"{len(_BASE) + len(special_tokens)}"
            )
        pre_tokenizer = PreTokenizer() if pre_tokenizer is None else pre_tokenizer
        pieces: Counter[str] = Counter()
        for text in [texts] if isinstance(texts, str) else texts:
            pieces.update(pre_tokenizer.split(_nfc(text) if nfc else text))
        if not pieces:
            raise DataError("BPETokenizer.train: the text is empty; there is nothing to learn")
        base_ids = {unspell(char)[0]: i for i, char in enumerate(_BASE)}
        words = (
            ([base_ids[byte] for byte in _piece_bytes(piece)], count)
            for piece, count in pieces.items()
        )
        learnt = learn_merges(words, len(_BASE), num_merges, min_frequency, progress)
        names = list(_BASE)
        merges = []
        for left, right in learnt:
            merges.append((names[left], names[right]))
            names.append(names[left] + names[right])
        vocab = {name: i for i, name in enumerate(names)}
        return cls(vocab, merges, special_tokens, pre_tokenizer=pre_tokenizer, nfc=nfc)

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The merges by rank, as pairs of names."""
        return list(self._merge_names)

    def pieces(self, text: str) -> list[str]:
        """What a text is cut into before its bytes are merged."""
        return list(self._pre_tokenizer.split(self._normalize(text)))

    def _encode_ordinary(self, text: str, start: int) -> Iterable[int]:
        return chain.from_iterable(map(self._encode_piece, self._pre_tokenizer.split(text)))

    def _encode_piece(self, piece: str) -> list[int]:
        ids = self._cache.get(piece)
        if ids is None:
            data = piece.encode()
            if data in self._whole:
                ids = [self._whole[data]]
            else:
                ids = apply_merges([self._byte_id(byte) for byte in data], self._merges)
            if len(piece) <= _CACHED_LENGTH:
                if len(self._cache) >= _CACHED_PIECES:
                    self._cache.clear()
                self._cache[piece] = ids
        return ids

    def _byte_id(self, byte: int) -> int:
        token_id = self._byte_ids[byte]
        if token_id is None:
            raise DataError(
                f"BPETokenizer.encode: the vocabulary has no token for the byte 0x{byte:02X} "
                "and no unk_token. Train it with all 256 bytes "
                "(in the tokenizers library: initial_alphabet=ByteLevel.alphabet())"
            )
        return token_id

    def _check_special(self) -> None:
        """No special token may come out of ordinary text."""
        made = {result for _, result in self._merges.values()}
        made.update(self._ids[char] for char in ALPHABET if char in self._model_vocab)
        for name, token_id in self._special.items():
            if token_id in made:
                raise DataError(
                    f"BPETokenizer: the special token {name!r} is also a byte or the result of a "
                    "merge, so any text could contain it; choose another name"
                )

    def _normalize(self, text: str) -> str:
        return _nfc(text) if self._nfc else text

    def _spec(self) -> TokenizerSpec:
        return TokenizerSpec(
            self._model_vocab,
            self._merge_names,
            self._added,
            self._pre_tokenizer,
            nfc=self._nfc,
            ignore_merges=self._ignore_merges,
            unk_token=self._unk_token,
        )

    @classmethod
    def _from_spec(cls, spec: TokenizerSpec) -> Self:
        if spec.pre_tokenizer is None:
            raise DataError("BPETokenizer: expected a byte-level pre-tokenizer")
        return cls(
            spec.vocab,
            spec.merges,
            spec.added_tokens,
            pre_tokenizer=spec.pre_tokenizer,
            nfc=spec.nfc,
            ignore_merges=spec.ignore_merges,
            unk_token=spec.unk_token,
        )


def apply_merges(
    tokens: Sequence[int], merges: Mapping[tuple[int, int], tuple[int, int]]
) -> list[int]:
    """Merge the adjacent pair of lowest rank, the leftmost first, until no pair can be merged.

    merges: (rank, merged id) by pair of ids. The tokens are a linked list and the candidates a
    heap, so n tokens cost O(n log n), where looking for the best pair again and again costs O(n²).
    """
    end = len(tokens)
    ids = [*tokens, -1]  # -1 is in no pair: it ends the list, and marks what was merged away
    following = [*range(1, end + 1), end]
    preceding = [*range(-1, end)]  # index -1 is the mark at the end
    heap = [
        (found[0], left)
        for left, pair in enumerate(pairwise(tokens))
        if (found := merges.get(pair))
    ]
    heapq.heapify(heap)
    while heap:
        rank, left = heapq.heappop(heap)
        right = following[left]
        found = merges.get((ids[left], ids[right]))
        if found is None or found[0] != rank:
            continue  # one of the two was merged into something else meanwhile
        ids[left], ids[right] = found[1], -1
        following[left] = following[right]
        preceding[following[left]] = left
        for start in (preceding[left], left):
            if found := merges.get((ids[start], ids[following[start]])):
                heapq.heappush(heap, (found[0], start))
    return [token for token in ids if token >= 0]


def _ranked(
    merges: Sequence[tuple[str, str]], vocab: Mapping[str, int]
) -> dict[tuple[int, int], tuple[int, int]]:
    ranked: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, (left, right) in enumerate(merges):
        for name in (left, right, left + right):
            if name not in vocab:
                raise DataError(
                    f"BPETokenizer: merge {rank} is of {left!r} and {right!r}, but the vocabulary "
                    f"has no token {name!r}"
                )
        pair = vocab[left], vocab[right]
        if pair in ranked:
            raise DataError(f"BPETokenizer: merge {rank} of {left!r} and {right!r} is a repetition")
        ranked[pair] = rank, vocab[left + right]
    return ranked


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _piece_bytes(piece: str) -> bytes:
    try:
        return piece.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"BPETokenizer.train: {piece[error.start]!r} is a lone surrogate, which is no "
            "character. Remove it: text.encode(errors='replace').decode()"
        ) from error
