"""The file format tokenizer.json of Hugging Face's tokenizers library, as far as it is BPE.

    normalizer      null or NFC
    pre_tokenizer   null (characters), or Split/Digits stages that end in ByteLevel
    model           BPE: vocab {name: id}; merges ["a b", ...] or [["a", "b"], ...]
    added_tokens    [{content, id, special, lstrip, rstrip, single_word, normalized}, ...]
    decoder         follows from the pre_tokenizer
    post_processor  not applied: `encode` adds no tokens of its own. Reading one that does warns

All three tokenizers of minitorch are written as such a model: bytes are a BPE without merges, and
characters a BPE without merges whose alphabet is text itself. Whatever else a file asks for that
would change ids is an error, not ignored, and no field is believed before its type was checked.
Source: the serialization code of https://github.com/huggingface/tokenizers.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

import regex

from minitorch.errors import CheckpointError, DataError
from minitorch.io import read_json, write_json
from minitorch.tokenizers.added_tokens import AddedToken
from minitorch.tokenizers.pre_tokenizer import PreTokenizer


@dataclass(frozen=True)
class TokenizerSpec:
    """What a tokenizer.json says. pre_tokenizer is None where the tokens are characters."""

    vocab: Mapping[str, int]
    merges: tuple[tuple[str, str], ...] = ()
    added_tokens: tuple[AddedToken, ...] = ()
    pre_tokenizer: PreTokenizer | None = None
    nfc: bool = False
    ignore_merges: bool = False
    unk_token: str | None = None


def write_tokenizer_json(path: str | os.PathLike, spec: TokenizerSpec) -> None:
    """Write a tokenizer, whole or not at all."""
    added = sorted(spec.added_tokens, key=lambda token: token.id)
    write_json(
        path,
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [asdict(token) for token in added],
            "normalizer": {"type": "NFC"} if spec.nfc else None,
            "pre_tokenizer": _write_pre_tokenizer(spec.pre_tokenizer),
            "post_processor": None,
            "decoder": {"type": "Fuse"} if spec.pre_tokenizer is None else _byte_level(True, True),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": spec.unk_token,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": spec.ignore_merges,
                "vocab": dict(sorted(spec.vocab.items(), key=lambda item: item[1])),
                "merges": spec.merges,
            },
        },
    )


def _write_pre_tokenizer(pre_tokenizer: PreTokenizer | None) -> dict[str, Any] | None:
    if pre_tokenizer is None:
        return None
    last = _byte_level(pre_tokenizer.add_prefix_space, pre_tokenizer.use_regex)
    if not pre_tokenizer.splits:
        return last
    splits = [
        {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
        for split in pre_tokenizer.splits
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, last]}


def _byte_level(add_prefix_space: bool, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def read_tokenizer_json(path: str | os.PathLike) -> TokenizerSpec:
    """What a file says, every field checked for its type and for being understood here.

    Raises CheckpointError. Whether ids and merges fit together, the tokenizer's constructor checks.
    """
    try:
        root = _Object(read_json(path), "the file")
        model = root.object("model")
        if model.get("type", str, "BPE") != "BPE":
            _unsupported("model.type", model.get("type", str), "BPE")
        for name in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(name, str, None):
                _unsupported(f"model.{name}", model.get(name, str), "null")
        if model.get("dropout", float | int, None):
            _unsupported("model.dropout", model.get("dropout", float | int), "null")
        unk_token = model.get("unk_token", str, None)
        if unk_token is not None and model.get("fuse_unk", bool, False):
            _unsupported("model.fuse_unk", True, "false where there is an unk_token")
        if model.get("byte_fallback", bool, False):
            _unsupported("model.byte_fallback", True, "false (the bytes are tokens of their own)")
        spec = TokenizerSpec(
            vocab=_read_vocab(model),
            merges=tuple(map(_read_merge, model.get("merges", list))),
            added_tokens=tuple(map(_read_added, root.get("added_tokens", list, []))),
            pre_tokenizer=_read_pre_tokenizer(root),
            nfc=_read_normalizer(root),
            ignore_merges=model.get("ignore_merges", bool, False),
            unk_token=unk_token,
        )
        post_processor = _read_post_processor(root)
    except DataError as error:
        raise CheckpointError(
            f"read {path}: {error}. The file is damaged, or of a kind that minitorch does not read"
        ) from error
    if post_processor not in (None, "ByteLevel"):
        warnings.warn(
            f"{path}: its post_processor ({post_processor}) adds tokens around a text, which "
            "minitorch's encode never does; add them where the model needs them",
            stacklevel=3,
        )
    return spec


class _Object:
    """A JSON object whose fields are read with the type that they must have."""

    def __init__(self, value: Any, name: str):
        if not isinstance(value, dict):
            raise DataError(f"{name}: expected a JSON object, got {_shown(value)}")
        self._fields, self._name = value, name

    def get(self, key: str, kind: Any, *default: Any) -> Any:
        """The field, of type `kind`. A field that is absent or null takes the default, if any."""
        value = self._fields.get(key)
        if value is None and default:
            return default[0]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = getattr(kind, "__name__", kind)
            raise DataError(f"{self._name}: expected {key!r} as {wanted}, got {_shown(value)}")
        return value

    def object(self, key: str) -> "_Object":
        return _Object(self._fields.get(key), key)

    def has(self, key: str) -> bool:
        return self._fields.get(key) is not None


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:100]


def _unsupported(name: str, got: Any, expected: str) -> NoReturn:
    raise DataError(f"{name}: {_shown(got)} is not supported; expected {expected}")


def _read_vocab(model: _Object) -> dict[str, int]:
    vocab = model.get("vocab", dict)
    for name, token_id in vocab.items():
        if type(token_id) is not int:
            raise DataError(f"model.vocab: expected an id for {name!r}, got {_shown(token_id)}")
    return vocab


def _read_merge(merge: Any) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    match parts:
        case [str(left), str(right)]:
            return left, right
    raise DataError(f"model.merges: expected 'left right' or [left, right], got {_shown(merge)}")


def _read_added(value: Any) -> AddedToken:
    token = _Object(value, "added_tokens")
    kinds = {"content": str, "id": int}
    return AddedToken(
        **{
            field.name: token.get(field.name, kinds.get(field.name, bool))
            for field in fields(AddedToken)
        }
    )


def _read_normalizer(root: _Object) -> bool:
    """Whether the text is normalised to NFC."""
    if not root.has("normalizer"):
        return False
    normalizer = root.object("normalizer")
    stages = [normalizer]
    if normalizer.get("type", str) == "Sequence":
        stages = [_Object(s, "normalizers") for s in normalizer.get("normalizers", list)]
    for stage in stages:
        if stage.get("type", str) != "NFC":
            _unsupported("normalizer", stage.get("type", str), "NFC or null")
    return bool(stages)


def _read_pre_tokenizer(root: _Object) -> PreTokenizer | None:
    if not root.has("pre_tokenizer"):
        return None
    pre_tokenizer = root.object("pre_tokenizer")
    stages = [pre_tokenizer]
    if pre_tokenizer.get("type", str) == "Sequence":
        stages = [_Object(s, "pretokenizers") for s in pre_tokenizer.get("pretokenizers", list)]
    if not stages or stages[-1].get("type", str) != "ByteLevel":
        _unsupported("pre_tokenizer", [s.get("type", str) for s in stages], "ByteLevel at the end")
    return PreTokenizer(
        splits=tuple(map(_read_split, stages[:-1])),
        add_prefix_space=stages[-1].get("add_prefix_space", bool),
        use_regex=stages[-1].get("use_regex", bool, True),
    )


def _read_split(stage: _Object) -> str:
    """The regular expression of a stage that isolates what it matches."""
    match stage.get("type", str):
        case "Digits":
            return r"\p{N}" if stage.get("individual_digits", bool) else r"\p{N}+"
        case "Split":
            if (behavior := stage.get("behavior", str)) != "Isolated":
                _unsupported("pre_tokenizer.behavior", behavior, "Isolated")
            if stage.get("invert", bool):
                _unsupported("pre_tokenizer.invert", True, "false")
            pattern = stage.object("pattern")
            if pattern.has("String"):
                return regex.escape(pattern.get("String", str))
            return pattern.get("Regex", str)
        case kind:
            _unsupported("pre_tokenizer", kind, "Split, Digits or ByteLevel")


def _read_post_processor(root: _Object) -> str | None:
    return root.object("post_processor").get("type", str) if root.has("post_processor") else None
